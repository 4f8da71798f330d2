//! [`WrittenTokens`]: the special tokens that a text spells out.

use std::collections::{HashMap, HashSet};

/// Tokens that are recognised in a text as they are written, before anything else is cut: the
/// leftmost first, and of those that begin there the longest.
#[derive(Debug)]
pub(crate) struct WrittenTokens {
    ids: HashMap<String, u32>,
    /// By first byte: how long the tokens are that begin with it, longest first.
    lengths: Vec<Vec<usize>>,
    /// The tokens that take the whitespace after them in.
    strip_after: HashSet<u32>,
}

impl WrittenTokens {
    pub(crate) fn new(
        tokens: impl Iterator<Item = (String, u32)>,
        strip_after: HashSet<u32>,
    ) -> Self {
        let ids: HashMap<String, u32> = tokens.filter(|(text, _)| !text.is_empty()).collect();
        let mut lengths = vec![Vec::new(); 256];
        for text in ids.keys() {
            lengths[usize::from(text.as_bytes()[0])].push(text.len());
        }
        for lengths in &mut lengths {
            lengths.sort_unstable_by(|a, b| b.cmp(a));
            lengths.dedup();
        }
        Self { ids, lengths, strip_after }
    }

    /// The text before the first of the tokens; and that token with the text after it.
    pub(crate) fn find<'a>(&self, text: &'a str) -> (&'a str, Option<(u32, &'a str)>) {
        for (start, &byte) in text.as_bytes().iter().enumerate() {
            for &len in &self.lengths[usize::from(byte)] {
                // `None` too where the range would cut a character.
                let Some(&id) = text.get(start..start + len).and_then(|token| self.ids.get(token))
                else {
                    continue;
                };
                let after = &text[start + len..];
                let strips = self.strip_after.contains(&id);
                let after = if strips { after.trim_start() } else { after };
                return (&text[..start], Some((id, after)));
            }
        }
        (text, None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_written_tokens_the_leftmost_and_there_the_longest_is_found() {
        let tokens = [("<a>", 1), ("<a><b>", 2), ("<b>", 3), ("é", 4), ("", 5)];
        let owned = tokens.iter().map(|(text, id)| ((*text).to_owned(), *id));
        let written = WrittenTokens::new(owned, HashSet::from([3]));
        assert_eq!(written.find("x<a><b>y"), ("x", Some((2, "y"))));
        assert_eq!(written.find("<a>é"), ("", Some((1, "é"))));
        assert_eq!(written.find("ðé"), ("ð", Some((4, ""))));
        assert_eq!(written.find("<b> \n\u{A0}z"), ("", Some((3, "z"))));
        assert_eq!(written.find("<a"), ("<a", None));
    }
}
