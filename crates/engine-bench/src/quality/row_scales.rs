//! One scale for a matrix, or one for each row?

use std::path::Path;

use engine_core::MatrixTensor;
use engine_quant::{Grid, SliceRows, round_to_nearest};
use plotters::chart::SeriesLabelPosition;
use serde::Serialize;

use super::layers::{Squares, open_weights, read_config, relative};
use crate::{
    BenchError, ImageFormat,
    plot::{self, Axis, Curve, Panel, Point},
    splitmix::SplitMix64,
};

/// Errors of INT8 with one scale for a matrix and with one for each row, against the spread of the
/// rows' magnitudes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RowScales {
    /// Random matrices with rows from the same magnitude to magnitudes a thousandfold apart.
    pub random: Vec<RowScalesEntry>,
    /// The matrices of a model.
    pub model: Vec<RowScalesEntry>,
}

/// One matrix.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RowScalesEntry {
    /// Its name.
    pub name: String,
    /// Root mean square of its largest row over that of its smallest, rows of zeros left out.
    pub spread: f64,
    /// With one scale.
    pub per_tensor: ScaleErrors,
    /// With one scale for each row.
    pub per_row: ScaleErrors,
}

/// How far stored numbers are from those that they stand for.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct ScaleErrors {
    /// `‖W − Q‖ / ‖W‖` of the matrix: its large rows decide.
    pub matrix: f64,
    /// Root mean square over the rows of `‖w − q‖ / ‖w‖`: each row, an output of the layer, counts
    /// the same.
    pub rows: f64,
}

/// Rows and columns of the random matrices.
const SIZE: usize = 256;
const SPREADS: [f64; 10] = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0];

impl RowScales {
    /// Measures random matrices of a seed, and those of the model at `path`.
    ///
    /// # Errors
    /// If the model cannot be read.
    pub fn measure(path: &Path, seed: u64) -> Result<Self, BenchError> {
        let random = SPREADS.into_iter().map(|spread| {
            let values = random_matrix(spread, seed);
            RowScalesEntry::of(format!("random, {spread}"), &values, SIZE)
        });
        let random = random.collect::<Result<_, _>>()?;
        let config = read_config(path)?;
        let weights = open_weights(path, &config)?;
        let mut model = Vec::new();
        for tensor in MatrixTensor::all(&config, weights.model_prefix()) {
            let stored = weights.matrix(&format!("{}.weight", tensor.name), tensor.shape)?;
            let values = stored.to_f32();
            model.push(RowScalesEntry::of(tensor.name, &values, tensor.shape[1])?);
        }
        Ok(Self { random, model })
    }

    /// The table, and the answer in a paragraph.
    pub fn markdown(&self) -> String {
        let mut text = "| matrix | spread of rows | one scale: matrix | one scale: rows \
                        | scale per row: matrix | scale per row: rows |\n\
                        |---|---:|---:|---:|---:|---:|\n"
            .to_owned();
        for entry in self.random.iter().chain(&self.model) {
            let RowScalesEntry { name, spread, per_tensor, per_row } = entry;
            let cells = [per_tensor.matrix, per_tensor.rows, per_row.matrix, per_row.rows];
            let cells = cells.map(|error| format!("{:.2} %", 100.0 * error)).join(" | ");
            text.push_str(&format!("| {name} | {spread:.1} | {cells} |\n"));
        }
        text.push_str(&self.answer());
        text
    }

    fn answer(&self) -> String {
        let (Some(even), Some(wide)) = (self.random.first(), self.random.last()) else {
            return String::new();
        };
        let percent = |error: f64| format!("{:.1} %", 100.0 * error);
        let mean = |errors: fn(&RowScalesEntry) -> f64| {
            let sum: f64 = self.model.iter().map(errors).sum();
            percent(sum / self.model.len().max(1) as f64)
        };
        format!(
            "\nOne scale per row. With one scale for the matrix a step is as wide as its largest \
             number asks for, so a row loses in proportion to how far it lies below the largest: \
             where all rows are alike an average row is off by {}, where they spread over a factor \
             of {:.0} by {}; with a scale of its own by {} and {}. The error of the whole matrix \
             hides this ({} with one scale), as large rows make up its norm, but each row is an \
             output of the layer that those after it rely on. The model's own matrices: {} with one \
             scale, {} with a scale per row, which costs two bytes a row.\n",
            percent(even.per_tensor.rows),
            wide.spread,
            percent(wide.per_tensor.rows),
            percent(even.per_row.rows),
            percent(wide.per_row.rows),
            percent(wide.per_tensor.matrix),
            mean(|entry| entry.per_tensor.rows),
            mean(|entry| entry.per_row.rows),
        )
    }

    /// The rows' error against the spread of their magnitudes.
    ///
    /// # Errors
    /// If it cannot be drawn.
    pub fn plot(&self, format: ImageFormat) -> Result<Vec<u8>, BenchError> {
        let curve = |name: &str, entries: &[RowScalesEntry], error: fn(&RowScalesEntry) -> f64| {
            let point = |entry: &RowScalesEntry| Point {
                x: entry.spread,
                y: error(entry),
                label: String::new(),
                marked: false,
            };
            let joined = name.starts_with("random");
            Curve { name: name.to_owned(), points: entries.iter().map(point).collect(), joined }
        };
        let per_tensor = |entry: &RowScalesEntry| entry.per_tensor.rows;
        let per_row = |entry: &RowScalesEntry| entry.per_row.rows;
        let curves = vec![
            curve("random, one scale", &self.random, per_tensor),
            curve("random, a scale per row", &self.random, per_row),
            curve("model, one scale", &self.model, per_tensor),
            curve("model, a scale per row", &self.model, per_row),
        ];
        let points = || curves.iter().flat_map(|curve| &curve.points);
        let panel = Panel {
            title: "INT8: one scale for the matrix, or one for each row".to_owned(),
            x: Axis::logarithmic("largest row / smallest row", points().map(|point| point.x)),
            y: Axis::logarithmic("relative error of a row", points().map(|point| point.y))
                .starting_at_power_of_ten(),
            curves,
            legend: SeriesLabelPosition::UpperLeft,
        };
        plot::draw(&[panel], format)
    }
}

