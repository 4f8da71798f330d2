//! How fast a device is by itself, measured with plain Burn tensors: what the engine's own speed is
//! compared with.

use std::time::{Duration, Instant};

use burn_tensor::{DType, Distribution, Tensor, backend::Backend};

use crate::runner::panic_message;
use crate::{Device, EngineError};

/// What a device can do at best.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DeviceRates {
    /// Bytes read plus bytes written in one second while a large tensor is copied.
    pub copy_bytes_per_second: f64,
    /// Multiplications plus additions in one second of a large matrix product.
    pub matrix_flops_per_second: f64,
    /// Element type of that product.
    pub matrix_type: &'static str,
}

/// Sizes of what is measured.
struct Sizes {
    /// Elements of the copied tensor, `f32`.
    copy_len: usize,
    /// Rows and columns of the multiplied matrices.
    side: usize,
    matrix: (DType, &'static str),
}

/// Shortest time over which something is measured.
const LEAST_TIME: Duration = Duration::from_millis(300);
/// The best of this many measurements counts.
const ATTEMPTS: usize = 5;

impl Device {
    /// Measures the device's copy bandwidth and matrix throughput; takes a few seconds. `threads`
    /// counts for the CPU alone.
    ///
    /// ```no_run
    /// let rates = engine::Device::Cpu.measure(2)?;
    /// println!("{:.1} GFLOP/s", rates.matrix_flops_per_second / 1e9);
    /// # Ok::<(), engine::EngineError>(())
    /// ```
    ///
    /// # Errors
    /// If the device is not there or fails.
    pub fn measure(self, threads: usize) -> Result<DeviceRates, EngineError> {
        let device = self.select()?.device;
        let measured =
            std::panic::catch_unwind(move || measure_on(device, threads)).map_err(|payload| {
                EngineError::LoadFailed { message: panic_message(payload.as_ref()) }
            })?;
        measured.ok_or_else(|| EngineError::Setting {
            setting: "device",
            message: format!("`{device}` could not be measured"),
        })
    }
}

fn measure_on(device: Device, threads: usize) -> Option<DeviceRates> {
    let _ = threads;
    match device {
        #[cfg(feature = "cpu")]
        Device::Cpu => {
            let sizes = Sizes { copy_len: 64 << 20, side: 1536, matrix: (DType::F32, "f32") };
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().ok()?;
            pool.install(|| rates::<burn_flex::Flex>(&burn_flex::FlexDevice, &sizes))
        }
        #[cfg(feature = "wgpu")]
        Device::Wgpu => {
            let sizes = Sizes { copy_len: 32 << 20, side: 2048, matrix: (DType::F32, "f32") };
            rates::<burn_wgpu::Wgpu>(&burn_wgpu::WgpuDevice::default(), &sizes)
        }
        #[cfg(feature = "cuda")]
        Device::Cuda(index) => {
            let sizes = Sizes { copy_len: 512 << 20, side: 8192, matrix: (DType::BF16, "bf16") };
            rates::<burn_cuda::Cuda>(&burn_cuda::CudaDevice::new(index), &sizes)
        }
        _ => None,
    }
}

fn rates<B: Backend>(device: &B::Device, sizes: &Sizes) -> Option<DeviceRates> {
    let vector = Tensor::<B, 1>::zeros([sizes.copy_len], device);
    let copy_seconds = best_seconds::<B>(device, || drop(vector.clone().add_scalar(1.0)))?;
    drop(vector);

    let (dtype, matrix_type) = sizes.matrix;
    let random = || {
        let shape = [sizes.side, sizes.side];
        Tensor::<B, 2>::random(shape, Distribution::Uniform(-1.0, 1.0), device).cast(dtype)
    };
    let (a, b) = (random(), random());
    let product_seconds = best_seconds::<B>(device, || drop(a.clone().matmul(b.clone())))?;
    Some(DeviceRates {
        copy_bytes_per_second: (2 * size_of::<f32>() * sizes.copy_len) as f64 / copy_seconds,
        matrix_flops_per_second: 2.0 * (sizes.side as f64).powi(3) / product_seconds,
        matrix_type,
    })
}

/// Seconds of one call in the fastest of several measurements, each of enough calls to be long.
fn best_seconds<B: Backend>(device: &B::Device, mut call: impl FnMut()) -> Option<f64> {
    let mut timed = |calls: u32| {
        let start = Instant::now();
        (0..calls).for_each(|_| call());
        B::sync(device).ok()?;
        Some(start.elapsed())
    };
    timed(1)?;
    let once = timed(1)?.max(Duration::from_micros(1));
    let calls = (LEAST_TIME.as_secs_f64() / once.as_secs_f64()).clamp(1.0, 1000.0) as u32;
    let times = (0..ATTEMPTS).map(|_| timed(calls)).collect::<Option<Vec<_>>>()?;
    times.into_iter().min().map(|best| best.as_secs_f64() / f64::from(calls))
}
