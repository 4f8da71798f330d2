//! The model that all others are compared with.

use std::{
    fs::File,
    io::{self, BufReader, BufWriter, Read, Seek, Write},
};

use engine::{EngineCore, Event, PromptReport, Request};

use super::compare::{Comparison, log_sum_exp};
use crate::{BenchError, perplexity::Window};

/// The reference model's logits of all scored positions.
///
/// They lie in a temporary file, `f32 [positions, vocab]`: the reference is the largest of the
/// models, so keeping it in memory beside each of the others, or running it again for each, would
/// cost more than reading a file once for each. In memory is one window.
pub(super) struct Reference {
    pub windows: Vec<Window>,
    pub nll: f64,
    pub positions: usize,
    vocab: usize,
    logits: File,
}

impl Reference {
    /// Runs the reference; `progress` hears how many windows are done.
    pub fn record(
        core: &mut EngineCore,
        windows: Vec<Window>,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Self, BenchError> {
        let vocab = core.info().config.vocab_size;
        let (mut nll, mut positions) = (0.0, 0);
        let mut file = BufWriter::new(tempfile::tempfile().map_err(scratch)?);
        for (done, window) in windows.iter().enumerate() {
            let logits = scored_logits(core, window)?;
            for (row, &token) in logits.chunks_exact(vocab).zip(scored_tokens(window)) {
                nll += log_sum_exp(row) - f64::from(row[token as usize]);
                positions += 1;
                for logit in row {
                    file.write_all(&logit.to_le_bytes()).map_err(scratch)?;
                }
            }
            progress(done + 1, windows.len());
        }
        let logits = file.into_inner().map_err(|error| scratch(error.into_error()))?;
        Ok(Self { windows, nll, positions, vocab, logits })
    }

    /// Runs another model over the same windows.
    pub fn compare(
        &mut self,
        core: &mut EngineCore,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Comparison, BenchError> {
        let (expected, found) = (self.vocab, core.info().config.vocab_size);
        if expected != found {
            return Err(BenchError::OtherVocabulary { expected, found });
        }
        self.logits.rewind().map_err(scratch)?;
        let mut file = BufReader::new(&self.logits);
        let mut sums = Comparison::default();
        let (mut bytes, mut reference) = (vec![0; 4 * self.vocab], vec![0.0; self.vocab]);
        for (done, window) in self.windows.iter().enumerate() {
            let logits = scored_logits(core, window)?;
            for (row, &token) in logits.chunks_exact(self.vocab).zip(scored_tokens(window)) {
                file.read_exact(&mut bytes).map_err(scratch)?;
                for (logit, bytes) in reference.iter_mut().zip(bytes.as_chunks().0) {
                    *logit = f32::from_le_bytes(*bytes);
                }
                sums.add(&reference, row, token);
            }
            progress(done + 1, self.windows.len());
        }
        Ok(sums)
    }
}

fn scored_tokens(window: &Window) -> &[u32] {
    &window.tokens[window.first_scored..]
}

/// Logits of the positions before the scored tokens, `[scored * vocab]`.
fn scored_logits(core: &mut EngineCore, window: &Window) -> Result<Vec<f32>, BenchError> {
    let request = Request::tokens(window.tokens.clone()).max_tokens(0);
    core.submit(request.prompt_report(PromptReport::Logits))?;
    let mut logits = Vec::new();
    while core.has_work() {
        for (_, event) in core.step() {
            if let Event::Prompt(prompt) = event? {
                logits = prompt.logits;
            }
        }
    }
    let vocab = core.info().config.vocab_size;
    if logits.len() != window.tokens.len() * vocab {
        return Err(BenchError::EndedEarly { batch: 1 });
    }
    // The row of a position predicts the token after it.
    logits.truncate((window.tokens.len() - 1) * vocab);
    logits.drain(..(window.first_scored - 1) * vocab);
    Ok(logits)
}

fn scratch(source: io::Error) -> BenchError {
    BenchError::Scratch { folder: std::env::temp_dir(), source }
}
