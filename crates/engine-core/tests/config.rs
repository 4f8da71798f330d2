//! `config.json` and `generation_config.json`: both spellings, every family's defaults, and what
//! is refused.
// Clippy's exception for tests ends at the functions they share.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::{
    fs,
    path::{Path, PathBuf},
};

use engine_core::{
    Architecture, GenerationConfig, LayerConfig, LoadError, ModelConfig, RopeScaling, StoredType,
};
use serde_json::{Value, json};

fn models() -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/models");
    let mut dirs: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    dirs.sort();
    dirs
}

fn model(name: &str) -> ModelConfig {
    let dir = models().into_iter().find(|dir| dir.ends_with(name)).unwrap();
    ModelConfig::load(dir).unwrap()
}

fn parse(config: &Value) -> Result<ModelConfig, LoadError> {
    ModelConfig::parse(config.to_string().as_bytes(), Path::new("dir/config.json"))
}

/// A valid config of a family with some keys changed; those given as the string `"-"` are removed.
fn with(architecture: &str, changes: Value) -> Value {
    let mut config = json!({
        "architectures": [architecture], "hidden_size": 64, "intermediate_size": 96,
        "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 4,
        "head_dim": 8, "vocab_size": 100, "max_position_embeddings": 128,
    });
    let map = config.as_object_mut().unwrap();
    for (key, value) in changes.as_object().unwrap() {
        if value == "-" {
            map.remove(key);
        } else {
            map.insert(key.clone(), value.clone());
        }
    }
    config
}

#[test]
fn both_spellings_of_every_model_agree() {
    let dirs = models();
    assert_eq!(dirs.len(), 15);
    let mut pairs = 0;
    for dir in dirs {
        let config = ModelConfig::load(&dir).unwrap();
        assert_eq!(config.layers.len(), config.num_layers);
        let newer = dir.join("config.transformers5.json");
        if newer.exists() {
            let newer = ModelConfig::parse(&fs::read(&newer).unwrap(), &newer).unwrap();
            assert_eq!(config, newer, "{}", dir.display());
            pairs += 1;
        }
    }
    assert_eq!(pairs, 12);
}

#[test]
fn reads_what_is_special_in_each_model() {
    let qwen2 = model("qwen2-bias-tied");
    assert_eq!(qwen2.architecture, Architecture::Qwen2);
    assert!(qwen2.qkv_bias && !qwen2.o_bias && qwen2.tie_word_embeddings);
    // `use_sliding_window` is false.
    assert_eq!(qwen2.layers, [LayerConfig { window: None, rope: 0 }; 3]);

    let gemma2 = model("gemma2");
    assert!(gemma2.tie_word_embeddings && gemma2.norm_offset && gemma2.post_norms);
    assert_eq!(gemma2.embed_scale, Some(8.0));
    assert_eq!(gemma2.attention_scale, 24f64.powf(-0.5) as f32);
    assert_eq!((gemma2.attention_softcap, gemma2.final_softcap), (Some(5.0), Some(4.0)));
    let windows: Vec<_> = gemma2.layers.iter().map(|layer| layer.window).collect();
    assert_eq!(windows, [Some(8), None, Some(8), None]);

    let gemma3 = model("gemma3-text");
    assert_eq!((gemma3.ropes[0].theta, gemma3.ropes[1].theta), (1e6, 1e4));
    let local = LayerConfig { window: Some(8), rope: 1 };
    let global = LayerConfig { window: None, rope: 0 };
    assert_eq!(gemma3.layers, [local, local, global, local, local, global]);
    assert!(gemma3.qk_norm && gemma3.attention_softcap.is_none());

    let llama3 = model("llama3-rope-scaled");
    assert_eq!(llama3.eos_token_ids, [2, 3]);
    let scaling = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 64,
    };
    assert_eq!(llama3.ropes[0].scaling, scaling);
    assert_eq!(llama3.max_context(), 256);

    let mha = model("llama-mha-tied");
    assert_eq!((mha.num_heads, mha.num_kv_heads, mha.head_dim), (4, 4, 16));
    assert!(mha.tie_word_embeddings);
    assert_eq!(model("llama-bf16").dtype, Some(StoredType::Bf16));
    assert_eq!(model("llama-f16").dtype, Some(StoredType::F16));
    assert!(model("phi3-fused").fused_projections);
    assert_eq!(model("phi3-fused").layers[2].window, Some(2047));
    let bias = model("llama-bias");
    assert!(bias.qkv_bias && bias.o_bias && bias.mlp_bias);
    assert_eq!(model("mistral-sliding").head_dim, 32);
}

