//! GPTQ against what its definition says, on matrices without a model.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use engine_quant::{
    GptqFactor, GptqOptions, Grid, Group, Hessian, Int4Range, PackedMatrix, SliceRows, gptq,
    round_to_nearest,
};

const RANGES: [Int4Range; 4] =
    [Int4Range::Sym7, Int4Range::Sym8, Int4Range::Sym15, Int4Range::Asym];

/// Without and with act-order, without and with static groups.
fn all_orders() -> impl Iterator<Item = GptqOptions> {
    [(false, false), (true, false), (false, true), (true, true)].into_iter().map(
        |(act_order, static_groups)| GptqOptions { act_order, static_groups, ..Default::default() },
    )
}

fn int4(columns: usize, range: Int4Range) -> Grid {
    Grid::Int4 { group: Group::Columns(columns), range }
}

/// Numbers in −1 .. 1 that repeat with no period that matters here.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    fn take(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.next()).collect()
    }

    /// Rows whose columns depend on each other and differ in size.
    fn correlated(&mut self, rows: usize, columns: usize) -> Vec<f32> {
        let mut result = Vec::new();
        for _ in 0..rows {
            let (a, b) = (self.next(), self.next());
            result.extend((0..columns).map(|i| {
                let shared = if i % 3 == 0 { a } else { b };
                (shared + 0.5 * self.next()) * (1.0 + (i % 7) as f32)
            }));
        }
        result
    }
}

fn hessian(columns: usize, activations: &[f32]) -> Hessian {
    let mut hessian = Hessian::new(columns);
    hessian.add(activations).unwrap();
    hessian
}

fn quantize(values: &[f32], hessian: &Hessian, grid: Grid, options: GptqOptions) -> PackedMatrix {
    let factor = GptqFactor::new(hessian, options).unwrap();
    let packed = gptq(&SliceRows { values, columns: hessian.columns() }, &factor, grid).unwrap();
    packed.check().unwrap();
    packed
}

fn nearest(values: &[f32], columns: usize, grid: Grid) -> PackedMatrix {
    round_to_nearest(&SliceRows { values, columns }, grid).unwrap()
}

fn output_error(values: &[f32], packed: &PackedMatrix, hessian: &Hessian) -> f64 {
    let difference: Vec<f32> = values.iter().zip(packed.dequantize()).map(|(w, q)| w - q).collect();
    hessian.mean_square(&difference).unwrap()
}

#[test]
fn the_hessian_is_the_mean_of_the_outer_products() {
    // More rows than are widened at once, and columns beyond one task.
    let (rows, columns) = (131, 67);
    let x = Numbers(1).correlated(rows, columns);
    let found = hessian(columns, &x);
    assert_eq!((found.rows(), found.columns()), (rows, columns));
    let matrix = found.to_matrix();
    for i in 0..columns {
        for j in 0..columns {
            let products = x.chunks(columns).map(|x| f64::from(x[i]) * f64::from(x[j]));
            let expected = products.sum::<f64>() * 2.0 / rows as f64;
            assert!((matrix[i * columns + j] - expected).abs() < 1e-12 * (1.0 + expected.abs()));
        }
        assert_eq!(found.diagonal()[i], matrix[i * columns + i]);
    }
    // In two parts, and as a sum made elsewhere, it is the same.
    let mut parts = hessian(columns, &x[..5 * columns]);
    let gram: Vec<f32> = hessian(columns, &x[5 * columns..])
        .to_matrix()
        .iter()
        .map(|h| (h * 126.0 / 2.0) as f32)
        .collect();
    parts.add_gram(&gram, 126).unwrap();
    for (a, b) in parts.to_matrix().iter().zip(&matrix) {
        assert!((a - b).abs() < 1e-5 * (1.0 + b.abs()));
    }
}

#[test]
fn the_mean_square_is_that_of_the_outputs() {
    let (rows, columns, out) = (37, 21, 5);
    let mut numbers = Numbers(2);
    let (x, w) = (numbers.correlated(rows, columns), numbers.take(out * columns));
    let mut expected = 0.0;
    for x in x.chunks(columns) {
        for w in w.chunks(columns) {
            expected +=
                x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum::<f64>().powi(2);
        }
    }
    let found = hessian(columns, &x).mean_square(&w).unwrap();
    assert!((found / (expected / rows as f64) - 1.0).abs() < 1e-12);
}

