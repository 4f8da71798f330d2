use super::{LoadReport, LoadRun, Percentiles};
use crate::report::machine_lines;

impl LoadReport {
    /// The report for people.
    pub fn markdown(&self) -> String {
        let mut text = machine_lines(&self.machine);
        text.push_str(&format!(
            "\n{}: {}. TTFT counts from a request's arrival. Good is a request with a TTFT of at \
             most {} ms and a mean ITL of at most {} ms.\n\n\
             | arrivals/s | prefix caching | requests/s | tokens/s | good requests/s | good \
             | TTFT ms p50 | p90 | p99 | ITL ms p50 | p90 | p99 | prefix hits | preemptions \
             | sequences per step |\n\
             |---:|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n",
            self.model, self.load, self.limits.ttft_ms, self.limits.itl_ms,
        ));
        self.runs.iter().for_each(|run| text.push_str(&rate_line(run)));
        if !self.sweep.is_empty() {
            text.push_str(
                "\nAll requests waiting from the start, with prefix caching. The knee has the most \
                 throughput per latency: tokens/s over the 99th percentile of ITL.\n\n\
                 | max_batched_tokens | max_sequences | tokens/s | requests/s | ITL ms p50 | p90 \
                 | p99 | TTFT ms p50 | p99 | preemptions | tokens per step | |\n\
                 |---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---|\n",
            );
            self.sweep.iter().for_each(|run| text.push_str(&sweep_line(run)));
        }
        text
    }
}

fn rate_line(run: &LoadRun) -> String {
    let rate = run.setting.rate.map_or_else(|| "trace".to_owned(), |rate| format!("{rate}"));
    let refused = match run.refused {
        0 => String::new(),
        refused => format!(" ({refused} refused)"),
    };
    format!(
        "| {rate} | {} | {:.2}{refused} | {:.0} | {:.2} | {:.0} % | {} | {} | {:.0} % | {} | {:.1} |\n",
        if run.setting.prefix_caching { "yes" } else { "no" },
        run.requests_per_s,
        run.output_tokens_per_s,
        run.goodput_requests_per_s,
        100.0 * run.good_fraction,
        cells(run.ttft_ms.as_ref()),
        cells(run.itl_ms.as_ref()),
        100.0 * run.prefix_hit_rate,
        run.preemptions,
        run.mean_batch_sequences,
    )
}

fn sweep_line(run: &LoadRun) -> String {
    let ends = |values: &Percentiles| format!("{} | {}", number(values.p50), number(values.p99));
    format!(
        "| {} | {} | {:.0} | {:.2} | {} | {} | {} | {:.0} | {} |\n",
        run.setting.max_batched_tokens,
        run.setting.max_sequences,
        run.output_tokens_per_s,
        run.requests_per_s,
        cells(run.itl_ms.as_ref()),
        run.ttft_ms.as_ref().map_or_else(|| " | ".to_owned(), ends),
        run.preemptions,
        run.mean_batch_tokens,
        if run.knee { "**knee**" } else { "" },
    )
}

/// Three cells; empty if nothing was measured.
fn cells(values: Option<&Percentiles>) -> String {
    let three = |values: &Percentiles| {
        format!("{} | {} | {}", number(values.p50), number(values.p90), number(values.p99))
    };
    values.map_or_else(|| " |  | ".to_owned(), three)
}

/// Three digits or so.
fn number(value: f64) -> String {
    match value {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}
