use burn_tensor::{DType, Int, Tensor, TensorData, backend::Backend};

use crate::{Activations, Fused, PackedMatrix, PackedSpec, QuantError, QuantOps, WeightMatrix};

/// The numbers of a packed matrix on a device.
///
/// The tensors are opaque to everybody but [`QuantOps`]: each backend lays them out as its kernels
/// read them. Shape, rules and meaning are those of [`PackedMatrix`].
#[derive(Debug, Clone)]
pub struct PackedTensors<B: Backend> {
    /// Shape and rules.
    pub spec: PackedSpec,
    /// What products round activations to; the layout is made for it.
    pub activations: Activations,
    /// The packed codes.
    pub codes: Tensor<B, 1, Int>,
    /// `[out · groups]`.
    pub scales: Tensor<B, 1>,
    /// The code of zero where all groups share it.
    pub fixed_zero: u8,
    /// `[out · groups]` where each group has its own.
    pub zeros: Option<Tensor<B, 1, Int>>,
    /// `[out · groups]`.
    pub mins: Option<Tensor<B, 1>>,
}

/// A matrix in few bits on a device.
#[derive(Debug)]
pub struct Packed<B: QuantOps> {
    tensors: PackedTensors<B>,
    column_order: Option<ColumnOrder<B>>,
    factor: f32,
    format: String,
    num_bytes: usize,
}

/// Where the packed columns come from and go to, both `i32 [in]`.
#[derive(Debug)]
struct ColumnOrder<B: Backend> {
    /// Packed column `k` is column `from[k]` of the input.
    from: Tensor<B, 1, Int>,
    /// Column `c` of the input is packed column `to[c]`.
    to: Tensor<B, 1, Int>,
}

impl<B: QuantOps> Packed<B> {
    /// Uploads a matrix whose products leave activations in `f32`.
    ///
    /// # Errors
    /// As for [`Packed::upload_for`].
    pub fn upload(matrix: PackedMatrix, device: &B::Device) -> Result<Self, QuantError> {
        Self::upload_for(Activations::F32, matrix, device)
    }

    /// Uploads a matrix.
    ///
    /// # Errors
    /// If [`PackedMatrix::check`] fails.
    pub fn upload_for(
        activations: Activations,
        matrix: PackedMatrix,
        device: &B::Device,
    ) -> Result<Self, QuantError> {
        matrix.check()?;
        let column_order = matrix.column_order.as_ref().map(|order| {
            let mut inverse = vec![0_i32; order.len()];
            for (packed, &column) in order.iter().enumerate() {
                inverse[column as usize] = packed as i32;
            }
            let upload = |ids: Vec<i32>| {
                let len = ids.len();
                Tensor::from_data(TensorData::new(ids, [len]), (device, DType::I32))
            };
            let from = order.iter().map(|&column| column as i32).collect();
            ColumnOrder { from: upload(from), to: upload(inverse) }
        });
        Ok(Self {
            column_order,
            factor: matrix.factor,
            format: matrix.format.clone(),
            num_bytes: matrix.num_bytes(),
            tensors: B::packed_upload(matrix, activations, device),
        })
    }

    /// Puts columns in the input's order and applies the factor.
    fn finish(&self, rows: Tensor<B, 2>) -> Tensor<B, 2> {
        let rows = match &self.column_order {
            Some(order) => rows.select(1, order.to.clone()),
            None => rows,
        };
        self.scaled(rows)
    }

    fn scaled(&self, values: Tensor<B, 2>) -> Tensor<B, 2> {
        if self.factor == 1.0 { values } else { values * self.factor }
    }
}

impl<B: QuantOps> WeightMatrix<B> for Packed<B> {
    fn linear(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let ([_, found], [_, expected]) = (x.dims(), self.shape());
        assert_eq!(found, expected, "linear: x has {found} columns, the matrix {expected}");
        let x = match &self.column_order {
            Some(order) => x.select(1, order.from.clone()),
            None => x,
        };
        self.scaled(B::packed_linear(x, &self.tensors))
    }

    fn fused_linear(&self, x: &Tensor<B, 2>, fused: &Fused<'_, B>) -> Option<Tensor<B, 2>> {
        fused.check(x.dims(), self.shape());
        if self.column_order.is_some() || self.factor != 1.0 {
            return None;
        }
        B::packed_fused_linear(x, &self.tensors, fused)
    }

    fn rows(&self, ids: Tensor<B, 1, Int>) -> Tensor<B, 2> {
        self.finish(B::packed_rows(&self.tensors, ids))
    }

    fn shape(&self) -> [usize; 2] {
        self.tensors.spec.shape
    }

    fn num_bytes(&self) -> usize {
        self.num_bytes
    }

    fn activations(&self) -> Activations {
        self.tensors.activations
    }

    fn dequantize(&self) -> Tensor<B, 2> {
        self.finish(B::packed_to_f32(&self.tensors))
    }

    fn format(&self) -> String {
        self.format.clone()
    }
}

/// Several matrices below one another, each in its own format: `q_proj`, `k_proj` and `v_proj`
/// where a rule treats one of them differently.
#[derive(Debug)]
pub struct Stacked<B: Backend> {
    parts: Vec<Box<dyn WeightMatrix<B>>>,
}

impl<B: Backend> Stacked<B> {
    /// Stacks matrices of the same number of columns.
    ///
    /// # Errors
    /// If there are none or their columns differ.
    pub fn new(parts: Vec<Box<dyn WeightMatrix<B>>>) -> Result<Self, QuantError> {
        let columns = |part: &dyn WeightMatrix<B>| part.shape()[1];
        let Some(first) = parts.first().map(|part| columns(part.as_ref())) else {
            return Err(QuantError::Empty { shape: [0, 0], group_size: 0 });
        };
        match parts.iter().map(|part| columns(part.as_ref())).find(|found| *found != first) {
            Some(found) => Err(QuantError::Malformed { what: "columns", expected: first, found }),
            None => Ok(Self { parts }),
        }
    }

    fn join(
        &self,
        part: impl Fn(&dyn WeightMatrix<B>) -> Tensor<B, 2>,
        dim: usize,
    ) -> Tensor<B, 2> {
        Tensor::cat(self.parts.iter().map(|matrix| part(matrix.as_ref())).collect(), dim)
    }
}

impl<B: Backend> WeightMatrix<B> for Stacked<B> {
    fn linear(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        self.join(|part| part.linear(x.clone()), 1)
    }

    fn rows(&self, ids: Tensor<B, 1, Int>) -> Tensor<B, 2> {
        self.dequantize().select(0, ids)
    }

    fn shape(&self) -> [usize; 2] {
        [self.parts.iter().map(|part| part.shape()[0]).sum(), self.parts[0].shape()[1]]
    }

    fn num_bytes(&self) -> usize {
        self.parts.iter().map(|part| part.num_bytes()).sum()
    }

    /// The most exact of its parts'.
    fn activations(&self) -> Activations {
        let parts = || self.parts.iter().map(|part| part.activations());
        Activations::ALL
            .into_iter()
            .find(|one| parts().any(|part| part == *one))
            .unwrap_or(Activations::F32)
    }

    fn dequantize(&self) -> Tensor<B, 2> {
        self.join(|part| part.dequantize(), 0)
    }

    fn format(&self) -> String {
        let mut formats: Vec<_> = self.parts.iter().map(|part| part.format()).collect();
        formats.dedup();
        formats.join(" + ")
    }

    fn formats(&self) -> Vec<(String, usize)> {
        self.parts.iter().flat_map(|part| part.formats()).collect()
    }
}
