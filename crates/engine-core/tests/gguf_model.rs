//! Models out of GGUF files: values, configuration, names and the order of rows.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod gguf_file;

use engine_core::{
    Architecture, Checkpoint, GgufFile, LoadError, ModelConfig, Rope, RopeLength, RopeScaling,
    WeightSource,
};
use engine_quant::GgufMatrix;
use gguf_file::{
    Writer,
    convert::{CONVERTED, convert, data, tensors},
    f32_pair, pair, put, text_pair, u32_pair,
};
use serde_json::Value;
use sha2::{Digest, Sha256};

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

#[test]
fn a_float_file_has_the_weights_of_the_checkpoint_it_was_made_from() {
    let file = fixture("stories260K.F32");
    let checkpoint = Checkpoint::open(data().join("models/stories260K")).unwrap();
    let all = tensors(&checkpoint);
    assert_eq!(all.len(), file.tensors().count());
    for (name, shape, expected) in all {
        let found = match shape[..] {
            [len] => file.vector(&name, len).unwrap(),
            [out, columns] => file.matrix(&name, [out, columns]).unwrap().to_f32(),
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
                [out, columns] => file.matrix(&tensor, [out, columns]).unwrap().to_f32(),
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
fn every_named_end_ends() {
    let (mut writer, ..) = convert("llama-gqa");
    writer.pairs.push(u32_pair("tokenizer.ggml.eot_token_id", 7));
    writer.pairs.push(u32_pair("tokenizer.ggml.eom_token_id", 5));
    let config = ModelConfig::from_gguf(&writer.open().unwrap()).unwrap();
    assert_eq!(config.eos_token_ids, [2, 5, 7]);
    assert_eq!(config.bos_token_id, Some(1));
}