#[test]
fn bad_activations_are_refused() {
    let mut hessian = Hessian::new(3);
    assert!(hessian.add(&[1.0, 2.0]).is_err());
    assert!(hessian.add(&[1.0, f32::NAN, 2.0]).is_err());
    assert!(hessian.add_gram(&[0.0; 8], 1).is_err());
    assert!(hessian.add_gram(&[f32::INFINITY; 9], 1).is_err());
    assert!(hessian.mean_square(&[1.0; 4]).is_err());
    assert_eq!(hessian.rows(), 0);
    let factor = GptqFactor::new(&hessian, GptqOptions::default()).unwrap();
    let gptq = |values| gptq(&SliceRows { values, columns: 2 }, &factor, Grid::Int8);
    assert!(gptq(&[1.0, 2.0]).is_err(), "other columns than the Hessian");
}

#[test]
fn without_correlations_it_is_round_to_nearest() {
    let columns = 77;
    let values = Numbers(3).take(9 * columns);
    let mut identity = vec![0.0; columns * columns];
    identity.iter_mut().step_by(columns + 1).for_each(|d| *d = 1.0);
    let hessians = [hessian(columns, &identity), Hessian::new(columns)];
    let mut grids: Vec<Grid> = RANGES.map(|range| int4(32, range)).to_vec();
    grids.extend(RANGES.map(|range| Grid::Int4 { group: Group::Row, range }));
    grids.extend([Grid::Int8, Grid::Int8Tensor, Grid::Nf4]);
    for grid in grids {
        for hessian in &hessians {
            let found = quantize(&values, hessian, grid, GptqOptions::default());
            assert_eq!(found, nearest(&values, columns, grid), "{grid}");
        }
    }
}

#[test]
fn the_output_error_is_never_above_that_of_round_to_nearest() {
    let mut numbers = Numbers(4);
    // One column, fewer than a block, a short last group, several blocks.
    for columns in [1, 2, 31, 44, 172, 300] {
        let x = numbers.correlated(2 * columns + 3, columns);
        let hessian = hessian(columns, &x);
        let values = numbers.take(19 * columns);
        let mut grids: Vec<Grid> = RANGES.map(|range| int4(32, range)).to_vec();
        grids.extend(RANGES.map(|range| Grid::Int4 { group: Group::Row, range }));
        grids.push(Grid::Int8);
        for grid in grids {
            let baseline = output_error(&values, &nearest(&values, columns, grid), &hessian);
            for options in all_orders() {
                let packed = quantize(&values, &hessian, grid, options);
                let error = output_error(&values, &packed, &hessian);
                let limit = if columns > 2 { 0.95 } else { 1.0 + 1e-9 };
                assert!(
                    error <= baseline * limit,
                    "{columns} columns, {grid}, {options:?}: {error} of {baseline}"
                );
            }
        }
    }
}

#[test]
fn the_block_changes_nothing() {
    let columns = 172;
    let mut numbers = Numbers(5);
    let hessian = hessian(columns, &numbers.correlated(400, columns));
    let values = numbers.take(21 * columns);
    for group in [Group::Columns(8), Group::Columns(32), Group::Columns(60), Group::Row] {
        for range in RANGES {
            let grid = Grid::Int4 { group, range };
            for options in all_orders().step_by(3) {
                let with =
                    |block| quantize(&values, &hessian, grid, GptqOptions { block, ..options });
                // One block is the plain algorithm, column after column.
                let plain = with(columns + group.columns(columns));
                for block in [1, 7, 32, 33, 128] {
                    let found = with(block);
                    // Sums in another order may tip a number that lies between two codes.
                    let pairs = found.codes.iter().zip(plain.codes.iter());
                    let different = pairs.filter(|(a, b)| a != b).count();
                    assert!(different <= 2, "{grid}, blocks of {block}: {different} differ");
                }
            }
        }
    }
}

/// The paper's algorithm as it is written there: one column after the other, the inverse by
/// elimination, in `f64`.
fn plain_gptq(values: &[f32], hessian: &Hessian, group: usize) -> Vec<f32> {
    let n = hessian.columns();
    let mut h = hessian.to_matrix();
    let mean = (0..n).map(|i| h[i * n + i]).sum::<f64>() / n as f64;
    (0..n).for_each(|i| h[i * n + i] += 0.01 * mean);
    let mut result = vec![0.0; values.len()];
    let grid = int4(group, Int4Range::Asym);
    let mut rows: Vec<Vec<f64>> =
        values.chunks(n).map(|row| row.iter().map(|&w| f64::from(w)).collect()).collect();
    let mut params = Vec::new();
    for i in 0..n {
        let inverse = invert(&h, n, i);
        let size = n - i;
        if i % group == 0 {
            let end = (i + group).min(n);
            params = rows
                .iter()
                .map(|row| grid.fit(&row[i..end].iter().map(|&w| w as f32).collect::<Vec<_>>()))
                .collect();
        }
        for (r, row) in rows.iter_mut().enumerate() {
            let rounded = grid.decode(grid.encode(row[i] as f32, params[r]), params[r]);
            result[r * n + i] = rounded;
            let error = (row[i] - f64::from(rounded)) / inverse[0];
            for k in 0..size {
                row[i + k] -= error * inverse[k];
            }
        }
        assert_eq!(inverse.len(), size * size);
    }
    result
}

