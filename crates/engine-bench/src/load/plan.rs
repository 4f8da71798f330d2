use engine::{EngineBuilder, EngineCore};

use super::{
    Arrivals, LatencyLimits, LoadReport, LoadRun, RunSetting,
    arrivals::LoadRequest,
    drive::{Observed, drive},
    result::mark_knee,
};
use crate::{BenchError, Machine};

/// What a load test measures.
///
/// ```no_run
/// use engine::{Device, Engine};
/// use engine_bench::{Machine, load::{Arrivals, LatencyLimits, LoadPlan, Workload}};
/// let workload = Workload { num_requests: 200, ..Workload::default() };
/// let plan = LoadPlan {
///     arrivals: Arrivals::Poisson { rates: vec![5.0, 10.0], workload, seed: 0 },
///     limits: LatencyLimits { ttft_ms: 500.0, itl_ms: 50.0 },
///     max_batched_tokens: 512,
///     max_sequences: 64,
///     sweep: None,
/// };
/// let machine = Machine::measure(Device::Cpu, None)?;
/// let report = plan.run(machine, &|| Engine::builder("models/my-model"), &mut |_| ())?;
/// println!("{}", report.markdown());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct LoadPlan {
    /// The requests.
    pub arrivals: Arrivals,
    /// What counts as good.
    pub limits: LatencyLimits,
    /// Most tokens of a step.
    pub max_batched_tokens: usize,
    /// Most sequences that run at once.
    pub max_sequences: usize,
    /// Other limits to try, if any.
    pub sweep: Option<Sweep>,
}

/// Every pair of limits to try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sweep {
    /// Values of `max_batched_tokens`.
    pub max_batched_tokens: Vec<usize>,
    /// Values of `max_sequences`.
    pub max_sequences: Vec<usize>,
}

/// How far a load test has come.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RunProgress {
    /// The run's number, from 0.
    pub run: usize,
    /// Runs in all.
    pub num_runs: usize,
    /// How it is set up.
    pub setting: RunSetting,
    /// Requests of this run that have ended.
    pub done: usize,
    /// Requests of this run.
    pub total: usize,
}

/// Requests that run before anything is timed.
const WARM_UP: usize = 4;
/// The warm-up's cached prefixes are nobody else's.
const WARM_UP_SALT: u64 = u64::MAX;

impl LoadPlan {
    /// Measures everything. `builder` describes the engine; its limits and its prefix caching are
    /// this plan's.
    ///
    /// # Errors
    /// If the plan makes no sense, the model cannot be loaded, a request does not fit the model or
    /// the engine fails.
    pub fn run(
        &self,
        machine: Machine,
        builder: &dyn Fn() -> EngineBuilder,
        progress: &mut dyn FnMut(RunProgress),
    ) -> Result<LoadReport, BenchError> {
        self.check()?;
        let mut test = Test { plan: self, builder, progress, run: 0 };
        let mut runs = Vec::new();
        let mut model = String::new();
        for prefix_caching in [false, true] {
            let setting = self.setting(prefix_caching);
            let mut core = test.load(&setting)?;
            let name = core.info().path.file_name().unwrap_or_default();
            model = name.to_string_lossy().into_owned();
            for rate in self.arrivals.rates() {
                let requests = self.arrivals.requests(rate, core.info().config.vocab_size);
                runs.push(test.measure(&mut core, RunSetting { rate, ..setting }, &requests)?);
            }
        }
        let mut sweep = Vec::new();
        for setting in self.sweep_settings() {
            let mut core = test.load(&setting)?;
            let rate = self.arrivals.rates()[0];
            let mut requests = self.arrivals.requests(rate, core.info().config.vocab_size);
            requests.iter_mut().for_each(|request| request.arrival = Default::default());
            sweep.push(test.measure(&mut core, setting, &requests)?);
        }
        mark_knee(&mut sweep);
        let load = self.describe();
        Ok(LoadReport { machine, model, load, limits: self.limits, runs, sweep })
    }

    fn setting(&self, prefix_caching: bool) -> RunSetting {
        let Self { max_batched_tokens, max_sequences, .. } = *self;
        RunSetting { rate: None, prefix_caching, max_batched_tokens, max_sequences }
    }

    fn sweep_settings(&self) -> Vec<RunSetting> {
        let Some(sweep) = &self.sweep else { return Vec::new() };
        let mut settings = Vec::new();
        for &max_batched_tokens in &sweep.max_batched_tokens {
            for &max_sequences in &sweep.max_sequences {
                let limits = self.setting(true);
                settings.push(RunSetting { max_batched_tokens, max_sequences, ..limits });
            }
        }
        settings
    }

    fn num_runs(&self) -> usize {
        2 * self.arrivals.rates().len() + self.sweep_settings().len()
    }

    /// Whether the plan makes sense, before anything is loaded.
    ///
    /// # Errors
    /// If a number is missing or zero.
    pub fn check(&self) -> Result<(), BenchError> {
        self.arrivals.check()?;
        for (name, value) in
            [("the limit of TTFT", self.limits.ttft_ms), ("the limit of ITL", self.limits.itl_ms)]
        {
            if value.is_nan() || value <= 0.0 {
                return Err(BenchError::NotPositive { name, value });
            }
        }
        let mut settings = self.sweep_settings();
        settings.push(self.setting(true));
        for setting in settings {
            if setting.max_batched_tokens == 0 {
                return Err(BenchError::Zero { name: "max_batched_tokens" });
            }
            if setting.max_sequences == 0 {
                return Err(BenchError::Zero { name: "max_sequences" });
            }
        }
        Ok(())
    }

