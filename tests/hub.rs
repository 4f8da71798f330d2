//! Downloads against a small server that speaks the Hub's routes.
#![allow(clippy::unwrap_used, clippy::panic)]
#![cfg(feature = "hub")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

use engine::{DownloadProgress, Hub, HubError};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// One request as the server saw it.
#[derive(Clone, Debug, PartialEq)]
struct Seen {
    path: String,
    range: Option<String>,
    token: Option<String>,
}

#[derive(Default)]
struct State {
    files: BTreeMap<String, Vec<u8>>,
    seen: Vec<Seen>,
    /// Whole-file requests of this file are cut in the middle, so many times.
    cuts: BTreeMap<String, usize>,
    /// Answers every request with this status.
    status: Option<u16>,
    /// Large files are at another address, as on the real Hub.
    redirect: bool,
}

struct Server {
    endpoint: String,
    state: Arc<Mutex<State>>,
}

impl Server {
    fn start(files: &[(&str, &[u8])]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let files = files.iter().map(|(n, b)| ((*n).to_owned(), b.to_vec())).collect();
        let state = Arc::new(Mutex::new(State { files, ..State::default() }));
        let (shared, address) = (Arc::clone(&state), endpoint.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (shared, address) = (Arc::clone(&shared), address.clone());
                // A client that hangs up is part of the tests.
                std::thread::spawn(move || answer(&stream.unwrap(), &shared, &address).ok());
            }
        });
        Self { endpoint, state }
    }

    fn hub(&self, cache: &Path) -> Hub {
        Hub {
            endpoint: self.endpoint.clone(),
            cache_dir: cache.join("hub"),
            token: None,
            offline: false,
        }
    }

    fn set(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap());
    }

    fn take_seen(&self) -> Vec<Seen> {
        std::mem::take(&mut self.state.lock().unwrap().seen)
    }
}

fn answer(mut stream: &TcpStream, state: &Mutex<State>, address: &str) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream).lines();
    let request = lines.next().unwrap_or_else(|| Ok(String::new()))?;
    let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut headers = BTreeMap::new();
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(": ") else { break };
        headers.insert(name.to_lowercase(), value.to_owned());
    }
    let range = headers.get("range").cloned();
    let (head, body) = {
        let mut state = state.lock().unwrap();
        let token = headers.get("authorization").cloned();
        state.seen.push(Seen { path: path.clone(), range: range.clone(), token });
        respond(&mut state, &path, range.as_deref(), address)
    };
    stream.write_all(head.as_bytes())?;
    stream.write_all(&body)
}

/// The head and the body, which may be shorter than the head says.
fn respond(state: &mut State, path: &str, range: Option<&str>, address: &str) -> (String, Vec<u8>) {
    let head = |status: &str, len: usize, more: &str| {
        format!("HTTP/1.1 {status}\r\nContent-Length: {len}\r\n{more}Connection: close\r\n\r\n")
    };
    if let Some(status) = state.status {
        return (head(&format!("{status} No"), 0, ""), Vec::new());
    }
    if let Some(revision) = path.strip_prefix("/api/models/org/model/revision/") {
        if revision != "main" && revision != COMMIT {
            return (head("404 Not Found", 0, ""), Vec::new());
        }
        let siblings: Vec<_> =
            state.files.keys().map(|name| serde_json::json!({"rfilename": name})).collect();
        let body = serde_json::json!({"sha": COMMIT, "siblings": siblings}).to_string();
        return (head("200 OK", body.len(), ""), body.into_bytes());
    }
    let at_hub = path.strip_prefix(&format!("/org/model/resolve/{COMMIT}/"));
    let name = at_hub.or_else(|| path.strip_prefix("/elsewhere/")).unwrap_or_default();
    let Some(bytes) = state.files.get(name) else {
        return (head("404 Not Found", 0, ""), Vec::new());
    };
    let tag = format!("tag-of-{}", name.replace('.', "-"));
    if state.redirect && at_hub.is_some() && name.ends_with(".safetensors") {
        let more = format!(
            "Location: {address}/elsewhere/{name}\r\nX-Repo-Commit: {COMMIT}\r\nX-Linked-Etag: \"{tag}\"\r\n"
        );
        return (head("302 Found", 0, &more), Vec::new());
    }
    let asked = range.and_then(|range| range.strip_prefix("bytes=")?.split_once('-'));
    let start = asked.and_then(|(start, _)| start.parse().ok()).unwrap_or(0);
    let last = asked.and_then(|(_, end)| end.parse().ok()).unwrap_or(bytes.len() - 1);
    if start >= bytes.len() {
        return (head("416 Range Not Satisfiable", 0, ""), Vec::new());
    }
    let mut body = bytes[start..=last].to_vec();
    let more = format!(
        "Content-Range: bytes {start}-{last}/{}\r\nETag: \"{tag}\"\r\nX-Repo-Commit: {COMMIT}\r\n",
        bytes.len()
    );
    let head = head("206 Partial Content", body.len(), &more);
    if body.len() > 1
        && let Some(cuts) = state.cuts.get_mut(name).filter(|cuts| **cuts > 0)
    {
        *cuts -= 1;
        body.truncate(body.len() / 2);
    }
    (head, body)
}

