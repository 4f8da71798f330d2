//! Where a model is: a directory or a GGUF file here, or a repository of the Hugging Face Hub.

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

/// The directory of a model given as a directory or as a Hub id `org/name` or `org/name@revision`;
/// of a model given as a GGUF file, the file.
///
/// A Hub id is downloaded once into the cache that all Hugging Face libraries share; what is
/// there is used without asking the network again. The environment decides as everywhere:
/// `HF_HOME`, `HF_HUB_CACHE`, `HF_ENDPOINT`, `HF_TOKEN`, `HF_HUB_OFFLINE`.
///
/// ```
/// let dir = engine::resolve_model("tests/data/models/stories260K", &mut |_: &str, _, _| ())?;
/// assert!(dir.join("config.json").is_file());
/// # Ok::<(), engine::HubError>(())
/// ```
///
/// # Errors
/// When there is no such directory, or the model cannot be downloaded.
pub fn resolve_model(
    id_or_path: &str,
    progress: &mut dyn DownloadProgress,
) -> Result<PathBuf, HubError> {
    Hub::from_env().resolve(id_or_path, progress)
}

/// A Hub and the cache for what comes from it.
///
/// ```
/// use engine::{Hub, HubError};
///
/// let hub = Hub { offline: true, cache_dir: "no/such/cache".into(), ..Hub::from_env() };
/// let result = hub.resolve("org/model", &mut |_: &str, _, _| ());
/// assert!(matches!(result, Err(HubError::Offline { .. })));
/// ```
#[derive(Clone)]
pub struct Hub {
    /// Where the Hub is, without a slash at the end.
    pub endpoint: String,
    /// The directory that holds `models--org--name` directories.
    pub cache_dir: PathBuf,
    /// Shows who asks, for private and gated models.
    pub token: Option<String>,
    /// Only what is in the cache; no network.
    pub offline: bool,
}

impl std::fmt::Debug for Hub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // A token does not belong in logs.
        f.debug_struct("Hub")
            .field("endpoint", &self.endpoint)
            .field("cache_dir", &self.cache_dir)
            .field("has_token", &self.token.is_some())
            .field("offline", &self.offline)
            .finish()
    }
}

/// Why a model cannot be found or downloaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// It reads as a path and is no directory.
    #[error("{}: no such directory; give the directory of a model, or a Hub id such as org/name", path.display())]
    NoDirectory {
        /// The path.
        path: PathBuf,
    },
    /// It reads as a GGUF file that is not there.
    #[error("{}: no such file; give a GGUF file, the directory of a model, or a Hub id such as org/name", path.display())]
    NoFile {
        /// The path.
        path: PathBuf,
    },
    /// It is a file.
    #[error("{}: this is a file; give the directory that holds config.json and the weights, or a file whose name ends in .gguf", path.display())]
    NotDirectory {
        /// The path.
        path: PathBuf,
    },
    /// This build has no downloads.
    #[error(
        "{id}: no such directory, and this build cannot download; build with the feature `hub`, or download the model yourself and give its directory"
    )]
    Disabled {
        /// The model asked for.
        id: String,
    },
    /// The Hub does not know the model or the revision.
    #[error(
        "{id}: not found at {url}; check the spelling and the revision, and whether the model is private: then set HF_TOKEN"
    )]
    NotFound {
        /// The model asked for.
        id: String,
        /// What was asked.
        url: String,
    },
    /// The Hub does not show the model to us.
    #[error(
        "{id}: {url} refused (status {status}); the model is private, gated or does not exist: accept its terms on the model's page, then set HF_TOKEN to a token of your account"
    )]
    Gated {
        /// The model asked for.
        id: String,
        /// What was asked.
        url: String,
        /// 401 or 403.
        status: u16,
    },
    /// Not in the cache, and the network must not be used.
    #[error("{id}: not complete in the cache {} and HF_HUB_OFFLINE is set; unset it, or give the directory of a model", cache_dir.display())]
    Offline {
        /// The model asked for.
        id: String,
        /// Where it was looked for.
        cache_dir: PathBuf,
    },
    /// The Hub cannot be reached, or the connection broke.
    #[error(
        "{id}: no connection to {url}: {reason}; check the network (or HF_ENDPOINT) and run this again, a download continues where it stopped"
    )]
    Network {
        /// The model asked for.
        id: String,
        /// What was asked.
        url: String,
        /// What the network said.
        reason: String,
    },
    /// The Hub answers in a way that makes no sense here.
    #[error("{id}: unexpected answer from {url}: {reason}; is HF_ENDPOINT a Hugging Face Hub?")]
    Protocol {
        /// The model asked for.
        id: String,
        /// What was asked.
        url: String,
        /// What was odd.
        reason: String,
    },
    /// The repository holds no model that can be loaded.
    #[error("{id}: not a model repository this library loads ({url}): {reason}")]
    NotAModel {
        /// The model asked for.
        id: String,
        /// The repository.
        url: String,
        /// What is missing.
        reason: String,
    },
    /// No room for the files.
    #[error("{id}: the disk of {} is full while downloading {url}; free some space or set HF_HOME to another disk, then run this again: the download continues", cache_dir.display())]
    DiskFull {
        /// The model asked for.
        id: String,
        /// What was downloaded.
        url: String,
        /// Where it was to go.
        cache_dir: PathBuf,
    },
    /// The cache cannot be written.
    #[error("{id}: cannot keep {url} in the cache {}: {reason}; set HF_HOME to a directory you may write, or remove this model's directory there", cache_dir.display())]
    Cache {
        /// The model asked for.
        id: String,
        /// What was downloaded.
        url: String,
        /// The cache.
        cache_dir: PathBuf,
        /// What the system said.
        reason: String,
    },
}

