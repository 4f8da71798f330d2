//! AWQ's scales of a layer: the search, and where their inverses go.

use burn_tensor::{ElementConversion, Tensor};
use engine_quant::{Dense, Method, Scheme, SliceRows, awq};

use super::{
    CalibrateError, CalibrationEvent, Output, UnscaledReason, batches::Batch, layer::Layer,
    stage::Stage,
};
use crate::ModelBackend;

/// Scales the inputs of a layer's matrices where the plan says AWQ and it helps. The layer computes
/// the same as before, up to rounding.
pub(super) fn scale_layer<B: ModelBackend>(
    layer: &mut Layer<B>,
    batches: &[Batch<B>],
    hidden: &[Tensor<B, 2>],
    output: &mut Output<'_>,
) -> Result<(), CalibrateError> {
    let uses_awq = [&layer.qkv, &layer.o, &layer.gate_up, &layer.down].map(uses_awq);
    if !uses_awq.contains(&true) {
        return Ok(());
    }
    let normed: Vec<_> = hidden.iter().map(|x| layer.normed(x, &layer.input_layernorm)).collect();
    let attended = map(batches, &normed, |batch, x| layer.attend(layer.qkv.forward(x), batch));
    let added: Vec<_> =
        attended.iter().map(|x| layer.after_attention(layer.o.forward(x.clone()))).collect();

    if let Some(scales) = search(&layer.qkv, &normed, None, output, |weight| {
        let change = |(i, x): (usize, &Tensor<B, 2>)| {
            let attended = layer.attend(layer.qkv.forward_with(weight, x.clone()), &batches[i]);
            distance(layer.after_attention(layer.o.forward(attended)), &added[i])
        };
        normed.iter().enumerate().map(change).sum()
    })? {
        layer.qkv.scale_columns(&scales)?;
        layer.input_layernorm.divide(&scales);
    }
    let shared_heads = layer.has_grouped_heads().then_some(UnscaledReason::GroupedHeads);
    let obstacle = shared_heads.or_else(|| kept_source(&layer.qkv));
    if let Some(scales) = search(&layer.o, &attended, obstacle, output, |weight| {
        let out = |x: &Tensor<B, 2>| layer.after_attention(layer.o.forward_with(weight, x.clone()));
        attended.iter().zip(&added).map(|(x, added)| distance(out(x), added)).sum()
    })? {
        layer.o.scale_columns(&scales)?;
        layer.qkv.divide_last_rows(&scales)?;
    }
    drop((normed, attended));

    let normed: Vec<_> = hidden
        .iter()
        .zip(added)
        .map(|(x, added)| layer.normed(&(x.clone() + added), &layer.pre_feedforward_layernorm))
        .collect();
    let activated: Vec<_> =
        normed.iter().map(|x| layer.gated(layer.gate_up.forward(x.clone()))).collect();
    let added: Vec<_> =
        activated.iter().map(|x| layer.after_mlp(layer.down.forward(x.clone()))).collect();
    if let Some(scales) = search(&layer.gate_up, &normed, None, output, |weight| {
        let out = |x: &Tensor<B, 2>| {
            let activated = layer.gated(layer.gate_up.forward_with(weight, x.clone()));
            layer.after_mlp(layer.down.forward(activated))
        };
        normed.iter().zip(&added).map(|(x, added)| distance(out(x), added)).sum()
    })? {
        layer.gate_up.scale_columns(&scales)?;
        layer.pre_feedforward_layernorm.divide(&scales);
    }
    if let Some(scales) =
        search(&layer.down, &activated, kept_source(&layer.gate_up), output, |weight| {
            let out =
                |x: &Tensor<B, 2>| layer.after_mlp(layer.down.forward_with(weight, x.clone()));
            activated.iter().zip(&added).map(|(x, added)| distance(out(x), added)).sum()
        })?
    {
        layer.down.scale_columns(&scales)?;
        layer.gate_up.divide_last_rows(&scales)?;
    }
    Ok(())
}

