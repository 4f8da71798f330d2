//! How a vocabulary piece becomes bytes of text.

use std::borrow::Cow;
use std::collections::HashMap;

use serde_json::Value;

/// What turns the pieces of a vocabulary into text, read from the `decoder` of tokenizer.json.
///
/// The first two rules map each piece to bytes on its own, so text can be decoded piece by piece,
/// exactly and in linear time. They cover the Llama family; anything else is `Whole`.
#[derive(Debug)]
pub(crate) enum PieceRule {
    /// Every character of a piece stands for one byte (GPT-2, Llama 3, Qwen).
    ByteLevel(HashMap<char, u8>),
    /// SentencePiece (Llama 2, Mistral, Gemma, Phi-3): a marker stands for the space.
    Spaced(Spaced),
    /// Only the `tokenizers` crate knows; text depends on several pieces at once.
    Whole,
}

/// The rule of SentencePiece vocabularies.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Spaced {
    /// (marker, what it stands for), applied in order.
    replacements: Vec<(String, String)>,
    /// A piece such as `<0xE4>` is one byte.
    byte_fallback: bool,
    /// A character removed from the start of a text, and how many times at most.
    strip: Option<(u8, usize)>,
}

impl PieceRule {
    /// Reads the `decoder` object of a tokenizer.json; what is not recognised is `Whole`.
    pub(crate) fn from_decoder(decoder: &Value) -> Self {
        match decoder["type"].as_str() {
            Some("ByteLevel") => Self::ByteLevel(byte_level_alphabet()),
            Some("Sequence") => match decoder["decoders"].as_array().map(Vec::as_slice) {
                Some([only]) => Self::from_decoder(only),
                Some(steps) => Spaced::from_steps(steps).map_or(Self::Whole, Self::Spaced),
                None => Self::Whole,
            },
            _ => Self::Whole,
        }
    }

    /// The bytes of one piece; `None` where only whole sequences can be decoded.
    pub(crate) fn bytes<'a>(&self, piece: &'a str) -> Option<Cow<'a, [u8]>> {
        match self {
            Self::ByteLevel(alphabet) => {
                // An added token is plain text and may hold characters outside the alphabet.
                let mapped: Option<Vec<u8>> =
                    piece.chars().map(|c| alphabet.get(&c).copied()).collect();
                Some(mapped.map_or(Cow::Borrowed(piece.as_bytes()), Cow::Owned))
            }
            Self::Spaced(rule) => Some(rule.bytes(piece)),
            Self::Whole => None,
        }
    }

    /// Which character is removed from the start of a text, and how many times at most.
    pub(crate) fn strip(&self) -> Option<(u8, usize)> {
        match self {
            Self::Spaced(rule) => rule.strip,
            _ => None,
        }
    }
}

impl Spaced {
    /// Accepts exactly `Replace* ByteFallback? Fuse? Strip?`, the order SentencePiece models use.
    fn from_steps(steps: &[Value]) -> Option<Self> {
        let mut rule = Self::default();
        let mut steps = steps.iter().peekable();
        while let Some(step) = steps.next_if(|step| step["type"] == "Replace") {
            let marker = step["pattern"]["String"].as_str().filter(|s| !s.is_empty())?;
            let text = step["content"].as_str()?;
            rule.replacements.push((marker.to_owned(), text.to_owned()));
        }
        rule.byte_fallback = steps.next_if(|step| step["type"] == "ByteFallback").is_some();
        let fused = steps.next_if(|step| step["type"] == "Fuse").is_some();
        if let Some(strip) = steps.next_if(|step| step["type"] == "Strip" && fused) {
            let [byte] = strip["content"].as_str()?.as_bytes() else { return None };
            if strip["stop"] != 0 {
                return None;
            }
            rule.strip = Some((*byte, usize::try_from(strip["start"].as_u64()?).ok()?));
        }
        steps.next().is_none().then_some(rule)
    }

    fn bytes<'a>(&self, piece: &'a str) -> Cow<'a, [u8]> {
        let mut text = Cow::Borrowed(piece);
        for (marker, replacement) in &self.replacements {
            if text.contains(marker.as_str()) {
                text = Cow::Owned(text.replace(marker.as_str(), replacement));
            }
        }
        if let Some(byte) = self.byte_fallback.then(|| fallback_byte(&text)).flatten() {
            return Cow::Owned(vec![byte]);
        }
        match text {
            Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
            Cow::Owned(text) => Cow::Owned(text.into_bytes()),
        }
    }
}

/// `<0xE4>` is the byte 0xE4.
fn fallback_byte(piece: &str) -> Option<u8> {
    let digits = piece.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() != 2 || digits.starts_with('+') {
        return None;
    }
    u8::from_str_radix(digits, 16).ok()
}

/// GPT-2's printable stand-ins: the visible Latin-1 characters are themselves, the other bytes are
/// the characters from U+0100 on, in order.
fn byte_level_alphabet() -> HashMap<char, u8> {
    let visible = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let invisible = (0..=u8::MAX).filter(|&byte| !visible(byte));
    let mut alphabet: HashMap<char, u8> =
        (0..=u8::MAX).filter(|&byte| visible(byte)).map(|byte| (char::from(byte), byte)).collect();
    alphabet.extend(('\u{100}'..).zip(invisible));
    alphabet
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_byte_alphabet_names_every_byte_once() {
        let alphabet = byte_level_alphabet();
        let mut bytes: Vec<u8> = alphabet.values().copied().collect();
        bytes.sort_unstable();
        assert_eq!(bytes, (0..=u8::MAX).collect::<Vec<_>>());
        assert_eq!(alphabet[&'Ġ'], b' ');
        assert_eq!(alphabet[&'Ċ'], b'\n');
    }

    #[test]
    fn sentencepiece_decoders_are_recognised_and_others_are_left_whole() {
        let replace = json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "});
        let (fallback, fuse) = (json!({"type": "ByteFallback"}), json!({"type": "Fuse"}));
        let strip = json!({"type": "Strip", "content": " ", "start": 1, "stop": 0});
        let sequence = |steps: &[&Value]| json!({"type": "Sequence", "decoders": steps});

        let llama = PieceRule::from_decoder(&sequence(&[&replace, &fallback, &fuse, &strip]));
        assert_eq!(llama.strip(), Some((b' ', 1)));
        assert_eq!(llama.bytes("▁a▁b").as_deref(), Some(b" a b".as_slice()));
        assert_eq!(llama.bytes("<0xE4>").as_deref(), Some([0xE4].as_slice()));
        assert_eq!(llama.bytes("<0x+4>").as_deref(), Some(b"<0x+4>".as_slice()));

        let gemma = PieceRule::from_decoder(&sequence(&[&replace, &fallback, &fuse]));
        assert_eq!(gemma.strip(), None);

        for whole in [
            sequence(&[&replace, &fallback, &strip]),
            sequence(&[&fallback, &replace]),
            json!({"type": "WordPiece"}),
            Value::Null,
        ] {
            assert!(matches!(PieceRule::from_decoder(&whole), PieceRule::Whole), "{whole}");
        }
    }
}
