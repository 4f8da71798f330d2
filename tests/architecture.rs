//! The rules of the repository that no compiler checks: which crate may use which, how long a file
//! may be, where `unsafe` may stand, names that say nothing.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// What each crate may use of ours, and the beginnings of names that it must never use.
const CRATES: [(&str, &[&str], &[&str]); 6] = [
    ("engine-kv", &[], &["burn", "cubecl", "tokenizers"]),
    ("engine-sched", &["engine-kv"], &["burn", "cubecl", "tokenizers"]),
    ("engine-quant", &[], &["burn-wgpu", "burn-cuda", "tokenizers"]),
    ("engine-core", &["engine-quant"], &["burn-wgpu", "burn-cuda", "tokenizers", "minijinja"]),
    ("engine", &["engine-core", "engine-quant", "engine-kv", "engine-sched"], &[]),
    ("engine-bench", &["engine", "engine-core", "engine-quant", "engine-kv", "engine-sched"], &[]),
];

/// Files that are longer than the limit, with the length that they may not exceed. Shorten the list
/// and the numbers; a new entry needs a reason.
const LONG_FILES: [(&str, usize); 0] = [];
const MAX_LINES: usize = 600;

const FORBIDDEN_NAMES: [&str; 9] =
    ["utils", "common", "helpers", "misc", "manager", "handler", "base", "context", "types"];

fn packages() -> Vec<Value> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(ROOT)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    metadata["packages"].as_array().unwrap().clone()
}

/// Names of a package's dependencies that are part of its build, not of its tests.
fn normal_dependencies(package: &Value) -> BTreeSet<String> {
    let dependencies = package["dependencies"].as_array().unwrap();
    let normal = dependencies.iter().filter(|dependency| dependency["kind"].is_null());
    normal.map(|dependency| dependency["name"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn crates_use_each_other_in_one_direction() {
    let packages = packages();
    let named = |package: &&Value, name: &str| package["name"] == name;
    for package in &packages {
        let known = CRATES.iter().any(|(name, ..)| named(&package, name));
        assert!(known, "{} is not in the table of this test", package["name"]);
    }
    let ours: Vec<_> = CRATES.iter().map(|(name, ..)| *name).collect();
    for (name, allowed, never) in CRATES {
        let package = packages.iter().find(|package| named(package, name)).unwrap();
        for dependency in normal_dependencies(package) {
            let dependency = dependency.as_str();
            let foreign = !ours.contains(&dependency);
            assert!(foreign || allowed.contains(&dependency), "{name} uses {dependency}");
            let banned = never.iter().any(|prefix| dependency.starts_with(prefix));
            assert!(!banned, "{name} uses {dependency}");
        }
    }
}

#[test]
fn the_tests_of_the_control_plane_build_without_the_data_plane() {
    for package in packages() {
        if package["name"] == "engine-kv" || package["name"] == "engine-sched" {
            let dependencies = package["dependencies"].as_array().unwrap();
            let heavy = dependencies.iter().find(|dependency| {
                let name = dependency["name"].as_str().unwrap();
                name.starts_with("burn") || name == "engine" || name == "engine-core"
            });
            assert_eq!(heavy, None, "{}", package["name"]);
        }
    }
}

/// All Rust files of the repository, relative to its root, with their text.
fn rust_files() -> Vec<(PathBuf, String)> {
    let mut files = Vec::new();
    let mut folders: Vec<_> = ["src", "crates", "tests", "examples", "fuzz"]
        .iter()
        .map(|name| Path::new(ROOT).join(name))
        .filter(|folder| folder.is_dir())
        .collect();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() && !["target", "data", "corpus"].contains(&name.as_str()) {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                files.push((path.strip_prefix(ROOT).unwrap().to_owned(), text));
            }
        }
    }
    assert!(files.len() > 50, "only {} files found", files.len());
    files
}

#[test]
fn files_are_short() {
    let files = rust_files();
    for (path, text) in &files {
        let excepted = LONG_FILES.iter().find(|(name, _)| Path::new(name) == path);
        let limit = excepted.map_or(MAX_LINES, |(_, limit)| *limit);
        let lines = text.lines().count();
        assert!(lines <= limit, "{} has {lines} lines, {limit} are allowed", path.display());
    }
    for (name, _) in LONG_FILES {
        let file = files.iter().find(|(path, _)| path == Path::new(name));
        let still_long = file.is_some_and(|(_, text)| text.lines().count() > MAX_LINES);
        assert!(still_long, "{name} is not long any more: take it off the list");
    }
}

#[test]
fn names_say_something() {
    for (path, _) in rust_files() {
        let folders = path.iter().map(|part| part.to_string_lossy().into_owned());
        for part in folders {
            let stem = part.strip_suffix(".rs").unwrap_or(&part);
            let allowed = path.to_string_lossy().contains("tests/common/");
            assert!(allowed || !FORBIDDEN_NAMES.contains(&stem), "{}", path.display());
        }
    }
}

#[test]
fn unsafe_code_stays_where_it_is_explained() {
    let files = rust_files();
    let text = |name: &str| &files.iter().find(|(path, _)| path == Path::new(name)).unwrap().1;
    for krate in ["", "crates/engine-kv/", "crates/engine-sched/", "crates/engine-bench/"] {
        let name = format!("{krate}src/lib.rs");
        assert!(text(&name).contains("#![forbid(unsafe_code)]"), "{name}");
    }
    // Mapping a checkpoint into memory is the one thing outside the kernels that needs it.
    let explained = |path: &Path| {
        path.iter().any(|part| part == "backends")
            || path == Path::new("crates/engine-core/src/checkpoint/map.rs")
    };
    for (path, text) in &files {
        let is_test = path.iter().any(|part| part == "tests") || path.ends_with("tests.rs");
        let mut previous = ["", "", "", "", "", "", ""];
        for (number, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            let place = format!("{}:{}", path.display(), number + 1);
            let block = code.contains("unsafe {") || code.contains("unsafe impl");
            assert!(!block || is_test || explained(path), "{place} is unsafe");
            let near = previous.iter().chain([&line]).any(|line| line.contains("SAFETY:"));
            assert!(!block || is_test || near, "{place} has no `// SAFETY:`");
            previous.rotate_left(1);
            previous[6] = line;
        }
    }
}
