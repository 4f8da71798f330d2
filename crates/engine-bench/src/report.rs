use serde::Serialize;

use crate::{ArithmeticRate, Machine};

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
    /// Format of keys and values.
    pub kv_cache: String,
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
    /// Most main memory that the process held while the model was loaded and first ran, without
    /// other models that were held beside it.
    pub peak_memory_bytes: Option<u64>,
    /// [`Row::bytes_per_step`] times steps per second over the bandwidth that was measured around
    /// each run: the median over the runs.
    pub bandwidth_fraction: Option<f64>,
    /// Least time for the arithmetic of the layers' matrices, each product in the arithmetic that
    /// it uses, over the time that the prompts took.
    pub matrix_fraction: Option<f64>,
    /// The arithmetic that the products use.
    pub arithmetic: Option<String>,
    /// Speed of the prompts over that of the first row of the same comparison, whose runs were
    /// taken in turns with these.
    pub prefill_ratio: Option<Spread>,
    /// The same of decoding.
    pub decode_ratio: Option<Spread>,
    /// Bytes that a decode step must read: each weight once, keys and values of each sequence.
    pub bytes_per_step: Option<f64>,
    /// Bytes of the weights.
    pub weight_bytes: Option<u64>,
    /// Bytes of the KV storage.
    pub kv_cache_bytes: Option<u64>,
    /// Bandwidth around the runs.
    pub bandwidth_bytes_per_s_spread: Option<Spread>,
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
             | decode tok/s | of bandwidth | GB/s | of arithmetic | peak MiB | weights + KV MiB \
             | × prefill | × decode |\n\
             |---|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---|---:|---:|---:|---:|\n",
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
    let one_thread = machine
        .bandwidth_one_thread_bytes_per_s
        .map_or_else(String::new, |rate| format!(" ({:.1} with one thread)", rate / 1e9));
    let arithmetic: Vec<_> = machine.arithmetic.iter().map(arithmetic_words).collect();
    format!(
        "{}, {} cores, {} threads, {:.0} GiB{gpu}; {}; device {}\n\n\
         Measured: {:.1} GB/s of memory{one_thread}; {}\n\n\
         engine {}, Burn {}, commit {}, {}\n",
        or_unknown(&machine.cpu),
        machine.cores,
        machine.threads,
        machine.memory_bytes as f64 / f64::from(1 << 30),
        machine.platform,
        machine.device,
        machine.bandwidth_bytes_per_s / 1e9,
        arithmetic.join(", "),
        machine.version,
        or_unknown(&machine.burn_version),
        or_unknown(&machine.commit),
        machine.date,
    )
}

fn arithmetic_words(rate: &ArithmeticRate) -> String {
    let ArithmeticRate { kind, multiply_adds_per_s, measured_with } = rate;
    format!("{:.1}·10⁹ multiply-adds/s in {kind} ({measured_with})", multiply_adds_per_s / 1e9)
}

fn row_line(row: &Row) -> String {
    let spread = |spread: &Option<Spread>| {
        spread.map_or_else(String::new, |s| format!("{:.1} ({:.1}–{:.1})", s.median, s.min, s.max))
    };
    let ratio = |spread: &Option<Spread>| {
        spread.map_or_else(String::new, |s| format!("{:.2} ({:.2}–{:.2})", s.median, s.min, s.max))
    };
    let percent = |fraction: Option<f64>| {
        fraction.map_or_else(String::new, |fraction| format!("{:.1} %", 100.0 * fraction))
    };
    let mib = |bytes: Option<u64>| {
        bytes.map_or_else(String::new, |bytes| format!("{:.0}", bytes as f64 / f64::from(1 << 20)))
    };
    let bandwidth = row.bandwidth_bytes_per_s_spread;
    let bandwidth = bandwidth.map_or_else(String::new, |s| format!("{:.1}", s.median / 1e9));
    let arithmetic = match (&row.arithmetic, row.matrix_fraction) {
        (Some(kind), Some(_)) => format!("{} of {kind}", percent(row.matrix_fraction)),
        _ => percent(row.matrix_fraction),
    };
    let held = row.weight_bytes.zip(row.kv_cache_bytes).map(|(weights, kv)| weights + kv);
    let quant = match row.kv_cache.as_str() {
        "" | "f32" => row.quant.clone(),
        format => format!("{}, KV {format}", row.quant),
    };
    let cells = [
        row.setup.clone(),
        row.shape.clone(),
        quant,
        row.batch.to_string(),
        row.prompt_tokens.to_string(),
        row.output_tokens.to_string(),
        spread(&row.ttft_ms_spread),
        spread(&row.prefill_tokens_per_s_spread),
        spread(&row.decode_tokens_per_s_spread),
        percent(row.bandwidth_fraction),
        bandwidth,
        arithmetic,
        mib(row.peak_memory_bytes),
        mib(held),
        ratio(&row.prefill_ratio),
        ratio(&row.decode_ratio),
    ];
    format!("| {} |\n", cells.join(" | "))
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
        assert_eq!(line.matches('|').count(), 17);
        assert!(line.ends_with("|  |  |  |  |  |  |  |  |  |  |\n"), "{line}");
    }
}
