//! Products of many rows: arithmetic is the limit.
//!
//! Activations are copied once, and blocks of stored rows for each part, to where they lie vector
//! beside vector as a tile reads them ([`PanelDots`]). A panel of stored rows stays in the second
//! cache while all rows of activations go by, and the block of a tile of these stays in the first
//! cache while the panel goes by.

use std::cell::Cell;
use std::ops::Range;
use std::thread::LocalKey;

use super::dots::{PanelDots, prefetch};
use super::simd::{Kernel, Simd};
use super::threads;
use super::tiles::{BLOCK_BYTES, COLUMNS, Part, SharedMut, Sizes, block_len, steps};

/// Rows up to which each stored row is read from its first element to its last, since memory is
/// the limit.
const FEW_ROWS: usize = 16;

/// Stored rows of a panel.
const PANEL: usize = 64;

/// Tiles of activations that one thread copies at a time.
const TILES: usize = 4;

/// Rows of the largest tile, and lanes, of an instruction set.
pub struct Limits;

impl Kernel for Limits {
    type Output = (usize, usize);

    #[inline(always)]
    fn run<S: Simd>(self, _s: S) -> (usize, usize) {
        (S::TILE_ROWS, S::LANES)
    }
}

/// Activations block by block, of each block tile by tile, a tile's rows vector beside vector.
pub struct Tiles<X> {
    sizes: Sizes,
    lanes: usize,
    room: Room,
    first: *mut X,
}

// SAFETY: the pointer is to the room, which threads read.
unsafe impl<X: Sync> Sync for Tiles<X> {}

/// A few tiles of a block that are to be copied.
pub struct TilesPart<'a, X> {
    sizes: Sizes,
    /// `[all rows, width]`.
    from: &'a [f32],
    rows: Range<usize>,
    block: Range<usize>,
    /// The first of the tiles.
    to: SharedMut<X>,
}

impl<X: Send + Sync> Tiles<X> {
    /// Copies `x [rows, width]` for vectors of so many lanes; `place` calls [`TilesPart::place`].
    pub fn new(
        x: &[f32],
        sizes: Sizes,
        lanes: usize,
        place: impl Fn(TilesPart<'_, X>) + Send + Sync,
    ) -> Self {
        let Sizes { rows, width, tile, .. } = sizes;
        let bytes = rows * width.next_multiple_of(lanes) * size_of::<X>();
        let mut room = Room::of(&TILES_ROOM, bytes.div_ceil(size_of::<Line>()));
        let first = room.lines.as_mut_ptr().cast::<X>();
        let tiles = Self { sizes, lanes, room, first };
        let blocks = width.div_ceil(block_len::<X>());
        let parts = rows.div_ceil(TILES * tile);
        let run = |number: usize| {
            let (row, start) = (number % parts * TILES * tile, number / parts * block_len::<X>());
            let rows = row..rows.min(row + TILES * tile);
            let block = start..width.min(start + block_len::<X>());
            let to = SharedMut(tiles.tile(row, &block).cast_mut());
            place(TilesPart { sizes, from: x, rows, block, to });
        };
        if sizes.is_parallel() {
            threads::for_each(blocks * parts, run);
        } else {
            (0..blocks * parts).for_each(run);
        }
        tiles
    }

    /// The tile that begins with `row`.
    #[inline(always)]
    pub fn tile(&self, row: usize, block: &Range<usize>) -> *const X {
        let len = block.len().next_multiple_of(self.lanes);
        debug_assert!(
            (self.sizes.rows * block.start + row * len) * size_of::<X>()
                <= self.room.lines.len() * size_of::<Line>(),
            "a tile of another product"
        );
        self.first.wrapping_add(self.sizes.rows * block.start + row * len)
    }
}

impl<X> TilesPart<'_, X> {
    /// Copies the tiles.
    #[inline(always)]
    pub fn place<D: PanelDots<X = X>>(self, dots: D) {
        let Self { sizes, from, rows, block, to } = self;
        let len = block.len().next_multiple_of(D::LANES);
        for tile in steps(&rows, sizes.tile) {
            for (r, row) in tile.clone().enumerate() {
                let from = &from[row * sizes.width + block.start..][..block.len()];
                // SAFETY: `Tiles` has room for all rows, and each is copied by one thread.
                unsafe {
                    let to = to.at((tile.start - rows.start) * len + r * D::LANES);
                    dots.place(from.as_ptr(), from.len(), to, tile.len());
                }
            }
        }
    }
}

/// Where panels come from.
pub trait Fill<D: PanelDots> {
    /// What of a stored row's block is worth fetching early.
    fn bytes(&self, stored_row: usize, block: &Range<usize>) -> &[u8];

    /// Writes a block of the stored row as [`PanelDots`] says, `COLUMNS` vectors apart.
    ///
    /// # Safety
    /// The vectors can be written.
    unsafe fn fill(&mut self, dots: D, stored_row: usize, block: &Range<usize>, to: *mut D::X);
}

