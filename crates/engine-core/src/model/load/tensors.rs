use std::ops::Range;

use engine_quant::{Scheme, SchemePlan};

use super::{
    matrix::runs,
    parts::{MatrixParts, Part},
};
use crate::ModelConfig;

/// A tensor of a checkpoint that is a matrix of the model, or several below one another.
#[derive(Debug)]
pub struct MatrixTensor {
    /// Its name without `.weight`.
    pub name: String,
    /// `[out, in]`.
    pub shape: [usize; 2],
    part: Part,
}

impl MatrixTensor {
    /// Every one of a model whose decoder's tensor names start with `prefix`.
    pub fn all(config: &ModelConfig, prefix: &str) -> Vec<Self> {
        let tensor = |columns: usize, part: Part| Self {
            name: part.tensor.clone(),
            shape: [part.rows(), columns],
            part,
        };
        let matrices = MatrixParts::all(config, prefix).into_iter();
        let tensors = matrices.flat_map(|matrix| {
            matrix.parts.into_iter().map(move |part| tensor(matrix.columns, part))
        });
        tensors.collect()
    }

    /// What a plan makes of it, or nothing if it treats some of its rows differently from others.
    pub fn scheme(&self, plan: &SchemePlan, num_layers: usize) -> Option<Scheme> {
        let mut schemes = self.part.pieces.iter().map(|piece| {
            let names: Vec<_> = piece.names.iter().map(String::as_str).collect();
            plan.scheme_of_any(&names, num_layers)
        });
        let first = schemes.next()?;
        schemes.all(|scheme| scheme == first).then_some(first)
    }

    /// What a plan makes of its rows, from the first to the last; neighbours of the same scheme are
    /// together.
    pub fn schemes(&self, plan: &SchemePlan, num_layers: usize) -> Vec<(Range<usize>, Scheme)> {
        runs(&self.part, plan, num_layers)
    }

    /// The names by which rules of a plan reach it or some of its rows.
    pub fn rule_names(&self) -> impl Iterator<Item = &str> {
        self.part.pieces.iter().flat_map(|piece| &piece.names).map(String::as_str)
    }

    /// Whether it is the embedding or the output head, which plans leave alone unless a rule says
    /// otherwise.
    pub fn is_table(&self) -> bool {
        self.name.ends_with("embed_tokens") || self.name.ends_with("lm_head")
    }
}
