use engine::Execution;

use crate::{
    BenchError, Plan, Report, Stage,
    measure::Task,
    run::{Bench, Variant, models},
};

/// Requests at once where batching is measured.
const BATCH: usize = 8;

/// Measures one optimisation after the other: plain Burn operations, the same fused by Burn, the
/// engine's kernels; then, each row with all before it, weights in 8 and in 4 bits, activations as
/// integers of 24 and of 16 bits, a batch, a prefix that is cached. Models, device, threads, repeats
/// and the first of the plan's prompt and output lengths count; its formats and batches do not.
///
/// A row that this build or device cannot run stays empty; see [`Execution::is_available`].
///
/// # Errors
/// As [`run`](crate::run()).
pub fn ablation(plan: &Plan, progress: &mut dyn FnMut(Stage)) -> Result<Report, BenchError> {
    plan.check()?;
    let first = |values: &[usize], otherwise| values.first().copied().unwrap_or(otherwise);
    let one = Task::new(1, first(&plan.prompt_lens, 128), first(&plan.output_lens, 64));
    let batch = Task { batch: BATCH, ..one };
    // Whole blocks alone are cached, and the last token of a prompt never is.
    let cached = Task { shared_len: (one.prompt_len * 7 / 8).next_multiple_of(16) - 16, ..batch };
    let models = models(plan, &[one, batch, cached], progress)?;
    let mut bench = Bench::new(plan, progress)?;
    for model in &models {
        for (label, execution, quant, task) in steps(one, batch, cached) {
            let variant = Variant { label: label.to_owned(), execution, quant: quant.parse()? };
            bench.compare(model, &[variant], &[task]);
        }
    }
    bench.finish()
}

type Step = (&'static str, Execution, &'static str, Task);

fn steps(one: Task, batch: Task, cached: Task) -> [Step; 9] {
    use Execution::{Composed, Fusion, Kernels};
    const INT4: &str = "int4:group=128+lm_head=int8+activations=16bit";
    [
        ("plain Burn operations", Composed, "none", one),
        ("plain Burn operations, fused by Burn", Fusion, "none", one),
        ("our kernels", Kernels, "none", one),
        ("+ 8-bit weights", Kernels, "int8+lm_head=int8+activations=f32", one),
        ("+ 4-bit weights", Kernels, "int4:group=128+lm_head=int8+activations=f32", one),
        ("+ 24-bit activations", Kernels, "int4:group=128+lm_head=int8+activations=24bit", one),
        ("+ 16-bit activations", Kernels, INT4, one),
        ("+ a batch", Kernels, INT4, batch),
        ("+ a cached prefix", Kernels, INT4, cached),
    ]
}

#[cfg(test)]
mod tests {
    use engine::SchemePlan;

    use super::*;
    use crate::Source;

    #[test]
    fn each_step_is_a_row_and_those_that_cannot_run_stay_empty() {
        let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/data/models/stories260K");
        let plan = Plan {
            prompt_lens: vec![64],
            output_lens: vec![4],
            repeats: 1,
            threads: Some(1),
            ..Plan::new(vec![Source::Model(model.to_owned())])
        };
        let report = ablation(&plan, &mut |_| ()).unwrap();
        assert_eq!(report.rows.len(), 9);
        let [composed, fused, kernels, ..] = &report.rows[..] else { panic!("{report:?}") };
        let device = engine::Device::Cpu;
        assert_eq!(composed.ttft_ms.is_some(), Execution::Composed.is_available(device));
        assert_eq!(fused.ttft_ms, None, "Burn fuses on GPUs alone");
        assert!(kernels.decode_tokens_per_s.unwrap() > 0.0);
        assert!(report.rows[2..].iter().all(|row| row.ttft_ms.is_some()));
    }

    #[test]
    fn steps_are_schemes() {
        let task = Task::new(1, 1, 1);
        for (label, _, quant, _) in steps(task, task, task) {
            assert!(quant.parse::<SchemePlan>().is_ok(), "{label}");
        }
    }
}
