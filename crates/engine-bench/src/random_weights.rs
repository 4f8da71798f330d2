use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use engine::{DenseMatrix, LoadError, ModelConfig, StoredMatrix, WeightSource};
use engine_quant::threads;
use half::bf16;

use crate::{Shape, splitmix::SplitMix64};

/// Random weights in the shape of a real model, made when they are asked for.
///
/// Speed does not depend on the weights' values, so what is measured with them holds for the real
/// model. A tensor's numbers are a function of its name, so they are the same on every machine and
/// with any number of threads.
#[derive(Debug)]
pub struct RandomWeights {
    shape: Shape,
    tensors: HashMap<String, Vec<usize>>,
    /// A weight for each sum of four random bytes.
    table: Vec<bf16>,
}

/// Standard deviation of the weights, as models are initialised.
const DEVIATION: f64 = 0.02;
/// Weights that one thread makes at a time, from a seed of their own.
const PART: usize = 1 << 16;

impl RandomWeights {
    /// The weights of a model of this shape.
    pub fn new(shape: Shape) -> Self {
        Self { shape, tensors: shape.tensors().into_iter().collect(), table: bell_curve() }
    }

    /// The configuration that goes with them.
    ///
    /// # Errors
    /// If the shape is none that the engine has.
    pub fn config(&self) -> Result<ModelConfig, LoadError> {
        let json = self.shape.config().to_string();
        ModelConfig::parse(json.as_bytes(), Path::new(self.shape.name))
    }

    /// The elements of a tensor, row by row; norms are ones.
    pub(crate) fn values(&self, name: &str, dims: &[usize]) -> Vec<bf16> {
        let mut values = vec![bf16::ONE; dims.iter().product()];
        if dims.len() < 2 {
            return values;
        }
        let seed = hash(name);
        let parts: Vec<_> = values.chunks_mut(PART).map(Mutex::new).collect();
        threads::for_each(parts.len(), |i| {
            let mut part = parts[i].lock().unwrap_or_else(PoisonError::into_inner);
            // Far apart, so that no part repeats another.
            self.fill(&mut part, SplitMix64(seed ^ ((i as u64) << 40)));
        });
        drop(parts);
        values
    }

    fn fill(&self, values: &mut [bf16], mut random: SplitMix64) {
        for pair in values.chunks_mut(2) {
            let bytes = random.next().to_le_bytes();
            for (value, four) in pair.iter_mut().zip(bytes.chunks_exact(4)) {
                *value = self.table[four.iter().map(|byte| usize::from(*byte)).sum::<usize>()];
            }
        }
    }

    fn dims(&self, name: &str, expected: &[usize]) -> Result<&[usize], LoadError> {
        let file = PathBuf::from(self.shape.name);
        let tensor = name.to_owned();
        match self.tensors.get(name) {
            None => Err(LoadError::MissingTensor { file, tensor, closest: "none".to_owned() }),
            Some(found) if found == expected => Ok(found),
            Some(found) => Err(LoadError::Shape {
                file,
                tensor,
                expected: expected.to_vec(),
                found: found.clone(),
            }),
        }
    }
}

impl WeightSource for RandomWeights {
    fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    fn num_bytes(&self) -> usize {
        size_of::<bf16>() * self.shape.num_parameters()
    }

    fn model_prefix(&self) -> &'static str {
        "model."
    }

    fn matrix(&self, name: &str, shape: [usize; 2]) -> Result<StoredMatrix, LoadError> {
        let dims = self.dims(name, &shape)?;
        Ok(StoredMatrix::Dense(DenseMatrix::from_bf16(self.values(name, dims), shape)))
    }

    fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>, LoadError> {
        let dims = self.dims(name, &[len])?;
        Ok(self.values(name, dims).into_iter().map(bf16::to_f32).collect())
    }

    fn stored_type(&self, name: &str) -> String {
        if self.contains(name) { "BF16".to_owned() } else { "nothing".to_owned() }
    }
}

/// Fowler, Noll and Vo's FNV-1a.
fn hash(name: &str) -> u64 {
    name.bytes().fold(0xCBF2_9CE4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3)
    })
}

/// Weights by the sum of four random bytes, which is nearly normal.
fn bell_curve() -> Vec<bf16> {
    let largest = 4 * 255;
    // The variance of one of 256 equally likely numbers is (256² - 1) / 12.
    let deviation = (4.0_f64 * (65_536.0 - 1.0) / 12.0).sqrt();
    let middle = f64::from(largest) / 2.0;
    let weight = |sum| bf16::from_f64((f64::from(sum) - middle) / deviation * DEVIATION);
    (0..=largest).map(weight).collect()
}

/// A model that is made in no time.
#[cfg(test)]
pub(crate) const SMALL: Shape = Shape {
    name: "small",
    family: crate::ShapeFamily::Qwen3,
    hidden: 64,
    intermediate: 96,
    layers: 2,
    heads: 4,
    kv_heads: 2,
    head_dim: 32,
    vocab: 128,
    context: 64,
    rope_theta: 1e4,
    tied: false,
};

#[cfg(test)]
mod tests {
    use super::*;
    use engine::{Device, Engine, Request};

    #[test]
    fn a_random_model_runs_in_any_format_without_a_file() {
        let tokens = |quant: &str| {
            let weights = RandomWeights::new(SMALL);
            let config = weights.config().unwrap();
            let engine = Engine::from_source("small", config, weights)
                .device(Device::Cpu)
                .quantization(quant.parse().unwrap())
                .kv_cache_bytes(1 << 20)
                .load()
                .unwrap();
            let request = Request::tokens(vec![1, 2, 3]).max_tokens(5).ignore_eos();
            engine.generate(request).unwrap().tokens().to_vec()
        };
        assert_eq!(tokens("none"), tokens("none"));
        assert_eq!(tokens("int8+embeddings=int8").len(), 5);
        assert_eq!(tokens("int4:group=32").len(), 5);
    }

    #[test]
    fn numbers_depend_on_the_name_and_on_nothing_else() {
        let weights = RandomWeights::new(SMALL);
        let values = |name| weights.values(name, &[2 * PART / 64 + 1, 64]);
        assert_eq!(values("a"), values("a"));
        assert_ne!(values("a"), values("b"));
        let all = values("a");
        assert_ne!(all[..PART], all[PART..2 * PART]);
        assert_eq!(weights.values("norm", &[3]), [bf16::ONE; 3]);
        let wrong = weights.matrix("lm_head.weight", [128, 63]).unwrap_err();
        assert!(matches!(wrong, LoadError::Shape { .. }), "{wrong}");
        assert!(weights.matrix("nothing.weight", [1, 1]).is_err());
    }

    #[test]
    fn weights_have_the_deviation_of_a_fresh_model() {
        let values = RandomWeights::new(SMALL).values("x", &[100, 200]);
        let values: Vec<f64> = values.into_iter().map(f64::from).collect();
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / values.len() as f64;
        assert!(mean.abs() < 0.001, "{mean}");
        assert!((variance.sqrt() - DEVIATION).abs() < 0.001, "{}", variance.sqrt());
    }
}
