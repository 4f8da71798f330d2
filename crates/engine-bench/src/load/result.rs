use std::time::Duration;

use serde::Serialize;

use super::drive::{Observed, Timeline};
use crate::Machine;

/// What a user still takes for quick: a request that keeps to both is good.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct LatencyLimits {
    /// Longest time from arrival to the first token.
    pub ttft_ms: f64,
    /// Longest time from one token to the next, the mean over the request's tokens.
    pub itl_ms: f64,
}

/// Quantiles of measured values, each one that was measured (nearest rank).
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Percentiles {
    /// Half are at most this.
    pub p50: f64,
    /// Nine of ten are at most this.
    pub p90: f64,
    /// 99 of 100 are at most this.
    pub p99: f64,
    /// The largest.
    pub max: f64,
    /// The mean.
    pub mean: f64,
}

impl Percentiles {
    /// The quantiles of values, `None` of none.
    pub fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let max = *values.last()?;
        let at = |q: f64| values[((q * values.len() as f64).ceil() as usize).max(1) - 1];
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        Some(Self { p50: at(0.5), p90: at(0.9), p99: at(0.99), max, mean })
    }
}

/// How the engine was set up for a run, and what came at it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct RunSetting {
    /// Mean arrivals per second of a Poisson process; `None` for a trace and for requests that all
    /// wait from the start.
    pub rate: Option<f64>,
    /// Whether requests shared the blocks of equal prefixes.
    pub prefix_caching: bool,
    /// Most tokens of a step.
    pub max_batched_tokens: usize,
    /// Most sequences that run at once.
    pub max_sequences: usize,
}

/// What one run measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LoadRun {
    /// How it was set up.
    #[serde(flatten)]
    pub setting: RunSetting,
    /// Requests that arrived.
    pub requests: usize,
    /// Of those, finished.
    pub completed: usize,
    /// Of those, refused because the queue was full.
    pub refused: usize,
    /// From the start to the end of the last request.
    pub duration_s: f64,
    /// Finished requests per second.
    pub requests_per_s: f64,
    /// New tokens per second.
    pub output_tokens_per_s: f64,
    /// Tokens of finished requests' prompts per second, cached ones among them.
    pub prompt_tokens_per_s: f64,
    /// From arrival to the first token, one value per request.
    pub ttft_ms: Option<Percentiles>,
    /// From one token of a request to its next, one value per token but the first.
    pub itl_ms: Option<Percentiles>,
    /// Requests within the limits per second.
    pub goodput_requests_per_s: f64,
    /// Requests within the limits over all that arrived, 0 to 1.
    pub good_fraction: f64,
    /// Prompt tokens from the prefix cache over all, 0 to 1.
    pub prefix_hit_rate: f64,
    /// Sequences that had to make room for others.
    pub preemptions: u64,
    /// Tokens in a step, the mean.
    pub mean_batch_tokens: f64,
    /// Sequences in a step, the mean.
    pub mean_batch_sequences: f64,
    /// Whether it is the knee of the sweep: the most throughput per latency.
    pub knee: bool,
}

/// What was measured, of which model and on what machine.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LoadReport {
    /// The machine.
    pub machine: Machine,
    /// The model's name.
    pub model: String,
    /// What arrived, in words.
    pub load: String,
    /// What counts as good.
    pub limits: LatencyLimits,
    /// Every rate, without and with prefix caching.
    pub runs: Vec<LoadRun>,
    /// The same requests, all waiting from the start, under every pair of limits.
    pub sweep: Vec<LoadRun>,
}

impl LoadRun {
    pub(crate) fn of(setting: RunSetting, observed: &Observed, limits: &LatencyLimits) -> Self {
        let timelines = &observed.timelines;
        let (before, after) = &observed.statistics;
        let seconds = observed.duration.as_secs_f64().max(1e-9);
        let completed: Vec<_> = timelines.iter().filter(|request| request.completed).collect();
        let good = completed.iter().filter(|request| request.is_within(limits)).count() as f64;
        let prompt_tokens: usize = completed.iter().map(|request| request.prompt_len).sum();
        let tokens: usize = timelines.iter().map(|request| request.tokens.len()).sum();
        let grown = |count: fn(&engine::Statistics) -> u64| (count(after) - count(before)) as f64;
        let per = |amount: f64, unit: f64| if unit > 0.0 { amount / unit } else { 0.0 };
        let steps = grown(|statistics| statistics.steps);
        Self {
            setting,
            requests: timelines.len(),
            completed: completed.len(),
            refused: timelines.iter().filter(|request| request.refused).count(),
            duration_s: seconds,
            requests_per_s: completed.len() as f64 / seconds,
            output_tokens_per_s: tokens as f64 / seconds,
            prompt_tokens_per_s: prompt_tokens as f64 / seconds,
            ttft_ms: Percentiles::of(timelines.iter().filter_map(Timeline::ttft_ms).collect()),
            itl_ms: Percentiles::of(timelines.iter().flat_map(Timeline::gaps_ms).collect()),
            goodput_requests_per_s: good / seconds,
            good_fraction: per(good, timelines.len() as f64),
            prefix_hit_rate: per(
                grown(|statistics| statistics.cache.hit_tokens),
                grown(|statistics| statistics.cache.queried_tokens),
            ),
            preemptions: grown(|statistics| {
                statistics.preemptions_by_recompute + statistics.preemptions_by_swap
            }) as u64,
            mean_batch_tokens: per(grown(|statistics| statistics.computed_tokens), steps),
            mean_batch_sequences: per(grown(|statistics| statistics.batched_sequences), steps),
            knee: false,
        }
    }

