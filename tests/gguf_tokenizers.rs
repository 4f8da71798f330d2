//! Tokenizers rebuilt from what GGUF files say of them.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use engine::{ChatOptions, Detokenizer, GgufVocabulary, Message, Tokenizer, TokenizerError};
use proptest::prelude::*;
use serde::Deserialize;
use serde_json::Value;

fn data(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(path)
}

fn json(path: &str) -> Value {
    serde_json::from_slice(&fs::read(data(path)).unwrap()).unwrap()
}

/// What a file says of its tokenizer.
fn read(file: &str) -> GgufVocabulary {
    let path = data(&format!("quant/gguf/{file}"));
    let bytes = fs::read(&path).unwrap();
    let mut cursor = Cursor { bytes: &bytes[24..] };
    let num_keys = u64::from_le_bytes(bytes[16..24].try_into().unwrap());
    let values: BTreeMap<String, Value> = (0..num_keys)
        .map(|_| {
            let key = cursor.text();
            let kind = cursor.u32();
            (key, cursor.value(kind))
        })
        .collect();
    let value = |key: &str| values.get(key).cloned().unwrap_or_default();
    let list = |key: &str| values.get(key).map(|v| v.as_array().unwrap().clone());
    let texts = |key: &str| {
        Some(list(key)?.iter().map(|v| v.as_str().unwrap().to_owned()).collect::<Vec<_>>())
    };
    let id = |key: &str| value(key).as_u64().map(|id| id as u32);
    GgufVocabulary {
        path,
        model: value("tokenizer.ggml.model").as_str().unwrap().to_owned(),
        pre: value("tokenizer.ggml.pre").as_str().map(str::to_owned),
        tokens: texts("tokenizer.ggml.tokens").unwrap(),
        scores: list("tokenizer.ggml.scores")
            .map(|list| list.iter().map(|v| v.as_f64().unwrap() as f32).collect()),
        token_types: list("tokenizer.ggml.token_type")
            .map(|list| list.iter().map(|v| v.as_i64().unwrap() as i32).collect()),
        merges: texts("tokenizer.ggml.merges"),
        bos_id: id("tokenizer.ggml.bos_token_id"),
        eos_id: id("tokenizer.ggml.eos_token_id"),
        unknown_id: id("tokenizer.ggml.unknown_token_id"),
        padding_id: id("tokenizer.ggml.padding_token_id"),
        add_bos: value("tokenizer.ggml.add_bos_token").as_bool(),
        add_eos: value("tokenizer.ggml.add_eos_token").as_bool(),
        ..GgufVocabulary::default()
    }
}

struct Cursor<'a> {
    bytes: &'a [u8],
}

impl Cursor<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (head, tail) = self.bytes.split_first_chunk().unwrap();
        self.bytes = tail;
        *head
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }

    fn text(&mut self) -> String {
        let len = u64::from_le_bytes(self.take()) as usize;
        let (head, tail) = self.bytes.split_at(len);
        self.bytes = tail;
        String::from_utf8(head.to_owned()).unwrap()
    }

    fn value(&mut self, kind: u32) -> Value {
        match kind {
            4 => self.u32().into(),
            5 => i32::from_le_bytes(self.take()).into(),
            6 => f32::from_le_bytes(self.take()).into(),
            7 => Value::Bool(self.take() == [1]),
            8 => self.text().into(),
            9 => {
                let kind = self.u32();
                let len = u64::from_le_bytes(self.take());
                (0..len).map(|_| self.value(kind)).collect()
            }
            _ => panic!("value type {kind}"),
        }
    }
}

/// Both kinds, from files that llama.cpp's converter wrote.
static FILES: LazyLock<[(&str, Tokenizer); 3]> = LazyLock::new(|| {
    // The recorded file with random weights is not here; this one has the same tokenizer.
    [
        ("stories260K.Q8_0.gguf", "stories260K.Q8_0.gguf"),
        ("bard1m.Q4_K_M.gguf", "bard1m.Q4_K_M.gguf"),
        ("rand256.Q8_0.gguf", "llama3-rope-scaled.Q8_0.gguf"),
    ]
    .map(|(name, file)| (name, Tokenizer::from_vocabulary(read(file)).unwrap()))
});

