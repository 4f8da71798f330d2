use burn_tensor::Tensor;
use engine_quant::{Fused, RowNorm, Then, WeightMatrix};

use crate::{
    ForwardBatch, LayerKv, ModelBackend, ModelConfig,
    ops::activation::{Activation, gated},
    ops::attention::{AttentionArgs, paged_attention},
    ops::norm::{add_rms_norm, rms_norm},
    ops::rope::{QkNorm, RopeArgs, rope_kv_write},
};

/// The residual stream, `[tokens, hidden]`, between two blocks.
#[derive(Debug, Clone)]
pub(super) struct Stream<B: ModelBackend> {
    pub sum: Tensor<B, 2>,
    /// Its norm before the next block, where it came with the sum. Where not, the next product
    /// takes it in, if the backend has such a kernel.
    pub normed: Option<Tensor<B, 2>>,
}

/// A root mean square norm with weight `[hidden]`.
#[derive(Debug)]
pub(super) struct Norm<'a, B: ModelBackend> {
    pub weight: &'a Tensor<B, 1>,
    pub eps: f32,
}

/// `norm(stream) · Wᵀ`, and the gate over it where there is one.
pub(super) fn normed_product<B: ModelBackend>(
    weight: &dyn WeightMatrix<B>,
    stream: &Stream<B>,
    norm: &Norm<'_, B>,
    gate: Option<Activation>,
) -> Tensor<B, 2> {
    let (x, has_norm) = match &stream.normed {
        Some(normed) => (normed, true),
        None => (&stream.sum, false),
    };
    if !has_norm || gate.is_some() {
        let before = RowNorm { weight: norm.weight, eps: norm.eps };
        let then = gate.map_or(Then::Keep, Then::Gate);
        let fused = Fused { norm: (!has_norm).then_some(before), then };
        if let Some(y) = weight.fused_linear(x, &fused) {
            return y;
        }
    }
    let x = x.clone();
    let x = if has_norm { x } else { rms_norm(x, norm.weight, norm.eps) };
    let y = weight.linear(x);
    match gate {
        Some(activation) => gated(y, activation),
        None => y,
    }
}

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

    /// `norm(stream) · Wᵀ + bias`, `[tokens, out]`.
    fn after_norm(&self, stream: &Stream<B>, norm: &Norm<'_, B>) -> Tensor<B, 2> {
        let y = normed_product(self.weight.as_ref(), stream, norm, None);
        match &self.bias {
            Some(bias) => y + bias.clone().unsqueeze(),
            None => y,
        }
    }

    /// The gated product of `norm(stream)`, `[tokens, out / 2]`.
    fn gated_after_norm(
        &self,
        stream: &Stream<B>,
        norm: &Norm<'_, B>,
        activation: Activation,
    ) -> Tensor<B, 2> {
        match &self.bias {
            Some(_) => gated(self.after_norm(stream, norm), activation),
            None => normed_product(self.weight.as_ref(), stream, norm, Some(activation)),
        }
    }

    /// The stream after a block that ends with this matrix: `sum + x · Wᵀ + bias`, the addend
    /// normalised by `post` (Gemma). `next` is the norm before the next block.
    fn onto(
        &self,
        x: Tensor<B, 2>,
        sum: Tensor<B, 2>,
        post: Option<&Tensor<B, 1>>,
        next: &Norm<'_, B>,
    ) -> Stream<B> {
        if self.bias.is_none() && post.is_none() {
            let fused = Fused { norm: None, then: Then::Add(&sum) };
            if let Some(sum) = self.weight.fused_linear(&x, &fused) {
                return Stream { sum, normed: None };
            }
        }
        let y = self.forward(x);
        let y = match post {
            Some(weight) => rms_norm(y, weight, next.eps),
            None => y,
        };
        let (normed, sum) = add_rms_norm(y, sum, next.weight, next.eps);
        Stream { sum, normed: Some(normed) }
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
    /// The stream after attention.
    pub fn attention(
        &self,
        stream: Stream<B>,
        batch: &ForwardBatch<B>,
        tables: &[Tensor<B, 2>],
        kv: &mut LayerKv<B>,
    ) -> Stream<B> {
        let qkv = self.qkv_proj.after_norm(&stream, &self.norm(&self.input_layernorm));
        let heads = self.shape.attend(qkv, self.qk_norm.as_ref(), (batch, tables), kv);
        let post = self.post_attention_layernorm.as_ref();
        let next = self.norm(&self.pre_feedforward_layernorm);
        self.o_proj.onto(heads, stream.sum, post, &next)
    }

    /// The stream after the MLP; `next` is the norm before what follows the layer.
    pub fn mlp(&self, stream: Stream<B>, next: &Norm<'_, B>) -> Stream<B> {
        let norm = self.norm(&self.pre_feedforward_layernorm);
        let inner = self.gate_up_proj.gated_after_norm(&stream, &norm, self.shape.activation);
        let post = self.post_feedforward_layernorm.as_ref();
        self.down_proj.onto(inner, stream.sum, post, next)
    }

    fn norm<'a>(&self, weight: &'a Tensor<B, 1>) -> Norm<'a, B> {
        Norm { weight, eps: self.shape.eps }
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
