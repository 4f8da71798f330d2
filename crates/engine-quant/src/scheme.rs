//! Names of schemes: what becomes of a model's matrices.

use std::{fmt, str::FromStr};

use thiserror::Error;

use crate::{Activations, Grid, Group, Int4Range};

/// How the codes of a matrix are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Method {
    /// The closest point of the grid.
    Nearest,
    /// GPTQ (Frantar et al. 2022): columns one after the other, each column's error spread over
    /// those that follow.
    Gptq {
        /// Columns in the order of their importance instead of their own.
        act_order: bool,
        /// Parameters of a group from its numbers before any is changed, and groups along the
        /// columns' own order, also where these are rounded in another.
        static_groups: bool,
    },
    /// AWQ (Lin et al. 2023): columns with large activations are scaled up before rounding.
    Awq {
        /// Whether ranges are narrowed where that lowers the error.
        clip: bool,
    },
}

/// What becomes of one matrix.
///
/// A scheme is a name with options after colons:
///
/// | name | options |
/// |---|---|
/// | `none` | the checkpoint's own format |
/// | `int8` | `tensor` (one scale for the matrix instead of one for each row), `method=` |
/// | `int4` | `group=32`, `64`, `128`, …, `row`; `sym` (the same as `sym8`), `sym7`, `sym8`, `sym15`, `asym`; `method=` |
/// | `nf4` | |
///
/// `method=` is `rtn` (round to nearest, the default), `gptq` with `actorder` and `static`, or `awq`
/// with `noclip`. `int4` alone means groups of 32, `sym8` when rounding to nearest and `asym` for the
/// methods that calibrate, as these have the lowest error for their bytes.
///
/// ```
/// use engine_quant::Scheme;
/// let scheme: Scheme = "int4:group=64:asym:method=gptq".parse()?;
/// assert_eq!(scheme.to_string(), "int4:group=64:asym:method=gptq");
/// assert_eq!("int4".parse::<Scheme>()?.to_string(), "int4:group=32:sym8");
/// # Ok::<(), engine_quant::SchemeError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// As the checkpoint has it.
    Keep,
    /// In few bits.
    Quantize {
        /// What numbers are rounded to.
        grid: Grid,
        /// How the codes are chosen.
        method: Method,
    },
}

/// A name that is no scheme.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("unknown scheme `{scheme}`: {problem}")]
pub struct SchemeError {
    /// What was given.
    scheme: String,
    /// What is wrong with it.
    problem: String,
}

impl Scheme {
    /// What numbers are rounded to, if they are.
    pub fn grid(&self) -> Option<Grid> {
        match self {
            Self::Keep => None,
            Self::Quantize { grid, .. } => Some(*grid),
        }
    }

    /// Whether the codes are chosen with the help of a calibration text.
    pub fn needs_calibration(&self) -> bool {
        matches!(self, Self::Quantize { method, .. } if *method != Method::Nearest)
    }
}

impl FromStr for Scheme {
    type Err = SchemeError;

    fn from_str(text: &str) -> Result<Self, SchemeError> {
        let error = |problem: String| SchemeError { scheme: text.to_owned(), problem };
        let mut options = text.split(':');
        let name = options.next().unwrap_or_default();
        let mut parts = Options::default();
        for option in options {
            parts.read(option).map_err(error)?;
        }
        let method = parts.method().map_err(error)?;
        let calibrated = method != Method::Nearest;
        let grid = match name {
            "none" => None,
            "int8" if parts.tensor => Some(Grid::Int8Tensor),
            "int8" => Some(Grid::Int8),
            "int4" => {
                let default = if calibrated { Int4Range::Asym } else { Int4Range::Sym8 };
                Some(Grid::Int4 {
                    group: parts.group.unwrap_or(Group::Columns(32)),
                    range: parts.range.unwrap_or(default),
                })
            }
            "nf4" => Some(Grid::Nf4),
            _ => {
                return Err(error("use none, int8, int4 or nf4, with options after colons".into()));
            }
        };
        let stray = match name {
            "int4" => parts.tensor.then_some("tensor"),
            "int8" => parts.int4_option(),
            _ => parts.tensor.then_some("tensor").or(parts.int4_option()),
        };
        if let Some(option) = stray {
            return Err(error(format!("`{name}` has no option `{option}`")));
        }
        match grid {
            None if calibrated => Err(error("`none` has no method".into())),
            Some(Grid::Nf4 | Grid::Int8Tensor) if calibrated => {
                Err(error("methods other than rtn work on int8 by rows and on int4".into()))
            }
            Some(grid) if matches!(method, Method::Awq { .. }) && grid == Grid::Int8 => {
                Err(error("awq works on int4".into()))
            }
            None => Ok(Self::Keep),
            Some(grid) => Ok(Self::Quantize { grid, method }),
        }
    }
}