#[derive(Deserialize)]
struct Recorded {
    cases: Vec<RecordedCase>,
}

#[derive(Deserialize)]
struct RecordedCase {
    text: String,
    llama_cpp_ids: Vec<u32>,
    llama_cpp_ids_parse_special: Vec<u32>,
    hf_ids: Vec<u32>,
}

#[test]
fn files_have_the_token_ids_of_llama_cpp() {
    let mut recorded = json("quant/gguf/tokenizers.json");
    for (name, tokenizer) in FILES.iter() {
        let recorded: Recorded = serde_json::from_value(recorded[name].take()).unwrap();
        assert_eq!(recorded.cases.len(), 30);
        let (mut num_plain, mut num_like_hf) = (0, 0);
        for case in &recorded.cases {
            let (ids, text) = (tokenizer.encode(&case.text, true).unwrap(), &case.text);
            assert_eq!(ids, case.llama_cpp_ids_parse_special, "{name}: {text:?}");
            num_plain += usize::from(ids == case.llama_cpp_ids);
            num_like_hf += usize::from(ids == case.hf_ids);
            // A literal marker of spaces cannot be told from a space.
            let (text, shown) = match *name {
                "stories260K.Q8_0.gguf" => (text.replace('▁', " "), ids),
                _ => (text.clone(), ids),
            };
            let skip = !text.contains("<s>") && !text.contains("<unk>");
            if skip {
                assert_eq!(tokenizer.decode(&shown, true).unwrap(), text, "{name}: {text:?}");
                assert_eq!(stream(tokenizer, &[], &shown), text, "{name}: {text:?}");
            }
        }
        // llama.cpp reads the two texts that spell out special tokens as plain text unless asked.
        // Of the six that differ from Hugging Face, `<unk>` is one.
        let expected = if name.starts_with("stories") { (28, 25) } else { (30, 30) };
        assert_eq!((num_plain, num_like_hf), expected, "{name}");
    }
}

#[test]
fn files_name_their_special_tokens() {
    let [(_, stories), (_, bard), _] = &*FILES;
    assert_eq!((stories.bos_id(), stories.eos_id(), stories.vocab_size()), (Some(1), Some(2), 512));
    assert!([0, 1, 2].iter().all(|&id| stories.is_special(id)) && !stories.is_special(3));
    assert_eq!(stories.decode(&[1, 403, 2], false).unwrap(), "<s> Once</s>");
    assert_eq!(stories.id_to_piece(403).as_deref(), Some("▁Once"));
    assert_eq!(stories.token_id("▁Once"), Some(403));
    assert_eq!((stories.id_to_piece(512), stories.token_id("no such piece")), (None, None));
    assert_eq!((bard.bos_id(), bard.eos_id(), bard.vocab_size()), (Some(1), Some(2), 512));
    assert_eq!(bard.encode("<|eos|>", false).unwrap(), [2]);
    assert!(bard.is_special(0) && !stories.has_chat_template());
    assert_eq!(read("bard1m.Q4_K_M.gguf").end_ids(), [2]);
}

#[derive(Deserialize)]
struct Fixture {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    text: String,
    ids: Vec<u32>,
    decoded: String,
    decoded_skip_special: String,
}

