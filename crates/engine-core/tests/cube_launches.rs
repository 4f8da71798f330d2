//! Kernel launches of one decode step, Burn's own included, as CubeCL logs them. In a file of its
//! own: the log is chosen once in a process, before the first device is used.
#![recursion_limit = "256"]
#![allow(clippy::unwrap_used, reason = "tests")]

mod wgpu_device;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use burn_tensor::Tensor;
use cubecl::config::profiling::ProfilingLogLevel;
use cubecl::config::{CubeClRuntimeConfig, RuntimeConfig};
use engine_core::ops::sample::{TokenChoice, choose_tokens};
use engine_core::{
    BatchInput, Checkpoint, ForwardBatch, KvFormat, LogitRows, Model, ModelConfig, SequenceChunk,
    load,
};
use wgpu_device::{Gpu, wgpu_device};

/// Positions of one partition of attention; longer contexts are merged by a second launch.
const PARTITION: usize = 256;

/// The log of all launches.
struct LaunchLog {
    path: PathBuf,
    device: burn_wgpu::WgpuDevice,
    /// Bytes that have been read.
    read: usize,
}

impl LaunchLog {
    /// Begins to log into a file of `folder`.
    fn start(folder: &Path) -> PathBuf {
        let path = folder.join("launches");
        let mut config = CubeClRuntimeConfig::default();
        config.profiling.logger.level = ProfilingLogLevel::Minimal;
        config.profiling.logger.file = Some(path.clone());
        CubeClRuntimeConfig::set(config);
        path
    }

    /// The names of the kernels launched since the last call. The log is written behind the
    /// launches and in their order: a kernel that nothing else here uses says when it is complete.
    fn take(&mut self) -> Vec<String> {
        let mark = Tensor::<Gpu, 1>::from_floats([1.0, 2.0], &self.device).flip([0]);
        drop(mark.into_data());
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let text = fs::read_to_string(&self.path).unwrap_or_default();
            let new = &text[self.read..];
            if let Some(end) = new.lines().position(|line| line.to_lowercase().contains("flip")) {
                let lines = new.lines().take(end).filter(|line| line.contains("Executing"));
                let lines = lines.map(str::to_owned).collect();
                self.read = text.len();
                return lines;
            }
            assert!(Instant::now() < deadline, "the log does not grow: {new}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn load_scheme(name: &str, scheme: &str, device: &burn_wgpu::WgpuDevice) -> Model<Gpu> {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data");
    let directory = data.join("models").join(name);
    let config = ModelConfig::load(&directory).unwrap();
    let source = Checkpoint::open(&directory).unwrap();
    load(config, &source, &scheme.parse().unwrap(), device, &mut |_| ()).unwrap()
}

/// One token for each of so many sequences at `position`, and the choice of the next.
fn decode(
    model: &Model<Gpu>,
    sequences: usize,
    position: usize,
    log: &mut LaunchLog,
) -> Vec<String> {
    let blocks = position / 16 + 1;
    let mut input = BatchInput::new(16);
    for sequence in 0..sequences {
        let first = (sequence * blocks) as u32;
        input.push(SequenceChunk {
            tokens: &[5 + sequence as u32],
            start_position: position,
            page_table: &(first..first + blocks as u32).collect::<Vec<_>>(),
            logits: LogitRows::Last,
            rope_len: position + 1,
        });
    }
    let mut kv = model.allocate_kv(sequences * blocks * 16, KvFormat::F32);
    let batch = ForwardBatch::upload(input, model.device());
    log.take();
    let logits = model.forward(&batch, &mut kv).unwrap();
    let greedy = TokenChoice { temperature: 0.0, seed: 0, position: position as u32 + 1 };
    let tokens = choose_tokens(logits, &vec![greedy; sequences]).into_data();
    // All that comes back are the tokens.
    assert_eq!(tokens.bytes.len(), sequences * size_of::<i32>());
    log.take()
}

#[test]
fn a_decode_step_has_few_launches() {
    let folder = tempfile::tempdir().unwrap();
    let path = LaunchLog::start(folder.path());
    let Some(device) = wgpu_device("a_decode_step_has_few_launches") else { return };
    let mut log = LaunchLog { path, device: device.clone(), read: 0 };
    // Products of queries, keys and values, of attention's output, of gates and values, and of the
    // MLP's output, with all norms, sums and gates; rotation with the write into the cache; attention.
    let per_layer = 6;
    // The ids out of the step's upload (where they do not lie as a kernel can read them), their rows
    // of the embedding, the head, the choice.
    let per_step = 4;
    for scheme in ["none", "int8", "int4"] {
        let model = load_scheme("stories260K", scheme, &device);
        let layers = model.config().num_layers;
        for (sequences, position) in [(1, 5), (3, 40), (8, PARTITION - 1), (1, PARTITION), (2, 400)]
        {
            let launches = decode(&model, sequences, position, &mut log);
            let split = usize::from(position >= PARTITION);
            let most = layers * (per_layer + split) + per_step;
            let case = format!("{scheme}, {sequences} sequences at {position}");
            let least = most - 1;
            assert!(
                (least..=most).contains(&launches.len()),
                "{} launches of {case}: {}",
                launches.len(),
                launches.join("\n")
            );
        }
    }
}