    fn describe(&self) -> String {
        let kind = match self.arrivals {
            Arrivals::Poisson { .. } => "Poisson arrivals",
            Arrivals::Trace(_) => "arrivals of a trace",
        };
        let requests = self.arrivals.requests(self.arrivals.rates()[0], u32::MAX as usize);
        let mean = |len: fn(&LoadRequest) -> usize| {
            requests.iter().map(len).sum::<usize>() as f64 / requests.len().max(1) as f64
        };
        format!(
            "{} requests, {kind}; on average {:.0} prompt tokens and {:.0} new ones",
            requests.len(),
            mean(|request| request.prompt.len()),
            mean(|request| request.output_len),
        )
    }
}

/// A load test under way.
struct Test<'a> {
    plan: &'a LoadPlan,
    builder: &'a dyn Fn() -> EngineBuilder,
    progress: &'a mut dyn FnMut(RunProgress),
    /// Runs that are done.
    run: usize,
}

impl Test<'_> {
    fn load(&self, setting: &RunSetting) -> Result<EngineCore, BenchError> {
        let core = (self.builder)()
            .max_batched_tokens(setting.max_batched_tokens)
            .max_sequences(setting.max_sequences)
            .prefix_caching(setting.prefix_caching)
            .load_core()?;
        Ok(core)
    }

    fn measure(
        &mut self,
        core: &mut EngineCore,
        setting: RunSetting,
        requests: &[LoadRequest],
    ) -> Result<LoadRun, BenchError> {
        let warm_up: Vec<_> = requests.iter().take(WARM_UP).cloned().map(at_once).collect();
        drive(core, &warm_up, WARM_UP_SALT, &mut |_| ())?;
        let (run, num_runs, total) = (self.run, self.plan.num_runs(), requests.len());
        let report = &mut self.progress;
        let mut progress = |done| report(RunProgress { run, num_runs, setting, done, total });
        let observed: Observed = drive(core, requests, run as u64, &mut progress)?;
        self.run += 1;
        Ok(LoadRun::of(setting, &observed, &self.plan.limits))
    }
}

fn at_once(request: LoadRequest) -> LoadRequest {
    LoadRequest { arrival: Default::default(), ..request }
}

#[cfg(test)]
mod tests {
    use engine::{Device, Engine};
    use engine_sched::simulation::Workload;

    use super::*;
    use crate::ImageFormat;

    const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/data/models/stories260K");

    fn plan() -> LoadPlan {
        let workload = Workload {
            num_requests: 12,
            prompt_len: 40..44,
            output_len: 3..6,
            num_prefixes: 1,
            prefix_len: 32..33,
            ..Workload::default()
        };
        LoadPlan {
            arrivals: Arrivals::Poisson { rates: vec![100.0, 400.0], workload, seed: 1 },
            limits: LatencyLimits { ttft_ms: 1e6, itl_ms: 1e6 },
            max_batched_tokens: 64,
            max_sequences: 4,
            sweep: Some(Sweep { max_batched_tokens: vec![16, 64], max_sequences: vec![1, 4] }),
        }
    }

    #[test]
    fn every_run_is_measured_and_caching_shows() {
        let mut last = None;
        let builder = || Engine::builder(MODEL).device(Device::Cpu).threads(1);
        let report = plan()
            .run(Machine::unknown(), &builder, &mut |progress| last = Some(progress))
            .unwrap();
        let last = last.unwrap();
        assert_eq!((last.run + 1, last.num_runs, last.done, last.total), (8, 8, 12, 12));
        assert_eq!((report.runs.len(), report.sweep.len()), (4, 4));
        for run in report.runs.iter().chain(&report.sweep) {
            assert_eq!((run.completed, run.refused, run.good_fraction), (12, 0, 1.0));
            assert!(run.ttft_ms.unwrap().p50 > 0.0 && run.itl_ms.unwrap().p99 > 0.0);
            // Each run's prefixes are its own: its first prompt finds nothing.
            let hits = if run.setting.prefix_caching { 0.01..0.8 } else { -0.01..0.01 };
            assert!(hits.contains(&run.prefix_hit_rate), "{run:?}");
            assert!(run.mean_batch_sequences <= run.setting.max_sequences as f64);
            assert!(run.mean_batch_tokens <= run.setting.max_batched_tokens as f64);
        }
        assert_eq!(report.sweep.iter().filter(|run| run.knee).count(), 1);
        let text = report.markdown();
        assert_eq!(text.matches("knee").count(), 2, "{text}");
        let svg = String::from_utf8(report.plot(ImageFormat::Svg).unwrap()).unwrap();
        assert!(svg.contains("<svg") && svg.contains("knee") && svg.trim_end().ends_with("</svg>"));
    }

    #[test]
    fn a_request_that_does_not_fit_is_refused_with_the_numbers() {
        let entry = r#"{"arrival_ms": 0, "prompt_len": 600, "output_len": 1}"#;
        let arrivals = Arrivals::Trace(vec![serde_json::from_str(entry).unwrap()]);
        let plan = LoadPlan { arrivals, sweep: None, ..plan() };
        let builder = || Engine::builder(MODEL).device(Device::Cpu).threads(1);
        let error = plan.run(Machine::unknown(), &builder, &mut |_| ()).unwrap_err().to_string();
        assert!(error.contains("600") && error.contains("512"), "{error}");
    }

    #[test]
    fn limits_without_sense_are_refused() {
        let refusal = |plan: LoadPlan| plan.check().unwrap_err().to_string();
        let sweep = Sweep { max_batched_tokens: vec![64, 0], max_sequences: vec![4] };
        assert!(refusal(LoadPlan { sweep: Some(sweep), ..plan() }).contains("max_batched_tokens"));
        let limits = LatencyLimits { ttft_ms: f64::NAN, itl_ms: 1.0 };
        assert!(refusal(LoadPlan { limits, ..plan() }).contains("TTFT"));
    }
}