/// What stands after the colons.
#[derive(Default)]
struct Options {
    group: Option<Group>,
    range: Option<Int4Range>,
    tensor: bool,
    method: Option<Method>,
    act_order: bool,
    static_groups: bool,
    no_clip: bool,
}

impl Options {
    fn read(&mut self, option: &str) -> Result<(), String> {
        let group = |group| Some(group);
        match option {
            "tensor" => self.tensor = true,
            "sym" | "sym8" => self.range = Some(Int4Range::Sym8),
            "sym7" => self.range = Some(Int4Range::Sym7),
            "sym15" => self.range = Some(Int4Range::Sym15),
            "asym" => self.range = Some(Int4Range::Asym),
            "row" | "group=row" => self.group = group(Group::Row),
            "method=rtn" => self.method = Some(Method::Nearest),
            "method=gptq" => {
                self.method = Some(Method::Gptq { act_order: false, static_groups: false });
            }
            "method=awq" => self.method = Some(Method::Awq { clip: true }),
            "actorder" => self.act_order = true,
            "static" => self.static_groups = true,
            "noclip" => self.no_clip = true,
            _ => match option.strip_prefix("group=").map(str::parse::<usize>) {
                Some(Ok(columns)) if columns >= 8 => self.group = group(Group::Columns(columns)),
                Some(_) => return Err("a group is a number of columns from 8 on, or row".into()),
                None => return Err(format!("`{option}` is no option of a scheme")),
            },
        }
        Ok(())
    }

    fn method(&self) -> Result<Method, String> {
        let of_gptq = self.act_order || self.static_groups;
        match self.method {
            Some(Method::Gptq { .. }) if !self.no_clip => {
                let Self { act_order, static_groups, .. } = *self;
                Ok(Method::Gptq { act_order, static_groups })
            }
            Some(Method::Awq { .. }) if !of_gptq => Ok(Method::Awq { clip: !self.no_clip }),
            method if !of_gptq && !self.no_clip => Ok(method.unwrap_or(Method::Nearest)),
            _ => {
                Err("`actorder` and `static` belong to method=gptq, `noclip` to method=awq".into())
            }
        }
    }

    fn int4_option(&self) -> Option<&'static str> {
        let range = self.range.is_some().then_some("sym or asym");
        range.or(self.group.is_some().then_some("group"))
    }
}

impl fmt::Display for Grid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (group, range) = match self {
            Self::Int8 => return f.write_str("int8"),
            Self::Int8Tensor => return f.write_str("int8:tensor"),
            Self::Nf4 => return f.write_str("nf4"),
            Self::Int4 { group, range } => (group, range),
        };
        match group {
            Group::Columns(columns) => write!(f, "int4:group={columns}")?,
            Group::Row => f.write_str("int4:group=row")?,
        }
        f.write_str(match range {
            Int4Range::Sym7 => ":sym7",
            Int4Range::Sym8 => ":sym8",
            Int4Range::Sym15 => ":sym15",
            Int4Range::Asym => ":asym",
        })
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::Quantize { grid, method } = self else { return f.write_str("none") };
        grid.fmt(f)?;
        f.write_str(match method {
            Method::Nearest => "",
            Method::Gptq { act_order: false, static_groups: false } => ":method=gptq",
            Method::Gptq { act_order: true, static_groups: false } => ":method=gptq:actorder",
            Method::Gptq { act_order: false, static_groups: true } => ":method=gptq:static",
            Method::Gptq { act_order: true, static_groups: true } => ":method=gptq:actorder:static",
            Method::Awq { clip: true } => ":method=awq",
            Method::Awq { clip: false } => ":method=awq:noclip",
        })
    }
}

/// What becomes of each matrix of a model: one scheme for the projections of all layers, and rules
/// for some by name.
///
/// Rules stand after plus signs, `pattern=scheme`; of those that match a matrix the last one
/// counts. A pattern is a part of the matrix' name between dots, such as `v_proj`, `layers.3` or
/// `layers.0.mlp`; `first` and `last` are the first and the last layer, `embeddings` stands for
/// `embed_tokens` and `lm_head`. Embeddings and head stay as they are unless a rule names them.
/// `activations=f32`, `24bit`, `16bit` or `8bit` is no rule but says what products round activations
/// to, all over the model; see [`Activations`].
///
/// ```
/// use engine_quant::{Scheme, SchemePlan};
/// let plan: SchemePlan = "int4:group=64+v_proj=int8+last=none+embeddings=int8".parse()?;
/// let scheme = |name| plan.scheme_of(name, 16).to_string();
/// assert_eq!(scheme("model.layers.2.self_attn.q_proj"), "int4:group=64:sym8");
/// assert_eq!(scheme("model.layers.2.self_attn.v_proj"), "int8");
/// assert_eq!(scheme("model.layers.15.self_attn.v_proj"), "none");
/// assert_eq!(scheme("lm_head"), "int8");
///
/// let plan: SchemePlan = "int8+activations=16bit".parse()?;
/// assert_eq!(plan.activations(), Some(engine_quant::Activations::Bits16));
/// # Ok::<(), engine_quant::SchemeError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SchemePlan {
    default: Scheme,
    rules: Vec<(String, Scheme)>,
    activations: Option<Activations>,
}

