//! Which layout a checkpoint is written in, and its `quantization_config`.

use std::{fmt, str::FromStr};

use engine_core::{MatrixTensor, NativeConfig};
use engine_quant::{
    Grid, Group, Int4Range, Method, PackedMatrix, QuantError, Scheme, Zeros,
    formats::{
        NamedTensor, awq,
        gptq::{self, ZeroPoints},
        native::{self, Entry},
    },
};
use serde_json::{Value, json};
use thiserror::Error;

use super::QuantizeError;

/// Groups that gptqmodel and AutoAWQ have kernels for.
const GROUP_SIZES: [usize; 7] = [16, 32, 64, 128, 256, 512, 1024];

/// How matrices in few bits stand in a checkpoint.
///
/// ```
/// use engine::CheckpointLayout;
/// assert_eq!("gptq".parse(), Ok(CheckpointLayout::Gptq));
/// assert_eq!(CheckpointLayout::Engine.to_string(), "engine");
/// assert!("gguf".parse::<CheckpointLayout>().is_err());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum CheckpointLayout {
    /// That of the method, if it holds all matrices, else our own.
    #[default]
    Auto,
    /// That of AutoGPTQ and gptqmodel, which Hugging Face tools read.
    Gptq,
    /// That of AutoAWQ, version `gemm`, which Hugging Face tools read.
    Awq,
    /// Our own, `docs/quantized-checkpoints.md`.
    Engine,
}

/// The name is no layout.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("unknown layout `{0}`: use auto, gptq, awq or engine")]
pub struct UnknownLayout(String);

impl FromStr for CheckpointLayout {
    type Err = UnknownLayout;

    fn from_str(text: &str) -> Result<Self, UnknownLayout> {
        match text {
            "auto" => Ok(Self::Auto),
            "gptq" => Ok(Self::Gptq),
            "awq" => Ok(Self::Awq),
            "engine" => Ok(Self::Engine),
            _ => Err(UnknownLayout(text.to_owned())),
        }
    }
}

impl fmt::Display for CheckpointLayout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Gptq => "gptq",
            Self::Awq => "awq",
            Self::Engine => "engine",
        })
    }
}

/// The layout of a checkpoint in the making.
pub(super) struct Writer {
    kind: Kind,
    /// Why this one, for people.
    pub reason: String,
}

enum Kind {
    /// The one scheme of all projections; whether some zero point is 0, which version 1 of the
    /// layout stores as all ones and other readers take for 16.
    Gptq {
        grid: Grid,
        act_order: bool,
        has_zero: bool,
    },
    Awq {
        grid: Grid,
    },
    Engine {
        entries: Vec<(String, Entry)>,
    },
}

/// Why a layout cannot hold a checkpoint.
struct Misfit {
    tensor: String,
    problem: String,
}

impl Writer {
    /// Chooses the layout of matrices with these schemes.
    pub fn choose(
        wanted: CheckpointLayout,
        matrices: &[(MatrixTensor, Scheme)],
    ) -> Result<Self, QuantizeError> {
        let engine =
            |reason: String| Ok(Self { kind: Kind::Engine { entries: Vec::new() }, reason });
        let asked = "it was asked for".to_owned();
        let layout = match wanted {
            CheckpointLayout::Auto => match of_methods(matrices) {
                Some(layout) => layout,
                None => return engine("no other layout is made for this scheme".to_owned()),
            },
            CheckpointLayout::Engine => return engine(asked),
            layout => layout,
        };
        let kind = match layout {
            CheckpointLayout::Gptq => gptq_kind(matrices),
            _ => awq_kind(matrices),
        };
        match kind {
            Ok(kind) if wanted == CheckpointLayout::Auto => {
                Ok(Self { kind, reason: "Hugging Face tools read it".to_owned() })
            }
            Ok(kind) => Ok(Self { kind, reason: asked }),
            Err(Misfit { tensor, problem }) if wanted == CheckpointLayout::Auto => {
                engine(format!("`{layout}` cannot hold {tensor}: {problem}"))
            }
            Err(Misfit { tensor, problem }) => {
                Err(QuantizeError::Layout { layout, tensor, problem })
            }
        }
    }

    /// The layout's name.
    pub fn layout(&self) -> CheckpointLayout {
        match self.kind {
            Kind::Gptq { .. } => CheckpointLayout::Gptq,
            Kind::Awq { .. } => CheckpointLayout::Awq,
            Kind::Engine { .. } => CheckpointLayout::Engine,
        }
    }

