use std::{fs, path::Path, process::Command};

use engine::Device;
use serde::Serialize;

use crate::{BenchError, read_bandwidth};

/// The machine of a report: what it is, what it can do at best, and what was measured when.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Machine {
    /// Operating system and processor family.
    pub platform: String,
    /// The processor's name, where the system tells.
    pub cpu: Option<String>,
    /// Cores that this process may use.
    pub cores: usize,
    /// Threads of the CPU kernels.
    pub threads: usize,
    /// Bytes of main memory.
    pub memory_bytes: u64,
    /// Where the model runs.
    pub device: String,
    /// The graphics card's name, where its driver tells.
    pub gpu: Option<String>,
    /// CPU: bytes per second that all threads read from memory. GPU: bytes read and written per
    /// second while a large tensor is copied.
    pub bandwidth_bytes_per_s: f64,
    /// Multiplications and additions per second of a large matrix product through Burn.
    pub matrix_flops_per_s: f64,
    /// Element type of that product.
    pub matrix_type: String,
    /// Version of this crate and of the engine.
    pub version: String,
    /// Version of Burn, where the lock file is at hand.
    pub burn_version: Option<String>,
    /// Commit of the source, where git tells; `-dirty` if files were changed since.
    pub commit: Option<String>,
    /// When it was measured, UTC.
    pub date: String,
}

impl Machine {
    /// Measures the machine; takes a few seconds.
    ///
    /// # Errors
    /// If the device is not there or fails.
    pub fn measure(device: Device, threads: Option<usize>) -> Result<Self, BenchError> {
        let device = device.select()?.device;
        let system = hardware();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = threads.unwrap_or(cores);
        let rates = device.measure(threads)?;
        let bandwidth_bytes_per_s = match device {
            Device::Cpu => read_bandwidth(threads, system.memory_bytes),
            _ => rates.copy_bytes_per_second,
        };
        Ok(Self {
            platform: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            cpu: system.cpu,
            cores,
            threads,
            memory_bytes: system.memory_bytes,
            device: device.to_string(),
            gpu: if device == Device::Cpu { None } else { gpu_name(device) },
            bandwidth_bytes_per_s,
            matrix_flops_per_s: rates.matrix_flops_per_second,
            matrix_type: rates.matrix_type.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            burn_version: burn_version(),
            commit: commit(),
            date: jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M:%S UTC").to_string(),
        })
    }
}

struct Hardware {
    cpu: Option<String>,
    memory_bytes: u64,
}

fn hardware() -> Hardware {
    let Ok(mut system) = sysinfo::System::new() else {
        return Hardware { cpu: None, memory_bytes: 0 };
    };
    system.refresh_memory();
    system.refresh_cpu_all();
    let name = system.cpus().first().map(|cpu| cpu.brand().trim().to_owned());
    Hardware { cpu: name.filter(|name| !name.is_empty()), memory_bytes: system.total_memory() }
}

/// The root of the source tree this was built from.
const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

fn commit() -> Option<String> {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").arg("-C").arg(SOURCE).args(arguments).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| text.trim().to_owned())
    };
    let commit = git(&["rev-parse", "--short=12", "HEAD"])?;
    let changed = git(&["status", "--porcelain", "--untracked-files=no"])?;
    Some(if changed.is_empty() { commit } else { format!("{commit}-dirty") })
}

fn burn_version() -> Option<String> {
    let lock = fs::read_to_string(Path::new(SOURCE).join("Cargo.lock")).ok()?;
    let (_, after) = lock.split_once("name = \"burn-flex\"\nversion = \"")?;
    after.split('"').next().map(str::to_owned)
}

fn gpu_name(device: Device) -> Option<String> {
    let index = if let Device::Cuda(index) = device { index } else { 0 };
    let output = Command::new("nvidia-smi")
        .args(["--query-gpu=name", "--format=csv,noheader"])
        .output()
        .ok()?;
    let names = String::from_utf8(output.stdout).ok()?;
    names.lines().nth(index).map(|name| name.trim().to_owned())
}

/// Highest memory use of this process so far, in bytes, where the system tells.
pub(crate) fn peak_memory_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// Starts counting [`peak_memory_bytes`] anew, where the system lets us.
pub(crate) fn reset_peak_memory() {
    // Where this is refused, the peak is that of the whole process: too much, never too little.
    let _ = fs::write("/proc/self/clear_refs", "5");
}
