//! Throughput against latency, drawn as SVG.

use std::{collections::BTreeMap, fmt::Display};

use plotters::coord::{Shift, types::RangedCoordf64};
use plotters::prelude::*;

use super::{LoadReport, LoadRun};
use crate::BenchError;

const PANEL: (u32, u32) = (760, 460);

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Chart<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;

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
        let point = |run: &LoadRun| Point {
            latency: run.ttft_ms.map_or(0.0, |ttft| ttft.p99),
            throughput: run.requests_per_s,
            label: run.setting.rate.map_or_else(String::new, |rate| format!("{rate}/s")),
            knee: false,
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
        let point = |run: &LoadRun| Point {
            latency: run.itl_ms.map_or(0.0, |itl| itl.p99),
            throughput: run.output_tokens_per_s,
            label: format!("{}", run.setting.max_sequences),
            knee: run.knee,
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
    point: impl Fn(&LoadRun) -> Point,
) -> Vec<Curve> {
    let mut curves = BTreeMap::new();
    for run in runs {
        let empty = || Curve { name: name(run), points: Vec::new() };
        curves.entry(key(run)).or_insert_with(empty).points.push(point(run));
    }
    curves.into_values().collect()
}

fn draw(panel: &Panel<'_>, area: &Area<'_>) -> Result<(), BenchError> {
    let points = || panel.curves.iter().flat_map(|curve| &curve.points);
    let above = |value: fn(&Point) -> f64| 1.1 * points().map(value).fold(1e-9, f64::max);
    let mut chart: Chart<'_, '_> = ChartBuilder::on(area)
        .caption(panel.title, ("sans-serif", 16))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(60)
        .build_cartesian_2d(0.0..above(|point| point.latency), 0.0..above(|p| p.throughput))
        .map_err(failed)?;
    chart
        .configure_mesh()
        .x_desc(panel.latency)
        .y_desc(panel.throughput)
        .light_line_style(TRANSPARENT)
        .draw()
        .map_err(failed)?;
    for (i, curve) in panel.curves.iter().enumerate() {
        draw_curve(&mut chart, curve, &Palette99::pick(i))?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.3))
        .draw()
        .map_err(failed)
}

fn draw_curve(
    chart: &mut Chart<'_, '_>,
    curve: &Curve,
    color: &impl Color,
) -> Result<(), BenchError> {
    let color = color.to_rgba();
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