    /// Throughput per latency, which is greatest at the knee of a curve (Kleinrock's power).
    fn power(&self) -> f64 {
        self.itl_ms.map_or(0.0, |itl| self.output_tokens_per_s / itl.p99.max(1e-9))
    }
}

/// Marks the run with the most throughput per latency.
pub(crate) fn mark_knee(runs: &mut [LoadRun]) {
    let best = runs.iter_mut().max_by(|a, b| a.power().total_cmp(&b.power()));
    if let Some(run) = best.filter(|run| run.power() > 0.0) {
        run.knee = true;
    }
}

impl Timeline {
    fn ttft_ms(&self) -> Option<f64> {
        self.tokens.first().map(|first| milliseconds(first.saturating_sub(self.arrival)))
    }

    fn gaps_ms(&self) -> impl Iterator<Item = f64> {
        self.tokens.windows(2).map(|pair| milliseconds(pair[1].saturating_sub(pair[0])))
    }

    fn is_within(&self, limits: &LatencyLimits) -> bool {
        let gaps = self.tokens.len().saturating_sub(1).max(1) as f64;
        let mean_gap = self.gaps_ms().sum::<f64>() / gaps;
        self.ttft_ms().is_some_and(|ttft| ttft <= limits.ttft_ms) && mean_gap <= limits.itl_ms
    }
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    fn observed(timelines: Vec<Timeline>) -> Observed {
        let duration = Duration::from_secs(2);
        Observed { timelines, duration, statistics: Default::default() }
    }

    fn timeline(arrival: u64, tokens: &[u64]) -> Timeline {
        Timeline {
            arrival: Duration::from_millis(arrival),
            prompt_len: 10,
            tokens: tokens.iter().copied().map(Duration::from_millis).collect(),
            completed: true,
            refused: false,
        }
    }

    const SETTING: RunSetting =
        RunSetting { rate: None, prefix_caching: true, max_batched_tokens: 64, max_sequences: 4 };
    const LIMITS: LatencyLimits = LatencyLimits { ttft_ms: 100.0, itl_ms: 10.0 };

    #[test]
    fn quantiles_are_measured_values() {
        let hundred = Percentiles::of((1..=100).rev().map(f64::from).collect()).unwrap();
        assert_eq!((hundred.p50, hundred.p90, hundred.p99), (50.0, 90.0, 99.0));
        assert_eq!((hundred.max, hundred.mean), (100.0, 50.5));
        let one = Percentiles::of(vec![7.0]).unwrap();
        assert_eq!((one.p50, one.p99), (7.0, 7.0));
        assert_eq!(Percentiles::of(Vec::new()), None);
    }

    #[test]
    fn times_count_from_the_arrival_and_goodness_needs_both_limits() {
        let good = timeline(1000, &[1100, 1104, 1120]);
        let late = timeline(1000, &[1101, 1102, 1103]);
        let slow = timeline(0, &[50, 61, 72]);
        let refused = Timeline { refused: true, ..Timeline::default() };
        let run = LoadRun::of(SETTING, &observed(vec![good, late, slow, refused]), &LIMITS);
        assert_eq!((run.requests, run.completed, run.refused), (4, 3, 1));
        let ttft = run.ttft_ms.unwrap();
        assert!((ttft.p50 - 100.0).abs() < 1e-9 && (ttft.max - 101.0).abs() < 1e-9, "{ttft:?}");
        assert!((run.itl_ms.unwrap().max - 16.0).abs() < 1e-9);
        assert_eq!((run.goodput_requests_per_s, run.good_fraction), (0.5, 0.25));
        assert_eq!((run.output_tokens_per_s, run.prompt_tokens_per_s), (4.5, 15.0));
    }

    #[test]
    fn the_knee_is_where_more_throughput_costs_too_much() {
        let run = |throughput: f64, latency: f64| LoadRun {
            output_tokens_per_s: throughput,
            itl_ms: Percentiles::of(vec![latency]),
            ..LoadRun::of(SETTING, &observed(Vec::new()), &LIMITS)
        };
        let mut runs =
            vec![run(100.0, 10.0), run(390.0, 13.0), run(400.0, 40.0), run(410.0, 160.0)];
        mark_knee(&mut runs);
        let knees: Vec<_> = runs.iter().map(|run| run.knee).collect();
        assert_eq!(knees, [false, true, false, false]);
        let mut unmeasured = vec![LoadRun::of(SETTING, &observed(Vec::new()), &LIMITS)];
        mark_knee(&mut unmeasured);
        assert!(!unmeasured[0].knee);
    }
}