/// The inverse of the part of `h [n, n]` from column `from` on.
fn invert(h: &[f64], n: usize, from: usize) -> Vec<f64> {
    let size = n - from;
    let mut a: Vec<Vec<f64>> = (0..size)
        .map(|i| {
            let mut row = h[(from + i) * n + from..][..size].to_vec();
            row.extend((0..size).map(|j| f64::from(u8::from(i == j))));
            row
        })
        .collect();
    for i in 0..size {
        let pivot = a[i][i];
        a[i].iter_mut().for_each(|x| *x /= pivot);
        let line = a[i].clone();
        for (k, row) in a.iter_mut().enumerate() {
            let factor = row[i];
            if k != i {
                row.iter_mut().zip(&line).for_each(|(x, l)| *x -= factor * l);
            }
        }
    }
    a.into_iter().flat_map(|row| row[size..].to_vec()).collect()
}

#[test]
fn it_equals_the_plain_algorithm() {
    let columns = 44;
    let mut numbers = Numbers(6);
    let hessian = hessian(columns, &numbers.correlated(90, columns));
    let values = numbers.take(7 * columns);
    for group in [16, 44] {
        let grid = int4(group, Int4Range::Asym);
        let packed =
            quantize(&values, &hessian, grid, GptqOptions { block: 32, ..Default::default() });
        assert_eq!(packed.dequantize(), plain_gptq(&values, &hessian, group));
    }
}

#[test]
fn act_order_is_the_same_as_sorting_the_columns_by_hand() {
    let (columns, rows) = (70, 200);
    let mut numbers = Numbers(7);
    let x = numbers.correlated(rows, columns);
    let unsorted = hessian(columns, &x);
    let values = numbers.take(6 * columns);
    let grid = int4(32, Int4Range::Asym);
    let options = GptqOptions { act_order: true, ..Default::default() };
    let packed = quantize(&values, &unsorted, grid, options);
    let order = packed.column_order.clone().unwrap();
    let diagonal = unsorted.diagonal();
    let importance: Vec<f64> = order.iter().map(|&c| diagonal[c as usize]).collect();
    assert!(importance.is_sorted_by(|a, b| a >= b));

    let sort = |matrix: &[f32]| -> Vec<f32> {
        matrix.chunks(columns).flat_map(|row| order.iter().map(|&c| row[c as usize])).collect()
    };
    let sorted =
        quantize(&sort(&values), &hessian(columns, &sort(&x)), grid, GptqOptions::default());
    assert_eq!(sorted.column_order, None);
    assert_eq!(sorted.codes, packed.codes);
    assert_eq!(sorted.scales, packed.scales);
    assert_eq!(sort(&packed.dequantize()), sorted.dequantize());
}

/// Static groups in the order of importance, by the plain algorithm on sorted columns whose
/// parameters come from round to nearest.
#[test]
fn static_groups_equal_the_plain_algorithm() {
    // A short last group, and groups that are longer than a block.
    let columns = 44;
    let mut numbers = Numbers(10);
    let x = numbers.correlated(90, columns);
    let hessian = hessian(columns, &x);
    let values = numbers.take(7 * columns);
    let importance = hessian.diagonal();
    let mut order: Vec<usize> = (0..columns).collect();
    order.sort_by(|&a, &b| importance[b].total_cmp(&importance[a]));
    for (group, block) in [(16, 32), (16, 5), (30, 8), (44, 128)] {
        let grid = int4(group, Int4Range::Asym);
        for act_order in [false, true] {
            let options =
                GptqOptions { act_order, static_groups: true, block, ..Default::default() };
            let packed = quantize(&values, &hessian, grid, options);
            let nearest = nearest(&values, columns, grid);
            assert_eq!(packed.column_order, None);
            assert_eq!((&packed.scales, &packed.zeros), (&nearest.scales, &nearest.zeros));
            let order = if act_order { order.clone() } else { (0..columns).collect() };
            let expected = plain_static(&values, &hessian, grid, &order);
            assert_eq!(packed.dequantize(), expected, "groups of {group}, {options:?}");
        }
    }
}

