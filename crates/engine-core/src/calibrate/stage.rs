use std::ops::Range;

use burn_tensor::{DType, Tensor, TensorData};
use engine_quant::{
    Dense, GptqFactor, GptqOptions, Grid, Hessian, Method, QuantError, Scheme, SliceRows,
    WeightMatrix, awq, gptq, round_to_nearest,
};

use super::{CalibrateError, CalibratedTensor, Calibration, MatrixReport, Output};
use crate::{DenseMatrix, LoadError, ModelBackend, StoredMatrix};

/// One matrix of a layer.
pub(super) struct Projection {
    /// Without `.weight`.
    pub name: String,
    pub scheme: Scheme,
    /// `[rows, columns]`: as the source has it, then with scales folded in, then as quantized.
    pub weight: Vec<f32>,
    pub rows: usize,
    /// Rows whose ranges AWQ may clip: not those of queries and keys, whose products are too
    /// sensitive to it.
    clip: Range<usize>,
    /// What the sink gets.
    stored: Option<StoredMatrix>,
    /// What rounding to nearest would have lost, scaled as the weights are.
    nearest_loss: Vec<f32>,
}

/// The matrices of a layer that share their input.
pub(super) struct Stage<B: ModelBackend> {
    pub projections: Vec<Projection>,
    pub columns: usize,
    /// Of all rows.
    bias: Option<Vec<f32>>,
    weight: Dense<B>,
    bias_tensor: Option<Tensor<B, 1>>,
    device: B::Device,
}

/// Which matrices a stage has: `(name, rows, rows that AWQ may clip)`.
pub(super) struct StageParts<'a> {
    pub prefix: &'a str,
    pub parts: &'a [(&'a str, usize, Range<usize>)],
    pub columns: usize,
    pub has_bias: bool,
}

impl<B: ModelBackend> Stage<B> {
    pub fn read(
        task: &Calibration<'_>,
        stage: &StageParts<'_>,
        device: &B::Device,
        output: &mut Output<'_>,
    ) -> Result<Self, CalibrateError> {
        let columns = stage.columns;
        let mut projections = Vec::new();
        for (name, rows, clip) in stage.parts {
            let name = format!("{}{name}", stage.prefix);
            projections.push(read_projection(task, name, [*rows, columns], clip.clone(), output)?);
        }
        let bias = stage.has_bias.then(|| {
            let parts = stage.parts.iter().map(|(name, rows, _)| {
                task.source.vector(&format!("{}{name}.bias", stage.prefix), *rows)
            });
            parts.collect::<Result<Vec<_>, LoadError>>().map(|parts| parts.concat())
        });
        let bias = bias.transpose()?;
        let weight = upload(device, projections.iter().map(|p| &p.weight[..]), columns)?;
        let mut stage =
            Self { projections, columns, bias, weight, bias_tensor: None, device: device.clone() };
        stage.upload_bias();
        Ok(stage)
    }

    /// `x · Wᵀ + bias`: `[tokens, columns]` to `[tokens, rows]`.
    pub fn forward(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        self.forward_with(&self.weight, x)
    }

    /// The same with other weights.
    pub fn forward_with(&self, weight: &Dense<B>, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let y = weight.linear(x);
        match &self.bias_tensor {
            Some(bias) => y + bias.clone().unsqueeze(),
            None => y,
        }
    }

    /// The weights as they would be, scaled by columns, rounded and scaled back.
    pub fn round_scaled(&self, scales: &[f32]) -> Result<Dense<B>, CalibrateError> {
        let mut parts = Vec::new();
        for projection in &self.projections {
            parts.push(match projection.scheme {
                Scheme::Keep => projection.weight.clone(),
                Scheme::Quantize { grid, .. } => {
                    awq::round_scaled(projection.matrix(self.columns), scales, grid)
                        .map_err(|source| projection.error(source))?
                }
            });
        }
        upload(&self.device, parts.iter().map(|part| &part[..]), self.columns)
    }

    /// Multiplies columns; whatever makes the input is divided by the same.
    pub fn scale_columns(&mut self, scales: &[f32]) -> Result<(), CalibrateError> {
        for projection in &mut self.projections {
            for values in [&mut projection.weight, &mut projection.nearest_loss] {
                let matrix = SliceRows { values, columns: self.columns };
                *values = awq::scale_columns(matrix, scales);
            }
        }
        self.upload_weight()
    }

