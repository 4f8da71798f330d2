use std::collections::HashMap;

/// Which tokens a sequence has seen, and how often it generated each: what penalties need to know.
///
/// Built once from the prompt; each generated token costs one hash map update.
///
/// ```
/// use engine_core::sampling::TokenHistory;
///
/// let mut history = TokenHistory::from_prompt(&[1, 5, 5]);
/// history.push(5);
/// history.push(9);
/// assert!(history.contains(1));
/// assert_eq!(history.num_generated(1), 0);
/// assert_eq!(history.num_generated(5), 1);
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenHistory {
    /// Of each token seen, in the prompt or since: how often it was generated.
    generated: HashMap<u32, u32>,
}

impl TokenHistory {
    /// The history of a sequence that has its prompt and nothing else.
    pub fn from_prompt(prompt: &[u32]) -> Self {
        Self { generated: prompt.iter().map(|&token| (token, 0)).collect() }
    }

    /// Counts one generated token.
    pub fn push(&mut self, token: u32) {
        let count = self.generated.entry(token).or_insert(0);
        *count = count.saturating_add(1);
    }

    /// Whether `token` is in the prompt or was generated.
    pub fn contains(&self, token: u32) -> bool {
        self.generated.contains_key(&token)
    }

    /// How often `token` was generated; the prompt does not count.
    pub fn num_generated(&self, token: u32) -> u32 {
        self.generated.get(&token).copied().unwrap_or(0)
    }

    /// Each distinct token seen with how often it was generated, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        self.generated.iter().map(|(&token, &count)| (token, count))
    }
}
