//! Which tensors of a checkpoint make up each matrix of the model.

use crate::ModelConfig;

/// One matrix of the model: the rows of one or more tensors, below one another.
#[derive(Debug)]
pub(super) struct MatrixParts {
    /// Columns of all parts.
    pub columns: usize,
    pub parts: Vec<Part>,
}

/// A tensor, cut where rules can tell its rows apart.
#[derive(Debug)]
pub(super) struct Part {
    /// Its name without `.weight`.
    pub tensor: String,
    pub pieces: Vec<Piece>,
}

/// Rows that rules of a plan can name.
#[derive(Debug)]
pub(super) struct Piece {
    pub rows: usize,
    /// A rule for any of these names applies.
    pub names: Vec<String>,
}

impl Part {
    fn whole(tensor: String, rows: usize) -> Self {
        let names = vec![tensor.clone()];
        Self { tensor, pieces: vec![Piece { rows, names }] }
    }

    pub fn rows(&self) -> usize {
        self.pieces.iter().map(|piece| piece.rows).sum()
    }
}

impl MatrixParts {
    /// `[vocab, hidden]`; where it is the head too, a rule for either applies.
    pub fn embed_tokens(config: &ModelConfig, prefix: &str) -> Self {
        let mut part = Part::whole(format!("{prefix}embed_tokens"), config.vocab_size);
        if config.tie_word_embeddings {
            part.pieces[0].names.push("lm_head".to_owned());
        }
        Self { columns: config.hidden_size, parts: vec![part] }
    }

    /// `[vocab, hidden]`.
    pub fn lm_head(config: &ModelConfig) -> Self {
        let part = Part::whole("lm_head".to_owned(), config.vocab_size);
        Self { columns: config.hidden_size, parts: vec![part] }
    }

    /// `[(heads + 2 · kv_heads) · head_dim, hidden]`; `layer` is what names start with.
    pub fn qkv_proj(config: &ModelConfig, layer: &str) -> Self {
        let (q, kv) = (config.num_heads * config.head_dim, config.kv_row_len());
        let rows = [("q_proj", q), ("k_proj", kv), ("v_proj", kv)];
        Self::projections(config, &format!("{layer}self_attn."), "qkv_proj", &rows)
    }

    /// `[2 · intermediate, hidden]`.
    pub fn gate_up_proj(config: &ModelConfig, layer: &str) -> Self {
        let rows = config.intermediate_size;
        let rows = [("gate_proj", rows), ("up_proj", rows)];
        Self::projections(config, &format!("{layer}mlp."), "gate_up_proj", &rows)
    }

    /// `[hidden, heads · head_dim]`.
    pub fn o_proj(config: &ModelConfig, layer: &str) -> Self {
        let part = Part::whole(format!("{layer}self_attn.o_proj"), config.hidden_size);
        Self { columns: config.num_heads * config.head_dim, parts: vec![part] }
    }

    /// `[hidden, intermediate]`.
    pub fn down_proj(config: &ModelConfig, layer: &str) -> Self {
        let part = Part::whole(format!("{layer}mlp.down_proj"), config.hidden_size);
        Self { columns: config.intermediate_size, parts: vec![part] }
    }

    /// Every matrix of the model.
    pub fn all(config: &ModelConfig, prefix: &str) -> Vec<Self> {
        let mut all = vec![Self::embed_tokens(config, prefix)];
        for i in 0..config.num_layers {
            let layer = layer_prefix(prefix, i);
            all.push(Self::qkv_proj(config, &layer));
            all.push(Self::o_proj(config, &layer));
            all.push(Self::gate_up_proj(config, &layer));
            all.push(Self::down_proj(config, &layer));
        }
        if !config.tie_word_embeddings {
            all.push(Self::lm_head(config));
        }
        all
    }

    /// Projections of the same input: tensors of their own, or rows of `fused` where the
    /// checkpoint has them as one.
    fn projections(config: &ModelConfig, block: &str, fused: &str, rows: &[(&str, usize)]) -> Self {
        let name = |name: &str| format!("{block}{name}");
        let parts = if config.fused_projections {
            let names = |part: &str| vec![name(part), name(fused)];
            let piece = |&(part, rows): &(&str, usize)| Piece { rows, names: names(part) };
            vec![Part { tensor: name(fused), pieces: rows.iter().map(piece).collect() }]
        } else {
            rows.iter().map(|&(part, rows)| Part::whole(name(part), rows)).collect()
        };
        Self { columns: config.hidden_size, parts }
    }
}

/// What the names of a layer's tensors start with.
pub(super) fn layer_prefix(prefix: &str, i: usize) -> String {
    format!("{prefix}layers.{i}.")
}
