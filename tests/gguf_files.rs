//! GGUF files through the public interface: weights, tokenizer and template out of one file.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use common::{LOGIT_TOLERANCE, data, devices, max_difference, model};
use engine::{Device, Engine, EngineError, HubError, PromptReport, Request};
use safetensors::SafeTensors;

fn path(name: &str) -> String {
    data().join("quant/gguf").join(format!("{name}.gguf")).display().to_string()
}

fn load(name: &str, device: Device) -> Engine {
    Engine::builder(path(name)).device(device).kv_cache_bytes(8 << 20).load().unwrap()
}

#[test]
fn logits_equal_the_reference_on_every_device() {
    let bytes = std::fs::read(data().join("quant/gguf/logits.safetensors")).unwrap();
    let reference = SafeTensors::deserialize(&bytes).unwrap();
    let files = ["stories260K.Q4_0", "bard1m.Q2_K", "bard1m.IQ4_NL", "llama3-rope-scaled.Q8_0"];
    for (device, name) in devices().into_iter().flat_map(|d| files.map(|name| (d, name))) {
        let tensor = |suffix: &str| reference.tensor(&format!("{name}.prompt0.{suffix}")).unwrap();
        let ids = tensor("input_ids");
        let ids = ids.data().as_chunks().0.iter().map(|&id| i64::from_le_bytes(id) as u32);
        let expected = tensor("logits");
        let expected = expected.data().as_chunks().0.iter().map(|&x| f32::from_le_bytes(x));
        let ids: Vec<u32> = ids.collect();
        let request = Request::tokens(ids).max_tokens(0).prompt_report(PromptReport::Logits);
        let found = load(name, device).generate(request).unwrap().prompt.unwrap().logits;
        let difference = max_difference(&found, &expected.collect::<Vec<_>>());
        assert!(difference <= LOGIT_TOLERANCE, "{name} on {device}: {difference}");
    }
}

#[test]
fn text_goes_in_and_comes_out() {
    let text = |engine: Engine| {
        let request = Request::text("Once upon a time").max_tokens(20).ignore_eos();
        engine.generate(request).unwrap().choices[0].text.clone()
    };
    let directory = model("stories260K").display().to_string();
    let expected = text(Engine::builder(directory).device(Device::Cpu).load().unwrap());
    assert_eq!(text(load("stories260K.F32", Device::Cpu)), expected);
    assert!(!expected.is_empty());
    let engine = load("bard1m.Q4_K_M", Device::Cpu);
    assert_eq!(engine.info().eos_token_ids(), [2]);
    assert_eq!(engine.info().tokenizer.as_ref().unwrap().vocab_size(), 512);
    let formats: Vec<_> = engine.info().weight_formats.iter().map(|f| f.0.as_str()).collect();
    assert_eq!(formats, ["q4_k", "q6_k"]);
    assert!(engine.info().load_report.to_string().contains("13 Q4_K kept"));
}

#[test]
fn what_is_not_there_or_no_gguf_file() {
    let error = |path: &str| Engine::builder(path).device(Device::Cpu).load().err().unwrap();
    assert!(matches!(error("no/such.gguf"), EngineError::Hub(HubError::NoFile { .. })));
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("model.GGUF");
    std::fs::write(&file, "hello").unwrap();
    let message = error(&file.display().to_string()).to_string();
    assert!(message.contains("model.GGUF is not a GGUF file but something else"), "{message}");
    let other = dir.path().join("model.bin");
    std::fs::write(&other, "hello").unwrap();
    let found = error(&other.display().to_string());
    assert!(matches!(found, EngineError::Hub(HubError::NotDirectory { .. })), "{found}");
}
