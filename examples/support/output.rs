//! What examples print and write: a closed pipe is no failure, a file is whole or not there.

use std::{
    error::Error,
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

use engine_bench::ImageFormat;
use tempfile::NamedTempFile;

use super::Failure;

/// Prints to stdout at once.
pub fn print(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

/// Prints a line to stdout.
pub fn print_line(text: &str) -> io::Result<()> {
    print(&format!("{text}\n"))
}

/// Whether the error says that whoever read our output has gone.
pub fn is_closed_pipe(error: &(dyn Error + 'static)) -> bool {
    let error = error.downcast_ref::<io::Error>();
    error.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// A file that appears when it is complete; what cannot be written is refused at once.
pub struct WholeFile {
    path: PathBuf,
    part: BufWriter<NamedTempFile>,
}

impl WholeFile {
    /// Makes sure that the file can be written.
    pub fn create(path: &Path) -> Result<Self, Failure> {
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let folder = parent.unwrap_or_else(|| Path::new("."));
        if path.is_dir() {
            return Err(format!("cannot write {}: it is a directory", path.display()).into());
        }
        let part = named_part(folder).map_err(|error| {
            // The error names the temporary file, which says nothing to the user.
            format!("cannot write {}: {}", path.display(), error.kind())
        })?;
        Ok(Self { path: path.to_owned(), part: BufWriter::new(part) })
    }

    /// Writes a piece of the content.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        let written = self.part.write_all(bytes);
        written.map_err(|error| format!("cannot write {}: {error}", self.path.display()))?;
        Ok(())
    }

    /// The content is complete: gives the file its name.
    pub fn finish(self) -> Result<(), Failure> {
        let Self { path, part } = self;
        let written = part
            .into_inner()
            .map_err(io::IntoInnerError::into_error)
            .and_then(|part| part.persist(&path).map_err(|error| error.error));
        written.map_err(|error| format!("cannot write {}: {error}", path.display()))?;
        Ok(())
    }

    /// Writes the whole content and gives the file its name.
    pub fn write(mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.append(bytes)?;
        self.finish()
    }
}

/// A chart that appears when it is complete, in the format that its name asks for.
pub struct PlotFile {
    pub file: WholeFile,
    pub format: ImageFormat,
}

impl PlotFile {
    /// Makes sure that the format is known and the file can be written.
    pub fn create(path: impl AsRef<Path>) -> Result<Self, Failure> {
        Ok(Self {
            format: ImageFormat::of(path.as_ref())?,
            file: WholeFile::create(path.as_ref())?,
        })
    }
}

/// Writes a file whole or not at all.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    WholeFile::create(path)?.write(bytes)
}

fn named_part(folder: &Path) -> io::Result<NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // As for any new file; the user's mask takes away what it must.
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    builder.tempfile_in(folder)
}
