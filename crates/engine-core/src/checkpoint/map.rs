use std::{
    fs::File,
    ops::{Deref, Range},
    path::Path,
    sync::Arc,
};

use engine_quant::{ByteSource, SharedBytes};
use memmap2::Mmap;

use crate::LoadError;

/// The bytes of a file, paged in by the operating system as they are read.
#[derive(Debug)]
pub(crate) struct MappedFile {
    mapping: Arc<Mapping>,
    /// Whether what is shared is copied.
    copies: bool,
}

#[derive(Debug)]
struct Mapping(Mmap);

impl MappedFile {
    pub(crate) fn open(path: &Path) -> Result<Self, LoadError> {
        let io = |source| LoadError::Io { path: path.to_path_buf(), source };
        let file = File::open(path).map_err(io)?;
        if !file.metadata().map_err(io)?.is_file() {
            return Err(io(std::io::ErrorKind::IsADirectory.into()));
        }
        // SAFETY: the mapping is private to this type and read-only. Rust's part of the contract
        // is that the bytes do not change while borrowed: whoever overwrites or truncates a
        // checkpoint in place while it is in use breaks it, as for every program that maps files;
        // replacing a file by renaming, as downloads and package managers do, is safe.
        let map = unsafe { Mmap::map(&file) }.map_err(io)?;
        // Every page that is touched is a page to be mapped, and in pages of 4 KiB that takes
        // longer than reading them from the cache. Asked for, Linux reads the file into the cache
        // in huge pages and maps one at a time.
        #[cfg(target_os = "linux")]
        if let Err(refused) = map.advise(memmap2::Advice::HugePage) {
            // A kernel without huge pages is slower and nothing else.
            drop(refused);
        }
        Ok(Self { mapping: Arc::new(Mapping(map)), copies: false })
    }

    /// Copies from now on what is shared, so that nothing depends on the file once it is loaded.
    pub(crate) fn copy(&mut self) {
        self.copies = true;
    }

    /// A part of the file, which stays mapped for it, or a copy.
    pub(crate) fn share(&self, range: Range<usize>) -> SharedBytes {
        let mapped = SharedBytes::new(self.mapping.clone(), range);
        if self.copies { SharedBytes::from(mapped.to_vec()) } else { mapped }
    }

    /// Gives the memory of pages back that have been read and are not needed soon; they are read
    /// from the file again if they are.
    pub(crate) fn release(&self, range: Range<usize>) {
        self.mapping.release(range);
    }
}

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.mapping.0
    }
}

impl ByteSource for Mapping {
    fn bytes(&self) -> &[u8] {
        &self.0
    }

    fn release(&self, range: Range<usize>) {
        #[cfg(unix)]
        {
            // SAFETY: the mapping is of a file, shared and read-only, so a page that is dropped
            // comes back with the same bytes and whoever borrows them sees no change.
            let advice = unsafe {
                let dont_need = memmap2::UncheckedAdvice::DontNeed;
                self.0.unchecked_advise_range(dont_need, range.start, range.len())
            };
            // Advice that is not taken costs memory and nothing else.
            drop(advice);
        }
        #[cfg(not(unix))]
        let _ = range;
    }

    fn scatter(&self, range: Range<usize>) {
        // As above.
        #[cfg(target_os = "linux")]
        drop(self.0.advise_range(memmap2::Advice::NoHugePage, range.start, range.len()));
        #[cfg(not(target_os = "linux"))]
        let _ = range;
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::fs;

    use super::*;

    /// The flags of the mapping at an address, as the kernel lists them.
    fn flags(address: usize) -> Option<String> {
        let maps = fs::read_to_string("/proc/self/smaps").ok()?;
        let mut lines = maps.lines();
        let start = format!("{address:08x}-");
        lines.find(|line| line.starts_with(&start))?;
        Some(lines.find_map(|line| line.strip_prefix("VmFlags:"))?.to_owned())
    }

    /// Otherwise a start from the file depends on who read it first.
    #[test]
    fn a_file_is_mapped_in_huge_pages_where_there_are_any() {
        if !Path::new("/sys/kernel/mm/transparent_hugepage").exists() {
            return;
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), vec![7; 1 << 20]).unwrap();
        let mapped = MappedFile::open(file.path()).unwrap();
        let has = |place: usize, wanted: &str| {
            let flags = flags(mapped.as_ptr().addr() + place).unwrap();
            assert!(flags.split_whitespace().any(|flag| flag == wanted), "{wanted}: {flags}");
        };
        has(0, "hg");
        // Where only some pages are read, no others come with them.
        mapped.share(1 << 19..1 << 20).scatter();
        has(0, "hg");
        has(1 << 19, "nh");
        assert!(mapped.iter().all(|byte| *byte == 7));
    }
}
