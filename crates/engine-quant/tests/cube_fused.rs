//! Products with a norm before, a sum or a gate after them, against sums in `f64` on the host.
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "../../engine-core/tests/wgpu_device/mod.rs"]
mod wgpu_device;

use burn_tensor::{Tensor, TensorData};
use engine_quant::{
    Dense, Fused, GateFunction, Grid, Group, Int4Range, Packed, PackedMatrix, RowNorm, SliceRows,
    Then, WeightMatrix, round_to_nearest,
};
use half::{bf16, f16};
use wgpu_device::{Gpu, wgpu_device};

type Device = burn_wgpu::WgpuDevice;

const EPS: f32 = 1e-5;
const FUNCTIONS: [GateFunction; 4] =
    [GateFunction::Silu, GateFunction::GeluTanh, GateFunction::Gelu, GateFunction::Relu];

/// Reproducible numbers in [-1, 1).
fn numbers(seed: u32, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(12_345);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state
    };
    (0..len).map(|_| (next() >> 8) as f32 / 8_388_608.0 - 1.0).collect()
}

fn tensor<const D: usize>(values: &[f32], shape: [usize; D], device: &Device) -> Tensor<Gpu, D> {
    Tensor::from_data(TensorData::new(values.to_vec(), shape), device)
}

/// A gate's value from a definition other than the kernel's where there is one.
fn gate(x: f64, function: GateFunction) -> f64 {
    match function {
        GateFunction::Silu => x / (1.0 + (-x).exp()),
        GateFunction::Relu => x.max(0.0),
        GateFunction::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
            x / 2.0 * (1.0 + inner.tanh())
        }
        GateFunction::Gelu => x / 2.0 * (1.0 + erf(x / std::f64::consts::SQRT_2)),
    }
}

/// By its series; beyond 4.5 it is within 2e-10 of ±1.
fn erf(x: f64) -> f64 {
    if x.abs() > 4.5 {
        return x.signum();
    }
    let (mut term, mut sum) = (x, x);
    for n in 1..200 {
        term *= -x * x / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    sum * 2.0 / std::f64::consts::PI.sqrt()
}

/// One product, and the sum of the magnitudes of its terms.
#[derive(Clone, Copy)]
struct Product {
    value: f64,
    scale: f64,
}

/// One matrix on the device with its numbers.
struct Case<'a> {
    name: String,
    weight: &'a dyn WeightMatrix<Gpu>,
    numbers: Vec<f32>,
    device: &'a Device,
}

impl Case<'_> {
    fn products(&self, x: &[f32], norm: Option<&[f32]>) -> Vec<Product> {
        let [outputs, inputs] = self.weight.shape();
        let mut products = Vec::new();
        for x in x.chunks(inputs) {
            let mean = x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / inputs as f64;
            let factor = 1.0 / (mean + f64::from(EPS)).sqrt();
            let x: Vec<f64> = (0..inputs)
                .map(|k| f64::from(x[k]) * norm.map_or(1.0, |w| f64::from(w[k]) * factor))
                .collect();
            for out in 0..outputs {
                let term = |k: usize| x[k] * f64::from(self.numbers[out * inputs + k]);
                let value = (0..inputs).map(term).sum();
                let scale = (0..inputs).map(|k| term(k).abs()).sum();
                products.push(Product { value, scale });
            }
        }
        products
    }

    /// All that can stand around products of so many rows.
    fn check(&self, rows: usize) {
        let [outputs, inputs] = self.weight.shape();
        let x = numbers(rows as u32, rows * inputs);
        let norm = numbers(31, inputs);
        let other = numbers(32, rows * outputs);
        let input = tensor(&x, [rows, inputs], self.device);
        let norm_weight = tensor(&norm, [inputs], self.device);
        let added = tensor(&other, [rows, outputs], self.device);
        for normed in [false, true] {
            let products = self.products(&x, normed.then_some(&norm[..]));
            let run = |then| {
                let norm = RowNorm { weight: &norm_weight, eps: EPS };
                let fused = Fused { norm: normed.then_some(norm), then };
                let found = self.weight.fused_linear(&input, &fused).unwrap().into_data();
                found.to_vec::<f32>().unwrap()
            };
            let name = format!("{} of {rows} rows, norm {normed}", self.name);
            for (i, (found, product)) in run(Then::Keep).iter().zip(&products).enumerate() {
                close(&name, i, *found, product.value, product.scale);
            }
            for (i, (found, product)) in run(Then::Add(&added)).iter().zip(&products).enumerate() {
                let expected = product.value + f64::from(other[i]);
                close(&format!("{name}, sum"), i, *found, expected, product.scale + 1.0);
            }
            // Each function is a kernel of its own; what is around it does not depend on it.
            let functions = if rows == 1 && normed { &FUNCTIONS[..] } else { &FUNCTIONS[..1] };
            for &function in functions {
                let found = run(Then::Gate(function));
                let half = outputs / 2;
                assert_eq!(found.len(), rows * half, "{name}");
                for (i, found) in found.into_iter().enumerate() {
                    let at = i / half * outputs + i % half;
                    let (g, v) = (products[at], products[at + half]);
                    let expected = gate(g.value, function) * v.value;
                    let scale = (1.0 + g.scale) * (1.0 + v.scale);
                    close(&format!("{name}, {function:?}"), i, found, expected, scale);
                }
            }
        }
    }
}

fn close(name: &str, i: usize, found: f32, expected: f64, scale: f64) {
    let distance = (f64::from(found) - expected).abs();
    assert!(distance <= 3e-6 * scale, "{name}, {i}: found {found}, expected {expected}");
}

