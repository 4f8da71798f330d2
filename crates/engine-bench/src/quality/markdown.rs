use super::{QualityReport, QualityRow, report::named_error};
use crate::report::machine_lines;

impl QualityReport {
    /// The report for people: one table, and a verdict on each scheme.
    pub fn markdown(&self) -> String {
        let mut text = self.machine.as_ref().map_or_else(String::new, machine_lines);
        if !text.is_empty() {
            text.push('\n');
        }
        text.push_str(&format!(
            "{} on {}, {}, {} scored tokens. Changes, KL and top-1 are against the first row.\n\n\
             | scheme | weights, bytes | of the first | bits/weight | perplexity | change | KL, nats \
             | top-1 | mean layer error | largest layer error | decode tok/s | peak memory MiB |\n\
             |---|---:|---:|---:|---:|---:|---:|---:|---:|---|---:|---:|\n",
            self.model, self.text, self.method, self.scored_tokens,
        ));
        let bytes = self.rows.first().map_or(1, |row| row.weight_bytes);
        self.rows.iter().for_each(|row| text.push_str(&line(row, bytes)));
        text.push('\n');
        for row in self.rows.iter().skip(1) {
            text.push_str(&format!("- {}\n", row.verdict));
        }
        text
    }
}

fn line(row: &QualityRow, reference_bytes: usize) -> String {
    let percent = |value: f64| format!("{:.1} %", 100.0 * value);
    let cell = |value: Option<String>| value.unwrap_or_default();
    let mib = |bytes: u64| format!("{:.0}", bytes as f64 / f64::from(1 << 20));
    let mean = row.mean_layer_error.map(|error| format!("{:.2} %", 100.0 * error));
    let worst = row.largest_layer_error.and(row.layers.first()).and_then(named_error);
    format!(
        "| {} | {} | {} | {} | {:.4} | {:+.2} % | {:.5} | {} | {} | {} | {} | {} |\n",
        row.name(),
        grouped(row.weight_bytes),
        percent(row.weight_bytes as f64 / reference_bytes as f64),
        cell(row.bits_per_weight.map(|bits| format!("{bits:.2}"))),
        row.perplexity,
        100.0 * row.perplexity_change,
        row.kl_nats,
        percent(row.top1_agreement),
        cell(mean),
        cell(worst),
        cell(row.decode_tokens_per_s.map(|speed| format!("{speed:.1}"))),
        cell(row.peak_memory_bytes.map(mib)),
    )
}

/// `1,056,640`.
pub(super) fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (i, digit) in digits.char_indices() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_stand_in_threes() {
        assert_eq!([0, 999, 1000, 1_056_640].map(grouped), ["0", "999", "1,000", "1,056,640"]);
    }
}
