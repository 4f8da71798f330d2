use burn_tensor::{DType, Int, Tensor, TensorData};

use crate::{Activations, Fused, QuantError, QuantOps, WeightMatrix};

/// A matrix of plain floats, in the type the checkpoint stores: `f32`, `f16` or `bf16`.
#[derive(Debug)]
pub struct Dense<B: QuantOps> {
    /// `[out, in]`.
    weight: Tensor<B, 2>,
    activations: Activations,
}

impl<B: QuantOps> Dense<B> {
    /// Uploads a matrix `[out, in]` whose products leave activations in `f32`.
    ///
    /// # Errors
    /// As for [`Dense::upload_for`].
    pub fn upload(data: TensorData, device: &B::Device) -> Result<Self, QuantError> {
        Self::upload_for(Activations::F32, data, device)
    }

    /// Uploads a matrix `[out, in]`.
    ///
    /// # Errors
    /// If the data has not two dimensions or is not `f32`, `f16` or `bf16`.
    pub fn upload_for(
        activations: Activations,
        data: TensorData,
        device: &B::Device,
    ) -> Result<Self, QuantError> {
        if data.shape.len() != 2 {
            return Err(QuantError::NotAMatrix { found: data.shape.to_vec() });
        }
        if !matches!(data.dtype, DType::F32 | DType::F16 | DType::BF16) {
            return Err(QuantError::UnsupportedType { found: format!("{:?}", data.dtype) });
        }
        let weight = B::dense_upload(data, device);
        let activations = B::dense_activations(&weight, activations);
        Ok(Self { weight, activations })
    }
}

impl<B: QuantOps> WeightMatrix<B> for Dense<B> {
    fn linear(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let ([_, found], [_, expected]) = (x.dims(), self.shape());
        assert_eq!(found, expected, "linear: x has {found} columns, the matrix {expected}");
        B::dense_linear(x, &self.weight, self.activations)
    }

    fn fused_linear(&self, x: &Tensor<B, 2>, fused: &Fused<'_, B>) -> Option<Tensor<B, 2>> {
        fused.check(x.dims(), self.shape());
        B::dense_fused_linear(x, &self.weight, fused)
    }

    fn rows(&self, ids: Tensor<B, 1, Int>) -> Tensor<B, 2> {
        B::dense_rows(&self.weight, ids)
    }

    fn shape(&self) -> [usize; 2] {
        self.weight.dims()
    }

    fn num_bytes(&self) -> usize {
        let [out, in_] = self.shape();
        out * in_ * self.weight.dtype().size()
    }

    fn activations(&self) -> Activations {
        self.activations
    }

    fn dequantize(&self) -> Tensor<B, 2> {
        B::dense_to_f32(&self.weight)
    }

    fn format(&self) -> String {
        let name = match self.weight.dtype() {
            DType::F16 => "f16",
            DType::BF16 => "bf16",
            _ => "f32",
        };
        name.to_owned()
    }
}
