//! [`SentencePiece`]: a SentencePiece vocabulary of the byte-pair kind, given as pieces and scores.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap, HashSet};

use super::written_tokens::WrittenTokens;

/// Stands for the space in every piece.
const SPACE_MARK: &str = "▁";

/// What a token of a vocabulary is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TokenKind {
    /// A piece of text.
    Normal,
    /// Steers the model and has no text of its own: `<s>`, `<|im_end|>`, `<unk>`.
    Control,
    /// Text that is one token wherever it is written.
    UserDefined,
    /// One byte, written `<0x0A>`.
    Byte,
}

/// Cuts text as SentencePiece's byte-pair model does: of all neighbours whose concatenation is a
/// piece, the pair that makes the piece of the highest score is joined first, the leftmost of
/// equals.
///
/// This is not the same as a list of merges: the order is by what comes out and not by what goes
/// in, and a part need not be a piece itself.
#[derive(Debug)]
pub(crate) struct SentencePiece {
    pieces: Vec<String>,
    ids: HashMap<String, u32>,
    kinds: Vec<TokenKind>,
    scores: Vec<f32>,
    max_piece_len: usize,
    /// The token of each byte, for characters that no piece has.
    bytes: Vec<Option<u32>>,
    unknown: Option<u32>,
    written: WrittenTokens,
    space_prefix: bool,
}

/// What a [`SentencePiece`] is made of; the vectors have one entry per token.
pub(crate) struct Pieces {
    pub pieces: Vec<String>,
    pub kinds: Vec<TokenKind>,
    pub scores: Vec<f32>,
    pub unknown: Option<u32>,
    /// Whether a space is put before a text that begins without one.
    pub space_prefix: bool,
    /// The tokens that take the whitespace after them in.
    pub strip_after: HashSet<u32>,
}

impl SentencePiece {
    pub(crate) fn new(given: Pieces) -> Self {
        let Pieces { pieces, kinds, scores, unknown, space_prefix, strip_after } = given;
        let ids: HashMap<String, u32> = (0..).zip(&pieces).map(|(id, p)| (p.clone(), id)).collect();
        let byte_id = |byte: u8| ids.get(&format!("<0x{byte:02X}>")).copied();
        let written = pieces
            .iter()
            .zip(&kinds)
            .zip(0..)
            .filter(|((_, kind), _)| matches!(kind, TokenKind::Control | TokenKind::UserDefined))
            .map(|((piece, _), id)| (piece.clone(), id));
        Self {
            bytes: (0..=u8::MAX).map(byte_id).collect(),
            written: WrittenTokens::new(written, strip_after),
            max_piece_len: pieces.iter().map(String::len).max().unwrap_or(0),
            pieces,
            ids,
            kinds,
            // Zeros of both signs are one score.
            scores: scores.into_iter().map(|score| score + 0.0).collect(),
            unknown,
            space_prefix,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.pieces.len()
    }

    pub(crate) fn id(&self, piece: &str) -> Option<u32> {
        self.ids.get(piece).copied()
    }

    pub(crate) fn piece(&self, id: u32) -> Option<&str> {
        self.pieces.get(id as usize).map(String::as_str)
    }

    /// The tokens of `text`; the error is a character that has none.
    pub(crate) fn encode(&self, text: &str) -> Result<Vec<u32>, char> {
        let mut ids = Vec::new();
        let mut rest = text;
        let mut at_start = true;
        while !rest.is_empty() {
            let (before, found) = self.written.find(rest);
            if !before.is_empty() {
                self.encode_plain(before, at_start, &mut ids)?;
            }
            let Some((id, after)) = found else { break };
            ids.push(id);
            at_start = true;
            rest = after;
        }
        Ok(ids)
    }

    /// Text without special tokens; `at_start` where nothing or a special token comes before.
    fn encode_plain(&self, text: &str, at_start: bool, ids: &mut Vec<u32>) -> Result<(), char> {
        let prefix = if at_start && self.space_prefix { SPACE_MARK } else { "" };
        let text = format!("{prefix}{}", text.replace(' ', SPACE_MARK));
        let mut after_unknown = false;
        for part in self.merge(&text) {
            if let Some(id) = self.text_piece(part) {
                ids.push(id);
                after_unknown = false;
                continue;
            }
            let bytes: Option<Vec<u32>> =
                part.bytes().map(|byte| self.bytes[usize::from(byte)]).collect();
            match (bytes, self.unknown) {
                (Some(bytes), _) => {
                    ids.extend(bytes);
                    after_unknown = false;
                }
                // A run of unknown characters is one token.
                (None, Some(unknown)) => {
                    if !after_unknown {
                        ids.push(unknown);
                    }
                    after_unknown = true;
                }
                (None, None) => {
                    return Err(part.chars().next().unwrap_or(char::REPLACEMENT_CHARACTER));
                }
            }
        }
        Ok(())
    }

    /// The piece that text may become: no text becomes a control token or a byte.
    fn text_piece(&self, text: &str) -> Option<u32> {
        let id = *self.ids.get(text)?;
        let kind = self.kinds[id as usize];
        matches!(kind, TokenKind::Normal | TokenKind::UserDefined).then_some(id)
    }

    /// Cuts the text into characters and joins neighbours for as long as two make a piece.
    fn merge<'a>(&self, text: &'a str) -> Vec<&'a str> {
        let mut chain = Chain::new(text);
        let mut queue = BinaryHeap::new();
        for left in 1..chain.links.len() {
            queue.extend(self.joint(text, &chain, left - 1));
        }
        while let Some(joint) = queue.pop() {
            if !chain.is_current(&joint) {
                continue;
            }
            let previous = chain.join(joint.left);
            queue.extend(previous.and_then(|previous| self.joint(text, &chain, previous)));
            queue.extend(self.joint(text, &chain, joint.left));
        }
        chain.parts(text)
    }

    /// The piece that a link and the next one make together, if they make one.
    fn joint(&self, text: &str, chain: &Chain, left: usize) -> Option<Joint> {
        let link = &chain.links[left];
        let right = link.next?;
        let len = link.len + chain.links[right].len;
        if len > self.max_piece_len {
            return None;
        }
        let id = self.text_piece(&text[link.start..link.start + len])?;
        Some(Joint { score: self.scores[id as usize], left, right, len })
    }
}

