//! `quantization_config`: how a checkpoint's matrices are in few bits.

use std::collections::BTreeMap;

use engine_quant::{
    Bits, CodeOrder, Group,
    formats::{gptq::ZeroPoints, native::Entry},
};
use serde_json::{Map, Value, json};

use super::json::Fields;
use crate::LoadError;

/// How a checkpoint's matrices are in few bits. Which ones are is told by their tensors.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum QuantizationConfig {
    /// GPTQ: `qweight`, `qzeros`, `scales`, `g_idx`.
    Gptq {
        /// Width of a code.
        bits: Bits,
        /// Input columns that share a scale.
        group: Group,
        /// How zero points are stored.
        zero_points: ZeroPoints,
        /// Whether the zero point is said to be the middle code.
        symmetric: bool,
    },
    /// AWQ in the layout `gemm`, four bits.
    Awq {
        /// Input columns that share a scale.
        group: Group,
    },
    /// bitsandbytes NF4.
    BitsAndBytesNf4,
    /// bitsandbytes INT8.
    BitsAndBytesInt8,
    /// Our own layout, [`engine_quant::formats::native`].
    Native(NativeConfig),
}

/// The entries of our own layout: a default, and the matrices that differ.
#[derive(Debug, Clone, PartialEq)]
pub struct NativeConfig {
    /// For every matrix without an entry of its own.
    pub default: Entry,
    /// By name, without a suffix.
    pub tensors: BTreeMap<String, Entry>,
}

/// The version of our own layout that is written. Version 1 has codes in rows alone.
const VERSION: usize = 2;
/// More columns than any matrix has.
const MAX_GROUP: usize = 1 << 24;
/// What to do with a checkpoint of another kind.
const ADVICE: &str = "load the original floats with a scheme instead, such as int8 or int4";

pub(super) fn read_quantization(
    outer: &Fields<'_>,
) -> Result<Option<QuantizationConfig>, LoadError> {
    let Some(fields) = outer.object("quantization_config")? else { return Ok(None) };
    let method = match fields.text("quant_method")? {
        Some(method) => method,
        // bitsandbytes wrote none at first.
        None if fields.contains("load_in_4bit") || fields.contains("load_in_8bit") => {
            "bitsandbytes"
        }
        None => return Err(unsupported(&fields, "quant_method", METHODS)),
    };
    match method {
        "gptq" => gptq(&fields),
        "awq" => awq(&fields),
        "bitsandbytes" => bitsandbytes(&fields),
        "engine" => native(&fields).map(QuantizationConfig::Native),
        _ => Err(unsupported(&fields, "quant_method", METHODS)),
    }
    .map(Some)
}

const METHODS: &str = "gptq, awq, bitsandbytes or engine";

fn unsupported(fields: &Fields<'_>, key: &str, supported: &str) -> LoadError {
    fields.error(key, format!("{supported} ({ADVICE})"))
}

/// Refuses every value of a text but some; upper case counts as lower.
fn one_of(fields: &Fields<'_>, key: &str, allowed: &[&str]) -> Result<Option<String>, LoadError> {
    let Some(found) = fields.text(key)? else { return Ok(None) };
    let found = found.to_lowercase();
    if allowed.contains(&found.as_str()) {
        return Ok(Some(found));
    }
    Err(unsupported(fields, key, &allowed.join(" or ")))
}

/// `group_size`; -1 is a whole row.
fn group(fields: &Fields<'_>) -> Result<Group, LoadError> {
    const KEY: &str = "group_size";
    if fields.value(KEY).and_then(Value::as_i64) == Some(-1) {
        return Ok(Group::Row);
    }
    let columns = fields.count(KEY, 1..=MAX_GROUP)?;
    fields.require(KEY, "a number of columns, or -1", columns).map(Group::Columns)
}

fn bits(fields: &Fields<'_>, allowed: &[usize]) -> Result<Bits, LoadError> {
    let bits = fields.count("bits", 1..=64)?;
    match bits.filter(|bits| allowed.contains(bits)) {
        Some(4) => Ok(Bits::Four),
        Some(8) => Ok(Bits::Eight),
        _ => {
            let allowed: Vec<_> = allowed.iter().map(usize::to_string).collect();
            Err(unsupported(fields, "bits", &allowed.join(" or ")))
        }
    }
}

/// Refuses settings that differ from matrix to matrix.
fn refuse_overrides(fields: &Fields<'_>) -> Result<(), LoadError> {
    match fields.object("dynamic")? {
        Some(overrides) if !overrides.is_empty() => {
            Err(unsupported(fields, "dynamic", "the same bits for all matrices"))
        }
        _ => Ok(()),
    }
}

fn gptq(fields: &Fields<'_>) -> Result<QuantizationConfig, LoadError> {
    const VERSIONS: [&str; 2] = ["gptq", "gptq_v2"];
    let format = one_of(fields, "checkpoint_format", &VERSIONS)?;
    let format = format.or(one_of(fields, "format", &VERSIONS)?);
    if fields.flag("is_marlin_format")? == Some(true) {
        return Err(unsupported(fields, "is_marlin_format", "false"));
    }
    one_of(fields, "pack_dtype", &["int32"])?;
    refuse_overrides(fields)?;
    fields.flag("desc_act")?;
    Ok(QuantizationConfig::Gptq {
        bits: bits(fields, &[4, 8])?,
        group: group(fields)?,
        zero_points: match format.as_deref() {
            Some("gptq_v2") => ZeroPoints::Plain,
            _ => ZeroPoints::LessOne,
        },
        symmetric: fields.flag("sym")?.unwrap_or(false),
    })
}