/// Reports that are checked as they come.
#[derive(Default)]
struct Log(BTreeMap<String, (u64, u64)>);

impl DownloadProgress for Log {
    fn update(&mut self, file: &str, done: u64, total: u64) {
        assert!(done <= total, "{file}: {done} of {total}");
        self.0.insert(file.to_owned(), (done, total));
    }
}

const SMALL: [(&str, &[u8]); 4] = [
    ("config.json", b"{\"a\": 1}"),
    ("tokenizer.json", b"{}"),
    ("tokenizer_config.json", b"{}"),
    ("README.md", b"not needed"),
];

fn with_weights(weights: &[u8]) -> Vec<(&str, &[u8])> {
    let mut files = SMALL.to_vec();
    files.push(("model.safetensors", weights));
    files.push(("pytorch_model.bin", b"not needed"));
    files
}

fn silent() -> impl DownloadProgress {
    |_: &str, _: u64, _: u64| ()
}

#[test]
fn a_model_is_downloaded_once_and_then_taken_from_the_cache() {
    let weights = vec![7u8; 300_000];
    let server = Server::start(&with_weights(&weights));
    let cache = tempfile::tempdir().unwrap();
    let mut hub = server.hub(cache.path());
    let mut log = Log::default();
    let dir = hub.resolve("org/model", &mut log).unwrap();
    assert_eq!(fs::read(dir.join("model.safetensors")).unwrap(), weights);
    assert_eq!(fs::read(dir.join("config.json")).unwrap(), b"{\"a\": 1}");
    assert!(!dir.join("README.md").exists() && !dir.join("pytorch_model.bin").exists());
    assert_eq!(log.0["model.safetensors"], (300_000, 300_000));
    assert_eq!(log.0.len(), 4);
    // The layout that all Hugging Face libraries share.
    assert_eq!(dir, cache.path().join("hub/models--org--model/snapshots").join(COMMIT));
    let named = fs::read_to_string(cache.path().join("hub/models--org--model/refs/main")).unwrap();
    assert_eq!(named, COMMIT);

    assert!(!server.take_seen().is_empty());
    assert_eq!(hub.resolve("org/model", &mut silent()).unwrap(), dir);
    assert_eq!(server.take_seen(), [], "the second time the network is not used");
    hub.offline = true;
    assert_eq!(hub.resolve("org/model", &mut silent()).unwrap(), dir);
    assert_eq!(hub.resolve(&format!("org/model@{COMMIT}"), &mut silent()).unwrap(), dir);
}

#[test]
fn a_cut_connection_is_taken_up_where_it_broke() {
    let weights: Vec<u8> = (0..200_000u32).map(|i| (i % 251) as u8).collect();
    let server = Server::start(&with_weights(&weights));
    server.set(|state| state.cuts = BTreeMap::from([("model.safetensors".to_owned(), 2)]));
    let cache = tempfile::tempdir().unwrap();
    let dir = server.hub(cache.path()).resolve("org/model", &mut silent()).unwrap();
    assert_eq!(fs::read(dir.join("model.safetensors")).unwrap(), weights);
    let ranges = ranges_of_weights(&server.take_seen());
    assert_eq!(ranges, ["bytes=0-", "bytes=100000-", "bytes=150000-"]);
}

