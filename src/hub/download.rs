//! Downloads a model's files into the shared cache.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hf_hub::api::sync::{Api, ApiBuilder, ApiError};
use hf_hub::api::{Progress, RepoInfo};
use hf_hub::{Cache, Repo, RepoType};
use serde_json::Value;

use super::{DownloadProgress, Hub, HubError, ModelId};

const WEIGHTS: &str = "model.safetensors";
const WEIGHTS_INDEX: &str = "model.safetensors.index.json";

/// What the text side of a model needs, where the repository has it.
const SMALL_FILES: [&str; 8] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "added_tokens.json",
];

/// How often a broken connection is taken up again within one call.
const MAX_ATTEMPTS: u64 = 4;

/// One model on its way into the cache.
pub(super) struct Download<'a> {
    hub: &'a Hub,
    id: &'a ModelId,
    cache: Cache,
}

impl<'a> Download<'a> {
    pub(super) fn new(hub: &'a Hub, id: &'a ModelId) -> Self {
        Self { hub, id, cache: Cache::new(hub.cache_dir.clone()) }
    }

    /// The directory with all files of the model.
    pub(super) fn run(&self, progress: &mut dyn DownloadProgress) -> Result<PathBuf, HubError> {
        let cached = self.cached_snapshot();
        if let Some(dir) = cached.as_ref().filter(|dir| is_complete(dir)) {
            return Ok(dir.clone());
        }
        let usable = cached.filter(|dir| dir.join("config.json").is_file() && has_weights(dir));
        if self.hub.offline {
            return usable.ok_or_else(|| HubError::Offline {
                id: self.label(),
                cache_dir: self.hub.cache_dir.clone(),
            });
        }
        let api = ApiBuilder::from_cache(self.cache.clone())
            .with_endpoint(self.hub.endpoint.clone())
            .with_token(self.hub.token.clone())
            .with_progress(false)
            .build()
            .map_err(|error| self.failure(&error, &self.hub.endpoint))?;
        let info_url = format!("{}/api/{}", self.hub.endpoint, self.repo().api_url());
        match api.repo(self.repo()).info().map_err(|error| self.failure(&error, &info_url)) {
            Ok(info) => self.fetch_all(&api, &info, progress),
            // Optional files may be missing in the cache; the model runs without them.
            Err(HubError::Network { .. }) if usable.is_some() => Ok(usable.unwrap_or_default()),
            Err(error) => Err(error),
        }
    }

    /// Every file at the one commit that the Hub names now, so that a push meanwhile mixes nothing.
    fn fetch_all(
        &self,
        api: &Api,
        info: &RepoInfo,
        progress: &mut dyn DownloadProgress,
    ) -> Result<PathBuf, HubError> {
        let names: BTreeSet<&str> = info.siblings.iter().map(|s| s.rfilename.as_str()).collect();
        let not_a_model = |reason: String| HubError::NotAModel {
            id: self.label(),
            url: format!("{}/{}", self.hub.endpoint, self.id.name),
            reason,
        };
        if !names.contains("config.json") {
            return Err(not_a_model("it has no config.json".to_owned()));
        }
        let sharded = !names.contains(WEIGHTS);
        if sharded && !names.contains(WEIGHTS_INDEX) {
            return Err(not_a_model(format!(
                "it has no safetensors weights (neither {WEIGHTS} nor {WEIGHTS_INDEX}); choose a \
                 repository or a revision that has them"
            )));
        }
        for name in SMALL_FILES.iter().filter(|name| names.contains(*name)) {
            self.fetch_file(api, &info.sha, name, progress)?;
        }
        if sharded {
            let index = self.fetch_file(api, &info.sha, WEIGHTS_INDEX, progress)?;
            let shards = shards(&index)
                .ok_or_else(|| not_a_model(format!("its {WEIGHTS_INDEX} names no shards")))?;
            if let Some(missing) = shards.iter().find(|name| !names.contains(name.as_str())) {
                let reason = format!("its {WEIGHTS_INDEX} names {missing}, which it does not have");
                return Err(not_a_model(reason));
            }
            for shard in &shards {
                self.fetch_file(api, &info.sha, shard, progress)?;
            }
        } else {
            self.fetch_file(api, &info.sha, WEIGHTS, progress)?;
        }
        let repo = self.cache.repo(self.repo());
        repo.create_ref(&info.sha).map_err(|error| {
            self.io_failure(&error, &format!("{}/{}", self.hub.endpoint, self.id.name))
        })?;
        Ok(repo.pointer_path(&info.sha))
    }

