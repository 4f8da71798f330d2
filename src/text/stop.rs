//! [`StopMatcher`]: ends a text before the first stop string.

/// Watches a text for stop strings as it arrives.
///
/// A stop string is found wherever the text is cut into pieces. Only text that may be the
/// beginning of a stop string is held back. The stop string that is complete first wins, of two
/// that end at the same place the longer one.
///
/// ```
/// use engine::StopMatcher;
///
/// let mut stop = StopMatcher::new(["\n\n", "User:"], false)?;
/// assert_eq!(stop.push("Hello. Us").text, "Hello. ");
/// let step = stop.push("er: and more");
/// assert_eq!((step.text.as_str(), step.matched.as_deref()), ("", Some("User:")));
/// # Ok::<(), engine::StopError>(())
/// ```
#[derive(Clone, Debug)]
pub struct StopMatcher {
    patterns: Vec<Pattern>,
    include_stop: bool,
    /// Text not emitted yet: the longest ending that begins a stop string.
    held: String,
    stopped: bool,
}

/// What one more piece of text led to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StopStep {
    /// Text that may be shown.
    pub text: String,
    /// The stop string that was found; the text ends here.
    pub matched: Option<String>,
}

/// Why stop strings are refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StopError {
    /// It would stop every text before it begins.
    #[error("stop string {index} is empty; leave it out")]
    Empty {
        /// Its place in the list, from 0.
        index: usize,
    },
}

/// One stop string with its Knuth-Morris-Pratt automaton.
#[derive(Clone, Debug)]
struct Pattern {
    text: String,
    /// `fallback[n]`: how much still matches when the byte after the first `n` differs.
    fallback: Vec<usize>,
    /// How many bytes of the pattern the text seen so far ends with.
    matched_len: usize,
}

impl Pattern {
    fn new(text: String) -> Self {
        let bytes = text.as_bytes();
        let mut fallback = vec![0; bytes.len() + 1];
        let mut len = 0;
        for end in 1..bytes.len() {
            while len > 0 && bytes[end] != bytes[len] {
                len = fallback[len];
            }
            len += usize::from(bytes[end] == bytes[len]);
            fallback[end + 1] = len;
        }
        Self { text, fallback, matched_len: 0 }
    }

    /// Whether the pattern is complete with this byte.
    fn advance(&mut self, byte: u8) -> bool {
        let bytes = self.text.as_bytes();
        while self.matched_len > 0 && bytes[self.matched_len] != byte {
            self.matched_len = self.fallback[self.matched_len];
        }
        self.matched_len += usize::from(bytes[self.matched_len] == byte);
        self.matched_len == bytes.len()
    }
}

impl StopMatcher {
    /// Watches for any of `stops`; none is fine and holds nothing back. With `include_stop` the
    /// text ends after the stop string instead of before it.
    ///
    /// # Errors
    /// When a stop string is empty.
    pub fn new<S: Into<String>>(
        stops: impl IntoIterator<Item = S>,
        include_stop: bool,
    ) -> Result<Self, StopError> {
        let mut patterns = Vec::new();
        for (index, stop) in stops.into_iter().enumerate() {
            let stop = stop.into();
            if stop.is_empty() {
                return Err(StopError::Empty { index });
            }
            patterns.push(Pattern::new(stop));
        }
        Ok(Self { patterns, include_stop, held: String::new(), stopped: false })
    }