#[test]
fn a_later_call_continues_what_an_earlier_one_left() {
    let weights: Vec<u8> = (0..200_000u32).map(|i| (i % 241) as u8).collect();
    let server = Server::start(&with_weights(&weights));
    server.set(|state| state.cuts = BTreeMap::from([("model.safetensors".to_owned(), 4)]));
    let cache = tempfile::tempdir().unwrap();
    let hub = server.hub(cache.path());
    let error = hub.resolve("org/model", &mut silent()).unwrap_err();
    assert!(matches!(error, HubError::Network { .. }), "{error:?}");
    assert!(error.to_string().contains("continues where it stopped"), "{error}");
    server.take_seen();
    let dir = hub.resolve("org/model", &mut silent()).unwrap();
    assert_eq!(fs::read(dir.join("model.safetensors")).unwrap(), weights);
    let ranges = ranges_of_weights(&server.take_seen());
    assert_eq!(ranges, ["bytes=187500-"], "and asks for the rest alone");
}

#[test]
fn a_part_that_is_already_whole_is_no_dead_end() {
    let weights = vec![1u8; 5000];
    let server = Server::start(&with_weights(&weights));
    let cache = tempfile::tempdir().unwrap();
    for left_over in [5000, 6000] {
        let blobs = cache.path().join("hub/models--org--model/blobs");
        let _ = fs::remove_dir_all(cache.path().join("hub"));
        fs::create_dir_all(&blobs).unwrap();
        fs::write(blobs.join("tag-of-model-safetensors.part"), vec![9u8; left_over]).unwrap();
        let dir = server.hub(cache.path()).resolve("org/model", &mut silent()).unwrap();
        assert_eq!(fs::read(dir.join("model.safetensors")).unwrap(), weights);
    }
}

/// The ranges asked of the weights, without the one-byte questions for their size.
fn ranges_of_weights(seen: &[Seen]) -> Vec<String> {
    let weights = seen.iter().filter(|seen| seen.path.ends_with("/model.safetensors"));
    let ranges = weights.filter_map(|seen| seen.range.clone());
    ranges.filter(|range| range != "bytes=0-0").collect()
}

#[test]
fn shards_are_those_that_the_index_names() {
    let index = br#"{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-1.safetensors"}}"#;
    let mut files = SMALL.to_vec();
    files.push(("model.safetensors.index.json", index));
    files.push(("model-1.safetensors", b"one"));
    files.push(("model-2.safetensors", b"two"));
    files.push(("model-3.safetensors", b"three"));
    let server = Server::start(&files);
    server.set(|state| state.redirect = true);
    let cache = tempfile::tempdir().unwrap();
    let dir = server.hub(cache.path()).resolve("org/model", &mut silent()).unwrap();
    assert_eq!(fs::read(dir.join("model-1.safetensors")).unwrap(), b"one");
    assert_eq!(fs::read(dir.join("model-2.safetensors")).unwrap(), b"two");
    assert!(!dir.join("model-3.safetensors").exists());
    server.take_seen();
    server.hub(cache.path()).resolve("org/model", &mut silent()).unwrap();
    assert_eq!(server.take_seen(), []);

    // An index may not reach out of the repository, nor name what is not there.
    for (weight_map, reason) in [("../../x", "names no shards"), ("model-9.safetensors", "model-9")]
    {
        let cache = tempfile::tempdir().unwrap();
        let index = serde_json::json!({"weight_map": {"a": weight_map}}).to_string();
        let name = "model.safetensors.index.json".to_owned();
        server.set(|state| drop(state.files.insert(name, index.into_bytes())));
        let error = server.hub(cache.path()).resolve("org/model", &mut silent()).unwrap_err();
        assert!(matches!(error, HubError::NotAModel { .. }), "{error:?}");
        assert!(error.to_string().contains(reason), "{error}");
    }
}