    /// One file, from the cache if it is there; takes a broken download up again.
    fn fetch_file(
        &self,
        api: &Api,
        commit: &str,
        name: &str,
        progress: &mut dyn DownloadProgress,
    ) -> Result<PathBuf, HubError> {
        let pinned = Repo::with_revision(self.id.name.clone(), RepoType::Model, commit.to_owned());
        let path = self.cache.repo(pinned.clone()).pointer_path(commit).join(name);
        if path.exists() {
            return Ok(path);
        }
        let repo = api.repo(pinned.clone());
        let url = repo.url(name);
        let mut attempt = 0;
        loop {
            attempt += 1;
            let mut total = 0;
            let report = Report { progress, file: name, done: 0, total: &mut total };
            let error = match repo.download_with_progress(name, report) {
                Ok(path) => return self.check_size(path, total, &url),
                Err(error) => error,
            };
            if needs_fresh_start(&error)
                && let Ok(metadata) = api.metadata(&url)
            {
                let blob = self.cache.repo(pinned.clone()).blob_path(metadata.etag());
                // If it cannot be removed, the next attempt says why.
                let _ = fs::remove_file(blob.with_extension("part"));
            } else if !is_broken_connection(&error) || attempt == MAX_ATTEMPTS {
                return Err(self.failure(&error, &url));
            }
            if attempt == MAX_ATTEMPTS {
                return Err(self.failure(&error, &url));
            }
            std::thread::sleep(Duration::from_millis(100 * attempt));
        }
    }

    /// A file of another length than announced must not stay in the cache.
    fn check_size(&self, path: PathBuf, total: u64, url: &str) -> Result<PathBuf, HubError> {
        let len = fs::metadata(&path).map(|m| m.len()).unwrap_or(0);
        if len == total {
            return Ok(path);
        }
        if let Ok(blob) = path.canonicalize() {
            let _ = fs::remove_file(blob);
        }
        let _ = fs::remove_file(&path);
        Err(HubError::Protocol {
            id: self.label(),
            url: url.to_owned(),
            reason: format!("{len} bytes came, {total} were announced; run this again"),
        })
    }

    /// The snapshot in the cache for this revision, complete or not.
    fn cached_snapshot(&self) -> Option<PathBuf> {
        let root = self.hub.cache_dir.join(self.repo().folder_name());
        let named = fs::read_to_string(root.join("refs").join(&self.id.revision)).ok();
        let commit = named.as_deref().map_or(self.id.revision.as_str(), str::trim);
        Some(root.join("snapshots").join(commit)).filter(|dir| dir.is_dir())
    }

    fn repo(&self) -> Repo {
        Repo::with_revision(self.id.name.clone(), RepoType::Model, self.id.revision.clone())
    }

    fn label(&self) -> String {
        match self.id.revision.as_str() {
            "main" => self.id.name.clone(),
            revision => format!("{}@{revision}", self.id.name),
        }
    }

