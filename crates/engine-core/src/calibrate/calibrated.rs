use std::{collections::BTreeMap, path::PathBuf};

use super::{
    CalibrateError, CalibratedTensor, Calibration, CalibrationEvent, MatrixReport, UnscaledReason,
    calibrate,
};
use crate::{LoadError, ModelBackend, StoredMatrix, WeightSource};

/// A calibrated model in memory, and what became of its matrices: a source like a file.
#[derive(Debug)]
pub struct CalibratedModel {
    prefix: &'static str,
    tensors: BTreeMap<String, CalibratedTensor>,
    /// Every quantized matrix.
    pub matrices: Vec<MatrixReport>,
    /// Matrices, without `.weight`, whose input AWQ left as it was.
    pub unscaled: Vec<(String, UnscaledReason)>,
    /// Matrices, without `.weight`, that were in few bits already and stayed so.
    pub already_quantized: Vec<String>,
}

impl CalibratedModel {
    /// Runs [`calibrate`] and keeps the result; `progress` hears of every quantized matrix.
    ///
    /// # Errors
    /// As [`calibrate`].
    pub fn new<B: ModelBackend>(
        task: &Calibration<'_>,
        device: &B::Device,
        mut progress: impl FnMut(&MatrixReport),
    ) -> Result<Self, CalibrateError> {
        let mut model = Self {
            prefix: task.source.model_prefix(),
            tensors: BTreeMap::new(),
            matrices: Vec::new(),
            unscaled: Vec::new(),
            already_quantized: Vec::new(),
        };
        calibrate::<B>(task, device, &mut |event| {
            match event {
                CalibrationEvent::Tensor(name, tensor) => {
                    model.tensors.insert(name, tensor);
                }
                CalibrationEvent::Matrix(report) => {
                    progress(&report);
                    model.matrices.push(report);
                }
                CalibrationEvent::Unscaled(name, reason) => model.unscaled.push((name, reason)),
                CalibrationEvent::AlreadyQuantized(name) => model.already_quantized.push(name),
            }
            Ok(())
        })?;
        Ok(model)
    }

    /// All tensors with their whole names, in alphabetical order.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &CalibratedTensor)> {
        self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }

    fn missing(&self, name: &str) -> LoadError {
        LoadError::MissingTensor {
            file: PathBuf::from("the calibrated model"),
            tensor: name.to_owned(),
            closest: "none".to_owned(),
        }
    }

    fn wrong_shape(name: &str, expected: &[usize], found: &[usize]) -> LoadError {
        LoadError::Shape {
            file: PathBuf::from("the calibrated model"),
            tensor: name.to_owned(),
            expected: expected.to_vec(),
            found: found.to_vec(),
        }
    }
}

impl WeightSource for CalibratedModel {
    fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    fn num_bytes(&self) -> usize {
        let bytes = |tensor: &CalibratedTensor| match tensor {
            CalibratedTensor::Matrix(matrix) => matrix.num_bytes(),
            CalibratedTensor::Vector(values) => values.len() * size_of::<f32>(),
        };
        self.tensors.values().map(bytes).sum()
    }

    fn model_prefix(&self) -> &'static str {
        self.prefix
    }

    fn matrix(&self, name: &str, shape: [usize; 2]) -> Result<StoredMatrix, LoadError> {
        let Some(CalibratedTensor::Matrix(matrix)) = self.tensors.get(name) else {
            return Err(self.missing(name));
        };
        let found = matrix.shape();
        match found == shape {
            true => Ok(matrix.clone()),
            false => Err(Self::wrong_shape(name, &shape, &found)),
        }
    }

    fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>, LoadError> {
        match self.tensors.get(name) {
            Some(CalibratedTensor::Vector(values)) if values.len() == len => Ok(values.clone()),
            Some(CalibratedTensor::Vector(values)) => {
                Err(Self::wrong_shape(name, &[len], &[values.len()]))
            }
            _ => Err(self.missing(name)),
        }
    }

    fn stored_type(&self, name: &str) -> String {
        match self.tensors.get(name) {
            Some(CalibratedTensor::Matrix(StoredMatrix::Packed(packed))) => packed.format.clone(),
            Some(CalibratedTensor::Matrix(StoredMatrix::Dense(matrix))) => {
                matrix.stored_type().name().to_owned()
            }
            Some(CalibratedTensor::Vector(_)) => "F32".to_owned(),
            None => "nothing".to_owned(),
        }
    }
}
