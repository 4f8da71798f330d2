//! The tokenizers of real models against recorded encodings, and text from tokens one at a time.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use engine::{Detokenizer, Tokenizer, TokenizerError};
use proptest::prelude::*;
use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Deserialize)]
struct Fixture {
    tokenizer: String,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    text: String,
    ids: Vec<u32>,
    ids_with_special: Vec<u32>,
    tokens: Vec<String>,
    decoded: String,
    decoded_skip_special: String,
}

fn data(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(path)
}

/// Every tokenizer of the test data, by name.
static TOKENIZERS: LazyLock<BTreeMap<String, Tokenizer>> = LazyLock::new(|| {
    let mut dirs = vec![data("models/stories260K")];
    for entry in fs::read_dir(data("tokenizers")).unwrap() {
        let dir = entry.unwrap().path();
        if dir.join("tokenizer.json").is_file() {
            dirs.push(dir);
        }
    }
    let name = |dir: &Path| dir.file_name().unwrap().to_str().unwrap().to_owned();
    dirs.iter().map(|dir| (name(dir), Tokenizer::load(dir).unwrap())).collect()
});

#[test]
fn recorded_encodings_and_decodings_are_reproduced() {
    let mut num_cases = 0;
    for (name, tokenizer) in TOKENIZERS.iter() {
        let path = data(&format!("fixtures/tokenizers/{name}.json"));
        let fixture: Fixture = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        assert!(fixture.tokenizer.contains(name.as_str()), "{path:?} is for another tokenizer");
        for case in &fixture.cases {
            let text = &case.text;
            assert_eq!(tokenizer.encode(text, false).unwrap(), case.ids, "{name}: {text:?}");
            let with_special = tokenizer.encode(text, true).unwrap();
            assert_eq!(with_special, case.ids_with_special, "{name}: {text:?}");
            let pieces: Vec<_> =
                case.ids.iter().map(|&id| tokenizer.id_to_piece(id).unwrap()).collect();
            // A recorded token that takes in the whitespace after it is listed with it.
            assert_eq!(pieces.len(), case.tokens.len(), "{name}: {text:?}");
            for (piece, token) in pieces.iter().zip(&case.tokens) {
                assert!(piece == token || piece == token.trim_end(), "{name}: {text:?}");
            }
            let decoded = tokenizer.decode(&case.ids, false).unwrap();
            assert_eq!(decoded, case.decoded, "{name}: {text:?}");
            let decoded = tokenizer.decode(&case.ids, true).unwrap();
            assert_eq!(decoded, case.decoded_skip_special, "{name}: {text:?}");
            num_cases += 1;
        }
    }
    assert_eq!((TOKENIZERS.len(), num_cases), (7, 316));
}

#[test]
fn vectors_of_llama_cpp_are_reproduced() {
    for (vectors, name) in [("gpt-2", "gpt2"), ("phi-3", "phi-3-mini"), ("qwen2", "qwen2.5")] {
        let file = |extension: &str| {
            let path =
                data(&format!("fixtures/tokenizers/llamacpp/ggml-vocab-{vectors}.{extension}"));
            fs::read_to_string(path).unwrap()
        };
        let inputs = file("inp");
        let texts: Vec<&str> = inputs.split_terminator("\n__ggml_vocab_test__\n").collect();
        let outputs = file("out");
        let lines: Vec<&str> = outputs.lines().collect();
        assert_eq!(texts.len(), lines.len(), "{vectors}");
        assert!(texts.len() >= 45, "{vectors}: {} texts", texts.len());
        for (text, line) in texts.iter().zip(lines) {
            let ids: Vec<u32> = line.split_whitespace().map(|id| id.parse().unwrap()).collect();
            assert_eq!(TOKENIZERS[name].encode(text, false).unwrap(), ids, "{name}: {text:?}");
        }
    }
}

#[test]
fn names_and_ids_of_tokens_agree() {
    let stories = &TOKENIZERS["stories260K"];
    assert_eq!((stories.bos_id(), stories.eos_id()), (Some(1), Some(2)));
    assert_eq!(stories.vocab_size(), 512);
    assert!(!stories.has_chat_template());
    assert!(stories.is_special(1) && !stories.is_special(403));

    // The end token is an added token, known from tokenizer_config.json as text alone.
    let qwen = &TOKENIZERS["qwen2.5"];
    assert_eq!((qwen.bos_id(), qwen.eos_id()), (None, Some(151_645)));
    assert_eq!(qwen.token_id("<|im_start|>"), Some(151_644));
    assert!(qwen.has_chat_template());

    for (name, tokenizer) in TOKENIZERS.iter() {
        for id in (0..tokenizer.vocab_size() as u32).step_by(97) {
            let Some(piece) = tokenizer.id_to_piece(id) else { continue };
            assert_eq!(tokenizer.token_id(&piece), Some(id), "{name}: {piece:?}");
        }
        assert_eq!(tokenizer.id_to_piece(u32::MAX), None);
        assert_eq!(tokenizer.decode(&[u32::MAX], true).unwrap(), "", "{name}");
    }
}