/// Rounds column after column of `order`, with the inverse by elimination, in `f64`.
fn plain_static(values: &[f32], hessian: &Hessian, grid: Grid, order: &[usize]) -> Vec<f32> {
    let n = hessian.columns();
    let matrix = hessian.to_matrix();
    let mean = (0..n).map(|i| matrix[i * n + i]).sum::<f64>() / n as f64;
    let mut h: Vec<f64> = order
        .iter()
        .flat_map(|&i| order.iter().map(move |&j| [i, j]))
        .map(|[i, j]| matrix[i * n + j])
        .collect();
    (0..n).for_each(|i| h[i * n + i] += 0.01 * mean);
    let inverses: Vec<Vec<f64>> = (0..n).map(|k| invert(&h, n, k)).collect();
    let group_size = grid.group().columns(n);
    let mut result = vec![0.0; values.len()];
    for (row, result) in values.chunks(n).zip(result.chunks_mut(n)) {
        let params: Vec<_> = row.chunks(group_size).map(|group| grid.fit(group)).collect();
        let mut row: Vec<f64> = row.iter().map(|&w| f64::from(w)).collect();
        for (k, &column) in order.iter().enumerate() {
            let params = params[column / group_size];
            result[column] = grid.decode(grid.encode(row[column] as f32, params), params);
            let error = (row[column] - f64::from(result[column])) / inverses[k][0];
            for (&later, weight) in order[k..].iter().zip(&inverses[k]) {
                row[later] -= error * weight;
            }
        }
    }
    result
}

#[test]
fn whole_rows_as_groups_are_static_by_nature() {
    // The parameters of a row come from its first column on, before anything has moved.
    let columns = 53;
    let mut numbers = Numbers(11);
    let hessian = hessian(columns, &numbers.correlated(200, columns));
    let values = numbers.take(6 * columns);
    for grid in [Grid::Int8, Grid::Int4 { group: Group::Row, range: Int4Range::Asym }] {
        let with = |static_groups| {
            let options = GptqOptions { act_order: true, static_groups, ..Default::default() };
            quantize(&values, &hessian, grid, options)
        };
        let (fixed, moving) = (with(true), with(false));
        assert_eq!(fixed.column_order, None);
        assert!(moving.column_order.is_some());
        assert_eq!(fixed.dequantize(), moving.dequantize());
    }
}

#[test]
fn columns_without_activations_are_rounded_to_nearest_and_change_no_other() {
    let columns = 40;
    let dead = [0, 7, 39];
    let mut numbers = Numbers(8);
    let mut x = numbers.correlated(100, columns);
    let values = numbers.take(5 * columns);
    for row in x.chunks_mut(columns) {
        dead.iter().for_each(|&column| row[column] = 0.0);
    }
    for options in all_orders() {
        // Rows have one scale, of the largest number, which stays: dead columns move no parameters.
        let packed = quantize(&values, &hessian(columns, &x), Grid::Int8, options);
        let nearest = nearest(&values, columns, Grid::Int8).dequantize();
        let mut others = values.clone();
        for row in others.chunks_mut(columns) {
            let largest =
                row.iter().copied().fold(0.0_f32, |m, w| if w.abs() > m.abs() { w } else { m });
            for column in dead {
                row[column] *= if row[column] == largest { 1.0 } else { 0.5 };
            }
        }
        let others = quantize(&others, &hessian(columns, &x), Grid::Int8, options).dequantize();
        for (i, value) in packed.dequantize().iter().enumerate() {
            if dead.contains(&(i % columns)) {
                assert_eq!(*value, nearest[i]);
            } else {
                assert_eq!(*value, others[i]);
            }
        }
    }
}

#[test]
fn a_hessian_of_too_few_activations_is_damped() {
    // One activation alone: of rank one, factored only because it is damped.
    let columns = 50;
    let mut numbers = Numbers(9);
    let hessian = hessian(columns, &numbers.correlated(1, columns));
    let options = GptqOptions { damp: 0.0, ..Default::default() };
    let factor = GptqFactor::new(&hessian, options).unwrap();
    assert!(factor.damp() > 0.0);
    let values = numbers.take(3 * columns);
    let packed = quantize(&values, &hessian, Grid::Int8, options);
    assert!(packed.dequantize().iter().all(|q| q.is_finite()));
    let enough = GptqOptions::default();
    assert_eq!(GptqFactor::new(&hessian, enough).unwrap().damp(), enough.damp);
}