/// The metadata that a converter makes of a tokenizer.json.
fn converted(name: &str, model: &str, pre: Option<&str>) -> GgufVocabulary {
    let file = json(&format!("tokenizers/{name}/tokenizer.json"));
    let mut tokens: Vec<(String, i32)> = Vec::new();
    let mut set = |id: usize, token: &str, kind: i32| {
        for id in tokens.len()..=id {
            tokens.push((format!("[PAD{id}]"), 5));
        }
        tokens[id] = (token.to_owned(), kind);
    };
    for (token, id) in file["model"]["vocab"].as_object().unwrap() {
        let is_byte = model == "llama" && token.starts_with("<0x") && token.len() == 6;
        set(id.as_u64().unwrap() as usize, token, if is_byte { 6 } else { 1 });
    }
    for token in file["added_tokens"].as_array().unwrap() {
        let kind = if token["special"] == true { 3 } else { 4 };
        set(token["id"].as_u64().unwrap() as usize, token["content"].as_str().unwrap(), kind);
    }
    let merges: Vec<String> = file["model"]["merges"]
        .as_array()
        .unwrap()
        .iter()
        .map(|merge| merge.as_str().unwrap().to_owned())
        .collect();
    // The merges of a SentencePiece model are listed by the score of what they make.
    let mut ranks = HashMap::new();
    for (rank, merge) in merges.iter().enumerate() {
        ranks.entry(merge.replace(' ', "")).or_insert(rank);
    }
    let score = |token: &str| -(ranks.get(token).copied().unwrap_or(1 << 20) as f32);
    GgufVocabulary {
        model_name: name.to_owned(),
        model: model.to_owned(),
        pre: pre.map(str::to_owned),
        scores: Some(tokens.iter().map(|(token, _)| score(token)).collect()),
        token_types: Some(tokens.iter().map(|(_, kind)| *kind).collect()),
        merges: Some(merges),
        tokens: tokens.into_iter().map(|(token, _)| token).collect(),
        // The first added token is special in all of them.
        eos_id: file["added_tokens"][0]["id"].as_u64().map(|id| id as u32),
        add_bos: Some(false),
        ..GgufVocabulary::default()
    }
}

static CONVERTED: LazyLock<[(&str, Tokenizer); 6]> = LazyLock::new(|| {
    [
        ("gpt2", "gpt2", Some("gpt-2")),
        ("minimind", "gpt2", Some("gpt-2")),
        ("phi-2", "gpt2", Some("phi-2")),
        ("qwen2.5", "gpt2", Some("qwen2")),
        ("torchtitan-llama3-style", "gpt2", Some("gpt-2")),
        ("phi-3-mini", "llama", None),
    ]
    .map(|(name, model, pre)| {
        let vocabulary = converted(name, model, pre);
        (name, Tokenizer::from_vocabulary(vocabulary).unwrap())
    })
});

#[test]
fn a_converted_tokenizer_does_what_the_original_does() {
    let mut num_cases = 0;
    for (name, tokenizer) in CONVERTED.iter() {
        let fixture: Fixture =
            serde_json::from_value(json(&format!("fixtures/tokenizers/{name}.json"))).unwrap();
        for Case { text, ids, decoded, decoded_skip_special } in &fixture.cases {
            assert_eq!(&tokenizer.encode(text, false).unwrap(), ids, "{name}: {text:?}");
            assert_eq!(&tokenizer.decode(ids, false).unwrap(), decoded, "{name}: {text:?}");
            let skipping = tokenizer.decode(ids, true).unwrap();
            assert_eq!(&skipping, decoded_skip_special, "{name}: {text:?}");
            num_cases += 1;
        }
    }
    assert!(num_cases > 260, "{num_cases}");
}

#[test]
fn converted_tokenizers_reproduce_the_vectors_of_llama_cpp() {
    for (vectors, name) in [("gpt-2", "gpt2"), ("phi-3", "phi-3-mini"), ("qwen2", "qwen2.5")] {
        let file = |extension: &str| {
            let name = format!("fixtures/tokenizers/llamacpp/ggml-vocab-{vectors}.{extension}");
            fs::read_to_string(data(&name)).unwrap()
        };
        let tokenizer = &CONVERTED.iter().find(|(other, _)| *other == name).unwrap().1;
        let (inputs, outputs) = (file("inp"), file("out"));
        let texts: Vec<&str> = inputs.split_terminator("\n__ggml_vocab_test__\n").collect();
        assert_eq!(texts.len(), outputs.lines().count(), "{vectors}");
        for (text, line) in texts.iter().zip(outputs.lines()) {
            let ids: Vec<u32> = line.split_whitespace().map(|id| id.parse().unwrap()).collect();
            assert_eq!(tokenizer.encode(text, false).unwrap(), ids, "{name}: {text:?}");
        }
    }
}

/// `llama` with the given pieces after `<unk>`, `<s>`, `</s>`.
fn small(pieces: &[(&str, f32)]) -> GgufVocabulary {
    let special = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0)];
    let all = [&special[..], pieces].concat();
    let kinds = (0..all.len()).map(|id| [2, 3, 3].get(id).copied().unwrap_or(1));
    GgufVocabulary {
        path: "small.gguf".into(),
        model: "llama".into(),
        tokens: all.iter().map(|(piece, _)| (*piece).to_owned()).collect(),
        scores: Some(all.iter().map(|(_, score)| *score).collect()),
        token_types: Some(kinds.collect()),
        add_space_prefix: Some(false),
        ..GgufVocabulary::default()
    }
}