#[test]
fn a_space_at_the_start_belongs_to_the_continuation_but_not_to_a_text() {
    for name in ["stories260K", "phi-3-mini"] {
        let tokenizer = &TOKENIZERS[name];
        let ids = tokenizer.encode("a time", false).unwrap();
        let (all, _) = stream(tokenizer, &[], &ids, true);
        assert_eq!(all, "a time", "{name}: nothing comes before");
        let (all, _) = stream(tokenizer, &[1], &ids, true);
        assert_eq!(all, "a time", "{name}: only a special token comes before");
        let prompt = tokenizer.encode("Once upon", true).unwrap();
        let (all, _) = stream(tokenizer, &prompt, &ids, true);
        assert_eq!(all, " a time", "{name}: text comes before");
    }
}

#[test]
fn a_character_of_several_tokens_appears_once_it_is_complete() {
    let gpt2 = &TOKENIZERS["gpt2"];
    let ids = gpt2.encode("🙂", false).unwrap();
    assert!(ids.len() > 1);
    let (text, deltas) = stream(gpt2, &[], &ids, true);
    assert_eq!(text, "🙂");
    assert!(deltas[..ids.len() - 1].iter().all(String::is_empty), "{deltas:?}");

    // Byte-fallback pieces: 你 is E4 BD A0.
    let phi = &TOKENIZERS["phi-3-mini"];
    let byte = |name: &str| phi.token_id(name).unwrap();
    let (e4, bd, a0, ff) = (byte("<0xE4>"), byte("<0xBD>"), byte("<0xA0>"), byte("<0xFF>"));
    let (_, deltas) = stream(phi, &[], &[e4, bd, a0, ff, e4, bd], true);
    assert_eq!(deltas, ["", "", "你", "\u{FFFD}", "", "", "\u{FFFD}"]);
}

#[test]
fn half_a_character_in_the_prompt_is_completed_by_the_answer() {
    let phi = &TOKENIZERS["phi-3-mini"];
    let bytes = ["<0xE4>", "<0xBD>", "<0xA0>"].map(|name| phi.token_id(name).unwrap());
    assert_eq!(stream(phi, &bytes[..2], &bytes[2..], true).0, "你");
}

/// Everything the detokenizer says, together and call by call; the last entry is `finish`.
fn stream(
    tokenizer: &Tokenizer,
    prompt: &[u32],
    ids: &[u32],
    skip_special: bool,
) -> (String, Vec<String>) {
    let mut detokenizer = Detokenizer::new(tokenizer, prompt, skip_special).unwrap();
    let mut deltas: Vec<String> = ids.iter().map(|&id| detokenizer.push(id).unwrap()).collect();
    deltas.push(detokenizer.finish().unwrap());
    (deltas.concat(), deltas)
}

fn any_tokenizer() -> impl Strategy<Value = &'static Tokenizer> {
    let all: Vec<&'static Tokenizer> = TOKENIZERS.values().collect();
    prop::sample::select(all)
}

/// Ids from all over the vocabulary, and some from its byte pieces and from beyond its end.
fn any_ids(len: impl Into<prop::collection::SizeRange>) -> impl Strategy<Value = Vec<u32>> {
    let id = prop_oneof![4 => 0..2100u32, 2 => 3..260u32, 2 => 0..160_000u32, 1 => any::<u32>()];
    prop::collection::vec(id, len)
}

/// Text with characters of one to four bytes, combining marks, joined emojis and odd spaces.
fn any_text() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        "[a-zA-Z0-9 .,!?']{1,8}",
        "[一-龥ぁ-んア-ン가-힣]{1,4}",
        "[\u{1F300}-\u{1F6FF}]{1,2}",
        Just("👩\u{200D}👩\u{200D}👧\u{FE0F}".to_owned()),
        Just("e\u{301}\u{323}n\u{303}".to_owned()),
        "[\n\t\r \u{A0}\u{3000}]{1,3}",
        any::<char>().prop_map(String::from),
    ];
    prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}

/// The definition: bytes of all pieces together, then text.
fn decode_by_bytes(tokenizer: &Tokenizer, ids: &[u32], skip_special: bool) -> String {
    let spaced = tokenizer.id_to_piece(3).as_deref() == Some("<0x00>");
    let alphabet = visible_bytes();
    let mut bytes = Vec::new();
    for &id in ids {
        let Some(piece) = tokenizer.id_to_piece(id) else { continue };
        if skip_special && tokenizer.is_special(id) {
            continue;
        }
        let hex = piece.strip_prefix("<0x").and_then(|p| p.strip_suffix('>'));
        if spaced && let Some(byte) = hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            bytes.push(byte);
        } else if spaced {
            bytes.extend(piece.replace('▁', " ").into_bytes());
        } else if piece.chars().all(|c| alphabet.contains_key(&c)) {
            bytes.extend(piece.chars().map(|c| alphabet[&c]));
        } else {
            bytes.extend(piece.into_bytes());
        }
    }
    let start = usize::from(spaced && bytes.first() == Some(&b' '));
    String::from_utf8_lossy(&bytes[start..]).into_owned()
}

