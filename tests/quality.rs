//! Perplexity, divergence and agreement of every scheme that rounds to nearest equal those of the
//! reference implementation.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use common::{data, model};
use engine::{CalibrationText, KvFormat};
use engine_bench::{
    ImageFormat,
    quality::{Loss, QualityPlan, QualityReport, QualityRow},
};
use serde_json::Value;

/// Our names of the references' schemes; they have no other name for blocks that cross rows.
fn scheme(name: &str, with_tables: bool) -> Option<String> {
    let scheme = match name.split('_').collect::<Vec<_>>()[..] {
        ["int8", "row"] => "int8".to_owned(),
        ["int8", "tensor"] => "int8:tensor".to_owned(),
        ["nf4", "row64", "f16"] => "nf4".to_owned(),
        ["int4", range, group] => format!("int4:group={}:{range}", group.strip_prefix('g')?),
        _ => return None,
    };
    Some(if with_tables { format!("{scheme}+embeddings={scheme}") } else { scheme })
}

/// What is scored: the references' name of a text, its file and the method.
struct Case {
    key: &'static str,
    file: &'static str,
    method: &'static str,
}

const TINYSTORIES: Case =
    Case { key: "tinystories", file: "text/tinystories_sample.txt", method: "per-document" };
const ALICE: Case = Case { key: "alice", file: "text/excerpt_alice.txt", method: "chunked:256" };
const BARD: Case =
    Case { key: "bard_valid", file: "quant/text/bard_valid_excerpt.txt", method: "chunked:256" };

fn plan(model: impl Into<String>, case: &Case) -> QualityPlan {
    let text = std::fs::read_to_string(data().join(case.file)).unwrap();
    let method = case.method.parse().unwrap();
    QualityPlan { method, speed: None, ..QualityPlan::new(model, text) }
}

fn run(plan: &QualityPlan) -> QualityReport {
    plan.run(&mut |_| ()).unwrap()
}

fn check(row: &QualityRow, expected: &Value, label: &str) {
    let number = |name: &str| expected[name].as_f64().unwrap();
    let scored = number("n_scored");
    let perplexity = number("perplexity");
    let close = (row.perplexity / perplexity - 1.0).abs() < 1e-5;
    assert!(close, "{label}: perplexity {} for {perplexity}", row.perplexity);
    let kl = number("kl_mean_nats");
    let close = (row.kl_nats - kl).abs() < (1e-4 * kl).max(1e-6);
    assert!(close, "{label}: KL {} for {kl}", row.kl_nats);
    let top1 = number("top1_agreement");
    let close = (row.top1_agreement - top1).abs() * scored < 1.5;
    assert!(close, "{label}: top-1 {} for {top1}", row.top1_agreement);
}

/// Compares all schemes on one text.
fn check_all(name: &str, path: String, case: &Case) {
    let json = std::fs::read(data().join("quant/ppl.json")).unwrap();
    let json: Value = serde_json::from_slice(&json).unwrap();
    let known = &json["models"][name];
    let exact = known["exact"].as_object().unwrap();
    let cases = exact.iter().flat_map(|(name, parts)| {
        [("linear", false), ("linear_and_embeddings", true)].map(|(part, with_tables)| {
            scheme(name, with_tables).map(|scheme| (scheme, &parts[part][case.key]))
        })
    });
    let cases: Vec<_> = cases.flatten().collect();
    assert_eq!(cases.len(), 30);
    let schemes = cases.iter().map(|(scheme, _)| scheme.parse().unwrap()).collect();
    let report = run(&QualityPlan { schemes, ..plan(path, case) });
    let float = &known["float"][case.key];
    assert_eq!(report.scored_tokens as u64, float["n_scored"].as_u64().unwrap());
    check(&report.rows[0], float, "float");
    for (row, (scheme, expected)) in report.rows[1..].iter().zip(&cases) {
        check(row, expected, &format!("{name} {} {scheme}", case.key));
    }
}

fn path(name: &str) -> String {
    model(name).display().to_string()
}

fn bard() -> String {
    data().join("quant/models/bard1m").display().to_string()
}

#[test]
fn stories260k_on_short_stories() {
    check_all("stories260K", path("stories260K"), &TINYSTORIES);
}

#[test]
fn stories260k_on_a_text_it_does_not_know() {
    check_all("stories260K", path("stories260K"), &ALICE);
}

#[test]
fn bard1m_on_plays() {
    check_all("bard1m", bard(), &BARD);
}

#[test]
fn checkpoints_that_others_made_are_compared_as_they_are() {
    let files = ["gptq/bard1m-gptq-w4-g128-actorder", "awq/bard1m-awq-w4-g128"];
    let models = files.map(|file| data().join("quant").join(file)).into();
    let report = run(&QualityPlan { models, ..plan(bard(), &BARD) });
    let [_, gptq, awq] = &report.rows[..] else { unreachable!("three rows") };
    let near = |found: f64, expected: f64, digits: i32| {
        (found - expected).abs() < 0.51 * 10_f64.powi(-digits)
    };
    assert!(near(gptq.perplexity, 12.7682, 4) && near(gptq.kl_nats, 0.00947, 5), "{gptq:?}");
    assert!(near(awq.perplexity, 12.8129, 4) && near(awq.kl_nats, 0.01326, 5), "{awq:?}");
    // Four bits and a little for each weight, and an error that fits them.
    let error = gptq.mean_layer_error.unwrap();
    assert!((0.05..0.2).contains(&error), "{error}");
    assert_eq!(gptq.layers.len(), 14);
    // AWQ scaled the columns, so that its matrices are others.
    assert_eq!((awq.mean_layer_error, awq.layers.len()), (None, 14));
    let bits = [gptq, awq].map(|row| row.bits_per_weight.unwrap());
    assert!(bits.iter().all(|bits| (4.1..4.6).contains(bits)), "{bits:?}");
}

