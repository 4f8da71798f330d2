use burn_tensor::Tensor;
use engine_quant::WeightMatrix;

use crate::{
    ForwardBatch, LayerKv, ModelBackend, ModelConfig,
    ops::activation::{Activation, gated},
    ops::attention::{AttentionArgs, paged_attention},
    ops::norm::rms_norm,
    ops::rope::{QkNorm, RopeArgs, rope_kv_write},
};

/// A matrix and its bias.
#[derive(Debug)]
pub(super) struct Linear<B: ModelBackend> {
    /// `[out, in]`.
    pub weight: Box<dyn WeightMatrix<B>>,
    /// `[out]`.
    pub bias: Option<Tensor<B, 1>>,
}

impl<B: ModelBackend> Linear<B> {
    /// `x · Wᵀ + bias`: `[tokens, in]` to `[tokens, out]`.
    fn forward(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let y = self.weight.linear(x);
        match &self.bias {
            Some(bias) => y + bias.clone().unsqueeze(),
            None => y,
        }
    }

    fn num_bytes(&self) -> usize {
        self.weight.num_bytes() + self.bias.as_ref().map_or(0, tensor_bytes)
    }
}

/// One decoder layer, under the checkpoint's names.
#[derive(Debug)]
pub(super) struct DecoderLayer<B: ModelBackend> {
    /// `[hidden]`.
    pub input_layernorm: Tensor<B, 1>,
    /// Queries, keys and values as one matrix, `[(heads + 2 · kv_heads) · head_dim, hidden]`.
    pub qkv_proj: Linear<B>,
    /// `[head_dim]` each.
    pub qk_norm: Option<(Tensor<B, 1>, Tensor<B, 1>)>,
    /// `[hidden, heads · head_dim]`.
    pub o_proj: Linear<B>,
    /// Normalises what attention adds to the residual stream (Gemma), `[hidden]`.
    pub post_attention_layernorm: Option<Tensor<B, 1>>,
    /// The norm before the MLP: `post_attention_layernorm` in most checkpoints, `[hidden]`.
    pub pre_feedforward_layernorm: Tensor<B, 1>,
    /// Gate and up as one matrix, `[2 · intermediate, hidden]`.
    pub gate_up_proj: Linear<B>,
    /// `[hidden, intermediate]`.
    pub down_proj: Linear<B>,
    /// Normalises what the MLP adds to the residual stream (Gemma), `[hidden]`.
    pub post_feedforward_layernorm: Option<Tensor<B, 1>>,
    pub shape: LayerShape,
}

/// What a layer's operations need to know besides its weights.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LayerShape {
    pub attention: AttentionArgs,
    /// Which of the model's rotary embeddings.
    pub rope: usize,
    pub activation: Activation,
    pub eps: f32,
}

impl LayerShape {
    /// Of layer `i`.
    pub fn of(config: &ModelConfig, i: usize) -> Self {
        let layer = config.layers[i];
        Self {
            attention: AttentionArgs {
                heads: config.num_heads,
                kv_heads: config.num_kv_heads,
                head_dim: config.head_dim,
                scale: config.attention_scale,
                softcap: config.attention_softcap,
                window: layer.window,
            },
            rope: layer.rope,
            activation: config.activation,
            eps: config.rms_norm_eps,
        }
    }

    /// What each head reads, `[tokens, heads · head_dim]`, from the queries, keys and values of the
    /// batch; `tables` are those of the model's rotary embeddings, the keys and values go to `kv`.
    pub fn attend<B: ModelBackend>(
        &self,
        qkv: Tensor<B, 2>,
        qk_norm: Option<&(Tensor<B, 1>, Tensor<B, 1>)>,
        (batch, tables): (&ForwardBatch<B>, &[Tensor<B, 2>]),
        kv: &mut LayerKv<B>,
    ) -> Tensor<B, 2> {
        let Self { attention, rope, eps, .. } = *self;
        let cos_sin = &tables[rope];
        let args = RopeArgs {
            heads: attention.heads,
            kv_heads: attention.kv_heads,
            head_dim: attention.head_dim,
            rotary_dim: cos_sin.dims()[1],
            cos_sin,
            norm: qk_norm.map(|(q_weight, k_weight)| QkNorm { q_weight, k_weight, eps }),
        };
        let q = rope_kv_write(qkv, &args, batch, kv);
        paged_attention(q, kv, batch, &attention)
    }
}

impl<B: ModelBackend> DecoderLayer<B> {
    /// What attention adds to the residual stream, `[tokens, hidden]`.
    pub fn attention(
        &self,
        x: Tensor<B, 2>,
        batch: &ForwardBatch<B>,
        tables: &[Tensor<B, 2>],
        kv: &mut LayerKv<B>,
    ) -> Tensor<B, 2> {
        let qkv = self.qkv_proj.forward(x);
        let heads = self.shape.attend(qkv, self.qk_norm.as_ref(), (batch, tables), kv);
        let out = self.o_proj.forward(heads);
        match &self.post_attention_layernorm {
            Some(weight) => rms_norm(out, weight, self.shape.eps),
            None => out,
        }
    }

    /// What the MLP adds to the residual stream, `[tokens, hidden]`.
    pub fn mlp(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let gate_up = self.gate_up_proj.forward(x);
        let out = self.down_proj.forward(gated(gate_up, self.shape.activation));
        match &self.post_feedforward_layernorm {
            Some(weight) => rms_norm(out, weight, self.shape.eps),
            None => out,
        }
    }

    pub fn matrices(&self) -> impl Iterator<Item = &dyn WeightMatrix<B>> {
        self.linears().into_iter().map(|linear| linear.weight.as_ref())
    }

    pub fn num_bytes(&self) -> usize {
        let pair = self.qk_norm.iter().flat_map(|(q, k)| [q, k]);
        let norms = [&self.input_layernorm, &self.pre_feedforward_layernorm]
            .into_iter()
            .chain(&self.post_attention_layernorm)
            .chain(&self.post_feedforward_layernorm)
            .chain(pair);
        let linears: usize = self.linears().into_iter().map(Linear::num_bytes).sum();
        linears + norms.map(tensor_bytes).sum::<usize>()
    }

    fn linears(&self) -> [&Linear<B>; 4] {
        [&self.qkv_proj, &self.o_proj, &self.gate_up_proj, &self.down_proj]
    }
}

fn tensor_bytes<B: ModelBackend>(tensor: &Tensor<B, 1>) -> usize {
    tensor.dims()[0] * size_of::<f32>()
}