/// The characters that stand for bytes, read off what gpt2's first 256 pieces are.
fn visible_bytes() -> BTreeMap<char, u8> {
    let order = (b'!'..=b'~').chain(0xA1..=0xAC).chain(0xAE..=0xFF);
    let rest = (0..=b' ').chain(0x7F..=0xA0).chain([0xAD]);
    let piece = |id| TOKENIZERS["gpt2"].id_to_piece(id).unwrap().chars().next().unwrap();
    order.chain(rest).zip(0..256).map(|(byte, id)| (piece(id), byte)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn deltas_make_up_the_decoded_text(
        tokenizer in any_tokenizer(), ids in any_ids(0..40), skip_special: bool,
    ) {
        let (text, _) = stream(tokenizer, &[], &ids, skip_special);
        prop_assert_eq!(&text, &tokenizer.decode(&ids, skip_special).unwrap());
        prop_assert_eq!(&text, &decode_by_bytes(tokenizer, &ids, skip_special));
    }

    #[test]
    fn deltas_after_a_prompt_make_up_the_rest_of_the_text(
        tokenizer in any_tokenizer(), prompt in any_text(), ids in any_ids(0..30), skip: bool,
    ) {
        let mut all = tokenizer.encode(&prompt, true).unwrap();
        let before = tokenizer.decode(&all, skip).unwrap();
        let (text, _) = stream(tokenizer, &all, &ids, skip);
        all.extend(&ids);
        let whole = tokenizer.decode(&all, skip).unwrap();
        prop_assert_eq!(Some(text.as_str()), whole.strip_prefix(&before));
    }

    #[test]
    fn text_survives_token_by_token(tokenizer in any_tokenizer(), text in any_text()) {
        let ids = tokenizer.encode(&text, false).unwrap();
        let whole = tokenizer.decode(&ids, false).unwrap();
        let (streamed, deltas) = stream(tokenizer, &[], &ids, false);
        prop_assert_eq!(&streamed, &whole);
        // Nothing is held back but a character that is not complete.
        let mut shown = String::new();
        for (end, delta) in (1..).zip(&deltas[..ids.len()]) {
            shown += delta;
            let held = tokenizer.decode(&ids[..end], false).unwrap().split_off(shown.len());
            prop_assert!(held.is_empty() || held == "\u{FFFD}", "{held:?} after {shown:?}");
        }
    }
}

/// A tokenizer.json around the given model and decoder, as small as they come.
fn save(dir: &Path, decoder: &Value, vocab: &[&str], config: Option<&Value>) {
    let vocab: BTreeMap<&str, usize> = vocab.iter().copied().zip(0..).collect();
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": null, "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": null,
        "decoder": decoder,
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "vocab": vocab,
            "continuing_subword_prefix": "##", "max_input_chars_per_word": 100},
    });
    fs::write(dir.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    if let Some(config) = config {
        fs::write(dir.join("tokenizer_config.json"), config.to_string()).unwrap();
    }
}

#[test]
fn decoders_that_see_neighbours_stream_as_well() {
    let vocab = ["[UNK]", "un", "##believ", "##able", "news", "▁Hey", "▁you", "there"];
    let word_piece = json!({"type": "WordPiece", "prefix": "##", "cleanup": false});
    let metaspace =
        json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true});
    for (decoder, ids) in [
        (word_piece, [1, 2, 3, 4, 1, 2, 3, 4, 4]),
        (metaspace, [5, 6, 7, 5, 5, 6, 7, 7, 6]),
        (Value::Null, [1, 4, 7, 1, 4, 7, 1, 4, 7]),
    ] {
        let dir = tempfile::tempdir().unwrap();
        save(dir.path(), &decoder, &vocab, None);
        let tokenizer = Tokenizer::load(dir.path()).unwrap();
        let whole = tokenizer.decode(&ids, true).unwrap();
        for split in 0..=ids.len() {
            let (prompt, answer) = ids.split_at(split);
            let before = tokenizer.decode(prompt, true).unwrap();
            let (text, _) = stream(&tokenizer, prompt, answer, true);
            assert_eq!(format!("{before}{text}"), whole, "{decoder}, split at {split}");
        }
    }
}

