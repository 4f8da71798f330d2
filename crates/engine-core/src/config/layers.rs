//! Which layers attend to a window: by `layer_types`, or by the family's rule.

use super::{
    LayerConfig, MAX_POSITIONS,
    family::{Family, WindowRule},
    json::Fields,
};
use crate::LoadError;

/// Window and rotary embedding of each layer.
pub(super) fn read_layers(
    fields: &Fields<'_>,
    family: &Family,
    num_layers: usize,
    num_ropes: usize,
) -> Result<Vec<LayerConfig>, LoadError> {
    let window = window_len(fields, family)?;
    let by_rule = windowed_by_rule(fields, family, num_layers, window.is_some())?;
    let windowed = windowed_by_type(fields, num_layers)?.unwrap_or_else(|| by_rule.clone());
    // These families have one mask for all layers whatever the list says.
    let uniform = matches!(family.window, WindowRule::Never | WindowRule::All);
    if uniform && windowed != by_rule {
        let expected = match window {
            Some(_) => "sliding_attention in every layer, because sliding_window is set",
            None => "full_attention in every layer, because the model has no windows",
        };
        return Err(fields.error("layer_types", expected));
    }
    if window.is_none() && windowed.contains(&true) {
        let expected = "a number, because some layers are windowed";
        return Err(fields.error("sliding_window", expected));
    }
    let layer = |windowed: bool| LayerConfig {
        window: window.filter(|_| windowed),
        rope: if windowed { num_ropes - 1 } else { 0 },
    };
    Ok(windowed.into_iter().map(layer).collect())
}

/// Width of the windows: `null` is none, a missing key the family's default.
fn window_len(fields: &Fields<'_>, family: &Family) -> Result<Option<usize>, LoadError> {
    const KEY: &str = "sliding_window";
    let off = match family.window {
        WindowRule::Never => true,
        WindowRule::Upper => !fields.flag("use_sliding_window")?.unwrap_or(false),
        WindowRule::All | WindowRule::AllButEach(_) | WindowRule::Pattern(_) => false,
    };
    if off {
        return Ok(None);
    }
    let missing = if fields.contains(KEY) { None } else { family.sliding_window };
    Ok(fields.count(KEY, 1..=MAX_POSITIONS)?.or(missing))
}

fn windowed_by_rule(
    fields: &Fields<'_>,
    family: &Family,
    num_layers: usize,
    any: bool,
) -> Result<Vec<bool>, LoadError> {
    let layers = 0..num_layers;
    let all_but_each = |n: usize| layers.clone().map(|i| !(i + 1).is_multiple_of(n)).collect();
    Ok(match family.window {
        WindowRule::Never => vec![false; num_layers],
        WindowRule::All => vec![any; num_layers],
        WindowRule::Upper => {
            let full = fields.count("max_window_layers", 0..=MAX_POSITIONS)?.unwrap_or(28);
            layers.map(|i| any && i >= full).collect()
        }
        WindowRule::AllButEach(n) => all_but_each(n),
        WindowRule::Pattern(n) => {
            all_but_each(fields.count("sliding_window_pattern", 1..=MAX_POSITIONS)?.unwrap_or(n))
        }
    })
}

/// The windowed layers as `layer_types` lists them.
fn windowed_by_type(
    fields: &Fields<'_>,
    num_layers: usize,
) -> Result<Option<Vec<bool>>, LoadError> {
    const KEY: &str = "layer_types";
    let Some(types) = fields.texts(KEY)? else { return Ok(None) };
    if types.len() != num_layers {
        let expected = format!("{num_layers} types, one per layer, not {}", types.len());
        return Err(fields.error(KEY, expected));
    }
    let windowed = |name: &&str| match *name {
        "full_attention" => Ok(false),
        "sliding_attention" => Ok(true),
        _ => Err(fields.error(KEY, "full_attention or sliding_attention")),
    };
    types.iter().map(windowed).collect::<Result<_, _>>().map(Some)
}
