//! The wgpu device of the tests, if the machine has one.

use burn_wgpu::WgpuRuntime;
use burn_wgpu::graphics::{AutoGraphicsApi, GraphicsApi};
use cubecl::prelude::Runtime;

/// The GPU backend that tests run on.
pub type Gpu = burn_wgpu::Wgpu;

/// The default wgpu device. Without any adapter it prints that `test` is skipped and returns
/// `None`, or fails where the environment variable `ENGINE_REQUIRE_WGPU` is set.
pub fn wgpu_device(test: &str) -> Option<burn_wgpu::WgpuDevice> {
    if !WgpuRuntime::enumerate_all_devices(&AutoGraphicsApi::backend()).is_empty() {
        return Some(burn_wgpu::WgpuDevice::default());
    }
    assert!(
        std::env::var_os("ENGINE_REQUIRE_WGPU").is_none(),
        "{test}: ENGINE_REQUIRE_WGPU is set and there is no wgpu adapter"
    );
    println!("{test}: skipped, there is no wgpu adapter");
    None
}