#[test]
fn special_tokens_are_named_by_text_or_object_or_in_the_map() {
    let dir = tempfile::tempdir().unwrap();
    let config = json!({"bos_token": {"content": "a", "lstrip": false}});
    save(dir.path(), &Value::Null, &["[UNK]", "a", "b"], Some(&config));
    let map = json!({"eos_token": "b", "bos_token": "b"}).to_string();
    fs::write(dir.path().join("special_tokens_map.json"), map).unwrap();
    let tokenizer = Tokenizer::load(dir.path()).unwrap();
    assert_eq!((tokenizer.bos_id(), tokenizer.eos_id()), (Some(1), Some(2)));
}

#[test]
fn what_is_missing_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let message = |dir: &Path| Tokenizer::load(dir).unwrap_err().to_string();
    let gone = dir.path().join("gone");
    assert!(matches!(Tokenizer::load(&gone), Err(TokenizerError::NoDirectory { .. })));
    assert!(message(&gone).contains("no such directory"));

    let text = message(dir.path());
    assert!(text.contains("no tokenizer.json") && text.contains("copy tokenizer.json"), "{text}");
    fs::write(dir.path().join("tokenizer.model"), b"x").unwrap();
    let text = message(dir.path());
    assert!(text.contains("tokenizer.model (SentencePiece)"), "{text}");
    assert!(text.contains("save_pretrained"), "{text}");
}

#[test]
fn broken_files_are_errors_that_name_the_file() {
    let source = fs::read_to_string(data("models/stories260K/tokenizer.json")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokenizer.json");
    let mut broken: Vec<Vec<u8>> = ["", "{}", "[1]", "null", "{\"model\": {}}", "\u{0}"]
        .iter()
        .map(|text| text.as_bytes().to_vec())
        .collect();
    broken.extend((1..12).map(|part| source.as_bytes()[..source.len() * part / 12].to_vec()));
    broken.push(source.replace("\"merges\"", "\"merge\"").into_bytes());
    broken.push(source.replace("\\\\A +", "(((").into_bytes());
    broken.push(source.replacen("\"▁ t", "\"▁ nowhere", 1).into_bytes());
    for bytes in broken {
        fs::write(&path, &bytes).unwrap();
        match Tokenizer::load(dir.path()) {
            Err(TokenizerError::Malformed { path: named, .. }) => assert_eq!(named, path),
            other => {
                panic!("{:?}: {other:?}", String::from_utf8_lossy(&bytes[..bytes.len().min(60)]))
            }
        }
    }
    fs::write(&path, &source).unwrap();
    fs::write(dir.path().join("tokenizer_config.json"), "{\"bos_token\":").unwrap();
    let error = Tokenizer::load(dir.path()).unwrap_err().to_string();
    assert!(error.contains("tokenizer_config.json"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn damaged_files_never_panic(at in any::<prop::sample::Index>(), byte: u8, len in 0usize..40) {
        let mut bytes = fs::read(data("models/stories260K/tokenizer.json")).unwrap();
        let at = at.index(bytes.len());
        let end = (at + len).min(bytes.len());
        bytes.splice(at..end, [byte]);
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("tokenizer.json"), bytes).unwrap();
        if let Ok(tokenizer) = Tokenizer::load(dir.path()) {
            let ids = tokenizer.encode("Once upon <s> 🙂", true).unwrap_or_default();
            let _ = tokenizer.decode(&ids, true);
        }
    }
}

/// The `at`-th value inside `value`, in writing order.
fn nth_value<'a>(value: &'a mut Value, at: &mut usize) -> Option<&'a mut Value> {
    if *at == 0 {
        return Some(value);
    }
    *at -= 1;
    match value {
        Value::Array(items) => items.iter_mut().find_map(|item| nth_value(item, at)),
        Value::Object(entries) => entries.values_mut().find_map(|item| nth_value(item, at)),
        _ => None,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn values_of_the_wrong_kind_never_panic(at in 0usize..160, kind in 0usize..7) {
        let source = fs::read(data("models/stories260K/tokenizer.json")).unwrap();
        let mut tokenizer: Value = serde_json::from_slice(&source).unwrap();
        // Of the long lists a few entries stand for all.
        tokenizer["model"]["merges"].as_array_mut().unwrap().truncate(20);
        let kinds =
            [json!(null), json!(-1), json!(1e300), json!(""), json!([]), json!({}), json!([[0]])];
        if let Some(value) = nth_value(&mut tokenizer, &mut at.clone()) {
            *value = kinds[kind].clone();
        }
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
        if let Ok(tokenizer) = Tokenizer::load(dir.path()) {
            let ids = tokenizer.encode("Once upon <s> 🙂", true).unwrap_or_default();
            let _ = tokenizer.decode(&ids, true);
        }
    }
}

#[test]
fn threads_may_share_a_tokenizer() {
    fn shareable<T: Send + Sync + Clone>() {}
    shareable::<Tokenizer>();
}
