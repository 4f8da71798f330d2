use serde::Serialize;

use crate::Machine;

/// The middle of several measurements, and how far they lie apart.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    /// The middle one; of an even number, the mean of the two in the middle.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

impl Spread {
    /// The spread of values, `None` of none.
    pub fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let half = values.len() / 2;
        let median = match values.len() % 2 {
            0 => (values[half - 1] + values[half]) / 2.0,
            _ => values[half],
        };
        Some(Self { median, min, max })
    }

    pub(crate) fn scaled(self, factor: f64) -> Self {
        let Self { median, min, max } = self;
        Self { median: median * factor, min: min * factor, max: max * factor }
    }
}

/// One row of the table. What was not measured is `None`, in JSON `null`.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Row {
    /// What ran where.
    pub setup: String,
    /// The model's name.
    pub shape: String,
    /// The weight format asked for; `none` is the checkpoint's own.
    pub quant: String,
    /// Requests at once.
    pub batch: usize,
    /// Tokens of each prompt.
    pub prompt_tokens: usize,
    /// New tokens of each request.
    pub output_tokens: usize,
    /// From submission to the first token: the median over the requests.
    pub ttft_ms: Option<f64>,
    /// Prompt tokens of all requests over the time until the last prompt was computed.
    pub prefill_tokens_per_s: Option<f64>,
    /// New tokens of all requests over the time in which all of them decode.
    pub decode_tokens_per_s: Option<f64>,
    /// Most main memory that the process held since it began to load the model.
    pub peak_memory_bytes: Option<u64>,
    /// [`Row::bytes_per_step`] times steps per second over the machine's bandwidth.
    pub bandwidth_fraction: Option<f64>,
    /// Arithmetic of the layers' matrices for the prompts over the machine's matrix throughput.
    pub matrix_fraction: Option<f64>,
    /// Bytes that a decode step must read: each weight once, keys and values of each sequence.
    pub bytes_per_step: Option<f64>,
    /// Bytes of the weights.
    pub weight_bytes: Option<u64>,
    /// Seconds to load the model.
    pub load_s: Option<f64>,
    /// Runs that were measured, after one to warm up.
    pub repeats: usize,
    /// Of `ttft_ms` over the runs.
    pub ttft_ms_spread: Option<Spread>,
    /// Of `prefill_tokens_per_s` over the runs.
    pub prefill_tokens_per_s_spread: Option<Spread>,
    /// Of `decode_tokens_per_s` over the runs.
    pub decode_tokens_per_s_spread: Option<Spread>,
}

/// What was measured, and on what.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// The machine.
    pub machine: Machine,
    /// The table.
    pub rows: Vec<Row>,
}

impl Report {
    /// The report for people: medians, with the smallest and the largest in parentheses.
    pub fn markdown(&self) -> String {
        let mut text = machine_lines(&self.machine);
        text.push_str(
            "\n| setup | model | quant | batch | prompt | output | TTFT ms | prefill tok/s \
             | decode tok/s | of bandwidth | of arithmetic | peak memory MiB |\n\
             |---|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n",
        );
        self.rows.iter().for_each(|row| text.push_str(&row_line(row)));
        text
    }
}

/// What a report says of its machine first.
pub(crate) fn machine_lines(machine: &Machine) -> String {
    let or_unknown = |value: &Option<String>| value.as_deref().unwrap_or("unknown").to_owned();
    let gpu = match &machine.gpu {
        Some(gpu) => format!(", {gpu}"),
        None => String::new(),
    };
    format!(
        "{}, {} cores, {} threads, {:.0} GiB{gpu}; {}; device {}\n\n\
         Measured: {:.1} GB/s of memory, {:.1} GFLOP/s of matrix products in {}\n\n\
         engine {}, Burn {}, commit {}, {}\n",
        or_unknown(&machine.cpu),
        machine.cores,
        machine.threads,
        machine.memory_bytes as f64 / f64::from(1 << 30),
        machine.platform,
        machine.device,
        machine.bandwidth_bytes_per_s / 1e9,
        machine.matrix_flops_per_s / 1e9,
        machine.matrix_type,
        machine.version,
        or_unknown(&machine.burn_version),
        or_unknown(&machine.commit),
        machine.date,
    )
}

fn row_line(row: &Row) -> String {
    let spread = |spread: &Option<Spread>| {
        spread.map_or_else(String::new, |s| format!("{:.1} ({:.1}–{:.1})", s.median, s.min, s.max))
    };
    let percent = |fraction: Option<f64>| {
        fraction.map_or_else(String::new, |fraction| format!("{:.1} %", 100.0 * fraction))
    };
    let mib = row
        .peak_memory_bytes
        .map_or_else(String::new, |bytes| format!("{:.0}", bytes as f64 / f64::from(1 << 20)));
    format!(
        "| {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {mib} |\n",
        row.setup,
        row.shape,
        row.quant,
        row.batch,
        row.prompt_tokens,
        row.output_tokens,
        spread(&row.ttft_ms_spread),
        spread(&row.prefill_tokens_per_s_spread),
        spread(&row.decode_tokens_per_s_spread),
        percent(row.bandwidth_fraction),
        percent(row.matrix_fraction),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_and_the_spread_the_ends() {
        let spread = |values: &[f64]| Spread::of(values.to_vec());
        assert_eq!(spread(&[3.0, 1.0, 2.0]), Some(Spread { median: 2.0, min: 1.0, max: 3.0 }));
        assert_eq!(spread(&[4.0, 1.0]).unwrap().median, 2.5);
        assert_eq!(spread(&[]), None);
    }

    #[test]
    fn what_was_not_measured_is_null_and_an_empty_cell() {
        let row = Row { setup: "engine cpu".to_owned(), batch: 1, ..Row::default() };
        let json = serde_json::to_value(&row).unwrap();
        assert!(json["ttft_ms"].is_null() && json["peak_memory_bytes"].is_null());
        let line = row_line(&row);
        assert_eq!(line.matches('|').count(), 13);
        assert!(line.ends_with("|  |  |  |  |  |  |\n"), "{line}");
    }
}
