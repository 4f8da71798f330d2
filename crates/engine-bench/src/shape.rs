use serde_json::{Value, json};

use crate::BenchError;

/// Which family's tensors a shape has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShapeFamily {
    /// Llama 2 and 3.
    Llama,
    /// Mistral without a sliding window.
    Mistral,
    /// Qwen 3: queries and keys are normalised.
    Qwen3,
}

/// The sizes of a published model.
///
/// ```
/// use engine_bench::Shape;
/// let shape = Shape::named("tinyllama-1.1b")?;
/// assert_eq!(shape.num_parameters(), 1_100_048_384);
/// # Ok::<(), engine_bench::BenchError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shape {
    /// Its name on a command line.
    pub name: &'static str,
    /// Its family.
    pub family: ShapeFamily,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of the MLP.
    pub intermediate: usize,
    /// Layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Rows of the embedding.
    pub vocab: usize,
    /// Positions.
    pub context: usize,
    /// Base of the rotary embedding.
    pub rope_theta: f64,
    /// Whether the output matrix is the embedding.
    pub tied: bool,
}

const TINYLLAMA_1B: Shape = Shape {
    name: "tinyllama-1.1b",
    family: ShapeFamily::Llama,
    hidden: 2048,
    intermediate: 5632,
    layers: 22,
    heads: 32,
    kv_heads: 4,
    head_dim: 64,
    vocab: 32_000,
    context: 2048,
    rope_theta: 10_000.0,
    tied: false,
};

const LLAMA_3_8B: Shape = Shape {
    name: "llama-3-8b",
    hidden: 4096,
    intermediate: 14_336,
    layers: 32,
    kv_heads: 8,
    head_dim: 128,
    vocab: 128_256,
    context: 8192,
    rope_theta: 500_000.0,
    ..TINYLLAMA_1B
};

const LLAMA_3_2_1B: Shape = Shape {
    name: "llama-3.2-1b",
    hidden: 2048,
    intermediate: 8192,
    layers: 16,
    head_dim: 64,
    context: 131_072,
    tied: true,
    ..LLAMA_3_8B
};

const LLAMA_3_2_3B: Shape = Shape {
    name: "llama-3.2-3b",
    hidden: 3072,
    layers: 28,
    heads: 24,
    head_dim: 128,
    ..LLAMA_3_2_1B
};

const MISTRAL_7B: Shape = Shape {
    name: "mistral-7b",
    family: ShapeFamily::Mistral,
    vocab: 32_768,
    context: 32_768,
    rope_theta: 1e6,
    ..LLAMA_3_8B
};

const QWEN3_0_6B: Shape = Shape {
    name: "qwen3-0.6b",
    family: ShapeFamily::Qwen3,
    hidden: 1024,
    intermediate: 3072,
    layers: 28,
    heads: 16,
    kv_heads: 8,
    head_dim: 128,
    vocab: 151_936,
    context: 40_960,
    rope_theta: 1e6,
    tied: true,
};

const QWEN3_1_7B: Shape =
    Shape { name: "qwen3-1.7b", hidden: 2048, intermediate: 6144, ..QWEN3_0_6B };

const QWEN3_4B: Shape = Shape {
    name: "qwen3-4b",
    hidden: 2560,
    intermediate: 9728,
    layers: 36,
    heads: 32,
    ..QWEN3_0_6B
};

const QWEN3_8B: Shape =
    Shape { name: "qwen3-8b", hidden: 4096, intermediate: 12_288, tied: false, ..QWEN3_4B };

/// Every shape that has a name.
static SHAPES: [Shape; 9] = [
    TINYLLAMA_1B,
    LLAMA_3_2_1B,
    LLAMA_3_2_3B,
    LLAMA_3_8B,
    MISTRAL_7B,
    QWEN3_0_6B,
    QWEN3_1_7B,
    QWEN3_4B,
    QWEN3_8B,
];

impl Shape {
    /// The shape of this name.
    ///
    /// # Errors
    /// If there is none; the message lists those there are.
    pub fn named(name: &str) -> Result<Self, BenchError> {
        SHAPES.iter().find(|shape| shape.name == name).copied().ok_or_else(|| {
            BenchError::UnknownShape { name: name.to_owned(), known: Self::names().join(", ") }
        })
    }

    /// The names of all shapes.
    pub fn names() -> Vec<&'static str> {
        SHAPES.iter().map(|shape| shape.name).collect()
    }

    /// Weights of the whole model.
    pub fn num_parameters(&self) -> usize {
        self.tensors().iter().map(|(_, dims)| dims.iter().product::<usize>()).sum()
    }

    /// The tensors of its checkpoint: names and sizes, `[rows, columns]` or `[len]`.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (hidden, mlp) = (self.hidden, self.intermediate);
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let mut tensors = vec![("model.embed_tokens.weight".to_owned(), vec![self.vocab, hidden])];
        for i in 0..self.layers {
            let mut push = |name: &str, dims: &[usize]| {
                tensors.push((format!("model.layers.{i}.{name}.weight"), dims.to_vec()));
            };
            push("input_layernorm", &[hidden]);
            push("self_attn.q_proj", &[q, hidden]);
            push("self_attn.k_proj", &[kv, hidden]);
            push("self_attn.v_proj", &[kv, hidden]);
            push("self_attn.o_proj", &[hidden, q]);
            if self.family == ShapeFamily::Qwen3 {
                push("self_attn.q_norm", &[self.head_dim]);
                push("self_attn.k_norm", &[self.head_dim]);
            }
            push("post_attention_layernorm", &[hidden]);
            push("mlp.gate_proj", &[mlp, hidden]);
            push("mlp.up_proj", &[mlp, hidden]);
            push("mlp.down_proj", &[hidden, mlp]);
        }
        tensors.push(("model.norm.weight".to_owned(), vec![hidden]));
        if !self.tied {
            tensors.push(("lm_head.weight".to_owned(), vec![self.vocab, hidden]));
        }
        tensors
    }

    /// Its `config.json`.
    pub fn config(&self) -> Value {
        let class = match self.family {
            ShapeFamily::Llama => "LlamaForCausalLM",
            ShapeFamily::Mistral => "MistralForCausalLM",
            ShapeFamily::Qwen3 => "Qwen3ForCausalLM",
        };
        json!({
            "architectures": [class],
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocab,
            "max_position_embeddings": self.context,
            "rope_theta": self.rope_theta,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": self.tied,
            "sliding_window": null,
            "bos_token_id": null,
            "eos_token_id": null,
            "torch_dtype": "bfloat16",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_those_that_the_publishers_state() {
        let billions = |name| Shape::named(name).unwrap().num_parameters() as f64 / 1e9;
        for (name, expected) in [
            ("tinyllama-1.1b", 1.100),
            ("llama-3.2-1b", 1.236),
            ("llama-3.2-3b", 3.213),
            ("llama-3-8b", 8.030),
            ("mistral-7b", 7.248),
            ("qwen3-0.6b", 0.596),
            ("qwen3-1.7b", 1.721),
            ("qwen3-4b", 4.022),
            ("qwen3-8b", 8.191),
        ] {
            assert!((billions(name) - expected).abs() < 0.001, "{name}: {}", billions(name));
        }
    }

    #[test]
    fn an_unknown_shape_is_told_the_known_ones() {
        let message = Shape::named("llama-9-99b").unwrap_err().to_string();
        assert!(message.contains("llama-9-99b") && message.contains("qwen3-4b"), "{message}");
    }
}