/// Multiplies a part.
#[inline(always)]
pub fn multiply<D: PanelDots, F: Fill<D>>(part: &Part, x: &Tiles<D::X>, dots: D, mut from: F) {
    let panel_rows = if part.rows.len() <= FEW_ROWS { COLUMNS } else { PANEL };
    let mut room = Room::of(&PANEL_ROOM, panel_rows * BLOCK_BYTES / size_of::<Line>());
    let panel = room.lines.as_mut_ptr().cast::<D::X>();
    for (columns, block) in passes::<D::X>(part, panel_rows) {
        let len = block.len().next_multiple_of(D::LANES);
        for (i, column) in columns.clone().enumerate() {
            if column + COLUMNS < columns.end {
                let ahead = from.bytes(column + COLUMNS, &block);
                ahead.chunks(size_of::<Line>()).for_each(|line| prefetch(line.as_ptr()));
            }
            // SAFETY: there is room for a block of each of `panel_rows` stored rows.
            unsafe {
                let to = panel.add(i / COLUMNS * COLUMNS * len + i % COLUMNS * D::LANES);
                from.fill(dots, column, &block, to);
            }
        }
        // SAFETY: the panel was filled.
        unsafe { multiply_panel(part, x, dots, (&columns, &block), panel) };
    }
}

/// The part in panels of stored rows and blocks: of each stored row the blocks in their order, and
/// these in the order in which caches like them.
fn passes<X>(
    part: &Part,
    panel_rows: usize,
) -> impl Iterator<Item = (Range<usize>, Range<usize>)> + use<X> {
    let (columns, width) = (part.columns.clone(), part.sizes.width);
    // Few rows stay in the cache as a whole while a panel goes by, of many only a block does.
    let pass = if panel_rows == COLUMNS { width.max(1) } else { block_len::<X>() };
    steps(&(0..width), pass).flat_map(move |pass| {
        steps(&columns, panel_rows).flat_map(move |columns| {
            steps(&pass, block_len::<X>()).map(move |block| (columns.clone(), block))
        })
    })
}

/// Multiplies all rows with a panel of `columns`.
///
/// # Safety
/// It holds a block of each.
#[inline(always)]
unsafe fn multiply_panel<D: PanelDots>(
    part: &Part,
    x: &Tiles<D::X>,
    dots: D,
    (columns, block): (&Range<usize>, &Range<usize>),
    panel: *const D::X,
) {
    for tile in steps(&part.rows, part.sizes.tile) {
        let (x, place) = (x.tile(tile.start, block), (tile.start, columns, block));
        // SAFETY: the caller's promise.
        unsafe {
            match tile.len() {
                6 => multiply_tile::<D, 6>(part, x, dots, place, panel),
                5 => multiply_tile::<D, 5>(part, x, dots, place, panel),
                4 => multiply_tile::<D, 4>(part, x, dots, place, panel),
                3 => multiply_tile::<D, 3>(part, x, dots, place, panel),
                2 => multiply_tile::<D, 2>(part, x, dots, place, panel),
                _ => multiply_tile::<D, 1>(part, x, dots, place, panel),
            }
        }
    }
}

/// Multiplies `R` rows with a panel.
///
/// # Safety
/// As for [`multiply_panel`].
#[inline(always)]
unsafe fn multiply_tile<D: PanelDots, const R: usize>(
    part: &Part,
    x: *const D::X,
    dots: D,
    (row, columns, block): (usize, &Range<usize>, &Range<usize>),
    panel: *const D::X,
) {
    let vectors = block.len().div_ceil(D::LANES);
    for (i, columns) in steps(columns, COLUMNS).enumerate() {
        part.prefetch::<R>(row, &columns);
        // SAFETY: the caller's promise; of the last columns, the room holds anything.
        let sums = unsafe {
            dots.panel_dots::<R>(x, panel.add(i * COLUMNS * vectors * D::LANES), vectors)
        };
        part.add(&sums, row, &columns);
    }
}

/// A line of the cache: a vector that begins with one is read from one.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line {
    _bytes: [u8; 64],
}

thread_local! {
    static PANEL_ROOM: Cell<Vec<Line>> = const { Cell::new(Vec::new()) };
    static TILES_ROOM: Cell<Vec<Line>> = const { Cell::new(Vec::new()) };
}

/// Memory that a thread keeps from one product to the next.
struct Room {
    lines: Vec<Line>,
    home: &'static LocalKey<Cell<Vec<Line>>>,
}

impl Room {
    /// At least so many lines, holding anything.
    fn of(home: &'static LocalKey<Cell<Vec<Line>>>, lines: usize) -> Self {
        let mut room = home.take();
        if room.len() < lines {
            room = vec![Line { _bytes: [0; 64] }; lines];
        }
        Self { lines: room, home }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.home.set(std::mem::take(&mut self.lines));
    }
}
