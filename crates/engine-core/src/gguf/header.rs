//! The header of a GGUF file: magic, version, counts, metadata, then each tensor's name, shape,
//! type and offset. Everything is checked here once, so that reading a tensor cannot go out of
//! bounds.

use std::{collections::BTreeMap, path::Path};

use engine_quant::GgufType;

use super::{Entry, cursor::Cursor, metadata::GgufMetadata};
use crate::{LoadError, checkpoint::disguise};

const MAX_DIMENSIONS: u32 = 4;
const DEFAULT_ALIGNMENT: usize = 32;
const MAX_ALIGNMENT: usize = 1 << 30;
/// A key of no letters, its type, and a value of one byte.
const MIN_PAIR_BYTES: u64 = 8 + 4 + 1;
/// A name of no letters, the number of dimensions, one of them, the type and the offset.
const MIN_TENSOR_BYTES: u64 = 8 + 4 + 8 + 4 + 8;

/// Reads and checks the header of `bytes`, the content of `file`.
pub(super) fn read(
    bytes: &[u8],
    file: &Path,
) -> Result<(GgufMetadata, BTreeMap<String, Entry>), LoadError> {
    check_magic(bytes, file)?;
    let mut cursor = Cursor::new(bytes, file);
    cursor.take(4)?;
    check_version(cursor.u32()?, file)?;
    let num_tensors = cursor.count("tensors", MIN_TENSOR_BYTES)?;
    let num_pairs = cursor.count("keys", MIN_PAIR_BYTES)?;
    let mut metadata = GgufMetadata::new(file);
    for _ in 0..num_pairs {
        metadata.read_pair(&mut cursor)?;
    }
    let alignment = read_alignment(&metadata)?;
    let mut infos = BTreeMap::new();
    for i in 0..num_tensors {
        cursor.enter(format!("tensor number {i}"));
        let name = cursor.text()?;
        cursor.enter(format!("tensor `{name}`"));
        let info = Info::read(&mut cursor)?;
        if infos.insert(name.to_owned(), info).is_some() {
            return Err(cursor.error("a name that appears once", "it twice"));
        }
    }
    let data_start = cursor.position().next_multiple_of(alignment);
    let place = Place { file, data_start, file_len: bytes.len(), alignment };
    let entries = infos
        .into_iter()
        .map(|(name, info)| Ok((name.clone(), place.entry(&name, info)?)))
        .collect::<Result<BTreeMap<_, _>, LoadError>>()?;
    place.check_overlaps(&entries)?;
    Ok((metadata, entries))
}

fn check_magic(bytes: &[u8], file: &Path) -> Result<(), LoadError> {
    if bytes.starts_with(b"GGUF") {
        return Ok(());
    }
    let not_gguf = |found| Err(LoadError::NotGguf { file: file.to_path_buf(), found });
    let old = [b"lmgg", b"fmgg", b"tjgg", b"algg"];
    if old.into_iter().any(|magic| bytes.starts_with(magic)) {
        return not_gguf("a model in a format of llama.cpp from before GGUF");
    }
    if bytes.starts_with(b"FUGG") {
        return not_gguf("a GGUF file of big-endian byte order");
    }
    not_gguf(disguise(bytes).unwrap_or("something else: it does not begin with the letters GGUF"))
}

fn check_version(version: u32, file: &Path) -> Result<(), LoadError> {
    let found = match version {
        2 | 3 => return Ok(()),
        1 => "version 1".into(),
        // The low half of a number in the other byte order is zero.
        other if other & 0xffff == 0 => {
            format!("version {} in big-endian byte order", other.swap_bytes())
        }
        other => format!("version {other}"),
    };
    Err(LoadError::GgufVersion { file: file.to_path_buf(), found })
}

/// Tensors begin at multiples of this.
fn read_alignment(metadata: &GgufMetadata) -> Result<usize, LoadError> {
    const KEY: &str = "general.alignment";
    let alignment = metadata.count(KEY)?.unwrap_or(DEFAULT_ALIGNMENT);
    if !alignment.is_power_of_two() || alignment > MAX_ALIGNMENT {
        return Err(metadata.error(KEY, format!("a power of two up to {MAX_ALIGNMENT}")));
    }
    Ok(alignment)
}

/// What the header says of a tensor.
struct Info {
    /// Innermost dimension first, as in the file.
    dims: Vec<u64>,
    /// Number of the type.
    kind: u32,
    /// From the start of the data.
    offset: u64,
}

