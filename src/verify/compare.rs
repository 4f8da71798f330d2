use std::fmt;

use crate::{FinishReason, TokenLogprobs};

/// What one completion gave.
#[derive(Debug, Clone, PartialEq)]
pub struct Observation {
    /// Its tokens.
    pub tokens: Vec<u32>,
    /// One for each token, or none at all.
    pub logprobs: Vec<TokenLogprobs>,
    /// Logits of the prompt, `[prompt tokens * vocab]`, or nothing.
    pub prompt_logits: Vec<f32>,
    /// Why it ended.
    pub finish_reason: FinishReason,
}

impl Observation {
    /// The part from the given token on, without the prompt's.
    pub(super) fn from(&self, first: usize) -> Self {
        Self {
            tokens: self.tokens[first..].to_vec(),
            logprobs: self.logprobs.get(first..).unwrap_or_default().to_vec(),
            prompt_logits: Vec::new(),
            finish_reason: self.finish_reason.clone(),
        }
    }
}

/// Where a completion left the expected path.
#[derive(Debug, Clone, PartialEq)]
pub struct Divergence {
    /// Number of the comparison, from 0.
    pub case: usize,
    /// Which token of the completion.
    pub index: usize,
    /// What it had to be, if it had not ended.
    pub expected: Option<u32>,
    /// What it was.
    pub found: Option<u32>,
    /// How much more likely the expected one was, in nats, where that is known.
    pub margin: Option<f32>,
}

impl fmt::Display for Divergence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let token = |token: Option<u32>| token.map_or("the end".to_owned(), |id| id.to_string());
        let (expected, found) = (token(self.expected), token(self.found));
        write!(f, "case {} token {}: {found} for {expected}", self.case, self.index)?;
        match self.margin {
            Some(margin) => write!(f, " (margin {margin:.1e})"),
            None => Ok(()),
        }
    }
}

/// What comparing completions found.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Comparison {
    /// Completions that were compared.
    pub completions: usize,
    /// Numbers that were compared: prompt logits and log-probabilities.
    pub values: usize,
    /// Numbers whose bits differ.
    pub different_bits: usize,
    /// Largest absolute difference of two numbers; infinite if one is no number.
    pub max_difference: f32,
    /// The first completion whose tokens differ.
    pub divergence: Option<Divergence>,
    /// Completions whose tokens differ.
    pub diverged: usize,
}

impl Comparison {
    /// Whether all tokens are equal, and all numbers are: in their bits, or within `tolerance`.
    pub fn holds(&self, tolerance: Option<f32>) -> bool {
        self.diverged == 0
            && match tolerance {
                Some(tolerance) => self.max_difference <= tolerance,
                None => self.different_bits == 0,
            }
    }

    /// Compares all completions of one request.
    pub fn add_request(&mut self, expected: &[Observation], found: &[Observation]) {
        for (index, expected) in expected.iter().enumerate() {
            match found.get(index) {
                Some(found) => self.add(expected, found),
                None => self.diverge(0, expected.tokens.first().copied(), None, None),
            }
        }
    }

    /// Compares two completions. Numbers count only where both have them, and only up to the first
    /// token that differs: after it the sequences are not the same.
    pub fn add(&mut self, expected: &Observation, found: &Observation) {
        if !expected.prompt_logits.is_empty() && !found.prompt_logits.is_empty() {
            if expected.prompt_logits.len() == found.prompt_logits.len() {
                for (a, b) in expected.prompt_logits.iter().zip(&found.prompt_logits) {
                    self.number(*a, *b);
                }
            } else {
                self.max_difference = f32::INFINITY;
                self.different_bits += 1;
            }
        }
        let len = expected.tokens.len().max(found.tokens.len());
        for index in 0..len {
            let (a, b) = (expected.tokens.get(index), found.tokens.get(index));
            let logprobs = expected.logprobs.get(index);
            if let (Some(a), Some(b)) = (logprobs, found.logprobs.get(index)) {
                self.logprobs(a, b);
            }
            if a != b {
                let margin = logprobs.zip(b).and_then(|(logprobs, found)| {
                    let other = logprobs.top.iter().find(|(token, _)| token == found)?;
                    Some(logprobs.logprob - other.1)
                });
                self.diverge(index, a.copied(), b.copied(), margin);
                break;
            }
        }
        self.completions += 1;
    }

    fn diverge(
        &mut self,
        index: usize,
        expected: Option<u32>,
        found: Option<u32>,
        margin: Option<f32>,
    ) {
        self.diverged += 1;
        let case = self.completions;
        self.divergence.get_or_insert(Divergence { case, index, expected, found, margin });
    }

    /// The most likely tokens of both, matched by token: the order of nearly equal ones may differ.
    fn logprobs(&mut self, a: &TokenLogprobs, b: &TokenLogprobs) {
        if a.token == b.token {
            self.number(a.logprob, b.logprob);
        }
        for (token, value) in &a.top {
            if let Some((_, other)) = b.top.iter().find(|(other, _)| other == token) {
                self.number(*value, *other);
            }
        }
    }

    fn number(&mut self, a: f32, b: f32) {
        self.values += 1;
        if a.to_bits() != b.to_bits() {
            self.different_bits += 1;
            let difference = if a == b { 0.0 } else { (a - b).abs() };
            let difference = if difference.is_nan() { f32::INFINITY } else { difference };
            self.max_difference = self.max_difference.max(difference);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn observation(tokens: &[u32], logprob: f32) -> Observation {
        let one = |&token| TokenLogprobs { token, logprob, top: vec![(7, logprob - 0.5)] };
        Observation {
            tokens: tokens.to_vec(),
            logprobs: tokens.iter().map(one).collect(),
            prompt_logits: Vec::new(),
            finish_reason: FinishReason::Length,
        }
    }

    #[test]
    fn equal_completions_hold_in_their_bits() {
        let mut comparison = Comparison::default();
        comparison.add(&observation(&[1, 2], -1.0), &observation(&[1, 2], -1.0));
        assert!(comparison.holds(None));
        assert_eq!(comparison.values, 4);
    }

    #[test]
    fn a_small_difference_holds_within_its_tolerance_only() {
        let mut comparison = Comparison::default();
        comparison.add(&observation(&[1], -1.0), &observation(&[1], -1.0001));
        assert!(comparison.holds(Some(2e-4)));
        assert!(!comparison.holds(Some(2e-5)) && !comparison.holds(None));
        comparison.add(&observation(&[1], -1.0), &observation(&[1], f32::NAN));
        assert_eq!(comparison.max_difference, f32::INFINITY);
    }

    #[test]
    fn the_first_diverging_token_is_named() {
        let mut comparison = Comparison::default();
        comparison.add(&observation(&[1, 2], -1.0), &observation(&[1, 2], -1.0));
        comparison.add(&observation(&[1, 2], -1.0), &observation(&[1, 7], -1.0));
        comparison.add(&observation(&[1, 2], -1.0), &observation(&[1], -1.0));
        assert!(!comparison.holds(Some(1.0)));
        assert_eq!(comparison.diverged, 2);
        let message = comparison.divergence.unwrap().to_string();
        assert_eq!(message, "case 1 token 1: 7 for 2 (margin 5.0e-1)");
    }
}
