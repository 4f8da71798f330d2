use burn_tensor::{DType, ElementConversion, Int, Tensor, backend::Backend};

use crate::ops::CoreOps;

/// Largest code, in magnitude.
pub(crate) const MAX_CODE: f32 = 127.0;

/// Codes in one word.
pub(crate) const WORD: usize = 4;

/// Words that the codes of one head take.
pub(crate) fn head_words(head_dim: usize) -> usize {
    head_dim.div_ceil(WORD)
}

/// Keys or values of some slots in INT8, with a scale for each slot and head.
///
/// The head `x` of one token becomes a scale and one code from −127 to 127 for each number, all in
/// `f32` arithmetic:
///
/// ```text
/// scale = max |x| / 127
/// code  = x / scale, rounded to the nearest whole number, ties to even
/// value = code · scale
/// ```
///
/// A scale of zero has codes of zero. A head with a number that is not finite has a scale of NaN, so
/// that all of it reads as NaN. Nothing but the head itself decides its codes: they are the same in
/// any batch, chunk or block.
///
/// ```
/// use burn_tensor::Tensor;
/// use engine_core::CodedRows;
/// # #[cfg(feature = "flex")] {
/// type B = burn_flex::Flex;
/// // Two heads of one token.
/// let x = Tensor::<B, 2>::from_data([[63.5, -0.6, 0.0, 0.0]], &Default::default());
/// let rows = CodedRows::quantize(x, 2);
/// assert_eq!(rows.scales.clone().into_data().to_vec::<f32>().unwrap(), [0.5, 0.0]);
/// let values = rows.dequantize(2).into_data().to_vec::<f32>().unwrap();
/// assert_eq!(values, [63.5, -0.5, 0.0, 0.0]);
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct CodedRows<B: Backend> {
    /// `i32 [slots, kv_heads * ⌈head_dim / 4⌉]`: words of four codes, the first in the lowest byte.
    /// Each head begins a word; what is left of its last one is zero.
    pub codes: Tensor<B, 2, Int>,
    /// `f32 [slots, kv_heads]`.
    pub scales: Tensor<B, 2>,
}

impl<B: CoreOps> CodedRows<B> {
    /// Rows of zeros.
    pub fn zeros(slots: usize, kv_heads: usize, head_dim: usize, device: &B::Device) -> Self {
        Self {
            codes: B::cache_words([slots, kv_heads * head_words(head_dim)], device),
            scales: B::cache_floats([slots, kv_heads], device),
        }
    }
}

impl<B: Backend> CodedRows<B> {
    /// Quantizes `rows [slots, kv_heads * head_dim]` by plain Burn operations.
    pub fn quantize(rows: Tensor<B, 2>, kv_heads: usize) -> Self {
        let [slots, columns] = rows.dims();
        let head_dim = columns / kv_heads;
        let heads = rows.reshape([slots, kv_heads, head_dim]);
        // The sum is zero, or NaN where a number is not finite: a maximum may overlook NaN.
        let spoilt = (heads.clone() * 0.0).sum_dim(2);
        let scales = heads.clone().abs().max_dim(2) / MAX_CODE + spoilt;
        let divisors = scales.clone().mask_fill(scales.clone().equal_elem(0.0), 1.0);
        let codes = (heads / divisors).round().clamp(-MAX_CODE, MAX_CODE).int().cast(DType::I32);
        Self { codes: pack(codes), scales: scales.reshape([slots, kv_heads]) }
    }

    /// `f32 [slots, kv_heads * head_dim]`.
    pub fn dequantize(&self, head_dim: usize) -> Tensor<B, 2> {
        let [slots, words] = self.codes.dims();
        let kv_heads = self.scales.dims()[1];
        let codes = unpack(self.codes.clone())
            .reshape([slots, kv_heads, words / kv_heads.max(1) * WORD])
            .slice([0..slots, 0..kv_heads, 0..head_dim]);
        let scales = self.scales.clone().reshape([slots, kv_heads, 1]);
        (codes.float().cast(DType::F32) * scales).reshape([slots, kv_heads * head_dim])
    }

    /// The rows of some slots, in their order.
    pub(crate) fn select(&self, slots: &Tensor<B, 1, Int>) -> Self {
        Self {
            codes: self.codes.clone().select(0, slots.clone()),
            scales: self.scales.clone().select(0, slots.clone()),
        }
    }

    /// Whether rows hold `kv_heads` heads of `head_dim` numbers.
    pub(crate) fn holds(&self, kv_heads: usize, head_dim: usize) -> bool {
        self.codes.dims()[1] == kv_heads * head_words(head_dim)
            && self.scales.dims()[1] == kv_heads
            && self.codes.dims()[0] == self.scales.dims()[0]
    }
}

/// `[slots, kv_heads, head_dim]` to `[slots, kv_heads * words]`.
fn pack<B: Backend>(codes: Tensor<B, 3, Int>) -> Tensor<B, 2, Int> {
    let [slots, kv_heads, head_dim] = codes.dims();
    let words = head_words(head_dim);
    let left = words * WORD - head_dim;
    let codes = match left {
        0 => codes,
        _ => {
            let options = (&codes.device(), DType::I32);
            Tensor::cat(vec![codes, Tensor::zeros([slots, kv_heads, left], options)], 2)
        }
    };
    let bytes = codes.reshape([slots, kv_heads * words, WORD]).bitwise_and_scalar(255.elem());
    let byte = |i: usize| {
        let byte = bytes.clone().slice([0..slots, 0..kv_heads * words, i..i + 1]);
        byte.bitwise_left_shift_scalar((8 * i as i32).elem())
    };
    let word = (1..WORD).fold(byte(0), |word, i| word.bitwise_or(byte(i)));
    word.reshape([slots, kv_heads * words])
}

/// `[slots, words]` to `[slots, words * 4]`.
fn unpack<B: Backend>(words: Tensor<B, 2, Int>) -> Tensor<B, 2, Int> {
    let [slots, columns] = words.dims();
    let words = words.reshape([slots, columns, 1]);
    let code = |i: usize| {
        let byte = words.clone().bitwise_right_shift_scalar((8 * i as i32).elem());
        // Shifted up and down again by half of the range, the upper half becomes negative.
        byte.bitwise_and_scalar(255.elem()).bitwise_xor_scalar(128.elem()) - 128
    };
    Tensor::cat((0..WORD).map(code).collect(), 2).reshape([slots, columns * WORD])
}
