//! `quantization_config`: what can be read is read, everything else is refused by name.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::path::Path;

use engine_core::{ModelConfig, NativeConfig, QuantizationConfig};
use engine_quant::{
    Bits, CodeOrder, Group,
    formats::{gptq::ZeroPoints, native::Entry},
};
use serde_json::{Value, json};

fn parse(quantization: Value) -> Result<Option<QuantizationConfig>, String> {
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 172,
        "num_hidden_layers": 2, "num_attention_heads": 8, "vocab_size": 512,
        "quantization_config": quantization,
    });
    ModelConfig::parse(config.to_string().as_bytes(), Path::new("config.json"))
        .map(|config| config.quantization)
        .map_err(|error| error.to_string())
}

#[test]
fn what_tools_write_is_read() {
    let gptq = |zero_points, group, bits| {
        Ok(Some(QuantizationConfig::Gptq { bits, group, zero_points, symmetric: true }))
    };
    let base = json!({ "quant_method": "gptq", "bits": 4, "group_size": 128, "sym": true });
    let with = |changes: Value| {
        let mut config = base.clone();
        for (key, value) in changes.as_object().unwrap() {
            config[key] = value.clone();
        }
        config
    };
    let (one, two) = (ZeroPoints::LessOne, ZeroPoints::Plain);
    let group = Group::Columns(128);
    assert_eq!(parse(base.clone()), gptq(one, group, Bits::Four));
    assert_eq!(parse(with(json!({ "format": "gptq_v2" }))), gptq(two, group, Bits::Four));
    let v2 = json!({ "checkpoint_format": "GPTQ_V2", "desc_act": true, "dynamic": {} });
    assert_eq!(parse(with(v2)), gptq(two, group, Bits::Four));
    let wide = json!({ "bits": 8, "group_size": -1, "checkpoint_format": null });
    assert_eq!(parse(with(wide)), gptq(one, Group::Row, Bits::Eight));

    let awq = json!({
        "quant_method": "awq", "bits": 4, "group_size": 64, "version": "GEMM", "zero_point": true,
        "modules_to_not_convert": ["lm_head"],
    });
    let group = Group::Columns(64);
    assert_eq!(parse(awq), Ok(Some(QuantizationConfig::Awq { group })));
    let nf4 = json!({ "load_in_4bit": true, "bnb_4bit_quant_type": "nf4" });
    assert_eq!(parse(nf4), Ok(Some(QuantizationConfig::BitsAndBytesNf4)));
    let int8 = json!({ "quant_method": "bitsandbytes", "load_in_8bit": true });
    assert_eq!(parse(int8), Ok(Some(QuantizationConfig::BitsAndBytesInt8)));
    assert_eq!(parse(Value::Null), Ok(None));
}

#[test]
fn what_cannot_be_read_is_refused_by_name_with_a_way_out() {
    let refused = |config: Value, needles: &[&str]| {
        let error = parse(config.clone()).unwrap_err();
        for needle in needles.iter().chain(&["config.json", "quantization_config"]) {
            assert!(error.contains(needle), "{config}: `{error}` does not say `{needle}`");
        }
    };
    for method in ["fp8", "mxfp4", "compressed-tensors", "hqq", "torchao", "auto-round"] {
        refused(json!({ "quant_method": method }), &[method, "gptq, awq", "original floats"]);
    }
    refused(json!({}), &["quant_method", "nothing"]);
    refused(json!({ "quant_method": 3 }), &["quant_method", "3"]);
    let gptq = |key: &str, value: Value| {
        let mut config = json!({ "quant_method": "gptq", "bits": 4, "group_size": 128 });
        config[key] = value;
        config
    };
    for bits in [2, 3, 5, 6] {
        refused(gptq("bits", bits.into()), &["bits", "4 or 8", &bits.to_string()]);
    }
    refused(gptq("bits", "4".into()), &["bits"]);
    refused(gptq("group_size", 0.into()), &["group_size"]);
    refused(gptq("group_size", (-2).into()), &["group_size"]);
    refused(gptq("group_size", Value::Null), &["group_size"]);
    refused(gptq("checkpoint_format", "marlin".into()), &["checkpoint_format", "marlin"]);
    refused(gptq("is_marlin_format", true.into()), &["is_marlin_format"]);
    refused(gptq("dynamic", json!({ "+:.*": { "bits": 8 } })), &["dynamic"]);
    let awq = |key: &str, value: Value| {
        let mut config = json!({ "quant_method": "awq", "bits": 4, "group_size": 128 });
        config[key] = value;
        config
    };
    refused(awq("version", "gemv".into()), &["version", "gemv", "gemm"]);
    refused(awq("bits", 8.into()), &["bits", "8"]);
    refused(awq("zero_point", false.into()), &["zero_point"]);
    let bnb = |key: &str, value: Value| {
        let mut config = json!({ "quant_method": "bitsandbytes", "load_in_4bit": true });
        config[key] = value;
        config
    };
    refused(bnb("bnb_4bit_quant_type", "fp4".into()), &["fp4", "nf4"]);
    refused(bnb("bnb_4bit_quant_type", Value::Null), &["bnb_4bit_quant_type", "nf4"]);
    let mut storage = bnb("bnb_4bit_quant_storage", "bfloat16".into());
    storage["bnb_4bit_quant_type"] = "nf4".into();
    refused(storage, &["bnb_4bit_quant_storage", "bfloat16"]);
    refused(bnb("load_in_4bit", false.into()), &["load_in_8bit"]);
    refused(json!({ "quant_method": "engine", "version": 3 }), &["version", "3", "1 to 2"]);
    refused(json!({ "quant_method": "engine", "version": 1 }), &["default"]);
}

#[test]
fn our_own_entries_come_back_as_they_were_written() {
    let plain = Entry {
        format: "int4:group=64:asym".into(),
        bits: Bits::Four,
        group_size: Some(64),
        per_tensor: false,
        zero: None,
        factor: 1.0,
        order: CodeOrder::Blocks,
    };
    let other = Entry {
        format: "int8".into(),
        bits: Bits::Eight,
        group_size: None,
        per_tensor: true,
        zero: Some(128),
        factor: 1.0 / 127.0,
        order: CodeOrder::Rows,
    };
    let entries = [("a", &plain), ("b", &other), ("c", &plain)];
    let entries = entries.map(|(name, entry)| (name.to_owned(), entry.clone()));
    let config = NativeConfig::new(entries).unwrap();
    assert_eq!(config.tensors.len(), 1, "the most common entry is the default");
    assert_eq!((config.entry("a"), config.entry("b")), (&plain, &other));
    assert_eq!(parse(config.to_json()), Ok(Some(QuantizationConfig::Native(config))));
    assert_eq!(NativeConfig::new([]), None);
    // Files of version 1 do not say it and have rows.
    let old = json!({ "quant_method": "engine", "version": 1, "default": {
        "format": "int8", "bits": 8, "zero": 128
    }});
    let Ok(Some(QuantizationConfig::Native(config))) = parse(old.clone()) else { panic!("{old}") };
    assert_eq!(config.default.order, CodeOrder::Rows);
    let mut strange = old;
    strange["default"]["order"] = "columns".into();
    let error = parse(strange).unwrap_err();
    assert!(error.contains("order") && error.contains("rows or blocks"), "{error}");
}
