use std::{fs, path::Path, process::Command};

use engine::{Activations, Device, MultiplyAdds};
use engine_quant::peak::{Arithmetic, multiply_adds_per_second};
use serde::Serialize;

use crate::{BenchError, bandwidth::brief_read_bandwidth, read_bandwidth};

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
    /// The same with one thread; CPU alone.
    pub bandwidth_one_thread_bytes_per_s: Option<f64>,
    /// Multiplications plus additions per second in [`Machine::matrix_type`]: twice the first of
    /// [`Machine::arithmetic`].
    pub matrix_flops_per_s: f64,
    /// Element type of that arithmetic.
    pub matrix_type: String,
    /// What the arithmetic units do at best, by type.
    pub arithmetic: Vec<ArithmeticRate>,
    /// Version of this crate and of the engine.
    pub version: String,
    /// Version of Burn, where the lock file is at hand.
    pub burn_version: Option<String>,
    /// Commit of the source, where git tells; `-dirty` if files were changed since.
    pub commit: Option<String>,
    /// When it was measured, UTC.
    pub date: String,
}

/// Speed of one type of arithmetic, measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ArithmeticRate {
    /// `f32`, `bf16` or `int8`.
    pub kind: String,
    /// Multiplications, each with its addition, per second.
    pub multiply_adds_per_s: f64,
    /// What was timed: on the CPU an instruction in registers, on all threads; on a GPU a large
    /// matrix product through Burn.
    pub measured_with: String,
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
        let one_thread = |device| match device {
            Device::Cpu => Some(read_bandwidth(1, system.memory_bytes)),
            _ => None,
        };
        let (bandwidth_bytes_per_s, arithmetic) = match device {
            Device::Cpu => (read_bandwidth(threads, system.memory_bytes), cpu_rates(threads)),
            _ => {
                let rates = device.measure(threads)?;
                let rate = ArithmeticRate {
                    kind: rates.matrix_type.to_owned(),
                    multiply_adds_per_s: rates.matrix_flops_per_second / 2.0,
                    measured_with: "a matrix product through Burn".to_owned(),
                };
                (rates.copy_bytes_per_second, vec![rate])
            }
        };
        let first = arithmetic.first();
        Ok(Self {
            platform: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            cpu: system.cpu,
            cores,
            threads,
            memory_bytes: system.memory_bytes,
            device: device.to_string(),
            gpu: if device == Device::Cpu { None } else { gpu_name(device) },
            bandwidth_bytes_per_s,
            bandwidth_one_thread_bytes_per_s: one_thread(device),
            matrix_flops_per_s: first.map_or(0.0, |rate| 2.0 * rate.multiply_adds_per_s),
            matrix_type: first.map_or_else(String::new, |rate| rate.kind.clone()),
            arithmetic,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            burn_version: burn_version(),
            commit: commit(),
            date: jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M:%S UTC").to_string(),
        })
    }
}

impl Machine {
    /// A machine of which nothing is known, for tests.
    #[cfg(test)]
    pub(crate) fn unknown() -> Self {
        Self {
            platform: "test".to_owned(),
            cpu: None,
            cores: 1,
            threads: 1,
            memory_bytes: 1,
            device: "test".to_owned(),
            gpu: None,
            bandwidth_bytes_per_s: 1.0,
            bandwidth_one_thread_bytes_per_s: None,
            matrix_flops_per_s: 1.0,
            matrix_type: "f32".to_owned(),
            arithmetic: Vec::new(),
            version: "0".to_owned(),
            burn_version: None,
            commit: None,
            date: "today".to_owned(),
        }
    }

    /// What the memory gives just now, next to a measurement: a CPU's memory is often shared with
    /// others, a GPU's is not.
    pub(crate) fn bandwidth_now(&self) -> f64 {
        match self.gpu.is_none() && self.device == Device::Cpu.to_string() {
            true => brief_read_bandwidth(self.threads, self.memory_bytes),
            false => self.bandwidth_bytes_per_s,
        }
    }

    /// Seconds that the arithmetic of one token takes at least, and its types.
    pub(crate) fn least_seconds(&self, work: &[MultiplyAdds]) -> Option<(f64, String)> {
        let (mut seconds, mut kinds) = (0.0, Vec::new());
        for part in work {
            let (kind, each) = arithmetic_of(part);
            let known = self.arithmetic.iter().find(|rate| rate.kind == kind);
            let rate = known.or(self.arithmetic.first())?;
            seconds += each * part.per_token as f64 / rate.multiply_adds_per_s;
            if !kinds.contains(&rate.kind.as_str()) {
                kinds.push(&rate.kind);
            }
        }
        (seconds > 0.0).then(|| (seconds, kinds.join(" + ")))
    }
}

/// The type of arithmetic of a product, and how many of its multiply-adds make one of the product's.
fn arithmetic_of(work: &MultiplyAdds) -> (&'static str, f64) {
    match (work.activations, work.format.as_str()) {
        (Activations::F32, _) | (Activations::Bits24, "bf16") | (_, "f32" | "f16") => ("f32", 1.0),
        (_, "bf16") => ("bf16", 1.0),
        // A number of 16 bits is two of 8, one of 24 three.
        (Activations::Bits24, _) => ("int8", 3.0),
        (Activations::Bits16, _) => ("int8", 2.0),
        (Activations::Bits8, _) => ("int8", 1.0),
    }
}

fn cpu_rates(threads: usize) -> Vec<ArithmeticRate> {
    let rate = |kind: Arithmetic| {
        let (multiply_adds_per_s, instruction) = multiply_adds_per_second(kind, threads)?;
        Some(ArithmeticRate {
            kind: kind.name().to_owned(),
            multiply_adds_per_s,
            measured_with: instruction.to_owned(),
        })
    };
    Arithmetic::ALL.into_iter().filter_map(rate).collect()
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
    status_bytes("VmHWM:")
}

/// Memory that this process holds just now, in bytes, where the system tells.
pub(crate) fn resident_bytes() -> Option<u64> {
    status_bytes("VmRSS:")
}

fn status_bytes(key: &str) -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(key))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// Starts counting [`peak_memory_bytes`] anew, where the system lets us.
pub(crate) fn reset_peak_memory() {
    // Where this is refused, the peak is that of the whole process: too much, never too little.
    let _ = fs::write("/proc/self/clear_refs", "5");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_time_counts_each_product_in_its_own_arithmetic() {
        let rate = |kind: &str, multiply_adds_per_s| ArithmeticRate {
            kind: kind.to_owned(),
            multiply_adds_per_s,
            measured_with: String::new(),
        };
        let machine = Machine {
            arithmetic: vec![rate("f32", 10.0), rate("int8", 40.0)],
            ..Machine::unknown()
        };
        let work = |format: &str, activations, per_token| MultiplyAdds {
            format: format.to_owned(),
            activations,
            per_token,
        };
        let least = |work: &[MultiplyAdds]| machine.least_seconds(work);
        assert_eq!(least(&[work("int8", Activations::Bits8, 80)]), Some((2.0, "int8".into())));
        assert_eq!(least(&[work("int4", Activations::Bits16, 80)]), Some((4.0, "int8".into())));
        let both = [work("bf16", Activations::F32, 10), work("int8", Activations::Bits8, 40)];
        assert_eq!(least(&both), Some((2.0, "f32 + int8".into())));
        // Without a unit of its own, a type is measured against the first.
        assert_eq!(least(&[work("bf16", Activations::Bits8, 10)]), Some((1.0, "f32".into())));
        assert_eq!(least(&[]), None);
    }
}