    fn failure(&self, error: &ApiError, url: &str) -> HubError {
        let (id, url) = (self.label(), url.to_owned());
        match error {
            ApiError::RequestError(request) => match request.as_ref() {
                ureq::Error::StatusCode(404) => HubError::NotFound { id, url },
                ureq::Error::StatusCode(status @ (401 | 403)) => {
                    HubError::Gated { id, url, status: *status }
                }
                ureq::Error::StatusCode(status) if *status < 500 => {
                    HubError::Protocol { id, url, reason: format!("status {status}") }
                }
                ureq::Error::Json(error) => {
                    HubError::Protocol { id, url, reason: error.to_string() }
                }
                other => HubError::Network { id, url, reason: other.to_string() },
            },
            ApiError::IoError(error) => self.io_failure(error, &url),
            ApiError::LockAcquisition(path) => HubError::Cache {
                id,
                url,
                cache_dir: self.hub.cache_dir.clone(),
                reason: format!("another process is downloading it (lock {})", path.display()),
            },
            other => HubError::Protocol { id, url, reason: other.to_string() },
        }
    }

    fn io_failure(&self, error: &io::Error, url: &str) -> HubError {
        let (id, url, reason) = (self.label(), url.to_owned(), error.to_string());
        let cache_dir = self.hub.cache_dir.clone();
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                HubError::DiskFull { id, url, cache_dir }
            }
            io::ErrorKind::PermissionDenied
            | io::ErrorKind::ReadOnlyFilesystem
            | io::ErrorKind::NotADirectory
            | io::ErrorKind::AlreadyExists
            | io::ErrorKind::NotFound => HubError::Cache { id, url, cache_dir, reason },
            _ => HubError::Network { id, url, reason },
        }
    }
}

/// Passes the progress of one file on.
struct Report<'a> {
    progress: &'a mut dyn DownloadProgress,
    file: &'a str,
    done: u64,
    total: &'a mut u64,
}

impl Progress for Report<'_> {
    fn init(&mut self, size: usize, _: &str) {
        (self.done, *self.total) = (0, size as u64);
        self.progress.update(self.file, 0, *self.total);
    }

    fn update(&mut self, size: usize) {
        self.done += size as u64;
        self.progress.update(self.file, self.done, *self.total);
    }

    fn finish(&mut self) {
        self.progress.update(self.file, self.done, *self.total);
    }
}

/// The part on disk is as long as the file or longer: nothing is left to ask for.
fn needs_fresh_start(error: &ApiError) -> bool {
    match error {
        ApiError::InvalidResume => true,
        ApiError::RequestError(request) => {
            matches!(request.as_ref(), ureq::Error::StatusCode(416))
        }
        _ => false,
    }
}

/// Worth another attempt.
fn is_broken_connection(error: &ApiError) -> bool {
    use io::ErrorKind as Kind;
    let broken = |kind| {
        matches!(
            kind,
            Kind::UnexpectedEof
                | Kind::ConnectionReset
                | Kind::ConnectionAborted
                | Kind::BrokenPipe
                | Kind::TimedOut
                | Kind::Interrupted
                | Kind::Other
        )
    };
    match error {
        ApiError::IoError(error) => broken(error.kind()),
        ApiError::RequestError(request) => match request.as_ref() {
            ureq::Error::Io(error) => broken(error.kind()),
            ureq::Error::StatusCode(status) => *status >= 500,
            _ => false,
        },
        _ => false,
    }
}

/// Everything a model may need is there, so the Hub need not be asked.
fn is_complete(dir: &Path) -> bool {
    let small = ["config.json", "tokenizer.json", "tokenizer_config.json"];
    small.iter().all(|name| dir.join(name).is_file()) && has_weights(dir)
}

fn has_weights(dir: &Path) -> bool {
    let index = dir.join(WEIGHTS_INDEX);
    dir.join(WEIGHTS).is_file()
        || shards(&index).is_some_and(|names| names.iter().all(|name| dir.join(name).is_file()))
}

/// The files an index names.
fn shards(index: &Path) -> Option<BTreeSet<String>> {
    let index: Value = serde_json::from_slice(&fs::read(index).ok()?).ok()?;
    let names = index["weight_map"].as_object()?.values();
    let names: BTreeSet<String> =
        names.map(|name| name.as_str().map(str::to_owned)).collect::<Option<_>>()?;
    let plain = |name: &String| !name.contains(['/', '\\']) && !name.starts_with('.');
    (!names.is_empty() && names.iter().all(plain)).then_some(names)
}