/// `gpt2` with three letters and one merge.
fn small_byte_level() -> GgufVocabulary {
    GgufVocabulary {
        path: "small.gguf".into(),
        model: "gpt2".into(),
        pre: Some("gpt-2".into()),
        tokens: ["a", "b", "ab", "<end>", "Ġ"].map(str::to_owned).into(),
        token_types: Some(vec![1, 1, 1, 3, 1]),
        merges: Some(vec!["a b".into()]),
        eos_id: Some(3),
        ..GgufVocabulary::default()
    }
}

#[test]
fn what_the_metadata_leaves_out_follows_llama_cpp() {
    let pieces = [("a", -1.0), ("▁", -2.0), ("▁a", -3.0)];
    let with = |change: fn(&mut GgufVocabulary)| {
        let mut vocabulary = small(&pieces);
        change(&mut vocabulary);
        Tokenizer::from_vocabulary(vocabulary).unwrap().encode("a", true).unwrap()
    };
    assert_eq!(with(|_| ()), [1, 3], "a beginning, no end");
    assert_eq!(with(|v| v.add_space_prefix = None), [1, 5], "a space before");
    assert_eq!(with(|v| (v.add_bos, v.add_eos) = (Some(false), Some(true))), [3, 2]);
    assert_eq!(with(|v| v.bos_id = Some(2)), [2, 3]);

    let with = |change: fn(&mut GgufVocabulary)| {
        let mut vocabulary = small_byte_level();
        change(&mut vocabulary);
        Tokenizer::from_vocabulary(vocabulary).unwrap().encode("ab ab", true).unwrap()
    };
    assert_eq!(with(|_| ()), [2, 4, 2], "neither");
    assert_eq!(with(|v| (v.add_bos, v.bos_id) = (Some(true), Some(3))), [3, 2, 4, 2]);
    assert_eq!(with(|v| v.add_eos = Some(true)), [2, 4, 2, 3]);
    assert_eq!(
        with(|v| (v.pre, v.bos_id) = (Some("llama3".into()), Some(3))),
        [3, 2, 4, 2],
        "Llama 3 begins its texts"
    );
    let whole = |pre: &str| {
        let (merges, pre) = (Some(Vec::new()), Some(pre.to_owned()));
        let vocabulary = GgufVocabulary { merges, pre, bos_id: Some(3), ..small_byte_level() };
        Tokenizer::from_vocabulary(vocabulary).unwrap().encode("ab", false).unwrap()
    };
    assert_eq!((whole("llama3"), whole("gpt-2")), (vec![2], vec![0, 1]), "a word that is a token");
}

#[test]
fn chat_templates_and_ends_come_from_the_metadata() {
    let mut vocabulary = small(&[("a", -1.0), ("<|im_end|>", 0.0), ("<|end|>", 0.0)]);
    let template =
        "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}";
    vocabulary.chat_templates = vec![("default".into(), template.into())];
    vocabulary.token_types.as_mut().unwrap()[4] = 3;
    vocabulary.eot_id = Some(3);
    // `<|end|>` is plain text here.
    assert_eq!(vocabulary.end_ids(), [2, 3, 4]);
    let tokenizer = Tokenizer::from_vocabulary(vocabulary).unwrap();
    let template = tokenizer.chat_template().unwrap().unwrap();
    let prompt = template.render(&[Message::user("a")], &ChatOptions::default()).unwrap();
    assert_eq!(prompt, "<s>a</s>");
    assert_eq!(tokenizer.encode(&prompt, false).unwrap(), [1, 3, 2]);
}

fn refusal(vocabulary: GgufVocabulary) -> String {
    match Tokenizer::from_vocabulary(vocabulary) {
        Err(error @ (TokenizerError::Malformed { .. } | TokenizerError::Unsupported { .. })) => {
            let message = error.to_string();
            assert!(message.starts_with("small.gguf: "), "{message}");
            message
        }
        Err(error) => panic!("another error: {error}"),
        Ok(_) => panic!("accepted"),
    }
}

