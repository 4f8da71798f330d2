//! Throughput against latency. Latencies spread over orders of magnitude, so their axis is
//! logarithmic.

use std::collections::BTreeMap;

use plotters::chart::SeriesLabelPosition;

use super::{LoadReport, LoadRun};
use crate::{
    BenchError, ImageFormat,
    plot::{self, Axis, Curve, Panel, Point},
};

impl LoadReport {
    /// Throughput against latency: a panel of the rates, and one of the sweep if there was one.
    ///
    /// # Errors
    /// If it cannot be drawn.
    pub fn plot(&self, format: ImageFormat) -> Result<Vec<u8>, BenchError> {
        let mut panels = vec![self.rates_panel()];
        if !self.sweep.is_empty() {
            panels.push(self.sweep_panel());
        }
        plot::draw(&panels, format)
    }

    fn rates_panel(&self) -> Panel {
        let name = |run: &LoadRun| match run.setting.prefix_caching {
            true => "with prefix caching".to_owned(),
            false => "without prefix caching".to_owned(),
        };
        let point = |run: &LoadRun| {
            Some(Point {
                x: run.ttft_ms?.p99,
                y: run.requests_per_s,
                label: run.setting.rate.map_or_else(String::new, |rate| format!("{rate}/s")),
                marked: false,
            })
        };
        let curves = curves(&self.runs, |run| u64::from(run.setting.prefix_caching), name, point);
        panel(&self.load, ["TTFT p99, ms", "requests/s"], curves)
    }

    fn sweep_panel(&self) -> Panel {
        let name = |run: &LoadRun| format!("{} tokens a step", run.setting.max_batched_tokens);
        let point = |run: &LoadRun| {
            let knee = if run.knee { " knee" } else { "" };
            Some(Point {
                x: run.itl_ms?.p99,
                y: run.output_tokens_per_s,
                label: format!("{}{knee}", run.setting.max_sequences),
                marked: run.knee,
            })
        };
        let key = |run: &LoadRun| run.setting.max_batched_tokens as u64;
        let title = "all requests at once; labels are max_sequences";
        panel(title, ["ITL p99, ms", "new tokens/s"], curves(&self.sweep, key, name, point))
    }
}

fn panel(title: &str, [latency, throughput]: [&str; 2], curves: Vec<Curve>) -> Panel {
    let points = || curves.iter().flat_map(|curve| &curve.points);
    Panel {
        title: title.to_owned(),
        x: Axis::logarithmic(latency, points().map(|point| point.x)),
        y: Axis::from_zero(throughput, points().map(|point| point.y)),
        curves,
        legend: SeriesLabelPosition::LowerRight,
    }
}

/// The runs of one key are one curve.
fn curves(
    runs: &[LoadRun],
    key: impl Fn(&LoadRun) -> u64,
    name: impl Fn(&LoadRun) -> String,
    point: impl Fn(&LoadRun) -> Option<Point>,
) -> Vec<Curve> {
    let mut curves = BTreeMap::new();
    for run in runs {
        let empty = || Curve { name: name(run), points: Vec::new(), joined: true };
        curves.entry(key(run)).or_insert_with(empty).points.extend(point(run));
    }
    curves.into_values().collect()
}