    /// Takes the next piece of text and returns what may be shown. After a match everything that
    /// follows is dropped.
    pub fn push(&mut self, text: &str) -> StopStep {
        if self.stopped {
            return StopStep::default();
        }
        for (offset, &byte) in text.as_bytes().iter().enumerate() {
            let Some(matched) = self.advance(byte) else { continue };
            self.stopped = true;
            // Stop strings and chunks begin and end between characters, and so does a match.
            self.held.push_str(&text[..=offset]);
            if !self.include_stop {
                self.held.truncate(self.held.len() - matched.len());
            }
            return StopStep { text: std::mem::take(&mut self.held), matched: Some(matched) };
        }
        self.held.push_str(text);
        let hold_len = self.patterns.iter().map(|p| p.matched_len).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - hold_len);
        StopStep { text: std::mem::replace(&mut self.held, rest), matched: None }
    }

    /// What was held back, when no text follows.
    pub fn finish(&mut self) -> String {
        for pattern in &mut self.patterns {
            pattern.matched_len = 0;
        }
        std::mem::take(&mut self.held)
    }

    /// The longest stop string that this byte completes.
    fn advance(&mut self, byte: u8) -> Option<String> {
        let mut longest: Option<&str> = None;
        for pattern in &mut self.patterns {
            if pattern.advance(byte) && longest.is_none_or(|l| l.len() < pattern.text.len()) {
                longest = Some(&pattern.text);
            }
        }
        longest.map(str::to_owned)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The definition: the first end at which a stop string is complete, of these the longest.
    fn naive(text: &str, stops: &[String], include: bool) -> (String, Option<String>) {
        for end in 1..=text.len() {
            let seen = &text.as_bytes()[..end];
            let found = stops.iter().filter(|stop| seen.ends_with(stop.as_bytes()));
            if let Some(stop) = found.max_by_key(|stop| stop.len()) {
                let cut = if include { end } else { end - stop.len() };
                return (text[..cut].to_owned(), Some(stop.clone()));
            }
        }
        (text.to_owned(), None)
    }

    fn run(chunks: &[String], stops: &[String], include: bool) -> (String, Option<String>) {
        let mut matcher = StopMatcher::new(stops.to_vec(), include).unwrap();
        let (mut text, mut matched) = (String::new(), None);
        for chunk in chunks {
            let step = matcher.push(chunk);
            text += &step.text;
            matched = matched.or(step.matched);
        }
        text += &matcher.finish();
        (text, matched)
    }

    #[test]
    fn holds_back_only_what_may_become_a_stop() {
        let mut matcher = StopMatcher::new(["<|end|>"], false).unwrap();
        assert_eq!(matcher.push("a<|en").text, "a");
        assert_eq!(matcher.push("ter> <").text, "<|enter> ");
        assert_eq!(matcher.finish(), "<");
    }

    #[test]
    fn text_after_a_stop_is_dropped() {
        let mut matcher = StopMatcher::new(["b"], true).unwrap();
        assert_eq!(matcher.push("abc"), StopStep { text: "ab".into(), matched: Some("b".into()) });
        assert_eq!(matcher.push("def"), StopStep::default());
        assert_eq!(matcher.finish(), "");
    }

    #[test]
    fn an_empty_stop_string_is_refused() {
        assert_eq!(StopMatcher::new(["a", ""], false).err(), Some(StopError::Empty { index: 1 }));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn equals_a_search_in_the_whole_text(
            chunks in prop::collection::vec("[abé🙂]{0,4}", 0..12),
            stops in prop::collection::vec("[abé🙂]{1,5}", 0..4),
            include: bool,
        ) {
            let expected = naive(&chunks.concat(), &stops, include);
            prop_assert_eq!(run(&chunks, &stops, include), expected);
        }

        #[test]
        fn holds_back_the_longest_beginning_of_a_stop_and_no_more(
            text in "[ab]{0,12}",
            stops in prop::collection::vec("[ab]{2,6}", 1..3),
        ) {
            let mut matcher = StopMatcher::new(stops.clone(), false).unwrap();
            let step = matcher.push(&text);
            if step.matched.is_some() {
                return Ok(());
            }
            let begins = |end: &str| stops.iter().any(|stop| stop.starts_with(end));
            let held = (0..=text.len()).map(|at| &text[at..]).find(|end| begins(end));
            let finished = matcher.finish();
            prop_assert_eq!(Some(finished.as_str()), held);
        }
    }
}
