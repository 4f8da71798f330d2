//! Where a model is: a directory here, or a repository of the Hugging Face Hub.

use std::path::{Path, PathBuf};

#[cfg(feature = "hub")]
mod download;

/// Told how far a download is.
///
/// Any closure `FnMut(&str, u64, u64)` is one: file name, bytes that are here, bytes in total.
pub trait DownloadProgress {
    /// `file` has `bytes_done` of its `bytes_total` bytes; called at the start, while it grows and
    /// at the end.
    fn update(&mut self, file: &str, bytes_done: u64, bytes_total: u64);
}

impl<F: FnMut(&str, u64, u64)> DownloadProgress for F {
    fn update(&mut self, file: &str, bytes_done: u64, bytes_total: u64) {
        self(file, bytes_done, bytes_total);
    }
}

/// Why a model cannot be found or downloaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// It reads as a path and is not there.
    #[error("{}: no such directory; give the directory of a model, or a Hub id such as org/name", path.display())]
    NoDirectory {
        /// The path.
        path: PathBuf,
    },
}

/// The directory of a model.
///
/// # Errors
/// When it is not there.
pub fn resolve_model(
    id_or_path: &str,
    _progress: &mut dyn DownloadProgress,
) -> Result<PathBuf, HubError> {
    let path = Path::new(id_or_path);
    if path.is_dir() {
        Ok(path.to_owned())
    } else {
        Err(HubError::NoDirectory { path: path.to_owned() })
    }
}
