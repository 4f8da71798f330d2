//! How fast models run on the default GPU of Vulkan, Metal or DX12.
//!
//! `cargo run --release --features wgpu --example bench_wgpu -- --shape tinyllama-1.1b --json report.json`

mod support;

fn main() -> std::process::ExitCode {
    support::bench::main(engine::Device::Wgpu)
}
