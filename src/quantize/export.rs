//! From a model's tensors to those of the new checkpoint, one after the other.

use std::collections::{HashMap, HashSet};

use engine_core::{
    CalibrateError, CalibratedTensor, Calibration, CalibrationEvent, DenseMatrix, LoadError,
    ModelBackend, SinkError, StoredMatrix, StoredType, TensorRef, WeightSource,
};
use engine_quant::{
    PackedMatrix, Rows, Scheme,
    formats::{Element, NamedTensor},
    round_to_nearest,
};
use rayon::prelude::*;

use super::{
    Listener, QuantizeError, QuantizeEvent, QuantizedMatrix, SchemeBytes, Source,
    layout::Writer,
    shards::{Shards, TensorBytes},
    tell,
};

/// A checkpoint in the making.
pub(super) struct Export<'a> {
    source: &'a Source,
    writer: Writer,
    shards: Shards<'a>,
    progress: Listener<'a>,
    /// Of the matrices that are quantized, by name without `.weight`.
    schemes: HashMap<&'a str, Scheme>,
    /// What the name of the last matrix starts with: its layer and `self_attn` or `mlp`.
    block: String,
    /// What the matrices of this block have beside their codes. It is written after them, so that
    /// codes of matrices with the same input are neighbours, which a mapped file gives as one.
    late: Vec<NamedTensor>,
    /// Tensors of the source that are done.
    done: HashSet<String>,
    summary: Summary,
}

/// What was done so far.
pub(super) struct Summary {
    pub matrices: Vec<QuantizedMatrix>,
    pub schemes: Vec<SchemeBytes>,
    pub kept: SchemeBytes,
}

impl<'a> Export<'a> {
    pub fn new(
        source: &'a Source,
        writer: Writer,
        shards: Shards<'a>,
        progress: Listener<'a>,
    ) -> Self {
        let quantized = source.matrices.iter().filter(|(_, scheme)| *scheme != Scheme::Keep);
        let kept = SchemeBytes::none(Scheme::Keep);
        Self {
            source,
            writer,
            shards,
            progress,
            schemes: quantized.map(|(matrix, scheme)| (&*matrix.name, *scheme)).collect(),
            block: String::new(),
            late: Vec::new(),
            done: HashSet::new(),
            summary: Summary { matrices: Vec::new(), schemes: Vec::new(), kept },
        }
    }

    pub fn tell_layout(&mut self) -> Result<(), QuantizeError> {
        let (layout, reason) = (self.writer.layout(), self.writer.reason.as_str());
        tell(self.progress, QuantizeEvent::Layout { layout, reason })
    }

    /// Rounds every matrix of the plan and writes it.
    pub fn round_to_nearest(&mut self) -> Result<(), QuantizeError> {
        let source = self.source;
        for (matrix, scheme) in &source.matrices {
            let Scheme::Quantize { grid, .. } = *scheme else { continue };
            let data = self.floats(&matrix.name, matrix.shape)?;
            let packed = round_to_nearest(&data, grid)
                .map_err(|source| QuantizeError::Matrix { tensor: matrix.name.clone(), source })?;
            self.quantized(&matrix.name, relative_error(&data, &packed), None)?;
            drop(data);
            self.write_matrix(&matrix.name, packed)?;
        }
        Ok(())
    }

    /// Quantizes with the help of a text and writes what comes.
    pub fn calibrate<B: ModelBackend>(
        &mut self,
        task: &Calibration<'_>,
        device: &B::Device,
    ) -> Result<(), QuantizeError> {
        let result = engine_core::calibrate::<B>(task, device, &mut |event| {
            self.take(event).map_err(|error| Box::new(error) as SinkError)
        });
        match result {
            Err(CalibrateError::Sink { name, source }) => match source.downcast() {
                Ok(error) => Err(*error),
                Err(source) => Err(CalibrateError::Sink { name, source }.into()),
            },
            result => Ok(result?),
        }
    }

