//! Random Llama models of any shape, and their logits computed the plain way in `f64`.

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::{Dtype, tensor::TensorView};

/// Shape of a Llama model.
#[derive(Debug, Clone)]
pub struct TinyModel {
    pub hidden: usize,
    pub intermediate: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub layers: usize,
    pub vocab: usize,
    pub tied: bool,
    pub bias: bool,
}

impl Default for TinyModel {
    fn default() -> Self {
        Self {
            hidden: 36,
            intermediate: 50,
            heads: 3,
            kv_heads: 1,
            head_dim: 10,
            layers: 1,
            vocab: 131,
            tied: false,
            bias: false,
        }
    }
}

/// A model with its weights, `[rows, columns]` or `[columns]`.
pub struct TinyWeights {
    model: TinyModel,
    tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
}

const EPS: f64 = 1e-5;
const THETA: f64 = 10000.0;

impl TinyModel {
    pub fn weights(&self, seed: u64) -> TinyWeights {
        let mut state = seed;
        let mut random = move || {
            state =
                state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963);
            ((state >> 40) as f32 / (1 << 24) as f32) * 2.0 - 1.0
        };
        let mut tensors = BTreeMap::new();
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let mut add = |name: String, shape: &[usize]| {
            let scale = if shape.len() == 1 { 0.3 } else { 1.7 / (shape[1] as f32).sqrt() };
            let offset = if name.contains("norm") { 1.0 } else { 0.0 };
            let values = (0..shape.iter().product()).map(|_| offset + scale * random()).collect();
            tensors.insert(name, (shape.to_vec(), values));
        };
        add("model.embed_tokens.weight".to_owned(), &[self.vocab, self.hidden]);
        add("model.norm.weight".to_owned(), &[self.hidden]);
        if !self.tied {
            add("lm_head.weight".to_owned(), &[self.vocab, self.hidden]);
        }
        for layer in 0..self.layers {
            let mut add = |name: &str, shape: &[usize]| {
                add(format!("model.layers.{layer}.{name}"), shape);
            };
            add("input_layernorm.weight", &[self.hidden]);
            add("post_attention_layernorm.weight", &[self.hidden]);
            for (name, rows, columns) in [
                ("q_proj", q, self.hidden),
                ("k_proj", kv, self.hidden),
                ("v_proj", kv, self.hidden),
                ("o_proj", self.hidden, q),
            ] {
                add(&format!("self_attn.{name}.weight"), &[rows, columns]);
                if self.bias {
                    add(&format!("self_attn.{name}.bias"), &[rows]);
                }
            }
            add("mlp.gate_proj.weight", &[self.intermediate, self.hidden]);
            add("mlp.up_proj.weight", &[self.intermediate, self.hidden]);
            add("mlp.down_proj.weight", &[self.hidden, self.intermediate]);
        }
        TinyWeights { model: self.clone(), tensors }
    }
}

impl TinyWeights {
    /// Sets every element of a tensor.
    pub fn fill(&mut self, name: &str, value: f32) {
        self.tensors.get_mut(name).unwrap().1.fill(value);
    }

