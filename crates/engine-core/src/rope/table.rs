use std::sync::OnceLock;

use super::frequencies::Frequencies;

/// Positions computed together.
const PAGE_LEN: usize = 256;
/// Pages kept; positions beyond are computed each time.
const MAX_PAGES: usize = 1 << 16;

/// Cosines and sines by position, in pages that are filled on first use. Readers never wait for
/// each other.
#[derive(Debug)]
pub(super) struct Table {
    frequencies: Frequencies,
    /// Each `[PAGE_LEN, rotary_dim]`.
    pages: Vec<OnceLock<Box<[f32]>>>,
}

impl Table {
    /// A table for positions below `positions`; later ones are answered too, only slower.
    pub(super) fn new(frequencies: Frequencies, positions: usize) -> Self {
        let num_pages = positions.div_ceil(PAGE_LEN).min(MAX_PAGES);
        Self { frequencies, pages: (0..num_pages).map(|_| OnceLock::new()).collect() }
    }

    /// Writes the cosines, then the sines of `position` to `out [rotary_dim]`.
    pub(super) fn read(&self, position: usize, out: &mut [f32]) {
        let Some(page) = self.pages.get(position / PAGE_LEN) else {
            return self.frequencies.write(position, out);
        };
        let rows = page.get_or_init(|| self.fill(position - position % PAGE_LEN));
        let start = position % PAGE_LEN * out.len();
        out.copy_from_slice(&rows[start..start + out.len()]);
    }

    fn fill(&self, first: usize) -> Box<[f32]> {
        let rotary_dim = self.frequencies.rotary_dim();
        let mut rows = vec![0.0; PAGE_LEN * rotary_dim];
        for (i, row) in rows.chunks_exact_mut(rotary_dim).enumerate() {
            self.frequencies.write(first + i, row);
        }
        rows.into_boxed_slice()
    }
}