#[test]
fn agrees_with_the_classes_of_transformers() {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/config.json");
    let fixture: Value = serde_json::from_slice(&fs::read(fixture).unwrap()).unwrap();
    let cases = fixture["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 27);
    for case in cases {
        let read = parse(&case["config"]).unwrap();
        let rotary = read.ropes[0].rotary_dim as f64 / read.head_dim as f64;
        let scale = |value: f32| f64::from(value);
        let ours = json!({
            "hidden_size": read.hidden_size,
            "num_heads": read.num_heads,
            "num_kv_heads": read.num_kv_heads,
            "head_dim": read.head_dim,
            "vocab_size": read.vocab_size,
            "max_position_embeddings": read.max_position_embeddings,
            "activation": format!("{:?}", read.activation),
            "post_norms": read.post_norms,
            "qk_norm": read.qk_norm,
            "qkv_bias": read.qkv_bias,
            "o_bias": read.o_bias,
            "mlp_bias": read.mlp_bias,
            "fused_projections": read.fused_projections,
            "tie_word_embeddings": read.tie_word_embeddings,
            "attention_softcap": read.attention_softcap.map(scale),
            "final_softcap": read.final_softcap.map(scale),
            "windows": read.layers.iter().map(|layer| layer.window).collect::<Vec<_>>(),
            "thetas": read.ropes.iter().map(|rope| rope.theta).collect::<Vec<_>>(),
            "partial_rotary_factor": rotary,
            "bos_token_id": read.bos_token_id,
            "eos_token_ids": read.eos_token_ids,
        });
        let mut theirs = case["expected"].clone();
        let mut float = |key| theirs.as_object_mut().unwrap().remove(key).unwrap().as_f64();
        assert_eq!(float("rms_norm_eps").map(|x| x as f32), Some(read.rms_norm_eps));
        assert_eq!(float("attention_scale").map(|x| x as f32), Some(read.attention_scale));
        assert_eq!(float("embed_scale").map(|x| x as f32), read.embed_scale);
        assert_eq!(ours, theirs, "{}", case["config"]);
    }
}

/// Asserts that the config is refused with an error that names the file, this key and these words.
#[track_caller]
fn refuses(config: Value, key: &str, words: &[&str]) {
    let error = parse(&config).unwrap_err();
    let message = error.to_string();
    let LoadError::Value { key: found, .. } = &error else { panic!("{error:?}") };
    assert_eq!(found, key, "{message}");
    for word in [&["dir/config.json"], words].concat() {
        assert!(message.contains(word), "{word:?} is not in {message:?}");
    }
}

#[test]
fn refuses_missing_and_mistyped_keys() {
    let llama = |changes| with("LlamaForCausalLM", changes);
    for key in [
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "vocab_size",
    ] {
        refuses(llama(json!({ key: "-" })), key, &["a whole number", "found nothing"]);
        refuses(llama(json!({ key: null })), key, &["found null"]);
        refuses(llama(json!({ key: 0 })), key, &["from 1 to", "found 0"]);
        refuses(llama(json!({ key: -3 })), key, &["found -3"]);
        refuses(llama(json!({ key: 64.5 })), key, &["found 64.5"]);
        refuses(llama(json!({ key: "64" })), key, &["found \"64\""]);
        refuses(llama(json!({ key: [64] })), key, &["found [64]"]);
        refuses(llama(json!({ key: u64::MAX })), key, &["18446744073709551615"]);
        refuses(llama(json!({ key: 1u64 << 40 })), key, &["found 1099511627776"]);
    }
    refuses(llama(json!({ "architectures": "-" })), "architectures", &["found nothing"]);
    refuses(llama(json!({ "architectures": "Llama" })), "architectures", &["a list of strings"]);
    refuses(llama(json!({ "architectures": [3] })), "architectures", &["found [3]"]);
    refuses(llama(json!({ "rms_norm_eps": "nan" })), "rms_norm_eps", &["a number from 0 to 1"]);
    refuses(llama(json!({ "rms_norm_eps": -1e-5 })), "rms_norm_eps", &["found -"]);
    refuses(llama(json!({ "tie_word_embeddings": "yes" })), "tie_word_embeddings", &["true or"]);
    refuses(llama(json!({ "hidden_act": "mish" })), "hidden_act", &["silu", "mish"]);
    refuses(llama(json!({ "eos_token_id": [1, -2] })), "eos_token_id", &["token id", "[1,-2]"]);
    refuses(llama(json!({ "bos_token_id": 5_000_000_000u64 })), "bos_token_id", &["4294967295"]);
    refuses(llama(json!({ "torch_dtype": "int8" })), "torch_dtype", &["bfloat16", "int8"]);
    refuses(llama(json!({ "max_position_embeddings": 0 })), "max_position_embeddings", &[]);
    let quantized = json!({ "quantization_config": { "quant_method": "fp8" } });
    refuses(llama(quantized), "quantization_config.quant_method", &["gptq", "fp8"]);
}

#[test]
fn refuses_shapes_that_do_not_fit() {
    let llama = |changes| with("LlamaForCausalLM", changes);
    refuses(llama(json!({ "num_key_value_heads": 3 })), "num_key_value_heads", &["divisor", "8"]);
    refuses(llama(json!({ "num_key_value_heads": 16 })), "num_key_value_heads", &["divisor"]);
    let no_head_dim = json!({ "head_dim": null, "hidden_size": 65, "num_key_value_heads": null });
    refuses(llama(no_head_dim), "num_attention_heads", &["65", "head_dim"]);
    refuses(llama(json!({ "head_dim": 7 })), "partial_rotary_factor", &["even", "7"]);
    let partial = json!({ "partial_rotary_factor": 0.4 });
    refuses(llama(partial), "partial_rotary_factor", &["head_dim 8", "not 3"]);
    refuses(llama(json!({ "partial_rotary_factor": 1.5 })), "partial_rotary_factor", &["1.5"]);
    refuses(llama(json!({ "partial_rotary_factor": 0 })), "partial_rotary_factor", &["found 0"]);

    let types = |layers: usize, kind| Value::Array(vec![json!(kind); layers]);
    let short = json!({ "layer_types": types(3, "full_attention") });
    refuses(with("Qwen3ForCausalLM", short), "layer_types", &["4 types", "not 3"]);
    let unknown = json!({ "layer_types": types(4, "linear_attention") });
    refuses(with("Qwen3ForCausalLM", unknown), "layer_types", &["sliding_attention"]);
    let windowed = json!({ "layer_types": types(4, "sliding_attention") });
    refuses(with("Qwen3ForCausalLM", windowed.clone()), "sliding_window", &["windowed"]);
    refuses(with("LlamaForCausalLM", windowed.clone()), "layer_types", &["full_attention"]);
    let null = json!({ "sliding_window": null });
    refuses(with("Gemma2ForCausalLM", null), "sliding_window", &["found null"]);
    let full = json!({ "layer_types": types(4, "full_attention") });
    refuses(with("MistralForCausalLM", full), "layer_types", &["sliding_window is set"]);
    assert!(parse(&with("MistralForCausalLM", windowed)).is_ok());
    let both = json!({ "use_bidirectional_attention": true });
    refuses(with("Gemma3ForCausalLM", both), "use_bidirectional_attention", &["causal"]);
}

#[test]
fn refuses_impossible_rotary_embeddings() {
    let scaled = |scaling: Value| with("LlamaForCausalLM", json!({ "rope_scaling": scaling }));
    let factor = "rope_scaling.factor";
    refuses(scaled(json!("linear")), "rope_scaling", &["an object"]);
    let kinds = ["linear", "yarn", "longrope"];
    refuses(scaled(json!({ "type": "ntk" })), "rope_scaling.type", &kinds);
    refuses(scaled(json!({ "rope_type": "linear" })), factor, &["found nothing"]);
    refuses(scaled(json!({ "type": "linear", "factor": 0 })), factor, &["from 1 to"]);
    refuses(scaled(json!({ "type": "dynamic", "factor": "2" })), factor, &["found \"2\""]);
    refuses(scaled(json!({ "type": "yarn", "factor": 1e300 })), factor, &["1000000"]);
    let llama3 =
        json!({ "type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 1 });
    refuses(scaled(llama3), "rope_scaling.high_freq_factor", &["low_freq_factor, 4"]);
    let betas = json!({ "type": "yarn", "factor": 2, "beta_fast": 1, "beta_slow": 32 });
    refuses(scaled(betas), "rope_scaling.beta_fast", &["beta_slow, 32"]);
    let long = json!({ "type": "longrope", "short_factor": [1, 1], "long_factor": [1, 1, 1, 1] });
    refuses(scaled(long), "rope_scaling.short_factor", &["4 numbers", "[1,1]"]);
    let zero = json!({ "type": "longrope", "short_factor": [1, 1, 1, 0], "long_factor": [1] });
    refuses(scaled(zero), "rope_scaling.short_factor", &["0.001"]);
    let tiny = with(
        "LlamaForCausalLM",
        json!({ "head_dim": 2, "rope_scaling": { "type": "dynamic", "factor": 2 } }),
    );
    refuses(tiny, "rope_scaling.type", &["2 rotated dimensions"]);
    for theta in [json!(0), json!(-1e4), json!(1), json!("1e4"), json!(1e40)] {
        let config = with("LlamaForCausalLM", json!({ "rope_theta": theta }));
        refuses(config, "rope_theta", &["found"]);
        let config =
            with("LlamaForCausalLM", json!({ "rope_parameters": { "rope_theta": theta } }));
        refuses(config, "rope_parameters.rope_theta", &["found"]);
    }
    let nested = json!({ "rope_parameters": { "full_attention": { "rope_theta": 1e4 } } });
    refuses(with("LlamaForCausalLM", nested), "rope_parameters", &["one rotary embedding"]);
    let flat = json!({ "rope_parameters": { "rope_theta": 1e4 } });
    refuses(with("Gemma3ForCausalLM", flat), "rope_parameters", &["full_attention"]);
    let linear = json!({ "rope_scaling": { "type": "linear", "factor": 2 } });
    refuses(with("Phi3ForCausalLM", linear), "rope_scaling.type", &["longrope"]);
}

#[test]
fn an_unknown_architecture_is_refused_by_name() {
    for name in ["MambaForCausalLM", "LlamaForSequenceClassification", ""] {
        let error = parse(&with(name, json!({}))).unwrap_err();
        assert!(matches!(&error, LoadError::UnknownArchitecture { found, .. } if found == name));
        for known in Architecture::names() {
            assert!(error.to_string().contains(known), "{error}");
        }
    }
    let error = parse(&with("two\nlines\u{1b}[2J", json!({}))).unwrap_err().to_string();
    assert!(!error.contains(|c: char| c.is_control()), "{error:?}");
    // Without the class's name the model's type decides.
    let bare = json!({ "architectures": null, "model_type": "qwen2" });
    let config = parse(&with("", bare)).unwrap();
    assert_eq!(config.architecture, Architecture::Qwen2);
    let bare = json!({ "architectures": [], "model_type": "t5" });
    assert!(matches!(parse(&with("", bare)), Err(LoadError::UnknownArchitecture { .. })));
}

#[test]
fn reads_the_text_part_of_a_multimodal_gemma() {
    // Published ones leave out what transformers assumes.
    let config = json!({
        "architectures": ["Gemma3ForConditionalGeneration"], "eos_token_id": [1, 106],
        "torch_dtype": "bfloat16", "vision_config": {}, "text_config": {
            "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34,
            "rope_scaling": { "factor": 8.0, "rope_type": "linear" }, "sliding_window": 1024,
        },
    });
    let config = parse(&config).unwrap();
    assert_eq!(config.architecture, Architecture::Gemma3);
    assert_eq!((config.num_heads, config.num_kv_heads, config.head_dim), (8, 4, 256));
    assert_eq!(
        (config.vocab_size, config.eos_token_ids.as_slice()),
        (262_208, [1, 106].as_slice())
    );
    assert_eq!(config.dtype, Some(StoredType::Bf16));
    assert_eq!(config.ropes[0].scaling, RopeScaling::Linear { factor: 8.0 });
    assert_eq!(config.ropes[1].scaling, RopeScaling::None);
    // The declared length is the extended one.
    assert_eq!(config.max_context(), 131_072);

    let bare = json!({ "architectures": ["Gemma3ForConditionalGeneration"] });
    refuses(bare, "text_config", &["found nothing"]);
    let nested = with("", json!({ "hidden_size": 0 }));
    let nested =
        json!({ "architectures": ["Gemma3ForConditionalGeneration"], "text_config": nested });
    refuses(nested, "text_config.hidden_size", &["found 0"]);
}

#[test]
fn phi3_reads_its_trained_context_beside_the_scaling() {
    let factors = vec![1.5; 4];
    for name in ["longrope", "su", "yarn"] {
        let scaling = json!({ "type": name, "short_factor": factors, "long_factor": factors });
        let changes = json!({
            "rope_scaling": scaling, "original_max_position_embeddings": 32,
        });
        let config = parse(&with("Phi3ForCausalLM", changes)).unwrap();
        assert!(matches!(
            config.ropes[0].scaling,
            RopeScaling::LongRope { original_max_position_embeddings: 32, .. }
        ));
        assert_eq!(config.max_context(), 128);
    }
}

#[test]
fn bad_files_are_errors() {
    let parse = |bytes: &[u8]| ModelConfig::parse(bytes, Path::new("dir/config.json"));
    for bytes in [b"" as &[u8], b"{", b"<html>", b"\xff\xfe", b"{} {}", b"{\"rms_norm_eps\": NaN}"]
    {
        let error = parse(bytes).unwrap_err();
        assert!(matches!(error, LoadError::Json { .. }), "{error}");
        assert!(error.to_string().starts_with("dir/config.json is not valid JSON"), "{error}");
    }
    for bytes in [b"[]" as &[u8], b"3", b"null", b"\"config\""] {
        assert!(matches!(parse(bytes), Err(LoadError::Value { .. })));
    }
    assert!(matches!(parse(&b"[".repeat(100_000)), Err(LoadError::Json { .. })));

    let dir = tempfile::tempdir().unwrap();
    let error = ModelConfig::load(dir.path()).unwrap_err();
    assert!(matches!(&error, LoadError::Io { path, .. } if path.ends_with("config.json")));
    fs::create_dir(dir.path().join("config.json")).unwrap();
    assert!(matches!(ModelConfig::load(dir.path()), Err(LoadError::Io { .. })));
    fs::remove_dir(dir.path().join("config.json")).unwrap();
    // A sparse file: nothing of it is read.
    let file = fs::File::create(dir.path().join("config.json")).unwrap();
    file.set_len(1 << 40).unwrap();
    let error = ModelConfig::load(dir.path()).unwrap_err();
    assert!(matches!(error, LoadError::TooLarge { found: 0x100_0000_0000, .. }), "{error}");
}

#[test]
fn generation_config_decides_what_ends_a_reply() {
    let dir = models().into_iter().find(|dir| dir.ends_with("stories260K")).unwrap();
    let config = ModelConfig::load(&dir).unwrap();
    let generation = GenerationConfig::load(&dir).unwrap().unwrap();
    assert_eq!(config.eos_token_ids, [2]);
    assert_eq!(config.stop_token_ids(Some(&generation)), [1, 2]);
    assert_eq!(config.stop_token_ids(None), [2]);
    assert_eq!(config.stop_token_ids(Some(&GenerationConfig::default())), [2]);

    let dir = tempfile::tempdir().unwrap();
    assert_eq!(GenerationConfig::load(dir.path()).unwrap(), None);
}

#[test]
fn generation_config_is_typed() {
    let parse = |value: Value| {
        GenerationConfig::parse(value.to_string().as_bytes(), Path::new("generation_config.json"))
    };
    let read = parse(json!({
        "bos_token_id": 1, "do_sample": true, "eos_token_id": 2, "pad_token_id": -1,
        "temperature": 0.6, "top_k": 50, "top_p": 0.9, "min_p": null, "repetition_penalty": 1,
        "max_length": 4096, "transformers_version": "4.31.0",
    }));
    let expected = GenerationConfig {
        eos_token_ids: Some(vec![2]),
        bos_token_id: Some(1),
        do_sample: Some(true),
        temperature: Some(0.6),
        top_k: Some(50),
        top_p: Some(0.9),
        repetition_penalty: Some(1.0),
        max_length: Some(4096),
        ..GenerationConfig::default()
    };
    assert_eq!(read.unwrap(), expected);
    for (key, value) in [
        ("temperature", json!("hot")),
        ("temperature", json!(-1)),
        ("top_p", json!(1.5)),
        ("top_k", json!(-1)),
        ("repetition_penalty", json!(0)),
        ("do_sample", json!(1)),
        ("eos_token_id", json!("</s>")),
        ("eos_token_id", json!([[1]])),
    ] {
        let error = parse(json!({ key: value })).unwrap_err();
        assert!(error.to_string().contains(&format!("`{key}`")), "{error}");
    }
}