impl RowScalesEntry {
    fn of(name: String, values: &[f32], columns: usize) -> Result<Self, BenchError> {
        let rows = SliceRows { values, columns };
        let errors = |grid| -> Result<ScaleErrors, BenchError> {
            let stored = round_to_nearest(&rows, grid)?.dequantize();
            Ok(ScaleErrors::of(values, &stored, columns))
        };
        let (per_tensor, per_row) = (errors(Grid::Int8Tensor)?, errors(Grid::Int8)?);
        let norms = values.chunks_exact(columns).map(|row| Squares::of(row, row).norm.sqrt());
        let norms: Vec<f64> = norms.filter(|norm| *norm > 0.0).collect();
        let least = norms.iter().copied().fold(f64::INFINITY, f64::min);
        let spread = norms.iter().copied().fold(least, f64::max) / least;
        Ok(Self { name, spread, per_tensor, per_row })
    }
}

impl ScaleErrors {
    fn of(values: &[f32], stored: &[f32], columns: usize) -> Self {
        let rows = values.chunks_exact(columns).zip(stored.chunks_exact(columns));
        let squares: Vec<Squares> = rows.map(|(w, q)| Squares::of(w, q)).collect();
        let ratios = squares.iter().filter(|row| row.norm > 0.0).map(|row| row.error / row.norm);
        let (sum, count) = ratios.fold((0.0, 0), |(sum, count), ratio| (sum + ratio, count + 1));
        Self { matrix: relative(&squares), rows: (sum / f64::from(count.max(1))).sqrt() }
    }
}

/// Normal numbers, `[SIZE, SIZE]`; magnitudes of rows fall evenly on a logarithmic scale from 1 to
/// `1 / spread`.
fn random_matrix(spread: f64, seed: u64) -> Vec<f32> {
    let mut random = SplitMix64(seed);
    let mut values = Vec::with_capacity(SIZE * SIZE);
    for row in 0..SIZE {
        let magnitude = spread.powf(-(row as f64) / (SIZE - 1) as f64);
        values.extend((0..SIZE).map(|_| (magnitude * normal(&mut random)) as f32));
    }
    values
}

/// Box and Muller's method.
fn normal(random: &mut SplitMix64) -> f64 {
    let mut unit = || ((random.next() >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
    let (radius, angle) = (unit(), unit());
    (-2.0 * radius.ln()).sqrt() * (std::f64::consts::TAU * angle).cos()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/data/models/stories260K");

    #[test]
    fn one_scale_loses_with_the_spread_and_a_scale_per_row_does_not() {
        let measured = RowScales::measure(MODEL.as_ref(), 1).unwrap();
        for (entry, spread) in measured.random.iter().zip(SPREADS) {
            // Magnitudes are drawn exactly, norms of 256 numbers are theirs to some percent.
            assert!((entry.spread / spread - 1.0).abs() < 0.5, "{}", entry.spread);
            // A step is a 127th of the largest of 256 numbers, 2.6 to 3.2 times the magnitude; the
            // error is a step over the root of 12, the same for every row.
            assert!((0.0055..0.0080).contains(&entry.per_row.rows), "{}", entry.per_row.rows);
        }
        let rows: Vec<f64> = measured.random.iter().map(|entry| entry.per_tensor.rows).collect();
        assert!(rows.is_sorted(), "{rows:?}");
        let (first, last) = (rows[0], rows[9]);
        // A thousandfold spread: rows below half a step are lost whole, an error of one.
        assert!(first < 0.015 && last > 0.4, "{first} {last}");
        // The whole matrix' error shows little of it: large rows decide.
        let ratio = |errors: fn(&ScaleErrors) -> f64| {
            errors(&measured.random[9].per_tensor) / errors(&measured.random[9].per_row)
        };
        assert!(ratio(|e| e.matrix) < 10.0 && ratio(|e| e.rows) > 50.0);
        assert_eq!(measured.model.len(), 1 + 5 * 7);
        assert!(measured.model.iter().all(|m| m.per_row.rows < m.per_tensor.rows));
        let svg = String::from_utf8(measured.plot(ImageFormat::Svg).unwrap()).unwrap();
        assert!(svg.contains("model, a scale per row"));
        assert_eq!(measured.markdown().matches("\n|").count(), 1 + 10 + 36);
    }

    #[test]
    fn rows_of_zeros_have_no_error_and_no_part_in_the_spread() {
        let values = [0.0, 0.0, 1.0, 1.0, 0.5, 0.5];
        let entry = RowScalesEntry::of("m".to_owned(), &values, 2).unwrap();
        assert!((entry.spread - 2.0).abs() < 1e-12);
        assert!(entry.per_row.rows < 1e-3 && entry.per_row.matrix < 1e-3);
    }
}