    /// Copies the tensors that nobody has asked about and completes the files.
    pub fn finish(mut self) -> Result<(Writer, Summary), QuantizeError> {
        self.write_late()?;
        for name in self.source.checkpoint.names() {
            if self.done.contains(name) {
                continue;
            }
            match self.source.checkpoint.tensor(name) {
                Ok(tensor) => self.copy(&tensor)?,
                Err(LoadError::ElementType { found, .. }) => {
                    let note = format!("{name} is left out: its elements are {found}");
                    tell(self.progress, QuantizeEvent::Note(&note))?;
                }
                Err(error) => return Err(error.into()),
            }
        }
        if let Some(correct) = self.writer.correct_zeros() {
            self.shards.edit(".qzeros", correct)?;
        }
        self.shards.finish()?;
        Ok((self.writer, self.summary))
    }

    fn take(&mut self, event: CalibrationEvent) -> Result<(), QuantizeError> {
        match event {
            CalibrationEvent::Matrix(report) => {
                if let Some(damp) = report.raised_damp {
                    let note = format!("{}: damping was raised to {damp}", report.name);
                    tell(self.progress, QuantizeEvent::Note(&note))?;
                }
                self.quantized(&report.name, report.error, Some(report.nearest_error))
            }
            CalibrationEvent::Unscaled(name, reason) => {
                let note = format!("{name}: its input is not scaled, {reason}");
                tell(self.progress, QuantizeEvent::Note(&note))
            }
            CalibrationEvent::AlreadyQuantized(_) => {
                Err(QuantizeError::AlreadyQuantized { path: self.source.path.clone() })
            }
            CalibrationEvent::Tensor(name, CalibratedTensor::Vector(values)) => {
                self.write_vector(&name, &values)
            }
            // A matrix of floats is as the source has it.
            CalibrationEvent::Tensor(name, CalibratedTensor::Matrix(StoredMatrix::Dense(_))) => {
                self.copy(&self.source.checkpoint.tensor(&name)?)
            }
            CalibrationEvent::Tensor(name, CalibratedTensor::Matrix(StoredMatrix::Packed(it))) => {
                let name = name.strip_suffix(".weight").unwrap_or(&name);
                if !self.summary.matrices.iter().any(|matrix| matrix.name == name) {
                    // A table, which has no inputs and so no report.
                    let data = self.floats(name, it.spec.shape)?;
                    self.quantized(name, relative_error(&data, &it), None)?;
                }
                self.write_matrix(name, it)
            }
        }
    }

    /// A matrix of the source.
    fn floats(&self, name: &str, shape: [usize; 2]) -> Result<DenseMatrix, QuantizeError> {
        match self.source.checkpoint.matrix(&format!("{name}.weight"), shape)? {
            StoredMatrix::Dense(data) => Ok(data),
            StoredMatrix::Packed(_) => {
                Err(QuantizeError::AlreadyQuantized { path: self.source.path.clone() })
            }
        }
    }

    fn scheme(&self, name: &str) -> Scheme {
        self.schemes.get(name).copied().unwrap_or(Scheme::Keep)
    }

    fn quantized(
        &mut self,
        name: &str,
        error: f64,
        nearest_error: Option<f64>,
    ) -> Result<(), QuantizeError> {
        let scheme = self.scheme(name);
        let matrix = QuantizedMatrix { name: name.to_owned(), scheme, error, nearest_error };
        let (number, total) = (self.summary.matrices.len() + 1, self.schemes.len());
        tell(self.progress, QuantizeEvent::Matrix { matrix: &matrix, number, total })?;
        self.summary.matrices.push(matrix);
        Ok(())
    }

