//! The header of a safetensors file: eight bytes of length, JSON, then the tensors' bytes without
//! gaps. Everything is checked here once, so that reading a tensor cannot go out of bounds.

use std::{collections::BTreeMap, ops::Range, path::Path};

use safetensors::{Dtype, tensor::TensorInfo};

use super::unique::UniqueMap;
use crate::LoadError;

/// The format's own limit.
const MAX_HEADER_BYTES: u64 = 100_000_000;
const LENGTH_BYTES: usize = 8;

/// Where a tensor is in its file.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    /// Bytes of the file.
    pub range: Range<usize>,
}

/// Reads and checks the header of `bytes`, the content of `file`.
pub(super) fn read_header(bytes: &[u8], file: &Path) -> Result<BTreeMap<String, Entry>, LoadError> {
    let (json, data_start) = split(bytes, file)?;
    let UniqueMap(infos) = serde_json::from_slice::<UniqueMap<TensorInfo>>(json).map_err(|e| {
        header_error(file, "a JSON object with dtype, shape and data_offsets of each tensor", e)
    })?;
    check(&infos, bytes.len() - data_start, file)?;
    let entry = |info: TensorInfo| Entry {
        dtype: info.dtype,
        shape: info.shape,
        range: data_start + info.data_offsets.0..data_start + info.data_offsets.1,
    };
    Ok(infos.into_iter().map(|(name, info)| (name, entry(info))).collect())
}

/// The header's JSON, and where the tensors' bytes start.
fn split<'a>(bytes: &'a [u8], file: &Path) -> Result<(&'a [u8], usize), LoadError> {
    if let Some(found) = disguise(bytes) {
        return Err(LoadError::NotSafetensors { file: file.to_path_buf(), found });
    }
    let Some((length, rest)) = bytes.split_first_chunk::<LENGTH_BYTES>() else {
        let found = format!("a file of {} bytes", bytes.len());
        return Err(header_error(file, "at least 8 bytes", found));
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER_BYTES {
        let expected = format!("a header of at most {MAX_HEADER_BYTES} bytes");
        return Err(header_error(file, expected, format!("a length of {length}")));
    }
    let json = rest.get(..length as usize).ok_or_else(|| {
        let expected = format!("a header of {length} bytes");
        header_error(file, expected, format!("a file that ends after {} of them", rest.len()))
    })?;
    Ok((json, LENGTH_BYTES + json.len()))
}

/// What downloads leave in place of a file that they could not fetch.
pub(crate) fn disguise(bytes: &[u8]) -> Option<&'static str> {
    let text = bytes.trim_ascii_start();
    // The length of a real header has zero bytes, and its lowest may be any character.
    let is_text = || text.iter().take(256).all(|byte| byte.is_ascii() && *byte != 0);
    if bytes.is_empty() {
        Some("an empty file")
    } else if text.starts_with(b"version https://git-lfs") {
        Some("a Git LFS pointer (run `git lfs pull`)")
    } else if text.starts_with(b"<") && is_text() {
        Some("an HTML or XML page")
    } else if bytes.starts_with(b"PK\x03\x04") || bytes.starts_with(b"\x80\x02") {
        Some("a PyTorch pickle")
    } else if bytes.starts_with(b"GGUF") {
        Some("a GGUF file")
    } else {
        None
    }
}

/// Tensors follow each other without gap or overlap, fill the file, and have as many bytes as
/// their shape says.
fn check(
    infos: &BTreeMap<String, TensorInfo>,
    data_len: usize,
    file: &Path,
) -> Result<(), LoadError> {
    let mut order: Vec<_> = infos.iter().collect();
    order.sort_by_key(|(_, info)| info.data_offsets);
    let mut position = 0;
    for (name, info) in order {
        let (start, end) = info.data_offsets;
        let fail = |expected: String, found: String| LoadError::TensorEntry {
            file: file.to_path_buf(),
            tensor: name.clone(),
            expected,
            found,
        };
        if start > end {
            return Err(fail("offsets that ascend".into(), format!("{start}..{end}")));
        }
        if end > data_len {
            let found = format!("bytes {start}..{end}");
            return Err(fail(format!("bytes within the file's {data_len} of data"), found));
        }
        if start != position {
            let rule = if start < position { "overlaps another tensor" } else { "leaves a gap" };
            return Err(fail(format!("a start at byte {position}"), format!("{start}, {rule}")));
        }
        let bits = info
            .shape
            .iter()
            .try_fold(info.dtype.bitsize(), |bits, &len| bits.checked_mul(len))
            .filter(|bits| bits.is_multiple_of(8));
        if bits != Some((end - start) * 8) {
            let expected = match bits {
                Some(bits) => format!("{} bytes", bits / 8),
                None => "a shape that fits in memory".into(),
            };
            let found = format!("{} {:?} in {} bytes", info.dtype, info.shape, end - start);
            return Err(fail(expected, found));
        }
        position = end;
    }
    if position != data_len {
        let expected = format!("{position} bytes of tensors");
        return Err(header_error(file, expected, format!("{data_len} bytes")));
    }
    Ok(())
}

fn header_error(file: &Path, expected: impl Into<String>, found: impl ToString) -> LoadError {
    LoadError::Header {
        file: file.to_path_buf(),
        expected: expected.into(),
        found: found.to_string(),
    }
}