#[test]
fn other_kinds_of_tokenizers_are_refused_by_name() {
    for model in ["bert", "t5", "rwkv", "plamo2", "gemma4", "no_vocab"] {
        let message = refusal(GgufVocabulary { model: model.into(), ..small(&[]) });
        assert!(message.contains(&format!("`{model}`")), "{message}");
        assert!(message.contains("tokenizer.json"), "{message}");
    }
    for pre in ["deepseek-llm", "falcon", "viking", ""] {
        let message = refusal(GgufVocabulary { pre: Some(pre.into()), ..small_byte_level() });
        assert!(message.contains(&format!("`{pre}`")) && message.contains("qwen2"), "{message}");
    }
    let message = refusal(GgufVocabulary { pre: None, ..small_byte_level() });
    assert!(message.contains("tokenizer.ggml.pre"), "{message}");
}

#[test]
fn metadata_that_contradicts_itself_is_refused() {
    type Change = fn(&mut GgufVocabulary);
    let cases: [(&str, Change, &str); 11] = [
        ("llama", |v| v.model.clear(), "tokenizer.ggml.model"),
        ("llama", |v| v.tokens.clear(), "tokenizer.ggml.tokens"),
        ("llama", |v| v.scores = None, "tokenizer.ggml.scores"),
        (
            "llama",
            |v| v.scores = Some(vec![0.0; 3]),
            "scores has 3 entries, and there are 5 tokens",
        ),
        ("llama", |v| v.scores.as_mut().unwrap()[4] = f32::NAN, "the score of token 4"),
        ("llama", |v| v.token_types = Some(vec![1; 6]), "token_type has 6 entries"),
        ("llama", |v| v.tokens[4] = "a".into(), "token 4, \"a\", is there twice"),
        ("llama", |v| v.bos_id = Some(5), "bos_token_id is 5, and there are 5 tokens"),
        ("gpt2", |v| v.eos_id = Some(1 << 31), "eos_token_id is 2147483648"),
        ("gpt2", |v| v.merges = None, "tokenizer.ggml.merges"),
        ("gpt2", |v| v.add_bos = Some(true), "tokenizer.ggml.bos_token_id is missing"),
    ];
    for (model, change, expected) in cases {
        let mut vocabulary = match model {
            "llama" => small(&[("a", -1.0), ("b", -2.0)]),
            _ => small_byte_level(),
        };
        change(&mut vocabulary);
        let message = refusal(vocabulary);
        assert!(message.contains(expected), "{expected}: {message}");
    }
    for merge in ["", "a", "ab", " b", "a ", "a c", "c b", "b a", "a b ", "ab <end>", "a\u{A0}b"] {
        let merges = Some(vec!["a b".into(), merge.into()]);
        let message = refusal(GgufVocabulary { merges, ..small_byte_level() });
        assert!(message.contains("merges[1]"), "{message}");
    }
}

#[test]
fn odd_metadata_is_read_all_the_same() {
    // An empty token gets a name, -1 is no token, one token is enough.
    let mut vocabulary = small(&[("", -1.0), ("a", -2.0)]);
    vocabulary.padding_id = Some(u32::MAX);
    let tokenizer = Tokenizer::from_vocabulary(vocabulary).unwrap();
    assert_eq!(tokenizer.id_to_piece(3).as_deref(), Some("[EMPTY_3]"));
    assert_eq!(tokenizer.encode("a日本", false).unwrap(), [4, 0]);

    let one = GgufVocabulary {
        model: "llama".into(),
        tokens: vec!["a".into()],
        scores: Some(vec![0.0]),
        add_bos: Some(false),
        unknown_id: Some(u32::MAX),
        add_space_prefix: Some(false),
        ..GgufVocabulary::default()
    };
    let tokenizer = Tokenizer::from_vocabulary(one).unwrap();
    assert_eq!(tokenizer.encode("aa", true).unwrap(), [0, 0]);
    assert!(matches!(tokenizer.encode("ab", true), Err(TokenizerError::Encode { .. })));
}

/// What the detokenizer makes of tokens one at a time.
fn stream(tokenizer: &Tokenizer, prompt: &[u32], ids: &[u32]) -> String {
    let mut detokenizer = Detokenizer::new(tokenizer, prompt, true).unwrap();
    let mut text: String = ids.iter().map(|&id| detokenizer.push(id).unwrap()).collect();
    text += &detokenizer.finish().unwrap();
    text
}

