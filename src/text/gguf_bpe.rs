//! Byte-level vocabularies of GGUF files: tokens, merges, and a pre-tokenizer given by its name.

use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::normalizers::NFC;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, PreTokenizerWrapper, SplitDelimiterBehavior};

use super::sentencepiece::TokenKind;

/// How text is cut into words before byte pairs are merged within each.
///
/// GGUF gives this as a name alone (`tokenizer.ggml.pre`). The expressions are those of the models'
/// own tokenizer.json, with the spelling of the names by llama.cpp.
#[derive(Debug, PartialEq)]
pub(crate) struct PreTokenizer {
    /// Applied one after the other, each to the pieces that the ones before have left.
    patterns: &'static [&'static str],
    /// Whether text is brought into Unicode's composed form first.
    composes: bool,
    /// Whether a word that is a token as a whole is left whole.
    pub(crate) ignores_merges: bool,
    /// Whether a text begins with the beginning-of-text token where the file does not say.
    pub(crate) adds_bos: bool,
}

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);
const QWEN2: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);
const TEKKEN: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);
const GPT4O: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);

impl PreTokenizer {
    /// Every name that [`Self::named`] knows.
    pub(crate) const NAMES: [&str; 17] = [
        "gpt-2",
        "phi-2",
        "smollm",
        "starcoder",
        "refact",
        "llama-bpe",
        "llama3",
        "llama-v3",
        "falcon3",
        "dbrx",
        "smaug-bpe",
        "qwen2",
        "deepseek-r1-qwen",
        "tekken",
        "gpt-4o",
        "llama4",
        "default",
    ];

    /// The pre-tokenizer of this name; `None` for one whose expressions are not known here.
    pub(crate) fn named(name: &str) -> Option<Self> {
        let plain =
            |patterns| Self { patterns, composes: false, ignores_merges: false, adds_bos: false };
        let llama3 = Self { ignores_merges: true, adds_bos: true, ..plain(&[LLAMA3]) };
        Some(match name {
            "gpt-2" | "phi-2" => plain(&[GPT2]),
            // Each digit alone.
            "smollm" | "starcoder" | "refact" => plain(&[r"\p{N}", GPT2]),
            "llama-bpe" | "llama3" | "llama-v3" | "falcon3" => llama3,
            "dbrx" | "smaug-bpe" => plain(&[LLAMA3]),
            "qwen2" => Self { composes: true, ..plain(&[QWEN2]) },
            "deepseek-r1-qwen" => plain(&[QWEN2]),
            "tekken" => Self { patterns: &[TEKKEN], ..llama3 },
            "gpt-4o" | "llama4" => plain(&[GPT4O]),
            // No model's own: what llama.cpp does with a file of this name.
            "default" => plain(&[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"]),
            _ => return None,
        })
    }

    fn build(&self) -> Result<PreTokenizerWrapper, String> {
        let mut steps = Vec::with_capacity(self.patterns.len() + 1);
        for pattern in self.patterns {
            let pattern = SplitPattern::Regex((*pattern).to_owned());
            let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false);
            steps.push(split.map_err(|error| error.to_string())?.into());
        }
        steps.push(ByteLevel::new(false, true, false).into());
        Ok(Sequence::new(steps).into())
    }
}

/// The tokenizer of a byte-level vocabulary; `tokens` and `kinds` have one entry per token.
pub(crate) fn byte_level(
    tokens: &[String],
    kinds: &[TokenKind],
    merges: &[String],
    pre: &PreTokenizer,
) -> Result<tokenizers::Tokenizer, String> {
    let vocab: Vocab = (0..).zip(tokens).map(|(id, token)| (token.clone(), id)).collect();
    let merges = pairs(merges, &vocab)?;
    let model = BPE::builder()
        .vocab_and_merges(vocab, merges)
        .ignore_merges(pre.ignores_merges)
        .build()
        .map_err(|error| error.to_string())?;
    let mut tokenizer = tokenizers::Tokenizer::new(model);
    if pre.composes {
        tokenizer.with_normalizer(Some(NFC)).map_err(|error| error.to_string())?;
    }
    tokenizer.with_pre_tokenizer(Some(pre.build()?));
    let added = tokens.iter().zip(kinds).filter_map(|(token, kind)| {
        let special = match kind {
            TokenKind::Control => true,
            TokenKind::UserDefined => false,
            TokenKind::Normal | TokenKind::Byte => return None,
        };
        Some(AddedToken::from(token.as_str(), special).normalized(false))
    });
    tokenizer.add_tokens(added).map_err(|error| error.to_string())?;
    Ok(tokenizer)
}

/// The two parts of each merge; they and what they make must be tokens, which the crate takes for
/// granted.
fn pairs(merges: &[String], vocab: &Vocab) -> Result<Merges, String> {
    let pair = |(index, merge): (usize, &String)| {
        let fail = |what: &str| Err(format!("tokenizer.ggml.merges[{index}], {merge:?}, {what}"));
        let Some((left, right)) = merge.split_once(' ') else {
            return fail("is not two tokens with a space between");
        };
        let known = |token: &str| vocab.contains_key(token);
        if !known(left) || !known(right) {
            return fail("joins what is no token");
        }
        if !known(&format!("{left}{right}")) {
            return fail("makes what is no token");
        }
        Ok((left.to_owned(), right.to_owned()))
    };
    merges.iter().enumerate().map(pair).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer as _};

    use super::*;

    /// The words of a text, in the stand-ins for bytes.
    fn words(name: &str, text: &str) -> Vec<String> {
        let mut pieces = PreTokenizedString::from(text);
        PreTokenizer::named(name).unwrap().build().unwrap().pre_tokenize(&mut pieces).unwrap();
        let splits = pieces.get_splits(OffsetReferential::Original, OffsetType::Byte);
        splits.into_iter().map(|(word, ..)| word.to_owned()).collect()
    }

    #[test]
    fn every_listed_name_is_known_and_its_expressions_are_valid() {
        for name in PreTokenizer::NAMES {
            assert!(PreTokenizer::named(name).is_some_and(|pre| pre.build().is_ok()), "{name}");
        }
        assert_eq!(PreTokenizer::named("deepseek-llm"), None);
        assert_eq!(PreTokenizer::named(""), None);
    }

    #[test]
    fn the_families_differ_where_they_should() {
        let text = "It'S 12345\n\n\tx";
        assert_eq!(words("gpt-2", text), ["It", "'", "S", "Ġ12345", "ĊĊ", "ĉ", "x"]);
        assert_eq!(words("llama-bpe", text), ["It", "'S", "Ġ", "123", "45", "ĊĊ", "ĉx"]);
        assert_eq!(words("qwen2", text), ["It", "'S", "Ġ", "1", "2", "3", "4", "5", "ĊĊ", "ĉx"]);
        assert_eq!(
            words("smollm", text),
            ["It", "'", "S", "Ġ", "1", "2", "3", "4", "5", "ĊĊ", "ĉ", "x"]
        );
        assert_eq!(words("default", text), ["It", "'", "S", "Ġ", "123", "45", "ĊĊ", "ĉ", "x"]);
        // Upper and lower case part, and a contraction stays with its word or does not.
        assert_eq!(
            words("tekken", "camelCase it's 12"),
            ["camel", "Case", "Ġit", "'s", "Ġ", "1", "2"]
        );
        assert_eq!(words("gpt-4o", "camelCase it's 12"), ["camel", "Case", "Ġit's", "Ġ", "12"]);
    }
}
