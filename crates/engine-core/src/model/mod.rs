//! The transformer: one description for every family, which differ in data alone.

mod layer;
mod load;

use std::sync::Arc;

use burn_tensor::{DType, Tensor, TensorData};
use engine_quant::{Activations, WeightMatrix};

pub use load::{
    LoadEntry, LoadProgress, LoadReport, MatrixTensor, Treatment, load, planned_weight_bytes,
};

use crate::{
    BatchInput, ForwardBatch, KvCache, KvFormat, KvShape, ModelBackend, ModelConfig, Rope,
};
pub(crate) use layer::LayerShape;
use layer::{DecoderLayer, Norm, Stream, normed_product};

/// A loaded model: weights on the device, no state.
///
/// The mutable part, keys and values, is a [`KvCache`] that the caller owns.
#[derive(Debug)]
pub struct Model<B: ModelBackend> {
    config: ModelConfig,
    device: B::Device,
    /// `[vocab, hidden]`.
    embed_tokens: Arc<dyn WeightMatrix<B>>,
    layers: Vec<DecoderLayer<B>>,
    /// `[hidden]`.
    norm: Tensor<B, 1>,
    /// `[vocab, hidden]`; the embedding itself where the two are tied.
    lm_head: Arc<dyn WeightMatrix<B>>,
    ropes: Vec<Rope>,
    report: LoadReport,
}

/// Arithmetic of one token in matrices of one kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MultiplyAdds {
    /// Format of the weights, such as `bf16` or `int8`.
    pub format: String,
    /// What products round activations to.
    pub activations: Activations,
    /// Multiplications, each with its addition.
    pub per_token: usize,
}

impl<B: ModelBackend> Model<B> {
    /// Logits of the rows that the batch asks for, `f32 [rows, vocab]`, or `None` where it asks for
    /// none. Keys and values of all its tokens are in `kv` afterwards.
    ///
    /// # Panics
    /// If a token id is not below the vocabulary size or `kv` was made for another model.
    pub fn forward(&self, batch: &ForwardBatch<B>, kv: &mut KvCache<B>) -> Option<Tensor<B, 2>> {
        self.check(batch, kv);
        let tables = rope_tables(&self.ropes, &batch.input, &self.device);
        let eps = self.config.rms_norm_eps;

        let mut hidden = self.embed_tokens.rows(batch.tokens());
        if let Some(scale) = self.config.embed_scale {
            hidden = hidden * scale;
        }
        let mut stream = Stream { sum: hidden, normed: None };
        for (i, (layer, kv)) in self.layers.iter().zip(&mut kv.layers).enumerate() {
            stream = layer.attention(stream, batch, &tables, kv);
            let next = self.layers.get(i + 1).map_or(&self.norm, |next| &next.input_layernorm);
            stream = layer.mlp(stream, &Norm { weight: next, eps });
        }

        let norm = Norm { weight: &self.norm, eps };
        let rows = batch.input.logit_rows.len();
        if rows == 0 {
            return None;
        }
        if rows < batch.num_tokens() {
            let wanted = |tensor: Tensor<B, 2>| tensor.select(0, batch.logit_rows());
            stream = match stream.normed {
                Some(normed) => Stream { normed: Some(wanted(normed)), ..stream },
                None => Stream { sum: wanted(stream.sum), normed: None },
            };
        }
        let logits = normed_product(self.lm_head.as_ref(), &stream, &norm, None);
        Some(match self.config.final_softcap {
            Some(cap) => (logits / cap).tanh() * cap,
            None => logits,
        })
    }

    /// The configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// What became of the file's matrices.
    pub fn load_report(&self) -> &LoadReport {
        &self.report
    }

    /// The device that holds the weights.
    pub fn device(&self) -> &B::Device {
        &self.device
    }

    /// An empty cache of `slots` slots for this model.
    pub fn allocate_kv(&self, slots: usize, format: KvFormat) -> KvCache<B> {
        let shape = KvShape {
            num_layers: self.config.num_layers,
            slots,
            kv_heads: self.config.num_kv_heads,
            head_dim: self.config.head_dim,
            format,
        };
        KvCache::allocate(shape, &self.device)
    }