/// Two neighbours that may be joined.
#[derive(Debug)]
struct Joint {
    score: f32,
    left: usize,
    right: usize,
    /// Bytes of both, by which a joint is known to be out of date.
    len: usize,
}

impl Ord for Joint {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Joint {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Joint {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Joint {}

/// A text as a list of parts, of which neighbours are joined.
struct Chain {
    links: Vec<Link>,
}

struct Link {
    start: usize,
    /// Bytes; 0 once the part belongs to one on its left.
    len: usize,
    previous: Option<usize>,
    next: Option<usize>,
}

impl Chain {
    /// One link for each character.
    fn new(text: &str) -> Self {
        let mut links: Vec<Link> = text
            .char_indices()
            .enumerate()
            .map(|(index, (start, c))| Link {
                start,
                len: c.len_utf8(),
                previous: index.checked_sub(1),
                next: Some(index + 1),
            })
            .collect();
        if let Some(last) = links.last_mut() {
            last.next = None;
        }
        Self { links }
    }

    fn is_current(&self, joint: &Joint) -> bool {
        let (left, right) = (&self.links[joint.left], &self.links[joint.right]);
        left.len > 0 && right.len > 0 && left.len + right.len == joint.len
    }

    /// Joins a link and the next one; gives back the link before it.
    fn join(&mut self, left: usize) -> Option<usize> {
        if let Some(right) = self.links[left].next {
            let len = std::mem::take(&mut self.links[right].len);
            let next = self.links[right].next;
            self.links[left].len += len;
            self.links[left].next = next;
            if let Some(next) = next {
                self.links[next].previous = Some(left);
            }
        }
        self.links[left].previous
    }

    fn parts<'a>(&self, text: &'a str) -> Vec<&'a str> {
        let live = self.links.iter().filter(|link| link.len > 0);
        live.map(|link| &text[link.start..link.start + link.len]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pieces of text with their scores, after `<unk>`, which is token 0.
    fn model(pieces: &[(&str, f32)], space_prefix: bool) -> SentencePiece {
        let texts = ["<unk>"].into_iter().chain(pieces.iter().map(|(piece, _)| *piece));
        let byte = |piece: &str| {
            if piece.starts_with("<0x") { TokenKind::Byte } else { TokenKind::Normal }
        };
        SentencePiece::new(Pieces {
            kinds: [TokenKind::Control]
                .into_iter()
                .chain(pieces.iter().map(|(p, _)| byte(p)))
                .collect(),
            pieces: texts.map(str::to_owned).collect(),
            scores: [0.0].into_iter().chain(pieces.iter().map(|(_, score)| *score)).collect(),
            unknown: Some(0),
            space_prefix,
            strip_after: HashSet::new(),
        })
    }

    fn cut<'a>(model: &'a SentencePiece, text: &str) -> Vec<&'a str> {
        let ids = model.encode(text).unwrap_or_default();
        ids.into_iter().filter_map(|id| model.piece(id)).collect()
    }

