use std::{fmt, str::FromStr};

use thiserror::Error;

/// Where a model runs.
///
/// ```
/// use engine::Device;
/// assert_eq!("cuda:1".parse(), Ok(Device::Cuda(1)));
/// assert_eq!(Device::Cpu.to_string(), "cpu");
/// assert!("gpu".parse::<Device>().is_err());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Device {
    /// The best one present: CUDA, then a hardware GPU through wgpu, then the CPU.
    #[default]
    Auto,
    /// The CPU, with Burn's Flex backend and our SIMD kernels.
    Cpu,
    /// The default adapter of Vulkan, Metal or DX12.
    Wgpu,
    /// The NVIDIA card with this number.
    Cuda(usize),
}

/// A device that is there, and why it was taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selected {
    /// Never [`Device::Auto`].
    pub device: Device,
    /// A sentence for people.
    pub reason: String,
}

/// Why a device cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// The name is none we know.
    #[error("unknown device `{name}`: use auto, cpu, wgpu, cuda or cuda:N")]
    Unknown {
        /// What was given.
        name: String,
    },
    /// [`ENGINE_ISA`](engine_quant::instruction_set::VARIABLE) names none that we know.
    #[cfg(feature = "cpu")]
    #[error("environment variable {variable}: {source}", variable = engine_quant::instruction_set::VARIABLE)]
    InstructionSet {
        /// What is wrong with it.
        #[from]
        source: engine_quant::UnknownInstructionSet,
    },
    /// This build does not contain the backend.
    #[error("device `{device}` is not in this build: build with `--features {feature}`")]
    NotCompiledIn {
        /// The device asked for.
        device: Device,
        /// The cargo feature that brings it.
        feature: &'static str,
    },
    /// The machine has no such device.
    #[error("device `{device}` is not there: {why}; use `--device cpu` or `--device auto`")]
    NotPresent {
        /// The device asked for.
        device: Device,
        /// What the driver said.
        why: String,
    },
}

impl Device {
    /// Finds out whether the device is there, and for [`Device::Auto`] which one to take.
    ///
    /// # Errors
    /// If a device was named that is not compiled in or not present.
    pub fn select(self) -> Result<Selected, DeviceError> {
        #[cfg(feature = "cpu")]
        engine_quant::InstructionSet::widest()?;
        match self {
            Self::Auto => Ok(select_best()),
            Self::Cpu if cfg!(feature = "cpu") => Ok(selected(self, "asked for")),
            Self::Cpu => Err(DeviceError::NotCompiledIn { device: self, feature: "cpu" }),
            Self::Wgpu => wgpu_adapter()
                .map(|adapter| selected(self, &format!("asked for; {}", adapter.description())))
                .map_err(|missing| missing.into_error(self, "wgpu")),
            Self::Cuda(index) => cuda_count()
                .and_then(|count| match index < count {
                    true => Ok(selected(self, "asked for")),
                    false => Err(Missing::Absent(format!("there are {count} NVIDIA cards"))),
                })
                .map_err(|missing| missing.into_error(self, "cuda")),
        }
    }
}

fn selected(device: Device, reason: &str) -> Selected {
    Selected { device, reason: reason.to_owned() }
}

fn select_best() -> Selected {
    let cuda = match cuda_count() {
        Ok(count) if count > 0 => return selected(Device::Cuda(0), "an NVIDIA card is present"),
        Ok(_) => "no NVIDIA card".to_owned(),
        Err(missing) => format!("CUDA: {missing}"),
    };
    let wgpu = match wgpu_adapter() {
        Ok(adapter) if adapter.is_hardware() => {
            return selected(Device::Wgpu, &format!("{cuda}; wgpu: {}", adapter.description()));
        }
        Ok(adapter) => format!("wgpu: only {}", adapter.description()),
        Err(missing) => format!("wgpu: {missing}"),
    };
    selected(Device::Cpu, &format!("{cuda}; {wgpu}"))
}

/// Why a backend offers nothing.
enum Missing {
    #[cfg_attr(all(feature = "wgpu", feature = "cuda"), allow(dead_code))]
    NotCompiledIn,
    #[cfg_attr(not(any(feature = "wgpu", feature = "cuda")), allow(dead_code))]
    Absent(String),
}