/// Whether a model of this path is one GGUF file.
pub(crate) fn is_gguf(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
}

/// A model on the Hub.
#[derive(Clone, Debug, PartialEq, Eq)]
struct ModelId {
    /// `org/name`.
    name: String,
    /// A branch, tag or commit.
    revision: String,
}

impl ModelId {
    /// `org/name` or `org/name@revision`; anything else is meant as a path.
    fn parse(text: &str) -> Option<Self> {
        let (name, revision) = text.split_once('@').unwrap_or((text, "main"));
        let (org, model) = name.split_once('/')?;
        let word = |word: &str, more: &[char]| {
            !word.is_empty()
                && !word.starts_with(['.', '-'])
                && !word.contains("..")
                && word.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(&c))
        };
        let known = word(org, &['-', '_', '.'])
            && word(model, &['-', '_', '.'])
            && word(revision, &['-', '_', '.', '/']);
        known.then(|| Self { name: name.to_owned(), revision: revision.to_owned() })
    }
}

impl Hub {
    /// The Hub and the cache that the environment names, or the public Hub and the usual cache.
    #[must_use]
    pub fn from_env() -> Self {
        Self::from_variables(|name| std::env::var(name).ok(), std::env::home_dir())
    }

    fn from_variables(variable: impl Fn(&str) -> Option<String>, home: Option<PathBuf>) -> Self {
        let set = |name: &str| {
            variable(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
        };
        let endpoint = set("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned());
        let hf_home = set("HF_HOME").map_or_else(
            || home.unwrap_or_default().join(".cache").join("huggingface"),
            PathBuf::from,
        );
        let token = set("HF_TOKEN").or_else(|| set("HUGGING_FACE_HUB_TOKEN")).or_else(|| {
            let text = std::fs::read_to_string(hf_home.join("token")).ok()?;
            Some(text.trim().to_owned()).filter(|text| !text.is_empty())
        });
        let offline = set("HF_HUB_OFFLINE").is_some_and(|value| {
            ["1", "true", "yes", "on"].contains(&value.to_lowercase().as_str())
        });
        Self {
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            cache_dir: set("HF_HUB_CACHE").map_or_else(|| hf_home.join("hub"), PathBuf::from),
            token,
            offline,
        }
    }

    /// As [`resolve_model`], with this Hub and this cache.
    ///
    /// # Errors
    /// When there is no such directory, or the model cannot be downloaded.
    pub fn resolve(
        &self,
        id_or_path: &str,
        progress: &mut dyn DownloadProgress,
    ) -> Result<PathBuf, HubError> {
        let path = Path::new(id_or_path);
        if path.is_dir() || is_gguf(path) && path.is_file() {
            return Ok(path.to_owned());
        }
        if path.exists() {
            return Err(HubError::NotDirectory { path: path.to_owned() });
        }
        if is_gguf(path) {
            return Err(HubError::NoFile { path: path.to_owned() });
        }
        match ModelId::parse(id_or_path) {
            Some(id) => self.fetch(&id, progress),
            None => Err(HubError::NoDirectory { path: path.to_owned() }),
        }
    }

    #[cfg(feature = "hub")]
    fn fetch(
        &self,
        id: &ModelId,
        progress: &mut dyn DownloadProgress,
    ) -> Result<PathBuf, HubError> {
        download::Download::new(self, id).run(progress)
    }

    #[cfg(not(feature = "hub"))]
    fn fetch(&self, id: &ModelId, _: &mut dyn DownloadProgress) -> Result<PathBuf, HubError> {
        Err(HubError::Disabled { id: format!("{}@{}", id.name, id.revision) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_told_from_paths() {
        let parse = |text| ModelId::parse(text).map(|id| (id.name, id.revision));
        let id = |name: &str, revision: &str| Some((name.to_owned(), revision.to_owned()));
        assert_eq!(parse("org/name-1.5_x"), id("org/name-1.5_x", "main"));
        assert_eq!(parse("org/name@refs/pr/1"), id("org/name", "refs/pr/1"));
        for path in [
            "",
            "name",
            "./org/name",
            "../name",
            "/org/name",
            "org/",
            "org/name/",
            "a/b/c",
            "~/name",
            "org\\name",
            "C:/name",
            "org/..",
            "org/na me",
            "org/name@",
            "org/name@../x",
            "org/name?x",
        ] {
            assert_eq!(parse(path), None, "{path}");
        }
    }

    #[test]
    fn the_environment_decides() {
        let hub = |variables: &[(&str, &str)]| {
            let find = |name: &str| {
                variables.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned())
            };
            Hub::from_variables(find, Some("/home/me".into()))
        };
        let plain = hub(&[("HF_TOKEN", " "), ("HF_HUB_OFFLINE", "0")]);
        assert_eq!(plain.endpoint, "https://huggingface.co");
        assert_eq!(plain.cache_dir, Path::new("/home/me/.cache/huggingface/hub"));
        assert_eq!((plain.token, plain.offline), (None, false));
        let set = hub(&[
            ("HF_ENDPOINT", "http://mirror/"),
            ("HF_HOME", "/data"),
            ("HF_TOKEN", "hf_x"),
            ("HF_HUB_OFFLINE", "TRUE"),
        ]);
        assert_eq!((set.endpoint.as_str(), set.offline), ("http://mirror", true));
        assert_eq!(set.cache_dir, Path::new("/data/hub"));
        assert!(!format!("{set:?}").contains("hf_x"));
        assert_eq!(hub(&[("HF_HUB_CACHE", "/c")]).cache_dir, Path::new("/c"));
    }
}