fn awq(fields: &Fields<'_>) -> Result<QuantizationConfig, LoadError> {
    for key in ["version", "format", "checkpoint_format"] {
        one_of(fields, key, &["gemm"])?;
    }
    bits(fields, &[4])?;
    if fields.flag("zero_point")? == Some(false) {
        return Err(unsupported(fields, "zero_point", "true"));
    }
    refuse_overrides(fields)?;
    fields.texts("modules_to_not_convert")?;
    Ok(QuantizationConfig::Awq { group: group(fields)? })
}

fn bitsandbytes(fields: &Fields<'_>) -> Result<QuantizationConfig, LoadError> {
    fields.texts("llm_int8_skip_modules")?;
    if fields.flag("load_in_4bit")? != Some(true) {
        if fields.flag("load_in_8bit")? == Some(true) {
            return Ok(QuantizationConfig::BitsAndBytesInt8);
        }
        return Err(unsupported(fields, "load_in_8bit", "true, or load_in_4bit true"));
    }
    // Without the key it is FP4.
    if one_of(fields, "bnb_4bit_quant_type", &["nf4"])?.is_none() {
        return Err(unsupported(fields, "bnb_4bit_quant_type", "nf4"));
    }
    one_of(fields, "bnb_4bit_quant_storage", &["uint8"])?;
    Ok(QuantizationConfig::BitsAndBytesNf4)
}

fn native(fields: &Fields<'_>) -> Result<NativeConfig, LoadError> {
    let version = fields.count("version", 1..=usize::MAX)?;
    if version.is_none_or(|version| version > VERSION) {
        return Err(fields.error("version", format!("1 to {VERSION}, which this library reads")));
    }
    let default = fields.object("default")?;
    let default = entry(&fields.require("default", "an object", default)?)?;
    let mut tensors = BTreeMap::new();
    if let Some(entries) = fields.object("tensors")? {
        for name in entries.keys() {
            let fields = entries.object(name)?;
            let fields = entries.require(name, "an object", fields)?;
            tensors.insert(name.to_owned(), entry(&fields)?);
        }
    }
    Ok(NativeConfig { default, tensors })
}

fn entry(fields: &Fields<'_>) -> Result<Entry, LoadError> {
    let format = fields.text("format")?;
    let zero = fields.count("zero", 0..=255)?;
    Ok(Entry {
        format: fields.require("format", "a name", format)?.to_owned(),
        bits: bits(fields, &[4, 8])?,
        group_size: fields.count("group_size", 1..=MAX_GROUP)?,
        per_tensor: fields.flag("per_tensor")?.unwrap_or(false),
        zero: zero.map(|zero| zero as u8),
        factor: fields.number("factor", -1e30..=1e30)?.unwrap_or(1.0) as f32,
        order: match one_of(fields, "order", &["rows", "blocks"])?.as_deref() {
            Some("blocks") => CodeOrder::Blocks,
            _ => CodeOrder::Rows,
        },
    })
}

impl NativeConfig {
    /// Collects the entries of all matrices of a checkpoint; the one that most of them have becomes
    /// the default. `None` without any.
    pub fn new(entries: impl IntoIterator<Item = (String, Entry)>) -> Option<Self> {
        let mut tensors: BTreeMap<String, Entry> = entries.into_iter().collect();
        let same = |entry: &Entry| tensors.values().filter(|other| *other == entry).count();
        let default = tensors.values().max_by_key(|entry| same(entry))?.clone();
        tensors.retain(|_, entry| *entry != default);
        Some(Self { default, tensors })
    }

    /// The entry of a matrix.
    pub fn entry(&self, name: &str) -> &Entry {
        self.tensors.get(name).unwrap_or(&self.default)
    }

    /// The value of `quantization_config` in `config.json`.
    ///
    /// ```
    /// use engine_core::NativeConfig;
    /// use engine_quant::{Grid, SliceRows, formats::native, round_to_nearest};
    /// let rows = SliceRows { values: &[1.0, 2.0], columns: 2 };
    /// let (entry, _) = native::pack("w", round_to_nearest(&rows, Grid::Int8)?);
    /// let config = NativeConfig::new([("w".to_owned(), entry)]).unwrap();
    /// assert_eq!(config.to_json()["default"]["format"], "int8");
    /// # Ok::<(), engine_quant::QuantError>(())
    /// ```
    pub fn to_json(&self) -> Value {
        let tensors: Map<String, Value> =
            self.tensors.iter().map(|(name, entry)| (name.clone(), entry_json(entry))).collect();
        json!({
            "quant_method": "engine",
            "version": VERSION,
            "default": entry_json(&self.default),
            "tensors": tensors,
        })
    }
}

fn entry_json(entry: &Entry) -> Value {
    let bits = match entry.bits {
        Bits::Four => 4,
        Bits::Eight => 8,
    };
    let mut json = json!({ "format": entry.format, "bits": bits });
    if let Some(columns) = entry.group_size {
        json["group_size"] = columns.into();
    }
    if entry.per_tensor {
        json["per_tensor"] = true.into();
    }
    if let Some(zero) = entry.zero {
        json["zero"] = zero.into();
    }
    if entry.factor != 1.0 {
        json["factor"] = f64::from(entry.factor).into();
    }
    if entry.order != CodeOrder::Rows {
        json["order"] = entry.order.name().into();
    }
    json
}
