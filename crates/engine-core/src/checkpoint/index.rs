//! `model.safetensors.index.json`: which shard has which tensor.

use std::{
    collections::BTreeMap,
    path::{Component, Path},
};

use serde::Deserialize;

use super::unique::UniqueMap;
use crate::{LoadError, config::json::read_file};

const MAX_BYTES: u64 = 64 << 20;

#[derive(Deserialize)]
struct Index {
    weight_map: UniqueMap<String>,
}

/// Shard of each tensor. The names are plain file names: none leads out of the directory.
pub(super) fn read_index(file: &Path) -> Result<BTreeMap<String, String>, LoadError> {
    let json = read_file(file, MAX_BYTES)?;
    let index: Index = serde_json::from_slice(&json)
        .map_err(|source| LoadError::Json { file: file.to_path_buf(), source })?;
    let UniqueMap(weight_map) = index.weight_map;
    for (tensor, shard) in &weight_map {
        if !is_plain_name(shard) {
            return Err(LoadError::Index {
                file: file.to_path_buf(),
                key: tensor.clone(),
                expected: "the name of a .safetensors file in the same directory".into(),
                found: format!("{shard:?}"),
                advice: "do not use a checkpoint from a source that you do not trust",
            });
        }
    }
    Ok(weight_map)
}

fn is_plain_name(name: &str) -> bool {
    let mut components = Path::new(name).components();
    let one = matches!(components.next(), Some(Component::Normal(part)) if part == name);
    // A backslash or a colon leads elsewhere on Windows.
    one && components.next().is_none()
        && !name.contains(['/', '\\', ':', '\0'])
        && name.ends_with(".safetensors")
}
