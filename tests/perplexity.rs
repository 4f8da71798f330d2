//! Perplexities of the trained model equal those of the reference implementation.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use common::{Fixture, builder, data, devices};
use engine::{Device, KvFormat};
use engine_bench::perplexity::{Method, perplexity};

/// The fixture's `chunked256` and `strided256_128` as a [`Method`].
fn method(name: &str) -> Method {
    let name = name.replace("per_document", "per-document").replace('_', ":");
    let name = name.replace("chunked", "chunked:").replace("strided", "strided:");
    name.parse().unwrap()
}

/// Scores the fixture's texts that the repository holds and that are scored by `wanted`.
fn check(model: &str, wanted: impl Fn(&str, &str) -> bool) -> usize {
    let fixture = Fixture::open(model);
    let mut checked = 0;
    for device in devices() {
        let engine = builder(model, device).load().unwrap();
        for case in fixture.json["perplexity"].as_array().unwrap() {
            let field = |name: &str| case[name].as_str().unwrap();
            let (text, name) = (field("text"), field("method"));
            let path = data().join("text").join(text);
            // The excerpt of Wikipedia is not part of the repository.
            if text.contains("wikitext") || !wanted(text, name) {
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            let found = perplexity(&engine, &text, method(name), |_, _| ()).unwrap();
            let expected = case["perplexity"].as_f64().unwrap();
            let label = format!("{model} {} {name} on {device}", path.display());
            assert_eq!(found.scored_tokens as u64, case["n_scored"].as_u64().unwrap(), "{label}");
            let difference = (found.perplexity / expected - 1.0).abs();
            assert!(difference < 1e-3, "{label}: {} for {expected}", found.perplexity);
            checked += 1;
        }
    }
    checked
}

#[test]
fn of_the_trained_model() {
    assert!(check("stories260K", |_, _| true) >= 5);
}

/// What keys and values in 8 bits cost: less than half a per cent, in either direction.
#[test]
fn of_the_trained_model_with_keys_and_values_in_int8() {
    for (text, name) in [("tinystories", "per-document"), ("alice", "chunked:256")] {
        let file = Fixture::open("stories260K").json["perplexity"]
            .as_array()
            .unwrap()
            .iter()
            .map(|case| case["text"].as_str().unwrap().to_owned())
            .find(|file| file.contains(text))
            .unwrap();
        let text = std::fs::read_to_string(data().join("text").join(file)).unwrap();
        let [floats, codes] = [KvFormat::F32, KvFormat::Int8].map(|format| {
            let builder = builder("stories260K", Device::Cpu).kv_cache_format(format);
            let engine = builder.load().unwrap();
            let memory = &engine.info().memory;
            println!("{format}: {} bytes a token", memory.kv_bytes_per_token);
            assert_eq!(memory.kv_format, format);
            perplexity(&engine, &text, name.parse().unwrap(), |_, _| ()).unwrap().perplexity
        });
        println!("{name}: {floats} with f32, {codes} with int8");
        assert!((codes / floats - 1.0).abs() < 5e-3, "{name}: {codes} for {floats}");
        assert!(codes != floats, "{name}: the format was not used");
    }
}

#[test]
fn of_the_trained_model_in_bf16() {
    // The methods and texts are the other test's; this one is about the stored type.
    assert!(
        check("stories260K-bf16", |text, method| {
            text.contains("tinystories") || (text.contains("alice") && method.contains("strided"))
        }) >= 2
    );
}