impl Info {
    fn read(cursor: &mut Cursor<'_>) -> Result<Self, LoadError> {
        let num_dims = cursor.u32()?;
        if !(1..=MAX_DIMENSIONS).contains(&num_dims) {
            let expected = format!("1 to {MAX_DIMENSIONS} dimensions");
            return Err(cursor.error(expected, num_dims));
        }
        let dims = (0..num_dims).map(|_| cursor.u64()).collect::<Result<_, _>>()?;
        Ok(Self { dims, kind: cursor.u32()?, offset: cursor.u64()? })
    }
}

/// Where the tensors' bytes are.
struct Place<'a> {
    file: &'a Path,
    data_start: usize,
    file_len: usize,
    alignment: usize,
}

impl Place<'_> {
    /// A tensor's checked entry.
    fn entry(&self, name: &str, info: Info) -> Result<Entry, LoadError> {
        let fail = |expected: String, found: String| self.error(name, expected, found);
        let Some(kind) = GgufType::from_number(info.kind) else {
            return Err(LoadError::GgufType {
                file: self.file.to_path_buf(),
                tensor: name.to_owned(),
                found: type_name(info.kind),
            });
        };
        let shape: Option<Vec<usize>> =
            info.dims.iter().rev().map(|&len| usize::try_from(len).ok()).collect();
        let bytes = shape.as_ref().and_then(|shape| num_bytes(kind, shape));
        let (Some(shape), Some(len)) = (shape, bytes) else {
            let expected = match kind.block_len() {
                1 => "a shape that holds numbers and fits in memory".into(),
                block => format!("rows of whole {kind} blocks of {block} that fit in memory"),
            };
            let dims: Vec<_> = info.dims.iter().rev().collect();
            return Err(fail(expected, format!("shape {dims:?}")));
        };
        if !info.offset.is_multiple_of(self.alignment as u64) {
            let expected = format!("an offset that is a multiple of {}", self.alignment);
            return Err(fail(expected, info.offset.to_string()));
        }
        let start = usize::try_from(info.offset)
            .ok()
            .and_then(|offset| offset.checked_add(self.data_start));
        let end = start.and_then(|start| start.checked_add(len));
        match (start, end) {
            (Some(start), Some(end)) if end <= self.file_len => {
                Ok(Entry { kind, shape, range: start..end })
            }
            _ => {
                let data = self.file_len.saturating_sub(self.data_start);
                let expected = format!("bytes within the file's {data} of data");
                Err(fail(expected, format!("{len} from byte {} on", info.offset)))
            }
        }
    }

    fn check_overlaps(&self, entries: &BTreeMap<String, Entry>) -> Result<(), LoadError> {
        let mut order: Vec<_> = entries.iter().collect();
        order.sort_by_key(|(_, entry)| entry.range.start);
        for pair in order.windows(2) {
            let ((first, before), (name, entry)) = (pair[0], pair[1]);
            if entry.range.start < before.range.end {
                let expected = format!("a start behind byte {}", before.range.end);
                let found = format!("{}, which overlaps `{first}`", entry.range.start);
                return Err(self.error(name, expected, found));
            }
        }
        Ok(())
    }

    fn error(&self, tensor: &str, expected: String, found: String) -> LoadError {
        LoadError::TensorEntry {
            file: self.file.to_path_buf(),
            tensor: tensor.to_owned(),
            expected,
            found,
        }
    }
}

/// Bytes of a tensor, or `None` if it is empty, no whole number of blocks, or too large.
fn num_bytes(kind: GgufType, shape: &[usize]) -> Option<usize> {
    let (columns, rows) = shape.split_last()?;
    let rows = rows.iter().try_fold(1_usize, |rows, &len| rows.checked_mul(len))?;
    let bytes = kind.row_bytes(*columns)?.checked_mul(rows)?;
    (bytes > 0).then_some(bytes)
}

/// Types that are not in [`GgufType`]: removed from ggml, or newer.
fn type_name(number: u32) -> String {
    let name = match number {
        4 => "Q4_2",
        5 => "Q4_3",
        31 => "Q4_0_4_4",
        32 => "Q4_0_4_8",
        33 => "Q4_0_8_8",
        36 => "IQ4_NL_4_4",
        37 => "IQ4_NL_4_8",
        38 => "IQ4_NL_8_8",
        _ => return format!("number {number}"),
    };
    format!("{name}, which llama.cpp no longer has,")
}