    /// Bytes of the weights on the device.
    pub fn weight_bytes(&self) -> usize {
        let norms = |layer: &DecoderLayer<B>| layer.num_bytes();
        let mut bytes = self.embed_tokens.num_bytes() + self.norm.dims()[0] * size_of::<f32>();
        if !Arc::ptr_eq(&self.embed_tokens, &self.lm_head) {
            bytes += self.lm_head.num_bytes();
        }
        bytes + self.layers.iter().map(norms).sum::<usize>()
    }

    /// Bytes of the weights that each step reads: all but an embedding that is not the head too, of
    /// which it looks up rows.
    pub fn step_weight_bytes(&self) -> usize {
        let tied = Arc::ptr_eq(&self.embed_tokens, &self.lm_head);
        self.weight_bytes() - if tied { 0 } else { self.embed_tokens.num_bytes() }
    }

    /// The storage formats in use with their bytes, in order of first appearance.
    pub fn weight_formats(&self) -> Vec<(String, usize)> {
        let mut formats: Vec<(String, usize)> = Vec::new();
        let head = (!Arc::ptr_eq(&self.embed_tokens, &self.lm_head)).then_some(&self.lm_head);
        let tables = [Some(&self.embed_tokens), head].into_iter().flatten().map(|m| m.as_ref());
        let matrices = tables.chain(self.layers.iter().flat_map(DecoderLayer::matrices));
        for (format, more) in matrices.flat_map(|matrix| matrix.formats()) {
            match formats.iter_mut().find(|(name, _)| *name == format) {
                Some((_, bytes)) => *bytes += more,
                None => formats.push((format, more)),
            }
        }
        formats
    }

    /// Multiplications, each with its addition, of one token in the layers' matrices, by the format
    /// of the weights and what activations are rounded to; in order of first appearance. A matrix
    /// of several formats counts under the names of all.
    pub fn multiply_adds(&self) -> Vec<MultiplyAdds> {
        let mut all: Vec<MultiplyAdds> = Vec::new();
        for matrix in self.layers.iter().flat_map(DecoderLayer::matrices) {
            let (format, activations) = (matrix.format(), matrix.activations());
            let per_token = matrix.shape().iter().product();
            let alike = |known: &&mut MultiplyAdds| {
                known.format == format && known.activations == activations
            };
            match all.iter_mut().find(alike) {
                Some(known) => known.per_token += per_token,
                None => all.push(MultiplyAdds { format, activations, per_token }),
            }
        }
        all
    }

    fn check(&self, batch: &ForwardBatch<B>, kv: &KvCache<B>) {
        let vocab = self.config.vocab_size;
        let largest = batch.input.tokens.iter().copied().max().unwrap_or(0) as usize;
        assert!(largest < vocab, "forward: token {largest} with a vocabulary of {vocab}");
        let layers = self.config.num_layers;
        assert_eq!(kv.layers.len(), layers, "forward: the cache has another number of layers");
    }
}

/// Cosines and sines, `[tokens, rotary_dim]`, of each of a model's rotary embeddings.
pub(crate) fn rope_tables<B: ModelBackend>(
    ropes: &[Rope],
    input: &BatchInput,
    device: &B::Device,
) -> Vec<Tensor<B, 2>> {
    let table = |rope: &Rope| {
        let rotary_dim = rope.rotary_dim();
        let mut rows = vec![0.0_f32; input.tokens.len() * rotary_dim];
        let tokens = input.positions.iter().zip(&input.sequences);
        for (row, (&position, &sequence)) in rows.chunks_exact_mut(rotary_dim).zip(tokens) {
            let rope_len = input.rope_lens[sequence as usize] as usize;
            rope.cos_sin_into(position as usize, rope_len, row);
        }
        let data = TensorData::new(rows, [input.tokens.len(), rotary_dim]);
        Tensor::from_data(data, (device, DType::F32))
    };
    ropes.iter().map(table).collect()
}
