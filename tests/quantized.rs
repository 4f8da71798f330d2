//! Weights in few bits, through the public API: perplexities and logits equal the references.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use common::{LOGIT_TOLERANCE, data, max_difference, model};
use engine::{Device, Engine, EngineBuilder, PromptReport, Request, SchemePlan, Treatment};
use engine_bench::perplexity::perplexity;
use engine_core::NativeConfig;
use engine_quant::formats::{Element, bnb, native};
use engine_quant::{Scheme, SliceRows, round_to_nearest};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::{Value, json};
use tempfile::TempDir;

fn quant(path: &str) -> PathBuf {
    data().join("quant").join(path)
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn builder(path: &Path) -> EngineBuilder {
    Engine::builder(path.display().to_string()).device(Device::Cpu).kv_cache_bytes(8 << 20)
}

/// The plan that rounds as the references of this name do, if a plan can say it.
fn plan(reference: &str) -> Option<String> {
    Some(match reference {
        "int8_row" => "int8".to_owned(),
        "int8_tensor" => "int8:tensor".to_owned(),
        "nf4_row64_f16" => "nf4".to_owned(),
        "nf4_flat64" => return None,
        int4 => {
            let (range, group) = int4.strip_prefix("int4_")?.split_once("_g")?;
            format!("int4:group={group}:{range}")
        }
    })
}

fn score(engine: &Engine, [text, method]: [&str; 2]) -> f64 {
    let folders = [data().join("text"), quant("text")];
    let file = folders.iter().map(|folder| folder.join(text)).find(|file| file.is_file());
    let text = std::fs::read_to_string(file.unwrap()).unwrap();
    let method = method.replace("per_document", "per-document").replace("chunked", "chunked:");
    perplexity(engine, &text, method.parse().unwrap(), |_, _| ()).unwrap().perplexity
}

/// Perplexities of a model under every exact scheme; returns how many were compared.
fn check_perplexities(name: &str, path: &Path, flat_nf4: &Path) -> usize {
    let references = &json(&quant("ppl.json"))["models"][name];
    let mut compared = 0;
    for (scheme, expected) in references["exact"].as_object().unwrap() {
        let mut variants = vec![("linear", plan(scheme).map(|plan| (path, plan)))];
        match plan(scheme) {
            None => variants[0].1 = Some((flat_nf4, "none".to_owned())),
            Some(plan) if ["int8_row", "int4_asym_g32"].contains(&scheme.as_str()) => {
                let plan = format!("{plan}+embeddings={plan}");
                variants.push(("linear_and_embeddings", Some((path, plan))));
            }
            Some(_) => {}
        }
        for (what, setting) in variants {
            let (path, plan) = setting.unwrap();
            let plan: SchemePlan = plan.parse().unwrap();
            let engine = builder(path).quantization(plan.clone()).load().unwrap();
            for (text, expected) in expected[what].as_object().unwrap() {
                let file = references["texts"][text][0].as_str().unwrap();
                let method = references["texts"][text][1].as_str().unwrap();
                let found = score(&engine, [file, method]);
                let expected = expected["perplexity"].as_f64().unwrap();
                let relative = (found / expected - 1.0).abs();
                let label = format!("{name} {scheme} {what} {text}");
                println!("{label}: {found} for {expected}, {relative:.1e}");
                assert!(relative < 1e-5, "{label}: {found} for {expected}");
                compared += 1;
            }
        }
    }
    compared
}

/// A copy of a model whose projections are NF4 in flat blocks, as bitsandbytes stores them.
fn flat_nf4(path: &Path) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(path).unwrap() {
        let file = entry.unwrap().path();
        std::fs::copy(&file, dir.path().join(file.file_name().unwrap())).unwrap();
    }
    let mut config = json(&path.join("config.json"));
    config["quantization_config"] = json!({
        "quant_method": "bitsandbytes", "load_in_4bit": true, "bnb_4bit_quant_type": "nf4",
    });
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    let bytes = std::fs::read(path.join("model.safetensors")).unwrap();
    let model = SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors: BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)> = BTreeMap::new();
    let le = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect();
    for (name, tensor) in model.tensors() {
        if !name.contains("_proj") {
            let stored = (tensor.dtype(), tensor.shape().to_vec(), tensor.data().to_vec());
            tensors.insert(name, stored);
            continue;
        }
        let (codes, absmax) = bnb::quantize_nf4(&floats(&tensor)).unwrap();
        let state = json!({ "quant_type": "nf4", "blocksize": 64, "shape": tensor.shape() });
        let state = state.to_string().into_bytes();
        let mut add = |part: &str, dtype, shape, bytes| {
            tensors.insert(format!("{name}{part}"), (dtype, shape, bytes));
        };
        add(".absmax", Dtype::F32, vec![absmax.len()], le(&absmax));
        add(".quant_map", Dtype::F32, vec![16], le(&bnb::LEVELS));
        add(".quant_state.bitsandbytes__nf4", Dtype::U8, vec![state.len()], state);
        add("", Dtype::U8, vec![codes.len(), 1], codes);
    }
    let views = tensors.iter().map(|(name, (dtype, shape, bytes))| {
        (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    });
    let file = safetensors::serialize(views, None).unwrap();
    std::fs::write(dir.path().join("model.safetensors"), file).unwrap();
    dir
}

