use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use super::cursor::Cursor;
use crate::LoadError;

/// A value of a GGUF file's metadata; numbers of every width in the widest of their kind.
#[derive(Debug, Clone, PartialEq)]
pub enum GgufValue {
    /// A whole number.
    Integer(i64),
    /// A number.
    Float(f64),
    /// True or false.
    Flag(bool),
    /// Text.
    Text(String),
    /// A list of whole numbers.
    Integers(Vec<i64>),
    /// A list of numbers; those of 64 bits are narrowed.
    Floats(Vec<f32>),
    /// A list of truths.
    Flags(Vec<bool>),
    /// A list of texts.
    Texts(Vec<String>),
}

impl GgufValue {
    /// The value for a message, cut when it is long.
    fn show(&self) -> String {
        const MAX_CHARS: usize = 60;
        match self {
            Self::Integer(value) => value.to_string(),
            Self::Float(value) => value.to_string(),
            Self::Flag(value) => value.to_string(),
            Self::Text(text) if text.chars().count() > MAX_CHARS => {
                format!("{:?}…", text.chars().take(MAX_CHARS).collect::<String>())
            }
            Self::Text(text) => format!("{text:?}"),
            Self::Integers(list) => format!("a list of {} whole numbers", list.len()),
            Self::Floats(list) => format!("a list of {} numbers", list.len()),
            Self::Flags(list) => format!("a list of {} truths", list.len()),
            Self::Texts(list) => format!("a list of {} texts", list.len()),
        }
    }
}

/// The metadata of a GGUF file: values by key.
///
/// The typed getters give `None` for a missing key and an error, with file and key, for a value of
/// another type.
#[derive(Debug, Clone, PartialEq)]
pub struct GgufMetadata {
    file: PathBuf,
    values: BTreeMap<String, GgufValue>,
}

impl GgufMetadata {
    pub(super) fn new(file: &Path) -> Self {
        Self { file: file.to_path_buf(), values: BTreeMap::new() }
    }

    /// The file, for messages.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// All keys with their values, in alphabetical order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &GgufValue)> {
        self.values.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// The value under `key`.
    pub fn get(&self, key: &str) -> Option<&GgufValue> {
        self.values.get(key)
    }

    /// The error for the value under `key`.
    pub fn error(&self, key: &str, expected: impl Into<String>) -> LoadError {
        LoadError::Value {
            file: self.file.clone(),
            key: key.to_owned(),
            expected: expected.into(),
            found: self.get(key).map_or("nothing".into(), GgufValue::show),
        }
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        read: impl FnOnce(&'a GgufValue) -> Option<T>,
    ) -> Result<Option<T>, LoadError> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => read(value).map(Some).ok_or_else(|| self.error(key, expected)),
        }
    }

    /// A whole number that is not negative.
    ///
    /// # Errors
    /// If the value is something else.
    pub fn count(&self, key: &str) -> Result<Option<usize>, LoadError> {
        self.typed(key, "a whole number from 0 on", |value| match value {
            GgufValue::Integer(value) => usize::try_from(*value).ok(),
            _ => None,
        })
    }

    /// A count, or a list of equal counts, one for each layer.
    pub(super) fn same_count(&self, key: &str) -> Result<Option<usize>, LoadError> {
        let Some(GgufValue::Integers(list)) = self.get(key) else { return self.count(key) };
        match list.first().map(|first| usize::try_from(*first)) {
            Some(Ok(first)) if list.iter().all(|count| Some(count) == list.first()) => {
                Ok(Some(first))
            }
            _ => Err(self.error(key, "a whole number, the same for every layer")),
        }
    }

    /// A finite number, whole or not.
    ///
    /// # Errors
    /// If the value is something else.
    pub fn number(&self, key: &str) -> Result<Option<f64>, LoadError> {
        self.typed(key, "a finite number", |value| match value {
            GgufValue::Float(value) => value.is_finite().then_some(*value),
            GgufValue::Integer(value) => Some(*value as f64),
            _ => None,
        })
    }

    /// True or false.
    ///
    /// # Errors
    /// If the value is something else.
    pub fn flag(&self, key: &str) -> Result<Option<bool>, LoadError> {
        self.typed(key, "true or false", |value| match value {
            GgufValue::Flag(value) => Some(*value),
            _ => None,
        })
    }

    /// Text.
    ///
    /// # Errors
    /// If the value is something else.
    pub fn text(&self, key: &str) -> Result<Option<&str>, LoadError> {
        self.typed(key, "text", |value| match value {
            GgufValue::Text(text) => Some(text.as_str()),
            _ => None,
        })
    }

    /// A list of whole numbers.
    ///
    /// # Errors
    /// If the value is something else.
    pub fn integers(&self, key: &str) -> Result<Option<&[i64]>, LoadError> {
        self.typed(key, "a list of whole numbers", |value| match value {
            GgufValue::Integers(list) => Some(list.as_slice()),
            _ => None,
        })
    }

    /// A list of numbers.
    ///
    /// # Errors
    /// If the value is something else.
    pub fn floats(&self, key: &str) -> Result<Option<&[f32]>, LoadError> {
        self.typed(key, "a list of numbers", |value| match value {
            GgufValue::Floats(list) => Some(list.as_slice()),
            _ => None,
        })
    }

    /// A list of texts.
    ///
    /// # Errors
    /// If the value is something else.
    pub fn texts(&self, key: &str) -> Result<Option<&[String]>, LoadError> {
        self.typed(key, "a list of texts", |value| match value {
            GgufValue::Texts(list) => Some(list.as_slice()),
            _ => None,
        })
    }

    /// Reads one key with its value; a key that is there already is an error.
    pub(super) fn read_pair(&mut self, cursor: &mut Cursor<'_>) -> Result<(), LoadError> {
        cursor.enter(format!("the key after {} others", self.values.len()));
        let key = cursor.text()?;
        cursor.enter(format!("the value of `{key}`"));
        let value = read_value(cursor)?;
        if self.values.insert(key.to_owned(), value).is_some() {
            return Err(cursor.error("a key that appears once", "it twice"));
        }
        Ok(())
    }
}

