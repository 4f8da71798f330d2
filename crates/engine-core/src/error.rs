use std::path::PathBuf;

use thiserror::Error;

/// Why a model could not be read.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The operating system refused.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// What was read.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A JSON file is larger than such a file can sensibly be.
    #[error(
        "{} has {found} bytes, a file of its kind has at most {max}; is it the right file?",
        file.display()
    )]
    TooLarge {
        /// The file.
        file: PathBuf,
        /// The limit, in bytes.
        max: u64,
        /// Its size, in bytes.
        found: u64,
    },
    /// Not JSON.
    #[error("{} is not valid JSON: {source}; download the file again", file.display())]
    Json {
        /// The file.
        file: PathBuf,
        /// Line, column and reason.
        source: serde_json::Error,
    },
    /// A key of a JSON file or of metadata is missing, has the wrong type or an impossible value.
    #[error("{}: `{}`: expected {expected}, found {found}", file.display(), one_line(key))]
    Value {
        /// The file.
        file: PathBuf,
        /// The key, with its parents before dots.
        key: String,
        /// What would have been right.
        expected: String,
        /// What is there.
        found: String,
    },
    /// The model is of a family that this library does not have.
    #[error(
        "{}: architecture {} is not supported; supported are {}",
        file.display(), one_line(found), known.join(", ")
    )]
    UnknownArchitecture {
        /// The file.
        file: PathBuf,
        /// What the file names.
        found: String,
        /// What the library knows.
        known: Vec<&'static str>,
    },
    /// A matrix could not be stored.
    #[error(transparent)]
    Weight(#[from] engine_quant::QuantError),
    /// A tensor could not be quantized.
    #[error("tensor `{tensor}` cannot be quantized: {source}")]
    Quantize {
        /// The tensor.
        tensor: String,
        /// Why.
        source: engine_quant::QuantError,
    },
    /// A plan whose codes are chosen with the help of a text.
    #[error(
        "`{plan}` needs a calibration text, and loading has none: make a quantized copy of the \
         model with the `quantize` example (--scheme {plan} --calibration FILE) and load that, \
         or leave out method="
    )]
    NeedsCalibration {
        /// The plan.
        plan: String,
    },
    /// A rule of a plan that concerns no matrix of the model.
    #[error(
        "`{plan}`: no matrix of the model matches `{pattern}`; a rule names a part of a name \
         such as `{example}`, or first, last or embeddings"
    )]
    UnmatchedRule {
        /// The plan.
        plan: String,
        /// The rule's pattern.
        pattern: String,
        /// The name of a matrix.
        example: String,
    },
    /// A directory without weights in a format that can be read.
    #[error(
        "{} has neither model.safetensors nor model.safetensors.index.json, \
         found {found}; {advice}",
        dir.display()
    )]
    NoWeights {
        /// The directory.
        dir: PathBuf,
        /// What looks like weights there.
        found: String,
        /// How to get safetensors.
        advice: &'static str,
    },
    /// A file that is called safetensors and is something else.
    #[error("{} is not a safetensors file but {found}; download it again", file.display())]
    NotSafetensors {
        /// The file.
        file: PathBuf,
        /// What it looks like.
        found: &'static str,
    },
    /// The header of a file of weights breaks the format's rules.
    #[error(
        "{}: damaged header: expected {}, found {}; download the file again",
        file.display(), one_line(expected), one_line(found)
    )]
    Header {
        /// The file.
        file: PathBuf,
        /// The rule.
        expected: String,
        /// What is there.
        found: String,
    },
    /// A tensor's entry in a header breaks the format's rules.
    #[error(
        "{}: tensor `{}`: expected {expected}, found {}; download the file again",
        file.display(), one_line(tensor), one_line(found)
    )]
    TensorEntry {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// The rule.
        expected: String,
        /// What is there.
        found: String,
    },
    /// The index and the shards disagree.
    #[error(
        "{}: `{}`: expected {}, found {}; {advice}",
        file.display(), one_line(key), one_line(expected), one_line(found)
    )]
    Index {
        /// The index file.
        file: PathBuf,
        /// A tensor of the index.
        key: String,
        /// What would have been right.
        expected: String,
        /// What is there.
        found: String,
        /// What to do.
        advice: &'static str,
    },
    /// A tensor that the model needs is not in the checkpoint.
    #[error(
        "{}: no tensor `{tensor}`; the closest name is {}; \
         does the configuration belong to these weights?",
        file.display(), one_line(closest)
    )]
    MissingTensor {
        /// The file or index that was searched.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// The most similar name there is.
        closest: String,
    },
    /// A tensor has another shape than `config.json` says.
    #[error(
        "{}: tensor `{tensor}`: expected shape {expected:?}, found {found:?}; \
         does the configuration belong to these weights?",
        file.display()
    )]
    Shape {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// What the model needs.
        expected: Vec<usize>,
        /// What is there.
        found: Vec<usize>,
    },
    /// A file that is called GGUF and is something else.
    #[error("{} is not a GGUF file but {found}; download it again", file.display())]
    NotGguf {
        /// The file.
        file: PathBuf,
        /// What it looks like.
        found: &'static str,
    },
    /// A GGUF file of a version or byte order that is not read.
    #[error(
        "{}: GGUF {found} is not read; read are versions 2 and 3 in little-endian byte order: \
         convert the model again",
        file.display()
    )]
    GgufVersion {
        /// The file.
        file: PathBuf,
        /// What it is.
        found: String,
    },
    /// A tensor of a GGUF file is of a type that is not read.
    #[error(
        "{}: tensor `{}`: type {found} is not read; read are F32, F16, BF16, Q8_0, Q4_0, Q4_1, \
         Q5_0, Q5_1, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL and IQ4_XS: take the model in one of \
         these",
        file.display(), one_line(tensor)
    )]
    GgufType {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// The type's name, or its number if it has no name here.
        found: String,
    },
    /// A tensor of a GGUF file that the architecture does not have: without it the model would
    /// compute something else.
    #[error(
        "{}: tensor `{}` has no place in this architecture; take the model in another format",
        file.display(), one_line(tensor)
    )]
    UnknownTensor {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// A tensor that cannot be stored as a matrix.
    #[error("{}: tensor `{}`: {source}", file.display(), one_line(tensor))]
    Matrix {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// What is wrong with it.
        source: engine_quant::QuantError,
    },
    /// A tensor's elements are not of a type that can be computed with.
    #[error(
        "{}: tensor `{tensor}`: expected F32, F16 or BF16, found {found}; \
         convert the checkpoint to one of these",
        file.display()
    )]
    ElementType {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// The type's name in the file.
        found: String,
    },
    /// A tensor of a matrix in few bits is of a type that it cannot have.
    #[error(
        "{}: tensor `{tensor}`: expected {expected}, found {found}; \
         does config.json belong to these weights?",
        file.display()
    )]
    PartType {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// The types it can have.
        expected: String,
        /// The type's name in the file.
        found: String,
    },
    /// The tensors of a matrix in few bits do not fit together.
    #[error("{}: matrix `{tensor}`: {source}; download the file again", file.display())]
    Packed {
        /// The file.
        file: PathBuf,
        /// The matrix.
        tensor: String,
        /// What does not fit.
        source: engine_quant::QuantError,
    },
}

/// Text from a file without the control characters that would break a message or a terminal.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}
