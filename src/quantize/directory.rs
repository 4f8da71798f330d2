//! A directory that is there whole or not at all.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io,
    path::{Path, PathBuf},
};

use super::QuantizeError;

/// Files of a model beside its weights and `config.json`.
const KEPT_EXTENSIONS: [&str; 7] = ["json", "jinja", "txt", "model", "tiktoken", "md", "py"];
const KEPT_STARTS: [&str; 5] = ["license", "licence", "notice", "copying", "use_policy"];

/// A directory in the making, beside the one that it will be.
pub(super) struct NewDirectory {
    part: PathBuf,
    target: PathBuf,
    overwrite: bool,
    finished: bool,
}

impl NewDirectory {
    /// Makes sure that `target` may be made, and makes the place for what it will hold.
    pub fn create(target: &Path, model: &Path, overwrite: bool) -> Result<Self, QuantizeError> {
        let refuse = |problem| QuantizeError::Output { path: target.to_owned(), problem };
        let target = absolute(target)?;
        let Some(name) = target.file_name() else {
            return Err(refuse("name a new directory"));
        };
        if target.symlink_metadata().is_ok() {
            if !target.is_dir() {
                return Err(refuse("it is a file: name a directory"));
            }
            let model = fs::canonicalize(model).map_err(QuantizeError::io("read", model))?;
            let there = fs::canonicalize(&target).map_err(QuantizeError::io("read", &target))?;
            if model.starts_with(&there) {
                return Err(refuse("the model itself is there: name another directory"));
            }
            if !overwrite && !is_empty(&target)? {
                return Err(refuse("it is there and not empty: name another, or overwrite it"));
            }
        }
        let parent = target.parent().ok_or_else(|| refuse("name a new directory"))?;
        fs::create_dir_all(parent).map_err(QuantizeError::io("create", parent))?;
        let part = parent.join(hidden(name, "incomplete"));
        let _ = fs::remove_dir_all(&part);
        fs::create_dir(&part).map_err(QuantizeError::io("create", &part))?;
        Ok(Self { part, target, overwrite, finished: false })
    }

    /// Where files go.
    pub fn path(&self) -> &Path {
        &self.part
    }

    /// Writes a file whole and makes sure that it is on the disk.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<(), QuantizeError> {
        let path = self.part.join(name);
        let written = fs::write(&path, bytes).and_then(|()| sync(&path));
        written.map_err(QuantizeError::io("write", self.shown(name)))
    }

    /// The path that a file will have.
    pub fn shown(&self, name: &str) -> PathBuf {
        self.target.join(name)
    }

    /// Copies tokenizer, templates, licences and the like.
    pub fn copy_from(&self, model: &Path) -> Result<(), QuantizeError> {
        let entries = fs::read_dir(model).map_err(QuantizeError::io("read", model))?;
        for entry in entries {
            let entry = entry.map_err(QuantizeError::io("read", model))?;
            let name = entry.file_name();
            let Some(name) = name.to_str().filter(|name| is_kept(name)) else { continue };
            let path = entry.path();
            if !path.is_file() {
                continue;
            }
            let bytes = fs::read(&path).map_err(QuantizeError::io("read", &path))?;
            self.write(name, &bytes)?;
        }
        Ok(())
    }

    /// Gives the directory its name.
    pub fn finish(mut self) -> Result<(), QuantizeError> {
        let failed = || QuantizeError::io("write", &self.target);
        sync(&self.part).map_err(failed())?;
        let old = self.target.is_dir().then(|| self.target.with_file_name(self.old_name()));
        if let Some(old) = &old {
            if !self.overwrite && !is_empty(&self.target)? {
                let problem = "something was written to it meanwhile: name another directory";
                return Err(QuantizeError::Output { path: self.target.clone(), problem });
            }
            fs::rename(&self.target, old).map_err(failed())?;
        }
        if let Err(error) = fs::rename(&self.part, &self.target) {
            if let Some(old) = &old {
                // The error that matters is the one before.
                let _ = fs::rename(old, &self.target);
            }
            return Err(failed()(error));
        }
        self.finished = true;
        if let Some(parent) = self.target.parent() {
            sync(parent).map_err(QuantizeError::io("write", parent))?;
        }
        match old {
            Some(old) => fs::remove_dir_all(&old).map_err(QuantizeError::io("remove", &old)),
            None => Ok(()),
        }
    }

    fn old_name(&self) -> OsString {
        hidden(self.target.file_name().unwrap_or_default(), "old")
    }
}

impl Drop for NewDirectory {
    fn drop(&mut self) {
        if !self.finished {
            // There is nobody to tell; the name says what it is.
            let _ = fs::remove_dir_all(&self.part);
        }
    }
}

/// A name beside another, of this process alone.
fn hidden(name: &std::ffi::OsStr, what: &str) -> OsString {
    let mut hidden = OsString::from(".");
    hidden.push(name);
    hidden.push(format!(".{what}-{}", std::process::id()));
    hidden
}

/// The path without `.`, `..` and links at its end, so that it has a parent.
fn absolute(path: &Path) -> Result<PathBuf, QuantizeError> {
    match fs::canonicalize(path) {
        Ok(path) => Ok(path),
        Err(_) => std::path::absolute(path).map_err(QuantizeError::io("find", path)),
    }
}

fn is_empty(dir: &Path) -> Result<bool, QuantizeError> {
    let mut entries = fs::read_dir(dir).map_err(QuantizeError::io("read", dir))?;
    Ok(entries.next().is_none())
}

/// Asks the system to write a file or a directory to the disk now.
pub(super) fn sync(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        // Not every system can do that to a directory, and its files are there already.
        let _ = File::open(path).and_then(|directory| directory.sync_all());
        return Ok(());
    }
    OpenOptions::new().write(true).open(path)?.sync_all()
}

fn is_kept(name: &str) -> bool {
    let lower = name.to_lowercase();
    let replaced = ["config.json", "quantize_config.json", "quant_config.json"];
    if replaced.contains(&lower.as_str())
        || lower.ends_with(".index.json")
        || lower.starts_with('.')
    {
        return false;
    }
    let extension = lower.rsplit_once('.').map_or("", |(_, extension)| extension);
    KEPT_EXTENSIONS.contains(&extension) || KEPT_STARTS.iter().any(|start| lower.starts_with(start))
}

#[cfg(test)]
mod tests {
    use super::is_kept;

    #[test]
    fn texts_are_kept_and_weights_are_not() {
        let kept = [
            "tokenizer.json",
            "tokenizer_config.json",
            "generation_config.json",
            "special_tokens_map.json",
            "chat_template.jinja",
            "tokenizer.model",
            "merges.txt",
            "LICENSE",
            "LICENSE-MIT.html",
            "Notice",
            "USE_POLICY.md",
            "README.md",
        ];
        let left = [
            "config.json",
            "model.safetensors",
            "model.safetensors.index.json",
            "pytorch_model.bin.index.json",
            "pytorch_model.bin",
            "model.gguf",
            ".gitattributes",
            "quantize_config.json",
            "consolidated.00.pth",
        ];
        assert_eq!(kept.map(is_kept), [true; 12]);
        assert_eq!(left.map(is_kept), [false; 9]);
    }
}