/// The type of a value, as the format numbers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ValueType {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    String,
    Array,
    U64,
    I64,
    F64,
}

impl ValueType {
    fn read(cursor: &mut Cursor<'_>) -> Result<Self, LoadError> {
        use ValueType::*;
        const TYPES: [ValueType; 13] =
            [U8, I8, U16, I16, U32, I32, F32, Bool, String, Array, U64, I64, F64];
        let number = cursor.u32()?;
        let kind = TYPES.get(number as usize).copied();
        kind.ok_or_else(|| cursor.error("a type of values from 0 to 12", number))
    }

    /// Bytes that a value takes at least.
    fn min_bytes(self) -> u64 {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 | Self::String => 8,
            Self::Array => 12,
        }
    }
}

fn read_value(cursor: &mut Cursor<'_>) -> Result<GgufValue, LoadError> {
    let kind = ValueType::read(cursor)?;
    if kind == ValueType::Array {
        return read_list(cursor);
    }
    Ok(match kind {
        ValueType::F32 | ValueType::F64 => GgufValue::Float(read_float(cursor, kind)?),
        ValueType::Bool => GgufValue::Flag(read_flag(cursor)?),
        ValueType::String => GgufValue::Text(cursor.text()?.to_owned()),
        _ => GgufValue::Integer(read_integer(cursor, kind)?),
    })
}

fn read_list(cursor: &mut Cursor<'_>) -> Result<GgufValue, LoadError> {
    let kind = ValueType::read(cursor)?;
    if kind == ValueType::Array {
        return Err(cursor.error("a list of numbers, truths or texts", "a list of lists"));
    }
    let len = 0..cursor.count("elements", kind.min_bytes())?;
    Ok(match kind {
        ValueType::F32 | ValueType::F64 => {
            let float = |_| read_float(cursor, kind).map(|value| value as f32);
            GgufValue::Floats(len.map(float).collect::<Result<_, _>>()?)
        }
        ValueType::Bool => {
            GgufValue::Flags(len.map(|_| read_flag(cursor)).collect::<Result<_, _>>()?)
        }
        ValueType::String => {
            let text = |_| cursor.text().map(str::to_owned);
            GgufValue::Texts(len.map(text).collect::<Result<_, _>>()?)
        }
        _ => {
            let integer = |_| read_integer(cursor, kind);
            GgufValue::Integers(len.map(integer).collect::<Result<_, _>>()?)
        }
    })
}

fn read_float(cursor: &mut Cursor<'_>, kind: ValueType) -> Result<f64, LoadError> {
    match kind {
        ValueType::F32 => Ok(f64::from(f32::from_le_bytes(cursor.array()?))),
        _ => Ok(f64::from_le_bytes(cursor.array()?)),
    }
}

fn read_flag(cursor: &mut Cursor<'_>) -> Result<bool, LoadError> {
    match cursor.array()? {
        [0] => Ok(false),
        [1] => Ok(true),
        [other] => Err(cursor.error("a truth of 0 or 1", other)),
    }
}

fn read_integer(cursor: &mut Cursor<'_>, kind: ValueType) -> Result<i64, LoadError> {
    Ok(match kind {
        ValueType::U8 => u8::from_le_bytes(cursor.array()?).into(),
        ValueType::I8 => i8::from_le_bytes(cursor.array()?).into(),
        ValueType::U16 => u16::from_le_bytes(cursor.array()?).into(),
        ValueType::I16 => i16::from_le_bytes(cursor.array()?).into(),
        ValueType::U32 => cursor.u32()?.into(),
        ValueType::I32 => i32::from_le_bytes(cursor.array()?).into(),
        ValueType::I64 => i64::from_le_bytes(cursor.array()?),
        _ => {
            let value = cursor.u64()?;
            let expected = "a whole number of at most 63 bits";
            i64::try_from(value).map_err(|_| cursor.error(expected, value))?
        }
    })
}
