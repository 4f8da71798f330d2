//! How fast models run on the CPU.
//!
//! `cargo run --release --example bench_cpu -- --shape tinyllama-1.1b --json report.json`

mod support;

fn main() -> std::process::ExitCode {
    support::bench::main(engine::Device::Cpu)
}