#[test]
fn calibrated_schemes_are_made_and_measured() {
    let text = std::fs::read_to_string(data().join("quant/text/tinystories_calib.txt")).unwrap();
    let calibration = Some(CalibrationText::new(text));
    let schemes = ["int4:asym", "int4:method=gptq"].map(|name| name.parse().unwrap());
    let plan = plan(path("stories260K"), &TINYSTORIES);
    let report = run(&QualityPlan { calibration, schemes: schemes.into(), ..plan });
    let [_, nearest, gptq] = &report.rows[..] else { unreachable!() };
    assert_eq!(gptq.scheme, "int4:group=32:asym:method=gptq");
    // The limits of the references, and the same bytes on the same grid.
    assert!(gptq.perplexity <= 3.77 && gptq.kl_nats < 0.06088, "{gptq:?}");
    assert_eq!(gptq.weight_bytes, nearest.weight_bytes);
    assert_eq!(gptq.bits_per_weight, nearest.bits_per_weight);
    // It is worse at what it does not aim for.
    assert!(gptq.mean_layer_error > nearest.mean_layer_error);
}

#[test]
fn bytes_errors_and_verdicts_of_a_mixed_plan() {
    let schemes = ["none", "int8", "int4:group=32+v_proj=none"].map(|name| name.parse().unwrap());
    let kv_formats = vec![KvFormat::F32, KvFormat::Int8];
    let plan = QualityPlan {
        schemes: schemes.into(),
        kv_formats,
        ..plan(path("stories260K"), &TINYSTORIES)
    };
    let report = run(&plan);
    let names: Vec<_> = report.rows.iter().map(QualityRow::name).collect();
    let mixed = "int4:group=32:sym8+v_proj=none";
    let kv = |name: &str| format!("{name} + KV int8");
    let expected = ["none".into(), kv("none"), "int8".into(), kv("int8"), mixed.into(), kv(mixed)];
    assert_eq!(names, expected);

    let [none, none_kv, int8, int8_kv, int4, _] = &report.rows[..] else { unreachable!() };
    assert_eq!((none.kl_nats, none.top1_agreement, none.loss), (0.0, 1.0, Loss::None));
    // One layer's numbers, five layers: rows of 172 are padded to 176.
    let (attention, mlp) = (64 * 64 + 2 * 32 * 64 + 64 * 64, 3 * 64 * 172);
    let codes = attention + 2 * 172 * 64 + 64 * 176;
    let scales = 2 * (64 + 32 + 32 + 64 + 172 + 172 + 64);
    let saved = 5 * (4 * (attention + mlp) - codes - scales);
    assert_eq!(none.weight_bytes - int8.weight_bytes, saved);
    let bits = 8.0 * (codes + scales) as f64 / (attention + mlp) as f64;
    assert!((int8.bits_per_weight.unwrap() - bits).abs() < 1e-12);

    assert_eq!(int8.loss, Loss::NotMeasurable);
    assert!(int8.verdict.starts_with("int8: ") && int8.verdict.contains("no measurable loss"));
    assert_eq!((int8.layers.len(), int4.layers.len()), (35, 30));
    assert!(int8.layers.is_sorted_by(|a, b| a.relative_error >= b.relative_error));
    assert_eq!(int8.largest_layer_error, int8.layers[0].relative_error);
    assert!(int4.layers.iter().all(|layer| !layer.name.contains("v_proj")));
    assert!(int4.mean_layer_error.unwrap() > 5.0 * int8.mean_layer_error.unwrap());
    assert_eq!(none_kv.weight_bytes, none.weight_bytes);
    assert!(none_kv.kl_nats > 0.0 && none_kv.loss == Loss::NotMeasurable, "{}", none_kv.kl_nats);
    assert_eq!((int8_kv.weight_bytes, &int8_kv.layers), (int8.weight_bytes, &int8.layers));

    for (format, start) in [(ImageFormat::Svg, &b"<svg"[..]), (ImageFormat::Png, b"\x89PNG")] {
        assert!(report.plot(format).unwrap().starts_with(start), "{format:?}");
    }
    let table = report.markdown();
    assert_eq!(table.matches("\n| ").count(), 1 + 6, "{table}");
    assert_eq!(table.matches("\n- ").count(), 5, "{table}");
    assert!(table.contains(&int8.layers[0].name["model.".len()..]), "{table}");
}

#[test]
fn what_cannot_be_compared_is_refused_with_a_reason() {
    let refusal = |plan: QualityPlan| plan.run(&mut |_| ()).unwrap_err().to_string();
    let stories = || plan(path("stories260K"), &TINYSTORIES);
    let schemes = vec!["int4:method=gptq".parse().unwrap()];
    assert!(refusal(QualityPlan { schemes, ..stories() }).contains("calibration"));
    let schemes = vec!["int8+no_such_proj=none".parse().unwrap()];
    assert!(refusal(QualityPlan { schemes, ..stories() }).contains("no_such_proj"));
    let other = vec![data().join("quant/models/rand128")];
    assert!(refusal(QualityPlan { models: other, ..stories() }).contains("vocabulary of 512"));
    let method = "chunked:513".parse().unwrap();
    assert!(refusal(QualityPlan { method, ..stories() }).contains("513"));
    assert!(refusal(QualityPlan { text: " ".to_owned(), ..stories() }).contains("no token"));
    assert!(refusal(QualityPlan { kv_formats: Vec::new(), ..stories() }).contains("KV cache"));
    assert!(
        refusal(QualityPlan { model: "/no/such".to_owned(), ..stories() }).contains("/no/such")
    );
}