impl Missing {
    fn into_error(self, device: Device, feature: &'static str) -> DeviceError {
        match self {
            Self::NotCompiledIn => DeviceError::NotCompiledIn { device, feature },
            Self::Absent(why) => DeviceError::NotPresent { device, why },
        }
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotCompiledIn => f.write_str("not in this build"),
            Self::Absent(why) => f.write_str(why),
        }
    }
}

/// The kind of adapter that wgpu's default device is.
#[cfg_attr(not(feature = "wgpu"), allow(dead_code))]
#[derive(Clone, Copy)]
enum Adapter {
    Discrete,
    Integrated,
    Virtual,
    Software,
    Other,
}

impl Adapter {
    fn is_hardware(self) -> bool {
        matches!(self, Self::Discrete | Self::Integrated | Self::Virtual)
    }

    fn description(self) -> &'static str {
        match self {
            Self::Discrete => "a discrete GPU",
            Self::Integrated => "an integrated GPU",
            Self::Virtual => "a virtual GPU",
            Self::Software => "a software adapter",
            Self::Other => "an adapter of unknown kind",
        }
    }
}

#[cfg(feature = "wgpu")]
fn wgpu_adapter() -> Result<Adapter, Missing> {
    use burn_wgpu::graphics::{AutoGraphicsApi, GraphicsApi};
    use cubecl::Runtime;

    let found =
        quietly(|| burn_wgpu::WgpuRuntime::enumerate_all_devices(&AutoGraphicsApi::backend()))
            .map_err(Missing::Absent)?;
    // The order of preference of wgpu's own high-performance default.
    let kinds = [Adapter::Discrete, Adapter::Integrated, Adapter::Virtual, Adapter::Software];
    let best =
        kinds.into_iter().zip(0_u16..).find(|(_, id)| found.iter().any(|d| d.type_id == *id));
    match best {
        Some((kind, _)) => Ok(kind),
        None if found.is_empty() => Err(Missing::Absent(
            "no Vulkan, Metal or DX12 driver found (on Debian: mesa-vulkan-drivers)".to_owned(),
        )),
        None => Ok(Adapter::Other),
    }
}

#[cfg(not(feature = "wgpu"))]
fn wgpu_adapter() -> Result<Adapter, Missing> {
    Err(Missing::NotCompiledIn)
}

#[cfg(feature = "cuda")]
fn cuda_count() -> Result<usize, Missing> {
    let count = quietly(cudarc::driver::CudaContext::device_count)
        .map_err(|_| Missing::Absent("the NVIDIA driver library was not found".to_owned()))?;
    count.map(|count| count as usize).map_err(|error| Missing::Absent(format!("{error}")))
}

#[cfg(not(feature = "cuda"))]
fn cuda_count() -> Result<usize, Missing> {
    Err(Missing::NotCompiledIn)
}

/// Runs a probe of a driver that may panic where its library is missing, without the panic's noise.
#[cfg(any(feature = "wgpu", feature = "cuda"))]
fn quietly<T>(probe: impl FnOnce() -> T + std::panic::UnwindSafe) -> Result<T, String> {
    use std::sync::{Mutex, PoisonError};
    static HOOK: Mutex<()> = Mutex::new(());

    let _guard = HOOK.lock().unwrap_or_else(PoisonError::into_inner);
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| ()));
    let result = std::panic::catch_unwind(probe);
    std::panic::set_hook(hook);
    result.map_err(|payload| crate::runner::panic_message(payload.as_ref()))
}

impl FromStr for Device {
    type Err = DeviceError;

    fn from_str(name: &str) -> Result<Self, DeviceError> {
        match name {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "wgpu" => Ok(Self::Wgpu),
            "cuda" => Ok(Self::Cuda(0)),
            _ => name
                .strip_prefix("cuda:")
                .and_then(|index| index.parse().ok())
                .map(Self::Cuda)
                .ok_or_else(|| DeviceError::Unknown { name: name.to_owned() }),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Wgpu => f.write_str("wgpu"),
            Self::Cuda(index) => write!(f, "cuda:{index}"),
        }
    }
}