fn floats(tensor: &TensorView<'_>) -> Vec<f32> {
    match tensor.dtype() {
        Dtype::F32 => {
            let words = tensor.data().as_chunks().0;
            words.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
        }
        Dtype::BF16 => {
            let pairs = tensor.data().as_chunks::<2>().0;
            pairs.iter().map(|&[low, high]| f32::from_le_bytes([0, 0, low, high])).collect()
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn perplexities_of_stories260k_under_every_exact_scheme() {
    let path = model("stories260K");
    let flat = flat_nf4(&path);
    // 172 columns are no whole blocks of 64: those matrices are floats, the others keep their bits.
    let report = builder(flat.path()).load().unwrap().info().load_report.clone();
    let count = |treatment| {
        let entries = report.entries.iter().filter(|entry| entry.treatment == treatment);
        entries.map(|entry| entry.matrices).sum::<usize>()
    };
    assert_eq!(count(Treatment::Dequantized), 5, "{report}");
    assert_eq!(count(Treatment::Kept), 31, "{report}");
    assert_eq!(check_perplexities("stories260K", &path, flat.path()), 2 * (16 + 2));
}

#[test]
fn perplexities_of_bard1m_under_every_exact_scheme() {
    let path = quant("models/bard1m");
    let flat = flat_nf4(&path);
    assert_eq!(check_perplexities("bard1m", &path, flat.path()), 16 + 2);
}

/// A copy of a model in our own layout, each matrix as the plan says.
fn native_copy(path: &Path, plan: &SchemePlan) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let layers = engine::ModelConfig::load(path).unwrap().num_layers;
    let bytes = std::fs::read(path.join("model.safetensors")).unwrap();
    let model = SafeTensors::deserialize(&bytes).unwrap();
    let (mut entries, mut tensors) = (Vec::new(), BTreeMap::new());
    for (name, tensor) in model.tensors() {
        let matrix = name.strip_suffix(".weight").unwrap();
        let tied: &[&str] = &[matrix, "lm_head"];
        let names = if name.contains("embed_tokens") { tied } else { &tied[..1] };
        match plan.scheme_of_any(names, layers) {
            Scheme::Quantize { grid, .. } if tensor.shape().len() == 2 => {
                let rows = SliceRows { values: &floats(&tensor), columns: tensor.shape()[1] };
                let packed = round_to_nearest(&rows, grid).unwrap();
                let (entry, parts) = native::pack(matrix, packed);
                entries.push((matrix.to_owned(), entry));
                for part in parts {
                    let dtype = match part.element {
                        Element::U8 => Dtype::U8,
                        Element::I32 => Dtype::I32,
                        Element::F16 => Dtype::F16,
                        Element::F32 => Dtype::F32,
                    };
                    tensors.insert(part.name, (dtype, part.shape, part.bytes));
                }
            }
            _ => {
                let stored =
                    (tensor.dtype(), tensor.shape().to_vec(), tensor.data().to_vec().into());
                tensors.insert(name, stored);
            }
        }
    }
    let views = tensors.iter().map(|(name, (dtype, shape, bytes))| {
        (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    });
    let file = safetensors::serialize(views, None).unwrap();
    std::fs::write(dir.path().join("model.safetensors"), file).unwrap();
    let mut config = json(&path.join("config.json"));
    config["quantization_config"] = NativeConfig::new(entries).unwrap().to_json();
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    dir
}

#[test]
fn a_copy_in_our_own_layout_equals_quantizing_while_loading_bit_for_bit() {
    let path = model("stories260K");
    const PLAN: &str =
        "int4:group=32:asym+v_proj=int8+down_proj=nf4+last=none+embeddings=int8:tensor";
    let plan: SchemePlan = PLAN.parse().unwrap();
    let copy = native_copy(&path, &plan);
    let logits = |engine: &Engine| {
        let request = Request::tokens((1..40).map(|i| i * 11).collect::<Vec<_>>()).max_tokens(0);
        let request = request.prompt_report(PromptReport::Logits);
        engine.generate(request).unwrap().prompt.unwrap().logits
    };
    let while_loading = builder(&path).quantization(plan).load().unwrap();
    let from_copy = builder(copy.path()).load().unwrap();
    assert_eq!(logits(&while_loading), logits(&from_copy));
    let unmapped = builder(copy.path()).map_files(false).load().unwrap();
    assert_eq!(logits(&unmapped), logits(&from_copy));
    let (a, b) = (while_loading.info(), from_copy.info());
    assert_eq!(a.weight_formats, b.weight_formats);
    assert_eq!(a.memory.weight_bytes, b.memory.weight_bytes);
    assert!(b.load_report.file_bytes < a.load_report.file_bytes / 2);
    // Whatever order of codes the products want.
    for activations in ["f32", "24bit", "16bit"] {
        let with = |plan: &str| format!("{plan}+activations={activations}").parse().unwrap();
        let while_loading = builder(&path).quantization(with(PLAN)).load().unwrap();
        let from_copy = builder(copy.path()).quantization(with("none")).load().unwrap();
        assert_eq!(logits(&while_loading), logits(&from_copy), "{activations}");
    }
}

/// Checks the logits of a reference's prompts.
fn check_logits(engine: &Engine, reference: &Path, label: &str) {
    let bytes = std::fs::read(reference).unwrap();
    let reference = SafeTensors::deserialize(&bytes).unwrap();
    for prompt in ["prompt0", "prompt1"] {
        let ids = reference.tensor(&format!("{prompt}.input_ids")).unwrap();
        let ids = ids.data().as_chunks().0.iter().map(|id| i64::from_le_bytes(*id) as u32);
        let request = Request::tokens(ids.collect::<Vec<_>>());
        let request = request.max_tokens(0).prompt_report(PromptReport::Logits);
        let found = engine.generate(request).unwrap().prompt.unwrap().logits;
        let expected = floats(&reference.tensor(&format!("{prompt}.logits")).unwrap());
        let difference = max_difference(&found, &expected);
        println!("{label} {prompt}: {difference:.1e}");
        assert!(difference < LOGIT_TOLERANCE, "{label} {prompt}: {difference}");
    }
}

#[test]
fn logits_of_gptq_awq_and_bitsandbytes_checkpoints() {
    let mut checked = 0;
    for method in ["gptq", "awq", "bnb"] {
        for entry in std::fs::read_dir(quant(method)).unwrap() {
            let path = entry.unwrap().path();
            if !path.is_dir() {
                continue;
            }
            // What is in few bits stays as it is, whatever the plan says.
            let engine = builder(&path).quantization("int8".parse().unwrap()).load().unwrap();
            let report = &engine.info().load_report;
            assert_eq!(report.left_as_stored, 14, "{report}");
            let kept = report.entries.iter().all(|entry| entry.treatment == Treatment::Kept);
            assert!(kept, "{report}");
            check_logits(&engine, &path.with_extension("safetensors"), &path.display().to_string());
            checked += 1;
        }
    }
    assert_eq!(checked, 10);
}

#[test]
fn the_report_and_the_plan_agree_with_the_memory() {
    let path = model("stories260K");
    let float = builder(&path).load().unwrap().info().memory.weight_bytes;
    let plan = "int4:group=32+v_proj=int8+last=none+lm_head=int8";
    let engine = builder(&path).quantization(plan.parse().unwrap()).load().unwrap();
    let info = engine.info();
    let matrices = |format: &str| {
        let entries = &info.load_report.entries;
        entries.iter().find(|entry| entry.format == format).map_or(0, |entry| entry.matrices)
    };
    // Five layers of seven matrices: the last is left, the others' v_proj and the table are INT8.
    assert_eq!(matrices("f32"), 7, "{}", info.load_report);
    assert_eq!(matrices("int8"), 4 + 1, "{}", info.load_report);
    assert_eq!(matrices("int4:group=32:sym8"), 4 * 6, "{}", info.load_report);
    let formats: usize = info.weight_formats.iter().map(|(_, bytes)| bytes).sum();
    let entries: usize = info.load_report.entries.iter().map(|entry| entry.num_bytes).sum();
    assert_eq!(formats, entries);
    assert!(info.memory.weight_bytes < float / 2, "{}", info.memory);
}

#[test]
fn a_plan_that_needs_a_text_is_refused_with_the_way_to_get_it() {
    let plan = "int4:method=gptq".parse().unwrap();
    let error = builder(&model("stories260K")).quantization(plan).load().unwrap_err().to_string();
    assert!(error.contains("quantize") && error.contains("method=gptq"), "{error}");
}

#[test]
fn a_rule_that_concerns_no_matrix_is_refused() {
    let plan = "int4+v_prj=int8".parse().unwrap();
    let error = builder(&model("stories260K")).quantization(plan).load().unwrap_err().to_string();
    assert!(error.contains("`v_prj`"), "{error}");
}

#[test]
fn weights_without_a_number_are_refused_by_name() {
    let mut weights = common::tiny::TinyModel::default().weights(1);
    weights.fill("model.layers.0.mlp.up_proj.weight", f32::NAN);
    let dir = tempfile::tempdir().unwrap();
    weights.save(dir.path());
    let plan = "int4".parse().unwrap();
    let error = builder(dir.path()).quantization(plan).load().unwrap_err().to_string();
    assert!(error.contains("up_proj.weight") && error.contains("not finite"), "{error}");
}

/// The same scheme for all parts of Phi-3's fused tensors, and another for some of their rows.
#[test]
fn rules_reach_the_parts_of_fused_projections() {
    let formats = |plan: &str| {
        let plan = plan.parse().unwrap();
        let engine = builder(&model("phi3-fused")).quantization(plan).load().unwrap();
        let entries = engine.info().load_report.entries.clone();
        let mut formats: Vec<_> = entries.into_iter().map(|e| (e.format, e.matrices)).collect();
        formats.sort();
        formats
    };
    let layers = engine::ModelConfig::load(model("phi3-fused")).unwrap().num_layers;
    let count = |plan: &str, format: &str| {
        formats(plan).into_iter().find(|(name, _)| name == format).map_or(0, |(_, n)| n)
    };
    assert_eq!(count("int8", "int8"), 4 * layers);
    assert_eq!(count("none+v_proj=int8", "int8"), layers);
    assert_eq!(count("none+qkv_proj=int8", "int8"), layers);
    assert_eq!(count("int8+gate_proj=nf4", "nf4"), layers);
}