    /// Divides the last rows and their biases by one number each.
    pub fn divide_last_rows(&mut self, divisors: &[f32]) -> Result<(), CalibrateError> {
        let rows: usize = self.projections.iter().map(|projection| projection.rows).sum();
        let first = rows - divisors.len();
        let mut start = 0;
        for projection in &mut self.projections {
            for row in 0..projection.rows {
                if start + row < first {
                    continue;
                }
                let divisor = divisors[start + row - first];
                for values in [&mut projection.weight, &mut projection.nearest_loss] {
                    if !values.is_empty() {
                        let row = &mut values[row * self.columns..][..self.columns];
                        row.iter_mut().for_each(|w| *w /= divisor);
                    }
                }
            }
            start += projection.rows;
        }
        if let Some(bias) = &mut self.bias {
            bias[first..].iter_mut().zip(divisors).for_each(|(bias, divisor)| *bias /= divisor);
        }
        self.upload_bias();
        self.upload_weight()
    }

    /// Quantizes the matrices, given the inputs that reach them.
    pub fn quantize(
        &mut self,
        inputs: &[Tensor<B, 2>],
        output: &mut Output<'_>,
    ) -> Result<(), CalibrateError> {
        if self.projections.iter().all(|projection| projection.scheme == Scheme::Keep) {
            return Ok(());
        }
        let failed = |source| self.projections[0].error(source);
        let hessian = hessian(inputs, self.columns).map_err(failed)?;
        let on_device = hessian_tensor::<B>(&hessian, &self.device);
        let mut factors = [const { None }; 4];
        for projection in &mut self.projections {
            let Scheme::Quantize { grid, .. } = projection.scheme else { continue };
            let columns = self.columns;
            let size = squared::<B>(&on_device, &projection.weight, columns);
            let (packed, raised_damp) = projection
                .quantize(grid, &hessian, &mut factors)
                .map_err(|source| projection.error(source))?;
            let rounded = packed.dequantize();
            let difference: Vec<f32> =
                projection.weight.iter().zip(&rounded).map(|(w, q)| w - q).collect();
            let relative = |difference: &[f32]| {
                let lost = squared::<B>(&on_device, difference, columns);
                if size > 0.0 { (lost / size).max(0.0).sqrt() } else { 0.0 }
            };
            output.matrix(MatrixReport {
                name: projection.name.clone(),
                scheme: projection.scheme,
                error: relative(&difference),
                nearest_error: relative(&projection.nearest_loss),
                raised_damp,
                number: 0,
                total: 0,
            })?;
            projection.weight = rounded;
            projection.stored = Some(StoredMatrix::Packed(packed));
        }
        self.upload_weight()
    }

    /// Gives the stage's tensors away.
    pub fn emit(self, output: &mut Output<'_>) -> Result<(), CalibrateError> {
        let mut start = 0;
        for projection in self.projections {
            let Projection { name, rows, stored, weight, .. } = projection;
            let dense = || DenseMatrix::from_f32(weight, [rows, self.columns]);
            let stored = stored.unwrap_or_else(|| StoredMatrix::Dense(dense()));
            output.tensor(format!("{name}.weight"), CalibratedTensor::Matrix(stored))?;
            if let Some(bias) = &self.bias {
                let bias = bias[start..start + rows].to_vec();
                output.tensor(format!("{name}.bias"), CalibratedTensor::Vector(bias))?;
            }
            start += rows;
        }
        Ok(())
    }

    fn upload_weight(&mut self) -> Result<(), CalibrateError> {
        let parts = self.projections.iter().map(|projection| &projection.weight[..]);
        self.weight = upload(&self.device, parts, self.columns)?;
        Ok(())
    }

    fn upload_bias(&mut self) {
        self.bias_tensor = self.bias.as_ref().map(|bias| {
            let data = TensorData::new(bias.clone(), [bias.len()]);
            Tensor::from_data(data, (&self.device, DType::F32))
        });
    }
}