    /// The most tensors that a matrix becomes.
    pub fn max_parts(&self) -> usize {
        match self.kind {
            Kind::Gptq { .. } => 4,
            Kind::Awq { .. } => 3,
            Kind::Engine { .. } => 5,
        }
    }

    /// The tensors of a matrix.
    pub fn pack(
        &mut self,
        name: &str,
        matrix: PackedMatrix,
    ) -> Result<Vec<NamedTensor>, QuantError> {
        match &mut self.kind {
            Kind::Gptq { grid, has_zero, .. } => {
                check_spec(*grid, &matrix)?;
                *has_zero |= match &matrix.zeros {
                    Zeros::Fixed(zero) => *zero == 0,
                    Zeros::PerGroup(zeros) => zeros.contains(&0),
                };
                gptq::pack(name, &matrix, ZeroPoints::LessOne)
            }
            Kind::Awq { grid } => {
                check_spec(*grid, &matrix)?;
                awq::pack(name, &matrix)
            }
            Kind::Engine { entries } => {
                let (entry, tensors) = native::pack(name, matrix);
                entries.push((name.to_owned(), entry));
                Ok(tensors)
            }
        }
    }

    /// What becomes of the bytes of all `.qzeros` that have been written, if anything.
    pub fn correct_zeros(&self) -> Option<fn(&mut [u8])> {
        match self.kind {
            Kind::Gptq { grid, has_zero: true, .. } => Some(match grid {
                Grid::Int8 => {
                    |bytes| bytes.iter_mut().for_each(|byte| *byte = byte.wrapping_add(1))
                }
                _ => |bytes| {
                    for byte in bytes {
                        *byte = (*byte & 0x0f).wrapping_add(1) & 0x0f
                            | (*byte & 0xf0).wrapping_add(0x10);
                    }
                },
            }),
            _ => None,
        }
    }

    /// The value of `quantization_config`, as the tools that made the layout write it.
    pub fn config(&self) -> Option<Value> {
        match &self.kind {
            Kind::Engine { entries } => {
                NativeConfig::new(entries.iter().cloned()).map(|config| config.to_json())
            }
            Kind::Awq { grid } => Some(json!({
                "quant_method": "awq",
                "version": "gemm",
                "bits": 4,
                "group_size": group_size(grid.group()),
                "zero_point": true,
                "modules_to_not_convert": null,
            })),
            Kind::Gptq { grid, act_order, has_zero } => {
                let version = if *has_zero { "gptq_v2" } else { "gptq" };
                Some(json!({
                    "quant_method": "gptq",
                    "method": "gptq",
                    "bits": if *grid == Grid::Int8 { 8 } else { 4 },
                    "group_size": group_size(grid.group()),
                    "desc_act": act_order,
                    "sym": !is_asymmetric(*grid),
                    "lm_head": false,
                    "pack_dtype": "int32",
                    "checkpoint_format": version,
                    "format": version,
                    "true_sequential": true,
                }))
            }
        }
    }

    /// The file beside `config.json` in which older readers look for the same.
    pub fn second_config_file(&self) -> Option<&'static str> {
        matches!(self.kind, Kind::Gptq { .. }).then_some("quantize_config.json")
    }
}

/// The layout that the methods of a plan are known by: that of the first projection.
fn of_methods(matrices: &[(MatrixTensor, Scheme)]) -> Option<CheckpointLayout> {
    matrices.iter().find_map(|(_, scheme)| match scheme {
        Scheme::Quantize { method: Method::Gptq { .. }, .. } => Some(CheckpointLayout::Gptq),
        Scheme::Quantize { method: Method::Awq { .. }, .. } => Some(CheckpointLayout::Awq),
        _ => None,
    })
}

fn gptq_kind(matrices: &[(MatrixTensor, Scheme)]) -> Result<Kind, Misfit> {
    let (grid, method) = one_scheme(matrices)?;
    let per_word = match grid {
        Grid::Int8 => 4,
        _ => 8,
    };
    for (matrix, _) in projections(matrices) {
        let [out, in_] = matrix.shape;
        if let Some(problem) = codes_problem(grid, true) {
            return Err(misfit(matrix, problem));
        }
        if out % per_word != 0 || in_ % per_word != 0 {
            let problem = format!("[{out}, {in_}] is no multiple of {per_word} both ways");
            return Err(misfit(matrix, problem));
        }
        whole_groups(matrix, grid)?;
    }
    let act_order = is_reordered(method);
    Ok(Kind::Gptq { grid, act_order, has_zero: false })
}

