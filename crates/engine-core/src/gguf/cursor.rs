use std::path::Path;

use crate::LoadError;

/// Reads a header front to back; every length is checked against what is left of the file.
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    position: usize,
    file: &'a Path,
    /// What is being read, for the messages.
    part: String,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8], file: &'a Path) -> Self {
        Self { bytes, position: 0, file, part: "the header".into() }
    }

    /// What the following reads belong to.
    pub(super) fn enter(&mut self, part: String) {
        self.part = part;
    }

    pub(super) fn position(&self) -> usize {
        self.position
    }

    pub(super) fn remaining(&self) -> usize {
        self.bytes.len() - self.position
    }

    /// The error for what is being read.
    pub(super) fn error(
        &self,
        expected: impl std::fmt::Display,
        found: impl ToString,
    ) -> LoadError {
        LoadError::Header {
            file: self.file.to_path_buf(),
            expected: format!("{expected} in {}", self.part),
            found: found.to_string(),
        }
    }

    /// The next `len` bytes.
    pub(super) fn take(&mut self, len: u64) -> Result<&'a [u8], LoadError> {
        let rest = &self.bytes[self.position..];
        match usize::try_from(len).ok().and_then(|len| rest.get(..len)) {
            Some(taken) => {
                self.position += taken.len();
                Ok(taken)
            }
            None => {
                let found = format!("a file that ends after {}", rest.len());
                Err(self.error(format_args!("{len} more bytes"), found))
            }
        }
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], LoadError> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.take(N as u64)?);
        Ok(bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, LoadError> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, LoadError> {
        self.array().map(u64::from_le_bytes)
    }

    /// A length and as many bytes of UTF-8.
    pub(super) fn text(&mut self) -> Result<&'a str, LoadError> {
        let len = self.u64()?;
        let bytes = self.take(len)?;
        std::str::from_utf8(bytes).map_err(|error| self.error("text in UTF-8", error))
    }

    /// A number of things of at least `min_bytes` each.
    pub(super) fn count(&mut self, what: &str, min_bytes: u64) -> Result<u64, LoadError> {
        let count = self.u64()?;
        let max = self.remaining() as u64 / min_bytes;
        if count > max {
            let expected = format!("at most {max} {what}, for which the file has room,");
            return Err(self.error(expected, count));
        }
        Ok(count)
    }
}