#[test]
fn the_token_is_sent_and_a_refusal_asks_for_one() {
    let server = Server::start(&with_weights(b"weights"));
    let cache = tempfile::tempdir().unwrap();
    let mut hub = server.hub(cache.path());
    for status in [401, 403] {
        server.set(|state| state.status = Some(status));
        let error = hub.resolve("org/model", &mut silent()).unwrap_err();
        assert!(matches!(error, HubError::Gated { status: found, .. } if found == status));
        let text = error.to_string();
        assert!(text.contains("HF_TOKEN") && text.contains("org/model"), "{text}");
        assert!(text.contains(&server.endpoint), "{text}");
    }
    server.set(|state| state.status = None);
    hub.token = Some("hf_secret".to_owned());
    server.take_seen();
    hub.resolve("org/model", &mut silent()).unwrap();
    let seen = server.take_seen();
    assert!(!seen.is_empty());
    assert!(seen.iter().all(|s| s.token.as_deref() == Some("Bearer hf_secret")), "{seen:?}");
}

#[test]
fn what_cannot_be_downloaded_is_explained() {
    let cache = tempfile::tempdir().unwrap();
    let server = Server::start(&SMALL);
    let hub = server.hub(cache.path());
    let error = hub.resolve("org/model", &mut silent()).unwrap_err();
    assert!(matches!(error, HubError::NotAModel { .. }), "{error:?}");
    assert!(error.to_string().contains("no safetensors"), "{error}");

    let error = hub.resolve("org/other", &mut silent()).unwrap_err();
    assert!(matches!(error, HubError::NotFound { .. }), "{error:?}");
    let error = hub.resolve("org/model@v9", &mut silent()).unwrap_err();
    assert!(error.to_string().starts_with("org/model@v9: not found at http://127"), "{error}");

    // A port that nobody listens on.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let gone = Hub { endpoint: format!("http://{port}"), ..hub.clone() };
    let error = gone.resolve("org/model", &mut silent()).unwrap_err();
    assert!(matches!(error, HubError::Network { .. }), "{error:?}");

    server.take_seen();
    let offline = Hub { offline: true, ..hub.clone() };
    let error = offline.resolve("org/model", &mut silent()).unwrap_err();
    assert!(matches!(error, HubError::Offline { .. }), "{error:?}");
    assert!(error.to_string().contains("HF_HUB_OFFLINE"), "{error}");
    assert_eq!(server.take_seen(), []);

    server.set(|state| drop(state.files.remove("config.json")));
    let error = hub.resolve("org/model", &mut silent()).unwrap_err();
    assert!(error.to_string().contains("no config.json"), "{error}");
}

#[test]
fn a_cache_that_cannot_be_written_is_named() {
    let server = Server::start(&with_weights(b"weights"));
    let cache = tempfile::tempdir().unwrap();
    fs::write(cache.path().join("hub"), b"a file where a directory should be").unwrap();
    let error = server.hub(cache.path()).resolve("org/model", &mut silent()).unwrap_err();
    assert!(matches!(error, HubError::Cache { .. }), "{error:?}");
    assert!(error.to_string().contains("HF_HOME"), "{error}");
}

#[test]
fn paths_never_reach_the_network() {
    let server = Server::start(&with_weights(b"weights"));
    let cache = tempfile::tempdir().unwrap();
    let hub = server.hub(cache.path());
    for path in ["./org/model", "../org/model", "/org/model", "org/model/", "models", "a/b/c"] {
        let error = hub.resolve(path, &mut silent()).unwrap_err();
        assert!(matches!(error, HubError::NoDirectory { .. }), "{path}: {error:?}");
    }
    let dir = cache.path().to_str().unwrap();
    assert_eq!(hub.resolve(dir, &mut silent()).unwrap(), cache.path());
    let file = cache.path().join("config.json");
    fs::write(&file, b"{}").unwrap();
    let error = hub.resolve(file.to_str().unwrap(), &mut silent()).unwrap_err();
    assert!(matches!(error, HubError::NotDirectory { .. }), "{error:?}");
    assert_eq!(server.take_seen(), []);
}
