//! Perplexity and KL divergence against bytes.

use plotters::chart::SeriesLabelPosition;

use super::{QualityReport, QualityRow};
use crate::{
    BenchError, ImageFormat,
    plot::{self, Axis, Curve, Panel, Point},
};

impl QualityReport {
    /// Perplexity, and below it KL divergence, against the bytes of the weights. A number beside a
    /// point stands before its scheme in the legend.
    ///
    /// # Errors
    /// If it cannot be drawn.
    pub fn plot(&self, format: ImageFormat) -> Result<Vec<u8>, BenchError> {
        let title = format!("{} on {}, {}", self.model, self.text, self.method);
        let perplexity = self.panel(title.clone(), "perplexity", |row| row.perplexity);
        // The reference is at zero, which a logarithmic axis has not.
        let kl = |row: &QualityRow| if row.kl_nats > 0.0 { row.kl_nats } else { f64::NAN };
        let mut divergence = self.panel(title, "KL from the first, nats", kl);
        let divergences = self.rows.iter().map(kl);
        divergence.y =
            Axis::logarithmic(divergence.y.label, divergences).starting_at_power_of_ten();
        plot::draw(&[perplexity, divergence], format)
    }

    fn panel(&self, title: String, label: &str, value: impl Fn(&QualityRow) -> f64) -> Panel {
        let (unit, unit_name) = self.unit();
        let x = |row: &QualityRow| row.weight_bytes as f64 / unit;
        let curve = |(i, row): (usize, &QualityRow)| Curve {
            name: format!("{} {}", i + 1, row.name()),
            points: vec![Point {
                x: x(row),
                y: value(row),
                label: (i + 1).to_string(),
                marked: false,
            }],
            joined: false,
        };
        Panel {
            title,
            x: Axis::from_zero(format!("weights, {unit_name}"), self.rows.iter().map(x)),
            y: Axis::around(label, self.rows.iter().map(&value)),
            curves: self.rows.iter().enumerate().map(curve).collect(),
            legend: SeriesLabelPosition::UpperRight,
        }
    }

    /// The unit in which the largest model has a number that people read.
    fn unit(&self) -> (f64, &'static str) {
        let most = self.rows.iter().map(|row| row.weight_bytes).max().unwrap_or(0);
        match most {
            most if most >= 1 << 30 => (f64::from(1 << 30), "GiB"),
            most if most >= 10 << 20 => (f64::from(1 << 20), "MiB"),
            _ => (1024.0, "KiB"),
        }
    }
}