    #[test]
    fn the_best_piece_is_made_first_and_not_the_leftmost_or_the_longest() {
        let letters = [("a", -9.0), ("b", -9.0), ("c", -9.0)];
        let with = |more: &[(&'static str, f32)]| model(&[&letters, more].concat(), false);
        assert_eq!(cut(&with(&[("ab", -1.0), ("bc", -2.0)]), "abc"), ["ab", "c"]);
        assert_eq!(cut(&with(&[("ab", -2.0), ("bc", -1.0)]), "abc"), ["a", "bc"]);
        // A piece is in reach only through two neighbours that are there, however high its score.
        assert_eq!(cut(&with(&[("ab", -1.0), ("bc", -2.0), ("abc", 5.0)]), "abc"), ["abc"]);
        assert_eq!(cut(&with(&[("abc", 5.0)]), "abc"), ["a", "b", "c"]);
    }

    #[test]
    fn of_equal_scores_the_leftmost_pair_is_joined_whatever_its_parts_are() {
        let letters = [("a", -9.0), ("b", -9.0), ("c", -9.0)];
        let equal = [("ab", -1.0), ("bc", -1.0)];
        assert_eq!(
            cut(&model(&[&letters[..], &equal].concat(), false), "abcbc"),
            ["ab", "c", "bc"]
        );
        let runs = [("x", -9.0), ("a", -9.0), ("xa", -1.0), ("aa", -2.0), ("aaa", -3.0)];
        assert_eq!(cut(&model(&runs, false), "aaaa"), ["aa", "aa"]);
        assert_eq!(cut(&model(&runs, false), "aaaaa"), ["aa", "aaa"]);
        assert_eq!(cut(&model(&runs, false), "xaaaaaa"), ["xa", "aa", "aaa"]);
        assert_eq!(cut(&model(&[("a", 0.0), ("aa", -0.0)], false), "aaa"), ["aa", "a"]);
    }

    #[test]
    fn a_part_of_a_piece_need_not_be_a_piece() {
        let pair = model(&[("日本", -1.0), ("▁", -2.0)], false);
        assert_eq!(pair.encode("日本 日"), Ok(vec![1, 2, 0]));
    }

    #[test]
    fn what_has_no_piece_becomes_bytes_or_is_unknown() {
        let bytes: Vec<String> = (0..=255u8).map(|byte| format!("<0x{byte:02X}>")).collect();
        let pieces: Vec<(&str, f32)> = bytes.iter().map(|byte| (byte.as_str(), 0.0)).collect();
        assert_eq!(model(&pieces, false).encode("é\n"), Ok(vec![1 + 0xC3, 1 + 0xA9, 1 + 0x0A]));
        assert_eq!(model(&[("a", 0.0)], false).encode("日本a語"), Ok(vec![0, 1, 0]));
        let mut nothing = model(&[("a", 0.0)], false);
        nothing.unknown = None;
        assert_eq!(nothing.encode("a日"), Err('日'));
    }

    #[test]
    fn text_never_becomes_a_byte_token_or_a_control_token_by_joining() {
        let byte =
            [("<0x0", -1.0), ("A", -1.0), (">", -1.0), ("<", -1.0), ("0", -1.0), ("x", -1.0)];
        let more = [("<0", -1.0), ("<0x", -1.0), ("A>", -1.0), ("<0x0A>", 0.0)];
        let mut model = model(&[&byte[..], &more].concat(), false);
        model.kinds[1] = TokenKind::Normal;
        model.kinds[7] = TokenKind::Normal;
        model.kinds[8] = TokenKind::Normal;
        assert_eq!(cut(&model, "<0x0A>"), ["<0x0", "A>"]);
    }

    #[test]
    fn a_space_is_put_before_a_text_and_after_a_special_token() {
        let model = model(&[("▁", -1.0), ("a", -2.0), ("▁a", -3.0)], true);
        assert_eq!(cut(&model, "a"), ["▁a"]);
        assert_eq!(cut(&model, " a"), ["▁", "▁a"]);
        assert_eq!(cut(&model, "a<unk>a<unk>"), ["▁a", "<unk>", "▁a", "<unk>"]);
        assert_eq!(model.encode(""), Ok(vec![]));
    }
}
