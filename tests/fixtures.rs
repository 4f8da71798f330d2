//! Logits and greedy tokens of every model equal those of the reference implementation.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use common::{Fixture, LOGIT_TOLERANCE, builder, devices, fixture_names, max_difference};
use engine::{Device, Engine, PromptReport, Request};

fn logits(engine: &Engine, ids: &[u32]) -> Vec<f32> {
    let request = Request::tokens(ids).max_tokens(0).prompt_report(PromptReport::Logits);
    engine.generate(request).unwrap().prompt.unwrap().logits
}

fn check(name: &str, device: Device) {
    let fixture = Fixture::open(name);
    let engine = builder(name, device).load().unwrap();
    for prompt in fixture.prompts() {
        let ids = fixture.ids(&format!("{prompt}.input_ids"));
        let found = logits(&engine, &ids);
        let vocab = engine.info().config.vocab_size;
        let difference = match fixture.floats(&format!("{prompt}.logits")) {
            Some(expected) => max_difference(&found, &expected),
            None => {
                let expected = fixture.floats(&format!("{prompt}.last_logits")).unwrap();
                max_difference(&found[found.len() - vocab..], &expected)
            }
        };
        assert!(
            difference <= LOGIT_TOLERANCE,
            "{name} {prompt} on {device}: logits differ by {difference}"
        );

        let greedy = fixture.ids(&format!("{prompt}.greedy_ids"));
        let request = Request::tokens(ids).max_tokens(greedy.len()).ignore_eos();
        let completion = engine.generate(request).unwrap();
        assert_eq!(completion.tokens(), greedy, "{name} {prompt} on {device}: greedy tokens");
    }
}

#[test]
fn every_model_equals_the_reference() {
    assert!(fixture_names().len() >= 15);
    for device in devices() {
        for name in fixture_names() {
            check(&name, device);
        }
    }
}

#[test]
fn both_prompts_of_a_model_at_once_equal_the_reference() {
    for device in devices() {
        for name in fixture_names() {
            let fixture = Fixture::open(&name);
            let engine = builder(&name, device).load().unwrap();
            let running: Vec<_> = fixture
                .prompts()
                .into_iter()
                .map(|prompt| {
                    let ids = fixture.ids(&format!("{prompt}.input_ids"));
                    let greedy = fixture.ids(&format!("{prompt}.greedy_ids"));
                    let request = Request::tokens(ids).max_tokens(greedy.len()).ignore_eos();
                    (prompt, greedy, engine.submit(request).unwrap())
                })
                .collect();
            for (prompt, greedy, generation) in running {
                let completion = generation.wait().unwrap();
                assert_eq!(completion.tokens(), greedy, "{name} {prompt} on {device}");
            }
        }
    }
}