impl SchemePlan {
    /// A plan without rules.
    pub fn new(default: Scheme) -> Self {
        Self { default, rules: Vec::new(), activations: None }
    }

    /// The same plan with products that round activations to this.
    pub fn with_activations(self, activations: Activations) -> Self {
        Self { activations: Some(activations), ..self }
    }

    /// What products round activations to; by default what loses nothing and is fastest.
    pub fn activations(&self) -> Option<Activations> {
        self.activations
    }

    /// The scheme of the matrix with this name (without `.weight`) in a model of `layers` layers.
    pub fn scheme_of(&self, name: &str, layers: usize) -> Scheme {
        self.scheme_of_any(&[name], layers)
    }

    /// The scheme of a matrix with several names: a tied embedding is `embed_tokens` and `lm_head`,
    /// and the first rows of Phi-3's `qkv_proj` are `q_proj` too. The last rule for any of them
    /// counts.
    pub fn scheme_of_any(&self, names: &[&str], layers: usize) -> Scheme {
        let is_table = |name: &&str| name.ends_with("embed_tokens") || name.ends_with("lm_head");
        let default = if names.iter().any(is_table) { Scheme::Keep } else { self.default };
        let matching = |(pattern, _): &&(String, Scheme)| {
            names.iter().any(|name| matches(pattern, name, layers))
        };
        self.rules.iter().rev().find(matching).map_or(default, |(_, scheme)| *scheme)
    }

    /// The pattern of a rule that none of these names matches, if there is one: a slip of the pen.
    pub fn unmatched_rule(&self, names: &[&str], layers: usize) -> Option<&str> {
        let unmatched = |pattern: &&str| !names.iter().any(|name| matches(pattern, name, layers));
        self.rules.iter().map(|(pattern, _)| pattern.as_str()).find(unmatched)
    }

    /// All schemes in use.
    pub fn schemes(&self) -> impl Iterator<Item = Scheme> {
        std::iter::once(self.default).chain(self.rules.iter().map(|(_, scheme)| *scheme))
    }

    /// Whether nothing is quantized.
    pub fn keeps_all(&self) -> bool {
        self.schemes().all(|scheme| scheme == Scheme::Keep)
    }

    /// Whether a calibration text is needed.
    pub fn needs_calibration(&self) -> bool {
        self.schemes().any(|scheme| scheme.needs_calibration())
    }
}

impl Default for SchemePlan {
    fn default() -> Self {
        Self::new(Scheme::Keep)
    }
}

fn matches(pattern: &str, name: &str, layers: usize) -> bool {
    let has = |part: &str| format!(".{name}.").contains(&format!(".{part}."));
    match pattern {
        "first" => has("layers.0"),
        "last" => has(&format!("layers.{}", layers.saturating_sub(1))),
        "embeddings" => has("embed_tokens") || has("lm_head"),
        part => has(part),
    }
}

impl FromStr for SchemePlan {
    type Err = SchemeError;

    fn from_str(text: &str) -> Result<Self, SchemeError> {
        let mut parts = text.split('+');
        let mut plan = Self::new(parts.next().unwrap_or_default().parse()?);
        for part in parts {
            let Some((pattern, scheme)) = part.split_once('=').filter(|(name, _)| !name.is_empty())
            else {
                let problem = format!("`{part}` is no rule such as v_proj=int8");
                return Err(SchemeError { scheme: text.to_owned(), problem });
            };
            if pattern == "activations" {
                let error = |problem| SchemeError { scheme: text.to_owned(), problem };
                plan.activations = Some(scheme.parse().map_err(error)?);
            } else {
                plan.rules.push((pattern.to_owned(), scheme.parse()?));
            }
        }
        Ok(plan)
    }
}

impl fmt::Display for SchemePlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.default.fmt(f)?;
        self.rules.iter().try_for_each(|(pattern, scheme)| write!(f, "+{pattern}={scheme}"))?;
        match self.activations {
            Some(activations) => write!(f, "+activations={activations}"),
            None => Ok(()),
        }
    }
}
