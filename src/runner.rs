//! The edge where a device becomes a type: behind [`Runner`] everything is generic over one Burn
//! backend, before it nothing knows one.

use std::any::Any;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use burn_tensor::{DType, Int, Tensor, TensorData};
use engine_core::ops::sample::{TokenChoice, choose_tokens};
use engine_core::{
    BatchInput, ForwardBatch, KvCache, LoadReport, Model, ModelBackend, MultiplyAdds,
};
use thiserror::Error;

use crate::threads::Threads;

/// Why a step could not be computed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ExecuteError {
    /// The backend failed in the middle of a step, so what the cache holds is not known any more.
    #[error("the device failed: {message}; the engine must be loaded again")]
    Device {
        /// What the backend said.
        message: String,
    },
    /// An earlier step failed.
    #[error("the engine failed in an earlier step and must be loaded again")]
    Poisoned,
}

impl ExecuteError {
    pub(crate) fn too_few_rows() -> Self {
        Self::Device { message: "it returned fewer rows than it was asked for".to_owned() }
    }
}

/// One step for the device: block movements first, then the forward pass.
#[derive(Debug, Default)]
pub(crate) struct Step {
    /// Blocks to save on the host, `(device, host)`.
    pub swap_out: Vec<(u32, u32)>,
    /// Then blocks to copy, `(from, to)`.
    pub copies: Vec<(u32, u32)>,
    /// Then blocks to restore from the host, `(host, device)`.
    pub swap_in: Vec<(u32, u32)>,
    pub batch: BatchInput,
}

/// A model with its cache on some device.
pub(crate) trait Runner: Send {
    /// Computes a step. The result holds logits of the batch's logit rows, in their order.
    fn run(&mut self, step: Step) -> Result<Box<dyn Logits>, ExecuteError>;
    /// What was loaded.
    fn weights(&self) -> Weights;
}

/// The weights of a model on a device.
#[derive(Debug, Default)]
pub(crate) struct Weights {
    /// Bytes of all of them.
    pub num_bytes: usize,
    /// Bytes that each step reads.
    pub step_bytes: usize,
    /// Storage formats and their bytes.
    pub formats: Vec<(String, usize)>,
    /// Arithmetic of one token in the layers' matrices.
    pub multiply_adds: Vec<MultiplyAdds>,
    /// What became of the file's matrices.
    pub report: LoadReport,
}

/// Logits of one step, still on the device, `[rows, vocab]`.
pub(crate) trait Logits {
    /// Chooses one token from each of `rows`; `None` where no logit is a number above −∞.
    fn choose(
        &self,
        rows: &[u32],
        choices: &[TokenChoice],
    ) -> Result<Vec<Option<u32>>, ExecuteError>;
    /// Downloads the given rows, `[rows * vocab]`.
    fn download(&self, rows: &[u32]) -> Result<Vec<f32>, ExecuteError>;
}

/// The one implementation, for any backend.
pub(crate) struct ModelRunner<B: ModelBackend> {
    model: Model<B>,
    kv: KvCache<B>,
    block_size: usize,
    /// Blocks that were moved to the host, by host block.
    swapped: HashMap<u32, Vec<TensorData>>,
    threads: Threads,
}

impl<B: ModelBackend> ModelRunner<B> {
    pub fn new(model: Model<B>, kv: KvCache<B>, block_size: usize, threads: Threads) -> Self {
        Self { model, kv, block_size, swapped: HashMap::new(), threads }
    }

    fn compute(&mut self, step: Step) -> Option<Tensor<B, 2>> {
        for (device, host) in step.swap_out {
            let block = self.kv.read_block(device, self.block_size);
            self.swapped.insert(host, block);
        }
        self.kv.copy_blocks(&step.copies, self.block_size);
        for (host, device) in step.swap_in {
            if let Some(block) = self.swapped.remove(&host) {
                self.kv.write_block(device, self.block_size, block);
            }
        }
        if step.batch.tokens.is_empty() {
            return None;
        }
        let batch = ForwardBatch::upload(step.batch, self.model.device());
        self.model.forward(&batch, &mut self.kv)
    }
}

impl<B: ModelBackend> Runner for ModelRunner<B> {
    fn run(&mut self, step: Step) -> Result<Box<dyn Logits>, ExecuteError> {
        let threads = self.threads.clone();
        let logits = catch_device(|| threads.enter(|| self.compute(step)))?;
        Ok(Box::new(DeviceLogits { logits, threads }))
    }

    fn weights(&self) -> Weights {
        Weights {
            num_bytes: self.model.weight_bytes(),
            step_bytes: self.model.step_weight_bytes(),
            formats: self.model.weight_formats(),
            multiply_adds: self.model.multiply_adds(),
            report: self.model.load_report().clone(),
        }
    }
}

struct DeviceLogits<B: ModelBackend> {
    /// `[rows, vocab]`, or nothing where the batch asked for none.
    logits: Option<Tensor<B, 2>>,
    threads: Threads,
}

impl<B: ModelBackend> DeviceLogits<B> {
    /// The given rows, `[rows, vocab]`.
    fn select(&self, rows: &[u32]) -> Option<Tensor<B, 2>> {
        let logits = self.logits.clone()?;
        let all = rows.len() == logits.dims()[0] && rows.iter().zip(0..).all(|(row, i)| *row == i);
        if all {
            return Some(logits);
        }
        let rows: Vec<i32> = rows.iter().map(|&row| row as i32).collect();
        let len = rows.len();
        let device = logits.device();
        let rows =
            Tensor::<B, 1, Int>::from_data(TensorData::new(rows, [len]), (&device, DType::I32));
        Some(logits.select(0, rows))
    }
}

impl<B: ModelBackend> Logits for DeviceLogits<B> {
    fn choose(
        &self,
        rows: &[u32],
        choices: &[TokenChoice],
    ) -> Result<Vec<Option<u32>>, ExecuteError> {
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let tokens = catch_device(|| {
            let choose = |logits| choose_tokens(logits, choices).into_data();
            self.threads.enter(|| self.select(rows).map(choose))
        })?;
        let ids = |data: TensorData| data.iter::<i64>().map(|id| u32::try_from(id).ok()).collect();
        Ok(tokens.map(ids).unwrap_or_default())
    }

    fn download(&self, rows: &[u32]) -> Result<Vec<f32>, ExecuteError> {
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let values = catch_device(|| self.select(rows).map(Tensor::into_data))?;
        Ok(values.map(|data| data.iter::<f32>().collect()).unwrap_or_default())
    }
}

/// Backends report a lost device or exhausted memory by a panic; it ends here.
fn catch_device<T>(work: impl FnOnce() -> T) -> Result<T, ExecuteError> {
    catch_unwind(AssertUnwindSafe(work))
        .map_err(|payload| ExecuteError::Device { message: panic_message(payload.as_ref()) })
}

/// What a panic said.
pub(crate) fn panic_message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "it gave no reason".to_owned())
}
