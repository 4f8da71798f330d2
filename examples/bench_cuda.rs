//! How fast models run on the first NVIDIA card.
//!
//! `cargo run --release --features cuda --example bench_cuda -- --shape tinyllama-1.1b --json report.json`

mod support;

fn main() -> std::process::ExitCode {
    support::bench::main(engine::Device::Cuda(0))
}
