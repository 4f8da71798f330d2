//! The rotary embedding's keys, in the spellings of transformers 4 and 5.

use super::{
    MAX_POSITIONS,
    family::{Architecture, Family},
    json::Fields,
};
use crate::{LoadError, RopeConfig, RopeScaling};

const THETA: std::ops::RangeInclusive<f64> = 1.000_001..=1e30;
const FACTOR: std::ops::RangeInclusive<f64> = 1.0..=1e6;

/// What the rotary embedding needs of the rest of the config.
pub(super) struct RopeShape {
    pub head_dim: usize,
    pub max_position_embeddings: usize,
}

/// The rotary embeddings of a model: one, or for Gemma 3 that of the full and that of the windowed
/// layers.
pub(super) fn read_ropes(
    fields: &Fields<'_>,
    family: &Family,
    shape: &RopeShape,
) -> Result<Vec<RopeConfig>, LoadError> {
    let old = fields.object("rope_scaling")?.filter(|scaling| !scaling.is_empty());
    let new = fields.object("rope_parameters")?.filter(|parameters| !parameters.is_empty());
    let reader = Reader { fields, family, shape };
    let Some(local_theta) = family.gemma.as_ref().and_then(|gemma| gemma.local_theta) else {
        if let Some(nested) = &new
            && (nested.contains("full_attention") || nested.contains("sliding_attention"))
        {
            let expected = "rope_theta and rope_type: this family has one rotary embedding";
            return Err(fields.error("rope_parameters", expected));
        }
        let theta = fields.number("rope_theta", THETA)?.unwrap_or(10_000.0);
        return Ok(vec![reader.read(old.or(new).as_ref(), theta)?]);
    };
    let (mut full, mut sliding) = (None, None);
    if let Some(parameters) = &new {
        full = parameters.object("full_attention")?;
        sliding = parameters.object("sliding_attention")?;
        if full.is_none() && sliding.is_none() {
            let expected = "the objects full_attention and sliding_attention";
            return Err(fields.error("rope_parameters", expected));
        }
    }
    let global_theta = fields.number("rope_theta", THETA)?.unwrap_or(1_000_000.0);
    let local_theta = fields.number("rope_local_base_freq", THETA)?.unwrap_or(local_theta);
    Ok(vec![
        reader.read(old.or(full).as_ref(), global_theta)?,
        reader.read(sliding.as_ref(), local_theta)?,
    ])
}

struct Reader<'a> {
    fields: &'a Fields<'a>,
    family: &'a Family,
    shape: &'a RopeShape,
}