fn awq_kind(matrices: &[(MatrixTensor, Scheme)]) -> Result<Kind, Misfit> {
    let (grid, method) = one_scheme(matrices)?;
    for (matrix, _) in projections(matrices) {
        if is_reordered(method) {
            return Err(misfit(matrix, "columns are in their own order"));
        }
        if let Some(problem) = codes_problem(grid, false) {
            return Err(misfit(matrix, problem));
        }
        if matrix.shape[0] % 8 != 0 {
            return Err(misfit(matrix, format!("{} rows are no multiple of 8", matrix.shape[0])));
        }
        whole_groups(matrix, grid)?;
    }
    Ok(Kind::Awq { grid })
}

/// Whether groups are of columns in another order; static groups are not.
fn is_reordered(method: Method) -> bool {
    method == Method::Gptq { act_order: true, static_groups: false }
}

fn projections(
    matrices: &[(MatrixTensor, Scheme)],
) -> impl Iterator<Item = &(MatrixTensor, Scheme)> {
    matrices.iter().filter(|(matrix, _)| !matrix.is_table())
}

/// The scheme that all projections have; embeddings and head are floats.
fn one_scheme(matrices: &[(MatrixTensor, Scheme)]) -> Result<(Grid, Method), Misfit> {
    let mut first = None;
    for (matrix, scheme) in matrices {
        match (scheme, matrix.is_table()) {
            (Scheme::Keep, true) => {}
            (_, true) => return Err(misfit(matrix, "embeddings and head are floats there")),
            (Scheme::Keep, false) => {
                return Err(misfit(
                    matrix,
                    "it stays a float, and all projections are in few bits",
                ));
            }
            (Scheme::Quantize { grid, method }, false) => {
                let (first, other) = *first.get_or_insert((*grid, *method));
                if (first, other) != (*grid, *method) {
                    let problem = format!("it is {grid} and others {first}, all have one scheme");
                    return Err(misfit(matrix, problem));
                }
            }
        }
    }
    first.ok_or_else(|| Misfit { tensor: "any matrix".to_owned(), problem: "none".to_owned() })
}

/// What keeps the codes of a grid from a layout of scales and zero points.
fn codes_problem(grid: Grid, eight_bits: bool) -> Option<&'static str> {
    match grid {
        Grid::Nf4 => Some("nf4 has levels of its own"),
        Grid::Int8Tensor => Some("each row has a scale of its own there"),
        Grid::Int8 if !eight_bits => Some("codes have four bits"),
        Grid::Int4 { range: Int4Range::Sym8, .. } => {
            Some("sym8 has negative scales, which other readers may not expect; use sym15 or asym")
        }
        Grid::Int8 | Grid::Int4 { .. } => None,
    }
}

fn whole_groups(matrix: &MatrixTensor, grid: Grid) -> Result<(), Misfit> {
    let in_ = matrix.shape[1];
    match grid.group() {
        Group::Columns(columns) if !GROUP_SIZES.contains(&columns) => {
            Err(misfit(matrix, format!("other readers know no groups of {columns}")))
        }
        Group::Columns(columns) if !in_.is_multiple_of(columns) => {
            Err(misfit(matrix, format!("{in_} columns are no whole groups of {columns}")))
        }
        _ => Ok(()),
    }
}

fn misfit(matrix: &MatrixTensor, problem: impl Into<String>) -> Misfit {
    Misfit { tensor: matrix.name.clone(), problem: problem.into() }
}

/// That a matrix is what the one configuration of all says.
fn check_spec(grid: Grid, matrix: &PackedMatrix) -> Result<(), QuantError> {
    let (expected, found) = (grid.group().columns(matrix.spec.shape[1]), matrix.spec.group_size);
    if expected == found && grid.bits() == matrix.spec.bits {
        return Ok(());
    }
    Err(QuantError::Malformed { what: "columns in a group", expected, found })
}

fn is_asymmetric(grid: Grid) -> bool {
    matches!(grid, Grid::Int4 { range: Int4Range::Asym, .. })
}

/// As configurations say it: -1 is a whole row.
fn group_size(group: Group) -> i64 {
    match group {
        Group::Row => -1,
        Group::Columns(columns) => columns as i64,
    }
}