    /// Writes `config.json` and `model.safetensors`.
    pub fn save(&self, folder: &Path) {
        let model = &self.model;
        let config = serde_json::json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": model.hidden,
            "intermediate_size": model.intermediate,
            "num_attention_heads": model.heads,
            "num_key_value_heads": model.kv_heads,
            "head_dim": model.head_dim,
            "num_hidden_layers": model.layers,
            "vocab_size": model.vocab,
            "tie_word_embeddings": model.tied,
            "attention_bias": model.bias,
            "mlp_bias": false,
            "hidden_act": "silu",
            "max_position_embeddings": 128,
            "rms_norm_eps": EPS,
            "rope_theta": THETA,
            "torch_dtype": "float32",
        });
        std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
        let bytes: Vec<(&String, &Vec<usize>, Vec<u8>)> = self
            .tensors
            .iter()
            .map(|(name, (shape, values))| {
                (name, shape, values.iter().flat_map(|value| value.to_le_bytes()).collect())
            })
            .collect();
        let views = bytes.iter().map(|(name, shape, bytes)| {
            (*name, TensorView::new(Dtype::F32, shape.to_vec(), bytes).unwrap())
        });
        let file = safetensors::serialize(views, None).unwrap();
        std::fs::write(folder.join("model.safetensors"), file).unwrap();
    }

    /// Logits `[tokens * vocab]`, by the book.
    pub fn logits(&self, tokens: &[u32]) -> Vec<f32> {
        let model = &self.model;
        let group = model.heads / model.kv_heads;
        let embed = self.tensor("model.embed_tokens.weight");
        let mut x: Vec<Vec<f64>> = tokens
            .iter()
            .map(|token| embed[*token as usize * model.hidden..][..model.hidden].to_vec())
            .collect();
        for layer in 0..model.layers {
            let name = |part: &str| format!("model.layers.{layer}.{part}");
            let normed: Vec<_> =
                x.iter().map(|x| self.norm(x, &name("input_layernorm.weight"))).collect();
            let project = |part: &str| -> Vec<Vec<f64>> {
                normed.iter().map(|x| self.linear(x, &name(part))).collect()
            };
            let (mut q, mut k) = (project("self_attn.q_proj"), project("self_attn.k_proj"));
            let v = project("self_attn.v_proj");
            for (position, (q, k)) in q.iter_mut().zip(&mut k).enumerate() {
                q.chunks_mut(model.head_dim).for_each(|head| rotate(head, position));
                k.chunks_mut(model.head_dim).for_each(|head| rotate(head, position));
            }
            for (i, x) in x.iter_mut().enumerate() {
                let mut heads = Vec::new();
                for head in 0..model.heads {
                    let at = head / group * model.head_dim;
                    let query = &q[i][head * model.head_dim..][..model.head_dim];
                    let scores: Vec<f64> = k[..=i]
                        .iter()
                        .map(|k| dot(query, &k[at..at + model.head_dim]))
                        .map(|score| (score / (model.head_dim as f64).sqrt()).exp())
                        .collect();
                    let sum: f64 = scores.iter().sum();
                    for d in 0..model.head_dim {
                        let values = scores.iter().zip(&v).map(|(p, v)| p * v[at + d]);
                        heads.push(values.sum::<f64>() / sum);
                    }
                }
                let out = self.linear(&heads, &name("self_attn.o_proj"));
                x.iter_mut().zip(out).for_each(|(x, out)| *x += out);
                let normed = self.norm(x, &name("post_attention_layernorm.weight"));
                let gate = self.linear(&normed, &name("mlp.gate_proj"));
                let up = self.linear(&normed, &name("mlp.up_proj"));
                let inner: Vec<_> =
                    gate.iter().zip(up).map(|(g, up)| g / (1.0 + (-g).exp()) * up).collect();
                let out = self.linear(&inner, &name("mlp.down_proj"));
                x.iter_mut().zip(out).for_each(|(x, out)| *x += out);
            }
        }
        let head = if model.tied { "model.embed_tokens" } else { "lm_head" };
        let rows = x.iter().map(|x| self.linear(&self.norm(x, "model.norm.weight"), head));
        rows.flatten().map(|logit| logit as f32).collect()
    }

    fn tensor(&self, name: &str) -> Vec<f64> {
        self.tensors[name].1.iter().map(|value| f64::from(*value)).collect()
    }

    fn norm(&self, x: &[f64], name: &str) -> Vec<f64> {
        let scale = 1.0 / (dot(x, x) / x.len() as f64 + EPS).sqrt();
        x.iter().zip(self.tensor(name)).map(|(x, weight)| x * scale * weight).collect()
    }

    fn linear(&self, x: &[f64], name: &str) -> Vec<f64> {
        let weight = self.tensor(&format!("{name}.weight"));
        let mut out: Vec<_> = weight.chunks(x.len()).map(|row| dot(row, x)).collect();
        if self.tensors.contains_key(&format!("{name}.bias")) {
            let bias = self.tensor(&format!("{name}.bias"));
            out.iter_mut().zip(bias).for_each(|(out, bias)| *out += bias);
        }
        out
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Hugging Face's rotation of halves.
fn rotate(head: &mut [f64], position: usize) {
    let half = head.len() / 2;
    for i in 0..half {
        let angle = position as f64 / THETA.powf(2.0 * i as f64 / head.len() as f64);
        let (a, b) = (head[i], head[i + half]);
        head[i] = a * angle.cos() - b * angle.sin();
        head[i + half] = b * angle.cos() + a * angle.sin();
    }
}
