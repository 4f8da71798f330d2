//! Reading typed values out of a JSON object, with errors that name file, key, expected, found.

use std::{
    fs::File,
    io::Read,
    ops::RangeInclusive,
    path::{Path, PathBuf},
};

use serde_json::{Map, Value};

use crate::LoadError;

/// Reads a whole text file of at most `max` bytes.
pub(crate) fn read_file(path: &Path, max: u64) -> Result<Vec<u8>, LoadError> {
    let io = |source| LoadError::Io { path: path.to_path_buf(), source };
    let file = File::open(path).map_err(io)?;
    let found = file.metadata().map_err(io)?.len();
    if found > max {
        return Err(LoadError::TooLarge { file: path.to_path_buf(), max, found });
    }
    let mut bytes = Vec::with_capacity(found as usize);
    file.take(max).read_to_end(&mut bytes).map_err(io)?;
    Ok(bytes)
}

/// Parses `bytes`, the content of `file`, as a JSON object.
pub(crate) fn parse_object(bytes: &[u8], file: &Path) -> Result<Map<String, Value>, LoadError> {
    match serde_json::from_slice(bytes) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(other) => Err(LoadError::Value {
            file: file.to_path_buf(),
            key: "(the whole file)".into(),
            expected: "a JSON object".into(),
            found: show(Some(&other)),
        }),
        Err(source) => Err(LoadError::Json { file: file.to_path_buf(), source }),
    }
}

/// A value for an error message, cut when it is long.
fn show(value: Option<&Value>) -> String {
    const MAX_CHARS: usize = 60;
    let Some(value) = value else { return "nothing".into() };
    let text = match value {
        Value::Array(items) if items.len() > 8 => format!("a list of {}", items.len()),
        Value::Object(map) if map.len() > 4 => format!("an object with {} keys", map.len()),
        other => other.to_string(),
    };
    match text.char_indices().nth(MAX_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

fn show_range(range: &RangeInclusive<f64>) -> String {
    let (start, end) = (range.start(), range.end());
    if *end > 1e6 { format!("{start} to {end:e}") } else { format!("{start} to {end}") }
}

/// A JSON object of a file, and where in the file it is.
#[derive(Debug, Clone)]
pub(crate) struct Fields<'a> {
    file: &'a Path,
    /// The parents of the keys: `rope_scaling.`, or nothing.
    prefix: String,
    map: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    /// The keys of a whole file.
    pub(crate) fn new(file: &'a Path, map: &'a Map<String, Value>) -> Self {
        Self { file, prefix: String::new(), map }
    }

    pub(crate) fn file(&self) -> PathBuf {
        self.file.to_path_buf()
    }

    /// Whether the key is there, even as `null`.
    pub(crate) fn contains(&self, key: &str) -> bool {
        self.map.contains_key(key)
    }

    /// All keys.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &'a str> {
        self.map.keys().map(String::as_str)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// The error for the value under `key`.
    pub(crate) fn error(&self, key: &str, expected: impl Into<String>) -> LoadError {
        LoadError::Value {
            file: self.file(),
            key: format!("{}{key}", self.prefix),
            expected: expected.into(),
            found: show(self.map.get(key)),
        }
    }

    /// The value under `key`; `null` and missing are the same.
    pub(crate) fn value(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    fn typed<T>(
        &self,
        key: &str,
        expected: impl FnOnce() -> String,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, LoadError> {
        match self.value(key) {
            None => Ok(None),
            Some(value) => read(value).map(Some).ok_or_else(|| self.error(key, expected())),
        }
    }

    /// A whole number within `range`.
    pub(crate) fn count(
        &self,
        key: &str,
        range: RangeInclusive<usize>,
    ) -> Result<Option<usize>, LoadError> {
        let expected = || format!("a whole number from {} to {}", range.start(), range.end());
        self.typed(key, expected, |value| {
            let count = usize::try_from(value.as_u64()?).ok()?;
            range.contains(&count).then_some(count)
        })
    }

    /// A number within `range`.
    pub(crate) fn number(
        &self,
        key: &str,
        range: RangeInclusive<f64>,
    ) -> Result<Option<f64>, LoadError> {
        let expected = || format!("a number from {}", show_range(&range));
        self.typed(key, expected, |value| value.as_f64().filter(|x| range.contains(x)))
    }

    /// A list of `len` numbers within `range`.
    pub(crate) fn numbers(
        &self,
        key: &str,
        len: usize,
        range: RangeInclusive<f64>,
    ) -> Result<Option<Vec<f32>>, LoadError> {
        let expected = || format!("a list of {len} numbers from {}", show_range(&range));
        self.typed(key, expected, |value| {
            let items = value.as_array().filter(|items| items.len() == len)?;
            let number = |item: &Value| item.as_f64().filter(|x| range.contains(x));
            items.iter().map(|item| number(item).map(|x| x as f32)).collect()
        })
    }

    /// `true` or `false`.
    pub(crate) fn flag(&self, key: &str) -> Result<Option<bool>, LoadError> {
        self.typed(key, || "true or false".into(), Value::as_bool)
    }

    /// A string.
    pub(crate) fn text(&self, key: &str) -> Result<Option<&'a str>, LoadError> {
        self.typed(key, || "a string".into(), Value::as_str)
    }

    /// A list of strings.
    pub(crate) fn texts(&self, key: &str) -> Result<Option<Vec<&'a str>>, LoadError> {
        let expected = || "a list of strings".to_owned();
        self.typed(key, expected, |value| value.as_array()?.iter().map(Value::as_str).collect())
    }

    /// An object; its keys are named with `key.` before them.
    pub(crate) fn object(&self, key: &str) -> Result<Option<Fields<'a>>, LoadError> {
        let map = self.typed(key, || "an object".into(), Value::as_object)?;
        let prefix = format!("{}{key}.", self.prefix);
        Ok(map.map(|map| Fields { file: self.file, prefix, map }))
    }

    /// One token id or a list of them; a lone `-1`, as old checkpoints write it, is none.
    pub(crate) fn token_ids(&self, key: &str) -> Result<Option<Vec<u32>>, LoadError> {
        let id = |value: &Value| u32::try_from(value.as_u64()?).ok();
        let expected = || format!("a token id from 0 to {} or a list of them", u32::MAX);
        self.typed(key, expected, |value| match value {
            Value::Array(items) => items.iter().map(id).collect(),
            Value::Number(number) if number.as_i64() == Some(-1) => Some(Vec::new()),
            other => id(other).map(|id| vec![id]),
        })
    }

    /// One token id.
    pub(crate) fn token_id(&self, key: &str) -> Result<Option<u32>, LoadError> {
        Ok(self.token_ids(key)?.and_then(|ids| ids.first().copied()))
    }

    /// What is missing, as an error.
    pub(crate) fn require<T>(
        &self,
        key: &str,
        expected: &str,
        value: Option<T>,
    ) -> Result<T, LoadError> {
        value.ok_or_else(|| self.error(key, expected))
    }
}
