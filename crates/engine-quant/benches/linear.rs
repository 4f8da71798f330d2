//! Products of stored matrices on the CPU, beside a plain read of as many bytes.
//!
//! `cargo bench --workspace --bench linear`; divan prints bytes of weights per second for few rows,
//! where memory is the limit, and multiplications per second for many.
#![allow(clippy::unwrap_used, reason = "a benchmark")]

use burn_flex::{Flex, FlexDevice};
use burn_tensor::{DType, Tensor, TensorData};
use divan::counter::{BytesCount, ItemsCount};
use divan::{Bencher, black_box};
use engine_quant::{
    Activations, Dense, Grid, Group, Int4Range, Packed, SliceRows, WeightMatrix, round_to_nearest,
};
use rayon::prelude::*;

const OUT: usize = 2048;
const IN: usize = 5632;

/// Matrices that are read in turn, more bytes than the caches hold.
const COPIES: usize = 12;

/// Weights, and what activations are rounded to where it is not `f32`.
const FORMATS: [&str; 11] = [
    "bf16",
    "bf16+16bit",
    "int8",
    "int8+24bit",
    "int8+16bit",
    "int8+8bit",
    "int4:group=32",
    "int4:group=32+24bit",
    "int4:group=128",
    "int4:group=128+24bit",
    "nf4",
];

type Matrix = Box<dyn WeightMatrix<Flex>>;

fn main() {
    divan::main();
}

fn numbers(len: usize) -> Vec<f32> {
    let mut state = 1_u32;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as f32 / 2_147_483_648.0 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

/// The same matrix several times.
fn matrices(format: &str, count: usize) -> Vec<Matrix> {
    let (format, activations) = match format.split_once('+') {
        Some((format, activations)) => (format, activations.parse().unwrap()),
        None => (format, Activations::F32),
    };
    let values = numbers(OUT * IN);
    let int4 = |columns| Grid::Int4 { group: Group::Columns(columns), range: Int4Range::Sym8 };
    let grid = match format {
        "int8" => Grid::Int8,
        "int4:group=32" => int4(32),
        "int4:group=128" => int4(128),
        "nf4" => Grid::Nf4,
        _ => {
            let data = TensorData::new(values, [OUT, IN]).convert_dtype(DType::BF16);
            let upload = |_| Dense::upload_for(activations, data.clone(), &FlexDevice).unwrap();
            return (0..count).map(|i| Box::new(upload(i)) as Matrix).collect();
        }
    };
    let packed = round_to_nearest(&SliceRows { values: &values, columns: IN }, grid).unwrap();
    let upload = |_| Packed::upload_for(activations, packed.clone(), &FlexDevice).unwrap();
    (0..count).map(|i| Box::new(upload(i)) as Matrix).collect()
}

fn activations(rows: usize) -> Tensor<Flex, 2> {
    let data = TensorData::new(numbers(rows * IN), [rows, IN]);
    Tensor::from_data(data, (&FlexDevice, DType::F32))
}

/// The same format several times, so that no product finds its weights in a cache.
struct Turns {
    matrices: Vec<Matrix>,
    next: usize,
}

impl Turns {
    fn new(format: &str) -> Self {
        Self { matrices: matrices(format, COPIES), next: 0 }
    }

    fn next(&mut self) -> &dyn WeightMatrix<Flex> {
        self.next = (self.next + 1) % self.matrices.len();
        self.matrices[self.next].as_ref()
    }
}

/// The sum of all bytes' words, read on all threads: what memory can do.
#[divan::bench(args = FORMATS, sample_count = 40)]
fn read(bencher: Bencher<'_, '_>, format: &str) {
    let len = matrices(format, 1)[0].num_bytes() / 8;
    let copies: Vec<Vec<u64>> = (0..COPIES).map(|copy| vec![copy as u64; len]).collect();
    let mut next = 0;
    bencher.counter(BytesCount::new(len * 8)).bench_local(|| {
        next = (next + 1) % COPIES;
        let part = len.div_ceil(rayon::current_num_threads() * 4);
        let sum = |part: &[u64]| part.iter().fold(0, |sum: u64, &word| sum.wrapping_add(word));
        black_box(copies[next].par_chunks(part).with_max_len(1).map(sum).sum::<u64>())
    });
}

#[divan::bench(args = FORMATS, sample_count = 40)]
fn one_row(bencher: Bencher<'_, '_>, format: &str) {
    bytes(bencher, format, 1);
}

#[divan::bench(args = FORMATS, sample_count = 40)]
fn eight_rows(bencher: Bencher<'_, '_>, format: &str) {
    bytes(bencher, format, 8);
}

#[divan::bench(args = FORMATS, sample_count = 40)]
fn sixteen_rows(bencher: Bencher<'_, '_>, format: &str) {
    bytes(bencher, format, 16);
}

fn bytes(bencher: Bencher<'_, '_>, format: &str, rows: usize) {
    let (mut turns, x) = (Turns::new(format), activations(rows));
    let bytes = BytesCount::new(turns.next().num_bytes());
    bencher.counter(bytes).bench_local(|| black_box(turns.next().linear(x.clone())));
}

#[divan::bench(args = FORMATS, sample_count = 8)]
fn many_rows(bencher: Bencher<'_, '_>, format: &str) {
    const ROWS: usize = 512;
    let (matrix, x) = (matrices(format, 1).remove(0), activations(ROWS));
    let items = ItemsCount::new(ROWS * OUT * IN);
    bencher.counter(items).bench_local(|| black_box(matrix.linear(x.clone())));
}