fn map<B: ModelBackend>(
    batches: &[Batch<B>],
    inputs: &[Tensor<B, 2>],
    f: impl Fn(&Batch<B>, Tensor<B, 2>) -> Tensor<B, 2>,
) -> Vec<Tensor<B, 2>> {
    batches.iter().zip(inputs).map(|(batch, x)| f(batch, x.clone())).collect()
}

fn is_awq(scheme: Scheme) -> bool {
    matches!(scheme, Scheme::Quantize { method: Method::Awq { .. }, .. })
}

fn uses_awq<B: ModelBackend>(stage: &Stage<B>) -> bool {
    stage.projections.iter().any(|projection| is_awq(projection.scheme))
}

/// The last matrix of the stage before takes the inverse scales, which its own format may not hold.
fn kept_source<B: ModelBackend>(stage: &Stage<B>) -> Option<UnscaledReason> {
    let kept = stage.projections.last().is_some_and(|last| last.scheme == Scheme::Keep);
    kept.then_some(UnscaledReason::SourceKept)
}

/// The scales of a stage's input, or none; `loss` is the change of the block's output with other
/// weights.
fn search<B: ModelBackend>(
    stage: &Stage<B>,
    inputs: &[Tensor<B, 2>],
    obstacle: Option<UnscaledReason>,
    output: &mut Output<'_>,
    mut loss: impl FnMut(&Dense<B>) -> f64,
) -> Result<Option<Vec<f32>>, CalibrateError> {
    if !uses_awq(stage) {
        return Ok(None);
    }
    let kept = stage.projections.iter().any(|projection| projection.scheme == Scheme::Keep);
    let reason = match obstacle.or(kept.then_some(UnscaledReason::SharedInputKept)) {
        Some(reason) => reason,
        None => {
            let magnitudes = magnitudes(inputs, stage.columns);
            let profile = profile(stage);
            let found = awq::search_scales(&magnitudes, &profile, |scales| {
                stage.round_scaled(scales).map(|weight| loss(&weight))
            })?;
            if found.exponent.is_some() {
                return Ok(Some(found.scales));
            }
            UnscaledReason::NoGain
        }
    };
    for projection in stage.projections.iter().filter(|projection| is_awq(projection.scheme)) {
        let event = CalibrationEvent::Unscaled(projection.name.clone(), reason);
        output.send(&projection.name, event)?;
    }
    Ok(None)
}

/// Relative sizes of the weights in the groups of the first matrix that AWQ quantizes.
fn profile<B: ModelBackend>(stage: &Stage<B>) -> Vec<f64> {
    let group = stage.projections.iter().find_map(|projection| match projection.scheme {
        Scheme::Quantize { grid, method: Method::Awq { .. } } => Some(grid.group()),
        _ => None,
    });
    let matrices: Vec<SliceRows<'_>> =
        stage.projections.iter().map(|projection| projection.matrix(stage.columns)).collect();
    awq::magnitude_profile(&matrices, group.unwrap_or(engine_quant::Group::Row))
}

/// Mean of `|x|` of each column.
fn magnitudes<B: ModelBackend>(inputs: &[Tensor<B, 2>], columns: usize) -> Vec<f64> {
    let mut sums = vec![0.0; columns];
    let mut rows = 0;
    for x in inputs {
        let data = x.clone().abs().sum_dim(0).into_data();
        sums.iter_mut().zip(data.iter::<f32>()).for_each(|(sum, x)| *sum += f64::from(x));
        rows += x.dims()[0];
    }
    sums.iter_mut().for_each(|sum| *sum /= rows.max(1) as f64);
    sums
}

/// Sum of squared differences.
fn distance<B: ModelBackend>(a: Tensor<B, 2>, b: &Tensor<B, 2>) -> f64 {
    (a - b.clone()).powi_scalar(2).sum().into_scalar().elem::<f64>()
}