impl Projection {
    pub fn matrix(&self, columns: usize) -> SliceRows<'_> {
        SliceRows { values: &self.weight, columns }
    }

    fn error(&self, source: QuantError) -> CalibrateError {
        CalibrateError::Quantize { name: self.name.clone(), source }
    }

    /// The packed matrix, and the damping where it had to be raised. `factors` are those without and
    /// with act-order, twice: without and with static groups, made when they are first needed.
    fn quantize(
        &self,
        grid: Grid,
        hessian: &Hessian,
        factors: &mut [Option<GptqFactor>; 4],
    ) -> Result<(engine_quant::PackedMatrix, Option<f64>), QuantError> {
        let columns = hessian.columns();
        let rows = self.matrix(columns);
        let Scheme::Quantize { method, .. } = self.scheme else {
            return Ok((round_to_nearest(&rows, grid)?, None));
        };
        match method {
            Method::Gptq { act_order, static_groups } => {
                let options = GptqOptions { act_order, static_groups, ..GptqOptions::default() };
                let slot = &mut factors[usize::from(act_order) + 2 * usize::from(static_groups)];
                let factor = match slot {
                    Some(factor) => factor,
                    None => slot.insert(GptqFactor::new(hessian, options)?),
                };
                let raised = Some(factor.damp()).filter(|damp| *damp > options.damp);
                Ok((gptq(&rows, factor, grid)?, raised))
            }
            Method::Awq { clip: true } if !self.clip.is_empty() => {
                let range = self.clip.start * columns..self.clip.end * columns;
                let mut values = self.weight.clone();
                let part = SliceRows { values: &self.weight[range.clone()], columns };
                values[range].copy_from_slice(&awq::clip(part, hessian, grid)?);
                Ok((round_to_nearest(&SliceRows { values: &values, columns }, grid)?, None))
            }
            Method::Nearest | Method::Awq { .. } => Ok((round_to_nearest(&rows, grid)?, None)),
        }
    }
}

fn read_projection(
    task: &Calibration<'_>,
    name: String,
    shape: [usize; 2],
    clip: Range<usize>,
    output: &mut Output<'_>,
) -> Result<Projection, CalibrateError> {
    let rows = shape[0];
    let stored = task.source.matrix(&format!("{name}.weight"), shape)?;
    let mut scheme = task.plan.scheme_of(&name, task.config.num_layers);
    let weight = stored.to_f32();
    if matches!(stored, StoredMatrix::Packed(_)) {
        if scheme != Scheme::Keep {
            output.already_quantized(&name)?;
        }
        scheme = Scheme::Keep;
    }
    let mut projection = Projection {
        name,
        scheme,
        weight,
        rows,
        clip,
        stored: Some(stored),
        nearest_loss: Vec::new(),
    };
    if let Scheme::Quantize { grid, .. } = scheme {
        projection.stored = None;
        let rounded = round_to_nearest(&projection.matrix(shape[1]), grid)
            .map_err(|source| projection.error(source))?
            .dequantize();
        let pairs = projection.weight.iter().zip(rounded);
        projection.nearest_loss = pairs.map(|(w, q)| w - q).collect();
    }
    Ok(projection)
}

/// One matrix of several, below one another.
fn upload<'a, B: ModelBackend>(
    device: &B::Device,
    parts: impl Iterator<Item = &'a [f32]>,
    columns: usize,
) -> Result<Dense<B>, CalibrateError> {
    let values = parts.collect::<Vec<_>>().concat();
    let rows = values.len() / columns.max(1);
    let dense = Dense::upload(TensorData::new(values, [rows, columns]), device);
    dense.map_err(|source| CalibrateError::Load(LoadError::Weight(source)))
}

/// Of all inputs; their products are summed on the device, batch by batch.
fn hessian<B: ModelBackend>(
    inputs: &[Tensor<B, 2>],
    columns: usize,
) -> Result<Hessian, QuantError> {
    let mut hessian = Hessian::new(columns);
    for x in inputs {
        let gram = x.clone().transpose().matmul(x.clone()).into_data();
        hessian.add_gram(&gram.iter::<f32>().collect::<Vec<_>>(), x.dims()[0])?;
    }
    Ok(hessian)
}

fn hessian_tensor<B: ModelBackend>(hessian: &Hessian, device: &B::Device) -> Tensor<B, 2> {
    let columns = hessian.columns();
    let values: Vec<f32> = hessian.to_matrix().into_iter().map(|h| h as f32).collect();
    Tensor::from_data(TensorData::new(values, [columns, columns]), (device, DType::F32))
}

/// `tr(D · H · Dᵀ)`.
fn squared<B: ModelBackend>(hessian: &Tensor<B, 2>, difference: &[f32], columns: usize) -> f64 {
    let rows = difference.len() / columns;
    let data = TensorData::new(difference.to_vec(), [rows, columns]);
    let difference = Tensor::<B, 2>::from_data(data, (&hessian.device(), DType::F32));
    let rows = (difference.clone().matmul(hessian.clone()) * difference).sum_dim(1).into_data();
    rows.iter::<f32>().map(f64::from).sum()
}