#[test]
fn a_space_at_the_start_belongs_to_the_continuation_but_not_to_a_text() {
    let stories = &FILES[0].1;
    let prompt = stories.encode("Once upon", true).unwrap();
    assert_eq!(stream(stories, &[1], &prompt[1..]), "Once upon");
    assert_eq!(stream(stories, &prompt, &stories.encode("a time", false).unwrap()), " a time");
}

/// The definition: look at all neighbours, join the best pair, begin again.
fn joined_naively(pieces: &[(String, f32)], text: &str) -> Vec<String> {
    let mut parts: Vec<String> = text.chars().map(String::from).collect();
    loop {
        let mut best: Option<(usize, f32)> = None;
        for left in 1..parts.len() {
            let pair = parts[left - 1..=left].concat();
            let Some((_, score)) = pieces.iter().find(|(piece, _)| *piece == pair) else {
                continue;
            };
            if best.is_none_or(|(_, highest)| *score > highest) {
                best = Some((left, *score));
            }
        }
        let Some((left, _)) = best else { return parts };
        let right = parts.remove(left);
        parts[left - 1] += &right;
    }
}

fn any_text() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        "[a-zA-Z0-9 .,!?']{1,8}",
        "[一-龥ぁ-んア-ン가-힣]{1,4}",
        "[\u{1F300}-\u{1F6FF}]{1,2}",
        "[\n\t\r \u{A0}\u{3000}]{1,3}",
        any::<char>().prop_map(String::from),
    ];
    prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat().replace('▁', ""))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn joining_with_a_queue_equals_joining_by_the_definition(
        longer in prop::collection::btree_map("[ab]{2,5}", 0..6u8, 0..12), text in "[ab]{1,24}",
    ) {
        let mut pieces = vec![("a".to_owned(), -9.0), ("b".to_owned(), -9.0)];
        pieces.extend(longer.into_iter().map(|(piece, score)| (piece, f32::from(score))));
        let given: Vec<(&str, f32)> = pieces.iter().map(|(p, s)| (p.as_str(), *s)).collect();
        let tokenizer = Tokenizer::from_vocabulary(small(&given)).unwrap();
        let ids = tokenizer.encode(&text, false).unwrap();
        let parts: Vec<_> = ids.iter().map(|&id| tokenizer.id_to_piece(id).unwrap()).collect();
        prop_assert_eq!(parts, joined_naively(&pieces, &text));
    }

    #[test]
    fn decoding_gives_the_text_back(text in any_text()) {
        for (name, tokenizer) in FILES.iter() {
            let ids = tokenizer.encode(&text, true).unwrap();
            prop_assert_eq!(&tokenizer.decode(&ids, true).unwrap(), &text, "{}", name);
            prop_assert_eq!(&stream(tokenizer, &[], &ids), &text, "{}", name);
        }
    }

    #[test]
    fn any_metadata_is_read_or_refused(
        tokens in prop::collection::vec("[ab ▁]{0,3}|<0x0A>|<s>", 0..8),
        scores in prop::option::of(prop::collection::vec(any::<f32>(), 0..8)),
        types in prop::option::of(prop::collection::vec(-1..8i32, 0..8)),
        merges in prop::option::of(prop::collection::vec("[ab ]{0,4}", 0..4)),
        (bos, eos) in (prop::option::of(0..9u32), prop::option::of(0..9u32)),
        byte_level: bool, text in "[ab <s>\n]{0,9}",
    ) {
        let vocabulary = GgufVocabulary {
            model: if byte_level { "gpt2".into() } else { "llama".into() },
            pre: Some("qwen2".into()),
            tokens, scores, merges, token_types: types, bos_id: bos, eos_id: eos,
            ..GgufVocabulary::default()
        };
        if let Ok(tokenizer) = Tokenizer::from_vocabulary(vocabulary) && let Ok(ids) = tokenizer.encode(&text, true) {
            prop_assert!(ids.iter().all(|&id| (id as usize) < tokenizer.vocab_size()));
            tokenizer.decode(&ids, false).unwrap();
        }
    }
}