fn packed(shape: [usize; 2], grid: Grid) -> PackedMatrix {
    let values = numbers(7, shape[0] * shape[1]);
    round_to_nearest(&SliceRows { values: &values, columns: shape[1] }, grid).unwrap()
}

#[test]
fn packed_products_equal_their_parts() {
    let Some(device) = wgpu_device("packed_products_equal_their_parts") else { return };
    let int4 = |columns, range| Grid::Int4 { group: Group::Columns(columns), range };
    let grids = [Grid::Int8, Grid::Nf4, int4(32, Int4Range::Sym8), int4(20, Int4Range::Asym)];
    // One pair of rows, more than a cube has, odd columns, fewer than a vector, more than a stage.
    for shape in [[2, 1], [6, 7], [34, 64], [16, 172], [18, 1100]] {
        for grid in grids {
            let matrix = packed(shape, grid);
            let weight = Packed::<Gpu>::upload(matrix.clone(), &device).unwrap();
            let name = format!("{grid} {shape:?}");
            let numbers = matrix.dequantize();
            let case = Case { name, weight: &weight, numbers, device: &device };
            [1, 3, 8].into_iter().for_each(|rows| case.check(rows));
        }
    }
}

#[test]
fn dense_products_equal_their_parts() {
    let Some(device) = wgpu_device("dense_products_equal_their_parts") else { return };
    for shape in [[2, 8], [6, 24], [34, 64], [18, 1104]] {
        let values = numbers(8, shape[0] * shape[1]);
        let halves: Vec<f16> = values.iter().map(|&w| f16::from_f32(w)).collect();
        let brains: Vec<bf16> = values.iter().map(|&w| bf16::from_f32(w)).collect();
        let stored = [
            ("f32", TensorData::new(values.clone(), shape), values),
            ("f16", TensorData::new(halves.clone(), shape), to_f32(&halves)),
            ("bf16", TensorData::new(brains.clone(), shape), to_f32(&brains)),
        ];
        for (format, data, numbers) in stored {
            let weight = Dense::<Gpu>::upload(data, &device).unwrap();
            let name = format!("{format} {shape:?}");
            let case = Case { name, weight: &weight, numbers, device: &device };
            [1, 3, 8].into_iter().for_each(|rows| case.check(rows));
        }
    }
}

fn to_f32<T: Copy + Into<f32>>(values: &[T]) -> Vec<f32> {
    values.iter().map(|&value| value.into()).collect()
}

#[test]
fn a_row_does_not_depend_on_the_rows_beside_it() {
    let Some(device) = wgpu_device("a_row_does_not_depend_on_the_rows_beside_it") else { return };
    let shape = [6, 1104];
    let grid = Grid::Int4 { group: Group::Columns(32), range: Int4Range::Sym8 };
    let values = numbers(9, shape[0] * shape[1]);
    let halves: Vec<bf16> = values.iter().map(|&w| bf16::from_f32(w)).collect();
    let weights: [Box<dyn WeightMatrix<Gpu>>; 4] = [
        Box::new(Packed::<Gpu>::upload(packed(shape, grid), &device).unwrap()),
        Box::new(Packed::<Gpu>::upload(packed(shape, Grid::Int8), &device).unwrap()),
        Box::new(Dense::<Gpu>::upload(TensorData::new(values, shape), &device).unwrap()),
        Box::new(Dense::<Gpu>::upload(TensorData::new(halves, shape), &device).unwrap()),
    ];
    let x = numbers(10, 8 * shape[1]);
    let norm_weight = tensor(&numbers(11, shape[1]), [shape[1]], &device);
    for weight in &weights {
        let run = |rows: usize| {
            let norm = RowNorm { weight: &norm_weight, eps: EPS };
            let fused = Fused { norm: Some(norm), then: Then::Gate(GateFunction::Silu) };
            let x = tensor(&x[..rows * shape[1]], [rows, shape[1]], &device);
            weight.fused_linear(&x, &fused).unwrap().into_data().to_vec::<f32>().unwrap()
        };
        let all = run(8);
        for rows in [1, 2, 3, 5] {
            assert_eq!(run(rows), all[..rows * shape[0] / 2], "{}, {rows} rows", weight.format());
        }
    }
}

#[test]
fn what_has_no_kernel_says_so() {
    let Some(device) = wgpu_device("what_has_no_kernel_says_so") else { return };
    let keep = Fused { norm: None, then: Then::Keep };
    let has_kernel = |weight: &dyn WeightMatrix<Gpu>, rows: usize| {
        let [_, inputs] = weight.shape();
        let x = tensor(&numbers(1, rows * inputs), [rows, inputs], &device);
        weight.fused_linear(&x, &keep).is_some()
    };
    let mut matrix = packed([4, 64], Grid::Int8);
    let plain = Packed::<Gpu>::upload(matrix.clone(), &device).unwrap();
    assert!(has_kernel(&plain, 8));
    assert!(!has_kernel(&plain, 9), "more rows than one pass over the weights serves");
    matrix.factor = 2.0;
    assert!(!has_kernel(&Packed::<Gpu>::upload(matrix.clone(), &device).unwrap(), 1), "a factor");
    matrix.factor = 1.0;
    matrix.column_order = Some((0..64).rev().collect());
    assert!(!has_kernel(&Packed::<Gpu>::upload(matrix, &device).unwrap(), 1), "another order");
    let odd = Dense::<Gpu>::upload(TensorData::new(numbers(2, 30), [5, 6]), &device).unwrap();
    assert!(!has_kernel(&odd, 1), "rows that begin inside of a vector");
}
