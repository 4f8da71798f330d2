use std::f64::consts::TAU;

use super::{RopeConfig, RopeScaling};

/// Inverse frequencies of one sequence length, and what multiplies the cosines and sines.
#[derive(Debug)]
pub(super) struct Frequencies {
    /// Angle per position, `[rotary_dim / 2]`.
    inv_freq: Vec<f32>,
    attention_factor: f32,
}

impl Frequencies {
    /// The frequencies of sequences of `rope_len` tokens.
    pub(super) fn new(config: &RopeConfig, rope_len: usize) -> Self {
        let plain = || inverse(&wavelengths(config.theta as f32, config.rotary_dim));
        let (inv_freq, attention_factor) = match &config.scaling {
            RopeScaling::None => (plain(), 1.0),
            RopeScaling::Linear { factor } => {
                (plain().iter().map(|f| f / *factor as f32).collect(), 1.0)
            }
            RopeScaling::Divided { factors } => {
                (plain().iter().zip(factors).map(|(freq, factor)| freq / factor).collect(), 1.0)
            }
            RopeScaling::Dynamic { factor } => {
                let base = dynamic_base(config, *factor, rope_len);
                (inverse(&wavelengths(base, config.rotary_dim)), 1.0)
            }
            RopeScaling::Llama3 { .. } => (llama3(&config.scaling, plain()), 1.0),
            RopeScaling::Yarn { .. } => (yarn(config), yarn_attention(&config.scaling)),
            RopeScaling::LongRope { short_factor, long_factor, .. } => {
                let long =
                    matches!(config.length(), super::RopeLength::Threshold(t) if rope_len > t);
                let factors = if long { long_factor } else { short_factor };
                let waves = wavelengths(config.theta as f32, config.rotary_dim);
                let scaled = factors.iter().zip(&waves).map(|(factor, wave)| 1.0 / (factor * wave));
                (scaled.collect(), longrope_attention(config))
            }
        };
        Self { inv_freq, attention_factor: attention_factor as f32 }
    }

    pub(super) fn rotary_dim(&self) -> usize {
        2 * self.inv_freq.len()
    }

    /// Writes the cosines, then the sines of `position` to `out [rotary_dim]`.
    ///
    /// The angle is the rounded `f32` product, as in the reference; its cosine is exact to the
    /// last bit because it is taken in `f64`.
    pub(super) fn write(&self, position: usize, out: &mut [f32]) {
        let (cos, sin) = out.split_at_mut(self.inv_freq.len());
        for ((freq, cos), sin) in self.inv_freq.iter().zip(cos).zip(sin) {
            let angle = f64::from(position as f32 * freq);
            *cos = angle.cos() as f32 * self.attention_factor;
            *sin = angle.sin() as f32 * self.attention_factor;
        }
    }
}

/// `base^(2i / dim)`, each rounded to `f32` once.
fn wavelengths(base: f32, dim: usize) -> Vec<f32> {
    let exponents = (0..dim / 2).map(|i| (2 * i) as f32 / dim as f32);
    exponents.map(|x| f64::from(base).powf(f64::from(x)) as f32).collect()
}

fn inverse(wavelengths: &[f32]) -> Vec<f32> {
    wavelengths.iter().map(|wave| 1.0 / wave).collect()
}

/// `theta · (factor · len / max − (factor − 1))^(dim / (dim − 2))` for `len` of at least `max`.
fn dynamic_base(config: &RopeConfig, factor: f64, rope_len: usize) -> f32 {
    let max = config.max_position_embeddings;
    if rope_len <= max {
        return config.theta as f32;
    }
    let dim = config.rotary_dim as f64;
    let growth = factor as f32 * rope_len as f32 / max as f32 - (factor - 1.0) as f32;
    let growth = f64::from(growth).powf(dim / (dim - 2.0)) as f32;
    config.theta as f32 * growth
}

/// Divides the low frequencies by the factor, keeps the high ones, and blends between.
fn llama3(scaling: &RopeScaling, plain: Vec<f32>) -> Vec<f32> {
    let &RopeScaling::Llama3 {
        factor,
        low_freq_factor: low,
        high_freq_factor: high,
        original_max_position_embeddings: original,
    } = scaling
    else {
        return plain;
    };
    let factor = factor as f32;
    let longest = (original as f64 / low) as f32;
    let shortest = (original as f64 / high) as f32;
    let scale = |freq: f32| {
        let wave = TAU as f32 / freq;
        if wave > longest {
            freq / factor
        } else if wave < shortest {
            freq
        } else {
            let smooth = (original as f32 / wave - low as f32) / (high - low) as f32;
            (1.0 - smooth) * freq / factor + smooth * freq
        }
    };
    plain.into_iter().map(scale).collect()
}

/// Interpolates slow dimensions, keeps fast ones, with a linear ramp over the dimensions between.
fn yarn(config: &RopeConfig) -> Vec<f32> {
    let waves = wavelengths(config.theta as f32, config.rotary_dim);
    let &RopeScaling::Yarn {
        factor,
        original_max_position_embeddings: original,
        beta_fast,
        beta_slow,
        truncate,
        ..
    } = &config.scaling
    else {
        return inverse(&waves);
    };
    let dim = config.rotary_dim as f64;
    let dimension_of = |rotations: f64| {
        dim * (original as f64 / (rotations * TAU)).ln() / (2.0 * config.theta.ln())
    };
    let (low, high) = (dimension_of(beta_fast), dimension_of(beta_slow));
    let (low, high) = if truncate { (low.floor(), high.ceil()) } else { (low, high) };
    let (low, high) = (low.max(0.0), high.min(dim - 1.0));
    let width = if low == high { 0.001 } else { high - low };
    let blend = |(i, wave): (usize, &f32)| {
        let ramp = ((i as f32 - low as f32) / width as f32).clamp(0.0, 1.0);
        let keep = 1.0 - ramp;
        1.0 / (factor as f32 * wave) * (1.0 - keep) + 1.0 / wave * keep
    };
    waves.iter().enumerate().map(blend).collect()
}

/// The temperature of YaRN: `0.1 · mscale · ln(factor) + 1`, or a quotient of two of them.
fn yarn_attention(scaling: &RopeScaling) -> f64 {
    let &RopeScaling::Yarn { factor, attention_factor, mscale, mscale_all_dim, .. } = scaling
    else {
        return 1.0;
    };
    let temperature = |mscale: f64| {
        if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 }
    };
    let given = |value: Option<f64>| value.filter(|&value| value != 0.0);
    match (attention_factor, given(mscale), given(mscale_all_dim)) {
        (Some(attention_factor), ..) => attention_factor,
        (None, Some(mscale), Some(all)) => temperature(mscale) / temperature(all),
        _ => temperature(1.0),
    }
}

/// `√(1 + ln(factor) / ln(original))` when the context is extended.
fn longrope_attention(config: &RopeConfig) -> f64 {
    let RopeScaling::LongRope {
        factor, attention_factor, original_max_position_embeddings, ..
    } = &config.scaling
    else {
        return 1.0;
    };
    let original = *original_max_position_embeddings as f64;
    let factor = factor.unwrap_or(config.max_position_embeddings as f64 / original);
    attention_factor.unwrap_or_else(|| {
        if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / original.ln()).sqrt() }
    })
}