impl Reader<'_> {
    /// One rotary embedding from its own object, and from the top level for what is not in it.
    fn read(&self, own: Option<&Fields<'_>>, theta: f64) -> Result<RopeConfig, LoadError> {
        let own_theta = own.map(|own| own.number("rope_theta", THETA)).transpose()?.flatten();
        let rotary_dim = self.rotary_dim(own)?;
        let scaling = match own {
            Some(own) => self.scaling(own, rotary_dim)?,
            None => RopeScaling::None,
        };
        Ok(RopeConfig {
            theta: own_theta.unwrap_or(theta),
            rotary_dim,
            max_position_embeddings: self.shape.max_position_embeddings,
            scaling,
        })
    }

    fn rotary_dim(&self, own: Option<&Fields<'_>>) -> Result<usize, LoadError> {
        const KEY: &str = "partial_rotary_factor";
        let place = own.filter(|own| own.value(KEY).is_some()).unwrap_or(self.fields);
        let factor = place.number(KEY, 0.0..=1.0)?.unwrap_or(1.0);
        let head_dim = self.shape.head_dim;
        let rotary_dim = (head_dim as f64 * factor) as usize;
        if rotary_dim == 0 || !rotary_dim.is_multiple_of(2) {
            let expected = format!(
                "a fraction of head_dim {head_dim} that is even and positive, not {rotary_dim}"
            );
            return Err(place.error(KEY, expected));
        }
        Ok(rotary_dim)
    }

    fn scaling(&self, own: &Fields<'_>, rotary_dim: usize) -> Result<RopeScaling, LoadError> {
        let key = if own.contains("rope_type") { "rope_type" } else { "type" };
        let kind = own.text(key)?.unwrap_or("default");
        let number = |key, range| own.number(key, range);
        let factor = || {
            let factor = number("factor", FACTOR)?;
            own.require("factor", "a number", factor)
        };
        // Phi-3 names its own scaling in three ways.
        let phi3 = self.family.architecture == Architecture::Phi3;
        match kind {
            "default" => Ok(RopeScaling::None),
            "longrope" => self.longrope(own, rotary_dim),
            "su" | "yarn" if phi3 => self.longrope(own, rotary_dim),
            _ if phi3 => Err(own.error(key, "default or longrope")),
            "linear" => Ok(RopeScaling::Linear { factor: factor()? }),
            "dynamic" if rotary_dim > 2 => Ok(RopeScaling::Dynamic { factor: factor()? }),
            "dynamic" => Err(own.error(key, "a scaling for 2 rotated dimensions")),
            "llama3" => self.llama3(own, factor()?),
            "yarn" => self.yarn(own),
            _ => Err(own.error(key, "default, linear, dynamic, yarn, llama3 or longrope")),
        }
    }

    fn llama3(&self, own: &Fields<'_>, factor: f64) -> Result<RopeScaling, LoadError> {
        let required = |key| own.require(key, "a number", own.number(key, 1e-3..=1e6)?);
        let low_freq_factor = required("low_freq_factor")?;
        let high_freq_factor = required("high_freq_factor")?;
        if high_freq_factor <= low_freq_factor {
            let expected = format!("more than low_freq_factor, {low_freq_factor}");
            return Err(own.error("high_freq_factor", expected));
        }
        Ok(RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings: self.original(own)?,
        })
    }

    fn yarn(&self, own: &Fields<'_>) -> Result<RopeScaling, LoadError> {
        let original = self.original(own)?;
        let declared = self.shape.max_position_embeddings as f64;
        let factor = own.number("factor", FACTOR)?.unwrap_or(declared / original as f64);
        // A zero means the default, as in the reference.
        let or = |value: Option<f64>, default| value.filter(|&x| x != 0.0).unwrap_or(default);
        let beta_fast = or(own.number("beta_fast", 0.0..=1e6)?, 32.0);
        let beta_slow = or(own.number("beta_slow", 0.0..=1e6)?, 1.0);
        if beta_fast < beta_slow {
            return Err(own.error("beta_fast", format!("at least beta_slow, {beta_slow}")));
        }
        Ok(RopeScaling::Yarn {
            factor,
            original_max_position_embeddings: original,
            attention_factor: own.number("attention_factor", 0.0..=1e6)?,
            mscale: own.number("mscale", 0.0..=1e6)?,
            mscale_all_dim: own.number("mscale_all_dim", 0.0..=1e6)?,
            beta_fast,
            beta_slow,
            truncate: own.flag("truncate")?.unwrap_or(true),
        })
    }

    fn longrope(&self, own: &Fields<'_>, rotary_dim: usize) -> Result<RopeScaling, LoadError> {
        let factors = |key| {
            let range = 1e-3..=1e6;
            own.require(key, "a list of numbers", own.numbers(key, rotary_dim / 2, range)?)
        };
        Ok(RopeScaling::LongRope {
            short_factor: factors("short_factor")?,
            long_factor: factors("long_factor")?,
            factor: own.number("factor", FACTOR)?,
            attention_factor: own.number("attention_factor", 0.0..=1e6)?,
            original_max_position_embeddings: self.original(own)?,
        })
    }

    /// The trained context: at the top level first (Phi-3), else beside the scaling's other keys,
    /// else the declared one.
    fn original(&self, own: &Fields<'_>) -> Result<usize, LoadError> {
        const KEY: &str = "original_max_position_embeddings";
        let top = self.fields.count(KEY, 2..=MAX_POSITIONS)?;
        let own = own.count(KEY, 2..=MAX_POSITIONS)?;
        let original = top.or(own).unwrap_or(self.shape.max_position_embeddings);
        if original < 2 {
            return Err(self.fields.error("max_position_embeddings", "at least 2"));
        }
        Ok(original)
    }
}
