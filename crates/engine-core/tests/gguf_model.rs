//! Models out of GGUF files: values, configuration, names and the order of rows.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod gguf_file;

use std::path::{Path, PathBuf};

use engine_core::{
    Architecture, Checkpoint, GgufFile, LoadError, ModelConfig, Rope, RopeLength, RopeScaling,
    StoredMatrix, WeightSource,
};
use engine_quant::GgufMatrix;
use gguf_file::{Writer, f32_pair, pair, text_pair, u32_pair};
use serde_json::Value;
use sha2::{Digest, Sha256};

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data")
}

fn fixture(name: &str) -> GgufFile {
    GgufFile::open(data().join("quant/gguf").join(format!("{name}.gguf"))).unwrap()
}

fn sha256(values: &[f32]) -> String {
    let mut hash = Sha256::new();
    for value in values {
        hash.update((value + 0.0).to_le_bytes());
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn values(matrix: StoredMatrix) -> Vec<f32> {
    match matrix {
        StoredMatrix::Dense(data) => data.iter::<f32>().collect(),
        StoredMatrix::Packed(packed) => packed.dequantize(),
    }
}

const FIXTURES: [&str; 15] = [
    "bard1m.IQ4_NL",
    "bard1m.Q2_K",
    "bard1m.Q3_K_M",
    "bard1m.Q4_K_M",
    "bard1m.Q5_K_M",
    "bard1m.Q6_K",
    "llama3-rope-scaled.Q8_0",
    "stories260K.BF16",
    "stories260K.F16",
    "stories260K.F32",
    "stories260K.Q4_0",
    "stories260K.Q4_1",
    "stories260K.Q5_0",
    "stories260K.Q5_1",
    "stories260K.Q8_0",
];

#[test]
fn every_tensor_of_every_file_has_the_values_of_ggml() {
    for name in FIXTURES {
        let file = fixture(name);
        let path = file.path().with_extension("json");
        let expected: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        for expected in expected["tensors"].as_array().unwrap() {
            let tensor = file.tensor(expected["name"].as_str().unwrap()).unwrap();
            let [rows @ .., columns] = tensor.shape else { panic!("{name}: no shape") };
            let shape = [rows.iter().product(), *columns];
            let (kind, bytes) = (tensor.kind, tensor.bytes);
            let matrix = GgufMatrix { kind, shape, bytes, row_order: None };
            let found = match tensor.kind.is_float() {
                true => matrix.floats().unwrap().iter::<f32>().collect(),
                false => matrix.pack().unwrap().dequantize(),
            };
            assert_eq!(
                sha256(&found),
                expected["sha256_dequantized_f32"],
                "{name} {}",
                tensor.name
            );
        }
    }
}

/// Names and shapes of all tensors of a checkpoint, with their values.
fn tensors(checkpoint: &Checkpoint) -> Vec<(String, Vec<usize>, Vec<f32>)> {
    let read = |name: &str| {
        let shape = checkpoint.tensor(name).unwrap().shape.to_vec();
        let values = checkpoint.load(name, &shape).unwrap().iter::<f32>().collect();
        (name.to_owned(), shape, values)
    };
    checkpoint.names().map(read).collect()
}

#[test]
fn a_float_file_has_the_weights_of_the_checkpoint_it_was_made_from() {
    let file = fixture("stories260K.F32");
    let checkpoint = Checkpoint::open(data().join("models/stories260K")).unwrap();
    let all = tensors(&checkpoint);
    assert_eq!(all.len(), file.tensors().count());
    for (name, shape, expected) in all {
        let found = match shape[..] {
            [len] => file.vector(&name, len).unwrap(),
            [out, columns] => values(file.matrix(&name, [out, columns]).unwrap()),
            _ => panic!("{name}: {shape:?}"),
        };
        assert!(file.contains(&name));
        assert_eq!(file.stored_type(&name), "F32");
        assert!(found == expected, "{name}");
    }
    assert!(!file.contains("lm_head.weight"));
    assert_eq!(file.stored_type("lm_head.weight"), "nothing");
}

#[test]
fn configurations_are_those_of_the_checkpoints() {
    let pairs = [
        ("stories260K.Q4_0", "models/stories260K"),
        ("bard1m.Q4_K_M", "quant/models/bard1m"),
        ("llama3-rope-scaled.Q8_0", "models/llama3-rope-scaled"),
    ];
    for (file, dir) in pairs {
        let found = ModelConfig::from_gguf(&fixture(file)).unwrap();
        let mut expected = ModelConfig::load(data().join(dir)).unwrap();
        expected.dtype = None;
        // The file has room for one.
        expected.eos_token_ids.truncate(1);
        if file.starts_with("llama3") {
            let factors = vec![1.0, 2.442_259_5, 8.0, 8.0, 8.0, 8.0, 8.0, 8.0];
            expected.ropes[0].scaling = RopeScaling::Divided { factors };
        }
        assert_eq!(found, expected, "{file}");
    }
}

#[test]
fn divided_frequencies_are_those_of_llama3() {
    let found = ModelConfig::from_gguf(&fixture("llama3-rope-scaled.Q8_0")).unwrap();
    let expected = ModelConfig::load(data().join("models/llama3-rope-scaled")).unwrap();
    let cos_sin = |config: &ModelConfig| {
        let mut out = vec![0.0; 16];
        Rope::new(&config.ropes[0]).cos_sin_into(100, 200, &mut out);
        out
    };
    for (found, expected) in cos_sin(&found).iter().zip(cos_sin(&expected)) {
        assert!((found - expected).abs() < 2e-5, "{found} {expected}");
    }
    assert_eq!(found.max_context(), 256);
    assert_eq!(found.ropes[0].length(), RopeLength::Fixed);
}

/// What llama.cpp's converter calls a tensor of a checkpoint.
fn own_name(name: &str, gemma: bool) -> String {
    let parts = [
        ("model.", ""),
        ("layers.", "blk."),
        ("embed_tokens", "token_embd"),
        ("lm_head", "output"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.qkv_proj", "attn_qkv"),
        ("self_attn.o_proj", "attn_output"),
        ("self_attn.q_norm", "attn_q_norm"),
        ("self_attn.k_norm", "attn_k_norm"),
        ("mlp.gate_up_proj", "ffn_up"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
        ("input_layernorm", "attn_norm"),
        ("pre_feedforward_layernorm", "ffn_norm"),
        ("post_feedforward_layernorm", "post_ffw_norm"),
        ("post_attention_layernorm", if gemma { "post_attention_norm" } else { "ffn_norm" }),
    ];
    let name = parts.iter().fold(name.to_owned(), |name, (from, to)| name.replace(from, to));
    if name == "norm.weight" { "output_norm.weight".into() } else { name }
}

/// The rows of queries or keys as the converter writes them: the halves of a head interleaved.
fn interleave(values: &[f32], heads: usize, columns: usize) -> Vec<f32> {
    let half = values.len() / columns / heads / 2;
    let rows = (0..heads).flat_map(|head| (0..half).map(move |i| head * 2 * half + i));
    let both = rows.flat_map(|row| [row, row + half]);
    both.flat_map(|row| &values[row * columns..][..columns]).copied().collect()
}

/// A checkpoint as a GGUF file of F32, as llama.cpp's converter would make it.
fn convert(name: &str) -> (Writer, ModelConfig, Checkpoint) {
    let dir = data().join("models").join(name);
    let config = ModelConfig::load(&dir).unwrap();
    let checkpoint = Checkpoint::open(&dir).unwrap();
    let arch = match config.architecture {
        Architecture::Llama | Architecture::Mistral => "llama",
        Architecture::Qwen2 => "qwen2",
        Architecture::Qwen3 => "qwen3",
        Architecture::Gemma2 => "gemma2",
        Architecture::Gemma3 => "gemma3",
        Architecture::Phi3 => "phi3",
    };
    let mut writer = Writer { pairs: pairs(arch, &config), ..Writer::default() };
    for (name, shape, mut values) in tensors(&checkpoint) {
        if config.norm_offset && name.ends_with("norm.weight") {
            values.iter_mut().for_each(|value| *value += 1.0);
        }
        let columns = if shape.len() == 2 { shape[1] } else { 1 };
        if arch == "llama" && name.contains("q_proj") {
            values = interleave(&values, config.num_heads, columns);
        }
        if arch == "llama" && name.contains("k_proj") {
            values = interleave(&values, config.num_kv_heads, columns);
        }
        let dims: Vec<u64> = shape.iter().rev().map(|&len| len as u64).collect();
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        writer.push(&own_name(&name, config.norm_offset), &dims, 0, &bytes);
    }
    (writer, config, checkpoint)
}

fn pairs(arch: &str, config: &ModelConfig) -> Vec<Vec<u8>> {
    let key = |key: &str| format!("{arch}.{key}");
    let count = |name: &str, value| u32_pair(&key(name), value);
    let mut pairs = vec![
        text_pair("general.architecture", arch),
        count("block_count", config.num_layers),
        count("context_length", config.max_position_embeddings),
        count("embedding_length", config.hidden_size),
        count("feed_forward_length", config.intermediate_size),
        count("attention.head_count", config.num_heads),
        count("attention.head_count_kv", config.num_kv_heads),
        count("attention.key_length", config.head_dim),
        count("attention.value_length", config.head_dim),
        f32_pair(&key("attention.layer_norm_rms_epsilon"), config.rms_norm_eps.into()),
        f32_pair(&key("rope.freq_base"), config.ropes[0].theta),
        u32_pair("tokenizer.ggml.bos_token_id", config.bos_token_id.unwrap() as usize),
        u32_pair("tokenizer.ggml.eos_token_id", config.eos_token_ids[0] as usize),
    ];
    if config.norm_offset {
        let scale = f64::from(config.attention_scale);
        pairs.push(pair(&key("attention.scale"), 12, &scale.to_le_bytes()));
    }
    if let Some(cap) = config.attention_softcap {
        pairs.push(f32_pair(&key("attn_logit_softcapping"), cap.into()));
        pairs.push(f32_pair(&key("final_logit_softcapping"), config.final_softcap.unwrap().into()));
    }
    if let Some(window) = config.layers[0].window {
        pairs.push(count("attention.sliding_window", window));
    }
    if config.architecture == Architecture::Gemma3 {
        pairs.push(count("attention.sliding_window_pattern", 3));
    }
    pairs
}

/// One of each family, and the variations that a file tells by its tensors.
const CONVERTED: [&str; 9] = [
    "llama-gqa",
    "llama-mha-tied",
    "llama-bias",
    "mistral-sliding",
    "qwen2-bias-tied",
    "qwen3-qknorm",
    "gemma2",
    "gemma3-text",
    "phi3-fused",
];

#[test]
fn every_family_survives_conversion() {
    for name in CONVERTED {
        let (writer, mut expected, checkpoint) = convert(name);
        let file = writer.open().unwrap();
        let found = ModelConfig::from_gguf(&file).unwrap();
        let offset = f32::from(u8::from(expected.norm_offset));
        expected.norm_offset = false;
        expected.dtype = None;
        if expected.architecture == Architecture::Mistral {
            expected.architecture = Architecture::Llama;
            expected.layers.iter_mut().for_each(|layer| layer.window = None);
        }
        let scale = found.attention_scale;
        assert!((scale / expected.attention_scale - 1.0).abs() < 1e-6, "{name}");
        expected.attention_scale = scale;
        assert_eq!(found, expected, "{name}");

        for (tensor, shape, mut expected) in tensors(&checkpoint) {
            let found = match shape[..] {
                [len] => file.vector(&tensor, len).unwrap(),
                [out, columns] => values(file.matrix(&tensor, [out, columns]).unwrap()),
                _ => panic!("{tensor}: {shape:?}"),
            };
            if tensor.ends_with("norm.weight") {
                expected.iter_mut().for_each(|value| *value += offset);
            }
            assert!(found == expected, "{name} {tensor}");
        }
    }
}

/// A good small file with one change, which `from_gguf` refuses with this message.
fn refused(change: impl FnOnce(&mut Writer), part: &str) {
    let (mut writer, ..) = convert("llama-gqa");
    change(&mut writer);
    let error = ModelConfig::from_gguf(&writer.open().unwrap()).unwrap_err().to_string();
    assert!(error.contains(part), "{error}\n  does not contain\n{part}");
    assert!(error.contains("model.gguf"), "{error}");
}

/// Puts a key in the place of the one of the same name.
fn put(writer: &mut Writer, key: &str, new: Vec<u8>) {
    writer.pairs.retain(|pair| !pair[8..].starts_with(key.as_bytes()));
    writer.pairs.push(new);
}

#[test]
fn keys_that_make_no_sense() {
    let no_key = |key: &'static str| {
        move |w: &mut Writer| w.pairs.retain(|p| !p[8..].starts_with(key.as_bytes()))
    };
    refused(
        no_key("general.architecture"),
        "`general.architecture`: expected a name, found nothing",
    );
    refused(
        |w| put(w, "general.architecture", text_pair("general.architecture", "mamba")),
        "architecture mamba is not supported; supported are llama, qwen2, qwen3, gemma2",
    );
    refused(
        no_key("llama.block_count"),
        "`llama.block_count`: expected a number above 0, found nothing",
    );
    refused(
        no_key("llama.attention.layer_norm"),
        "layer_norm_rms_epsilon`: expected a number above 0",
    );
    let counts = [
        ("llama.block_count", 0, "expected a number above 0, found 0"),
        (
            "llama.attention.head_count_kv",
            3,
            "expected a divisor of num_attention_heads 4, found 3",
        ),
        ("llama.attention.value_length", 8, "expected the width of the keys, 16, found 8"),
        (
            "llama.expert_count",
            8,
            "expected nothing or 0: models with it are not supported, found 8",
        ),
        ("llama.rope.dimension_count", 18, "expected an even number up to the width of a head, 16"),
        ("llama.rope.dimension_count", 7, "expected an even number up to the width of a head, 16"),
        ("llama.embedding_length", 1 << 30, "`hidden_size`: expected a whole number from 1 to"),
        ("split.count", 2, "expected one file: join the parts with `llama-gguf-split --merge`"),
    ];
    for (key, value, part) in counts {
        refused(|w| put(w, key, u32_pair(key, value)), part);
    }
    let key = "llama.block_count";
    refused(
        |w| put(w, key, text_pair(key, "two")),
        "expected a whole number from 0 on, found \"two\"",
    );
    let key = "llama.rope.freq_base";
    refused(|w| put(w, key, f32_pair(key, f64::NAN)), "expected a finite number, found NaN");
    let key = "llama.rope.scaling.type";
    refused(
        |w| put(w, key, text_pair(key, "su")),
        "expected none, linear, yarn or longrope, found \"su\"",
    );
    refused(|w| put(w, key, text_pair(key, "longrope")), "expected rope_factors_long.weight");
    refused(|w| put(w, key, text_pair(key, "linear")), "`rope_scaling.factor`: expected a number");
}

#[test]
fn counts_of_the_layers_are_one_if_they_agree() {
    let list = |key: &str, counts: &[u32]| {
        let mut value = 4_u32.to_le_bytes().to_vec();
        value.extend((counts.len() as u64).to_le_bytes());
        value.extend(counts.iter().flat_map(|count| count.to_le_bytes()));
        pair(key, 9, &value)
    };
    let key = "llama.attention.head_count_kv";
    let (mut writer, expected, _) = convert("llama-gqa");
    let counts = vec![expected.num_kv_heads as u32; expected.num_layers];
    put(&mut writer, key, list(key, &counts));
    let file = writer.open().unwrap();
    assert_eq!(ModelConfig::from_gguf(&file).unwrap().num_kv_heads, expected.num_kv_heads);
    let shape = [expected.kv_row_len(), expected.hidden_size];
    file.matrix("model.layers.0.self_attn.k_proj.weight", shape).unwrap();
    refused(|w| put(w, key, list(key, &[2, 1])), "the same for every layer");
    refused(|w| put(w, key, list(key, &[])), "the same for every layer");
}

#[test]
fn scalings_of_the_rotary_embedding() {
    let rope = |change: &dyn Fn(&mut Writer)| {
        let (mut writer, ..) = convert("llama-gqa");
        change(&mut writer);
        let config = ModelConfig::from_gguf(&writer.open().unwrap()).unwrap();
        config.ropes[0].clone()
    };
    let scaled = |kind: &'static str| {
        move |w: &mut Writer| {
            w.pairs.push(text_pair("llama.rope.scaling.type", kind));
            w.pairs.push(f32_pair("llama.rope.scaling.factor", 4.0));
            w.pairs.push(u32_pair("llama.rope.scaling.original_context_length", 64));
        }
    };
    assert_eq!(rope(&scaled("none")).scaling, RopeScaling::None);
    assert_eq!(rope(&scaled("linear")).scaling, RopeScaling::Linear { factor: 4.0 });
    let RopeScaling::Yarn { factor, original_max_position_embeddings, attention_factor, .. } =
        rope(&scaled("yarn")).scaling
    else {
        panic!("no yarn")
    };
    assert_eq!((factor, original_max_position_embeddings, attention_factor), (4.0, 64, None));

    let ones = |w: &mut Writer, name: &str, value: f32| {
        let bytes: Vec<u8> = [value; 8].iter().flat_map(|x| x.to_le_bytes()).collect();
        w.push(name, &[8], 0, &bytes);
    };
    let freqs = |value| move |w: &mut Writer| ones(w, "rope_freqs.weight", value);
    let divided = |factor| RopeScaling::Divided { factors: vec![factor; 8] };
    assert_eq!(rope(&freqs(2.0)).scaling, divided(2.0));
    let both = |w: &mut Writer| (freqs(2.0)(w), scaled("linear")(w)).0;
    assert_eq!(rope(&both).scaling, divided(8.0));
    refused(|w| (freqs(2.0)(w), scaled("yarn")(w)).0, "expected none or linear beside rope_freqs");
    refused(freqs(0.0), "`rope_freqs.weight`: expected numbers from 0.001 to 1000000, found 0");
    refused(freqs(f32::NAN), "found NaN");
    refused(|w| w.push("rope_freqs.weight", &[4], 0, &[0; 16]), "expected shape [8], found [4]");

    let long = |w: &mut Writer| {
        ones(w, "rope_factors_short.weight", 1.0);
        ones(w, "rope_factors_long.weight", 3.0);
        w.pairs.push(u32_pair("llama.rope.scaling.original_context_length", 64));
        w.pairs.push(f32_pair("llama.rope.scaling.attn_factor", 1.5));
    };
    let expected = RopeScaling::LongRope {
        short_factor: vec![1.0; 8],
        long_factor: vec![3.0; 8],
        factor: None,
        attention_factor: Some(1.5),
        original_max_position_embeddings: 64,
    };
    assert_eq!(rope(&long).scaling, expected);
    let partial = |w: &mut Writer| w.pairs.push(u32_pair("llama.rope.dimension_count", 6));
    assert_eq!(rope(&partial).rotary_dim, 6);
}

#[test]
fn tensors_without_a_place_or_a_readable_type() {
    refused(
        |w| w.push("blk.0.attn_q_norm.weight", &[16], 0, &[0; 64]),
        "`blk.0.attn_q_norm.weight` has no place",
    );
    refused(
        |w| w.push("blk.9.attn_norm.weight", &[1], 0, &[0; 4]),
        "`blk.9.attn_norm.weight` has no place",
    );
    refused(|w| w.push("vision.weight", &[1], 0, &[0; 4]), "`vision.weight` has no place");
    refused(
        |w| (w.tensors[0].kind, w.tensors[0].dims) = (16, vec![256]),
        "type IQ2_XXS is not read; read are F32",
    );
    refused(|w| w.tensors[0].kind = 26, "type I32 is not read");
}

#[test]
fn tensors_that_are_not_what_is_asked_for() {
    let (mut writer, config, _) = convert("llama-gqa");
    let hidden = config.hidden_size;
    let norm = writer.tensors.iter().position(|tensor| tensor.name == "blk.0.attn_norm.weight");
    writer.tensors.remove(norm.unwrap());
    // A Q8_0 matrix whose first scale is infinite.
    let blocks = [&[0x00, 0x7c][..], &[0; 32]].concat();
    writer.push("blk.1.attn_v.bias", &[32, 1], 8, &blocks);
    let file = writer.open().unwrap();

    let error = file.vector("model.layers.0.input_layernorm.weight", hidden).unwrap_err();
    let LoadError::MissingTensor { tensor, closest, .. } = &error else { panic!("{error}") };
    assert_eq!(tensor, "blk.0.attn_norm.weight");
    assert!(closest.contains("attn_norm"), "{closest}");
    let error = file.matrix("model.embed_tokens.weight", [1, hidden]).unwrap_err();
    assert!(matches!(error, LoadError::Shape { .. }), "{error}");
    let error = file.matrix("model.rotary.inv_freq", [1, 1]).unwrap_err();
    assert!(matches!(error, LoadError::MissingTensor { .. }), "{error}");
    let error = file.matrix("model.layers.1.self_attn.v_proj.bias", [1, 32]).unwrap_err();
    let message = error.to_string();
    assert!(message.contains("tensor `blk.1.attn_v.bias`: a scale is not finite"), "{message}");
}

#[test]
fn tokens_that_end_a_turn() {
    let list = |key: &str, kind: u32, items: &[Vec<u8>]| {
        let head = [&kind.to_le_bytes()[..], &(items.len() as u64).to_le_bytes()].concat();
        pair(key, 9, &[head, items.concat()].concat())
    };
    let (mut writer, ..) = convert("llama-gqa");
    let tokens = ["<s>", "<|im_end|>", "</s>", "a", "<|eot_id|>"];
    let text = |text: &&str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
    writer.pairs.push(list("tokenizer.ggml.tokens", 8, &tokens.each_ref().map(text)));
    let kinds = [3_i32, 3, 3, 1, 1].map(|kind| kind.to_le_bytes().to_vec());
    writer.pairs.push(list("tokenizer.ggml.token_type", 5, &kinds));
    writer.pairs.push(u32_pair("tokenizer.ggml.eot_token_id", 7));
    let config = ModelConfig::from_gguf(&writer.open().unwrap()).unwrap();
    // `<|eot_id|>` is ordinary text here.
    assert_eq!(config.eos_token_ids, [1, 2, 7]);
    assert_eq!(config.bos_token_id, Some(1));
}

/// What the fuzz target `gguf` does.
fn read_all(bytes: &[u8]) -> bool {
    let Ok(file) = gguf_file::open(bytes) else { return false };
    for tensor in file.tensors() {
        let columns = tensor.shape[tensor.shape.len() - 1];
        let shape = [tensor.shape.iter().product::<usize>() / columns, columns];
        let (kind, bytes) = (tensor.kind, tensor.bytes);
        let matrix = GgufMatrix { kind, shape, bytes, row_order: None };
        match tensor.kind.is_float() {
            true => assert!(matrix.floats().is_ok()),
            false => drop(matrix.pack()),
        }
    }
    let Ok(config) = ModelConfig::from_gguf(&file) else { return false };
    config.ropes.iter().for_each(|rope| drop(Rope::new(rope)));
    let table = [config.vocab_size, config.hidden_size];
    let embedding = file.matrix("model.embed_tokens.weight", table);
    let rows = config.num_heads * config.head_dim;
    let name = "model.layers.0.self_attn.q_proj.weight";
    embedding.is_ok() && file.matrix(name, [rows, config.hidden_size]).is_ok()
}

#[test]
fn the_corpus_and_damaged_variants_of_it() {
    let dir = data().join("../../fuzz/corpus/gguf");
    let mut files: Vec<_> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    let (mut seed, mut accepted, mut refused) = (1_u64, 0, 0);
    let mut random = |bound: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (seed >> 33) as usize % bound.max(1)
    };
    for path in &files {
        let bytes = std::fs::read(path).unwrap();
        let good = read_all(&bytes);
        assert_eq!(good, path.display().to_string().contains("good"), "{path:?}");
        accepted += usize::from(good);
        for _ in 0..150 {
            let mut damaged = bytes.clone();
            for _ in 0..=random(3) {
                let at = random(damaged.len());
                match random(4) {
                    0 => damaged.truncate(at),
                    1 => drop(damaged.splice(at..at, [random(256) as u8; 3])),
                    _ if at < damaged.len() => damaged[at] = [0, 1, 0x7f, 0xff, 9][random(5)],
                    _ => (),
                }
            }
            refused += usize::from(!read_all(&damaged));
        }
    }
    assert!(files.len() >= 8 && accepted >= 4, "{} files, {accepted} accepted", files.len());
    assert!(refused > 150 * files.len() / 4, "{refused} damaged files were refused");
}

#[test]
#[ignore = "writes the corpus of the fuzz target"]
fn write_the_corpus() {
    let dir = data().join("../../fuzz/corpus/gguf");
    std::fs::create_dir_all(&dir).unwrap();
    let write = |name: &str, bytes: &[u8]| std::fs::write(dir.join(name), bytes).unwrap();
    for (kind, block_len, block_bytes) in [(0, 1, 4), (8, 32, 34), (12, 256, 144), (20, 32, 18)] {
        let writer = tiny(kind, block_len, block_bytes);
        write(&format!("good_type_{kind}.gguf"), &writer.bytes());
    }
    let good = tiny(2, 32, 18);
    let alter = |name: &str, change: &dyn Fn(&mut Writer)| {
        let mut writer = good.clone();
        change(&mut writer);
        write(name, &writer.bytes());
    };
    alter("overlap.gguf", &|w| w.tensors[1].offset = w.tensors[0].offset);
    alter("beyond_end.gguf", &|w| w.tensors[1].offset = 1 << 40);
    alter("twice.gguf", &|w| w.tensors[1].name = w.tensors[0].name.clone());
    alter("absurd_shape.gguf", &|w| w.tensors[0].dims = vec![1 << 62, 1 << 62]);
    alter("unread_type.gguf", &|w| w.tensors[0].kind = 39);
    alter("no_layers.gguf", &|w| w.pairs.truncate(1));
    alter("other_heads.gguf", &|w| {
        put(w, "llama.attention.head_count", u32_pair("llama.attention.head_count", 3));
    });
    let huge = [&8_u32.to_le_bytes()[..], &(1_u64 << 60).to_le_bytes()].concat();
    alter("absurd_list.gguf", &|w| w.pairs.push(pair("list", 9, &huge)));
    write("version_1.gguf", b"GGUF\x01\0\0\0\0\0\0\0\0\0\0\0");
}

/// A model of one layer whose matrices are of one type.
fn tiny(kind: u32, block_len: u64, block_bytes: usize) -> Writer {
    let hidden = block_len.max(16);
    let (_, mut config, _) = convert("llama-mha-tied");
    (config.num_layers, config.hidden_size, config.head_dim) = (1, hidden as usize, 8);
    (config.num_heads, config.num_kv_heads, config.intermediate_size) = (2, 1, hidden as usize);
    let mut writer = Writer { pairs: pairs("llama", &config), ..Writer::default() };
    let mut matrix = |name: &str, rows: u64| {
        let blocks = (hidden / block_len * rows) as usize;
        writer.push(name, &[hidden, rows], kind, &vec![1; blocks * block_bytes]);
    };
    matrix("token_embd.weight", 3);
    matrix("blk.0.attn_q.weight", 16);
    matrix("blk.0.attn_k.weight", 8);
    writer.push("blk.0.attn_norm.weight", &[hidden], 0, &vec![0; 4 * hidden as usize]);
    writer
}
