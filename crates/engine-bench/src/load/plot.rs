//! Throughput against latency, drawn as SVG. Latencies spread over orders of magnitude, so their
//! axis is logarithmic.

use std::{collections::BTreeMap, fmt::Display};

use plotters::coord::{Shift, combinators::LogCoord, types::RangedCoordf64};
use plotters::prelude::*;

use super::{LoadReport, LoadRun};
use crate::BenchError;

const PANEL: (u32, u32) = (760, 460);
/// One for each curve, then from the first again.
const COLORS: [RGBColor; 6] = [
    RGBColor(31, 90, 170),
    RGBColor(214, 108, 20),
    RGBColor(30, 140, 80),
    RGBColor(130, 70, 160),
    RGBColor(90, 90, 90),
    RGBColor(0, 150, 170),
];

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Chart<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<LogCoord<f64>, RangedCoordf64>>;

/// What is drawn in one panel.
struct Panel<'a> {
    title: &'a str,
    latency: &'a str,
    throughput: &'a str,
    curves: Vec<Curve>,
}

struct Curve {
    name: String,
    points: Vec<Point>,
}

struct Point {
    latency: f64,
    throughput: f64,
    label: String,
    knee: bool,
}

impl LoadReport {
    /// Throughput against latency as SVG: a panel of the rates, and one of the sweep if there was
    /// one.
    ///
    /// # Errors
    /// If it cannot be drawn.
    pub fn svg(&self) -> Result<String, BenchError> {
        let mut panels = vec![self.rates_panel()];
        if !self.sweep.is_empty() {
            panels.push(self.sweep_panel());
        }
        let mut svg = String::new();
        {
            let size = (PANEL.0, PANEL.1 * panels.len() as u32);
            let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
            root.fill(&WHITE).map_err(failed)?;
            for (panel, area) in panels.iter().zip(root.split_evenly((panels.len(), 1))) {
                draw(panel, &area)?;
            }
            root.present().map_err(failed)?;
        }
        Ok(svg)
    }

    fn rates_panel(&self) -> Panel<'_> {
        let name = |run: &LoadRun| match run.setting.prefix_caching {
            true => "with prefix caching".to_owned(),
            false => "without prefix caching".to_owned(),
        };
        let point = |run: &LoadRun| {
            Some(Point {
                latency: run.ttft_ms?.p99,
                throughput: run.requests_per_s,
                label: run.setting.rate.map_or_else(String::new, |rate| format!("{rate}/s")),
                knee: false,
            })
        };
        Panel {
            title: &self.load,
            latency: "TTFT p99, ms",
            throughput: "requests/s",
            curves: curves(&self.runs, |run| u64::from(run.setting.prefix_caching), name, point),
        }
    }

    fn sweep_panel(&self) -> Panel<'_> {
        let name = |run: &LoadRun| format!("{} tokens a step", run.setting.max_batched_tokens);
        let point = |run: &LoadRun| {
            Some(Point {
                latency: run.itl_ms?.p99,
                throughput: run.output_tokens_per_s,
                label: run.setting.max_sequences.to_string(),
                knee: run.knee,
            })
        };
        Panel {
            title: "all requests at once; labels are max_sequences",
            latency: "ITL p99, ms",
            throughput: "new tokens/s",
            curves: curves(&self.sweep, |run| run.setting.max_batched_tokens as u64, name, point),
        }
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
        let empty = || Curve { name: name(run), points: Vec::new() };
        curves.entry(key(run)).or_insert_with(empty).points.extend(point(run));
    }
    curves.into_values().collect()
}

fn draw(panel: &Panel<'_>, area: &Area<'_>) -> Result<(), BenchError> {
    let points = || panel.curves.iter().flat_map(|curve| &curve.points);
    let least = points().map(|point| point.latency).fold(1e6, f64::min).max(1e-6);
    let most = points().map(|point| point.latency).fold(least, f64::max);
    let throughput = points().map(|point| point.throughput).fold(1e-9, f64::max);
    let mut chart: Chart<'_, '_> = ChartBuilder::on(area)
        .caption(panel.title, ("sans-serif", 16))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(60)
        .build_cartesian_2d((least / 1.3..most * 1.5).log_scale(), 0.0..1.1 * throughput)
        .map_err(failed)?;
    chart
        .configure_mesh()
        .x_desc(panel.latency)
        .y_desc(panel.throughput)
        .light_line_style(TRANSPARENT)
        .bold_line_style(BLACK.mix(0.1))
        .draw()
        .map_err(failed)?;
    for (curve, color) in panel.curves.iter().zip(COLORS.iter().cycle()) {
        draw_curve(&mut chart, curve, *color)?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.3))
        .draw()
        .map_err(failed)
}

fn draw_curve(chart: &mut Chart<'_, '_>, curve: &Curve, color: RGBColor) -> Result<(), BenchError> {
    let at = |point: &Point| (point.latency, point.throughput);
    let line = PathElement::new(curve.points.iter().map(at).collect::<Vec<_>>(), color);
    chart
        .draw_series([line])
        .map_err(failed)?
        .label(&curve.name)
        .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 18, y)], color));
    let dots = curve.points.iter().map(|point| Circle::new(at(point), 3, color.filled()));
    chart.draw_series(dots).map_err(failed)?;
    let knees = curve.points.iter().filter(|point| point.knee);
    let rings = knees.map(|point| Circle::new(at(point), 8, RED.stroke_width(2)));
    chart.draw_series(rings).map_err(failed)?;
    let labels = curve.points.iter().map(|point| {
        let knee = if point.knee { " knee" } else { "" };
        let text = format!("{}{knee}", point.label);
        EmptyElement::at(at(point)) + Text::new(text, (7, -12), ("sans-serif", 11))
    });
    chart.draw_series(labels).map_err(failed)?;
    Ok(())
}

fn failed(error: impl Display) -> BenchError {
    BenchError::Plot { message: error.to_string() }
}