    fn write_matrix(&mut self, name: &str, packed: PackedMatrix) -> Result<(), QuantizeError> {
        let weight = format!("{name}.weight");
        let before = self.source.checkpoint.tensor(&weight)?.bytes.len() as u64;
        let tensors = self
            .writer
            .pack(name, packed)
            .map_err(|source| QuantizeError::Matrix { tensor: name.to_owned(), source })?;
        let after = tensors.iter().map(|tensor| tensor.bytes.len() as u64).sum();
        let (block, _) = name.rsplit_once('.').unwrap_or_default();
        if block != self.block {
            self.write_late()?;
            self.block = block.to_owned();
        }
        let mut tensors = tensors.into_iter();
        if let Some(first) = tensors.next() {
            self.write_part(&first)?;
        }
        self.late.extend(tensors);
        self.done.insert(weight);
        let scheme = self.scheme(name);
        let schemes = &mut self.summary.schemes;
        let i = schemes.iter().position(|bytes| bytes.scheme == scheme).unwrap_or_else(|| {
            schemes.push(SchemeBytes::none(scheme));
            schemes.len() - 1
        });
        schemes[i].add(before, after);
        Ok(())
    }

    /// Writes what stands after the largest tensors of a block.
    fn write_late(&mut self) -> Result<(), QuantizeError> {
        let late = std::mem::take(&mut self.late);
        late.iter().try_for_each(|tensor| self.write_part(tensor))
    }

    fn write_part(&mut self, tensor: &NamedTensor) -> Result<(), QuantizeError> {
        let dtype = match tensor.element {
            Element::U8 => "U8",
            Element::I32 => "I32",
            Element::F16 => "F16",
            Element::F32 => "F32",
        };
        let NamedTensor { name, shape, bytes, .. } = tensor;
        self.shards.write(TensorBytes { name, dtype, shape, bytes })
    }

    /// A vector as the source has it, or as `f32` if it has changed.
    fn write_vector(&mut self, name: &str, values: &[f32]) -> Result<(), QuantizeError> {
        let checkpoint = &self.source.checkpoint;
        let tensor = checkpoint.tensor(name)?;
        let old = checkpoint.vector(name, values.len())?;
        if old.iter().zip(values).all(|(old, new)| old.to_bits() == new.to_bits()) {
            return self.copy(&tensor);
        }
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let shape = &[values.len()];
        self.shards.write(TensorBytes { name, dtype: "F32", shape, bytes: &bytes })?;
        self.summary.kept.add(tensor.bytes.len() as u64, bytes.len() as u64);
        self.done.insert(name.to_owned());
        Ok(())
    }

    fn copy(&mut self, tensor: &TensorRef<'_>) -> Result<(), QuantizeError> {
        let TensorRef { name, shape, bytes, .. } = *tensor;
        let dtype = match tensor.dtype {
            StoredType::F32 => "F32",
            StoredType::F16 => "F16",
            StoredType::Bf16 => "BF16",
        };
        self.shards.write(TensorBytes { name, dtype, shape, bytes })?;
        self.summary.kept.add(bytes.len() as u64, bytes.len() as u64);
        self.done.insert(name.to_owned());
        Ok(())
    }
}

/// `‖W − Q‖ / ‖W‖`.
fn relative_error(rows: &DenseMatrix, packed: &PackedMatrix) -> f64 {
    let columns = DenseMatrix::shape(rows)[1].max(1);
    let rounded = packed.dequantize();
    let sums: Vec<(f64, f64)> = rounded
        .par_chunks_exact(columns)
        .enumerate()
        .map_init(
            || vec![0.0; columns],
            |row, (i, rounded)| {
                rows.read_row(i, row);
                let pairs = row.iter().zip(rounded);
                pairs.fold((0.0, 0.0), |(lost, size), (&w, &q)| {
                    let (w, q) = (f64::from(w), f64::from(q));
                    (lost + (w - q).powi(2), size + w.powi(2))
                })
            },
        )
        .collect();
    let (lost, size) = sums.iter().fold((0.0, 0.0), |(a, b), (c, d)| (a + c, b + d));
    if size > 0.0 { (lost / size).sqrt() } else { 0.0 }
}
