//! `x·Wᵀ` for a few rows, f32 on the CPU: what a step of generation does.
//!
//! A general product first copies the weight into an order of its own, which for a few rows costs more than the product. Here
//! each row of the weight is read once from memory, where it is, and multiplied with all rows of `x`. Memory is the limit, so
//! the weight is read as one stream, which is what processors fetch ahead; blocks of it stay in the second cache and rows of `x`
//! in the first. A row's result does not depend on how many others there are, to the last bit.

use pulp::Simd;
use rayon::prelude::*;

use super::cpu;

/// Up to this many rows this is faster than the general product.
pub(crate) const MOST: usize = 32;
/// Multiplications that are worth a thread.
pub(crate) const PIECE: usize = 1 << 17;
/// Rows of the weight that are multiplied with one group of rows of `x` after the other.
const BLOCK: usize = 16;
/// Rows of `x`, and columns, that the first cache holds beside a row of the weight.
const GROUP: usize = 8;
const COLUMNS: usize = 768;
/// Rows of `x` whose products are made side by side.
const TILE: usize = 4;
/// Vectors of a row that are summed side by side: with those of [`TILE`] rows they fill the vector registers.
const UNROLLED: usize = 2;

/// `x` is `[rows, inputs]`, `weight` `[outputs, inputs]`; the result `[rows, outputs]`.
pub(super) fn product(x: &[f32], weight: &[f32], rows: usize, outputs: usize, inputs: usize) -> Vec<f32> {
    // By output first, so that threads write to pieces of their own.
    let mut by_output = vec![0.0_f32; rows * outputs];
    let piece = outputs.div_ceil(rayon::current_num_threads()).max(PIECE / (rows * inputs).max(1)).max(1);
    if piece >= outputs {
        outputs_of(x, weight, &mut by_output, rows, inputs);
    } else {
        by_output
            .par_chunks_mut(piece * rows)
            .zip(weight.par_chunks(piece * inputs))
            .for_each(|(y, weight)| outputs_of(x, weight, y, rows, inputs));
    }
    if rows == 1 {
        return by_output;
    }
    let mut y = vec![0.0_f32; rows * outputs];
    for (row, y) in y.chunks_exact_mut(outputs).enumerate() {
        for (y, values) in y.iter_mut().zip(by_output.chunks_exact(rows)) {
            *y = values[row];
        }
    }
    y
}

/// One adapter's part of a step: rows of `x`, `[rows, inputs]`, A `[rank, inputs]`, B `[outputs, rank]`.
pub(crate) struct LowRank<'a> {
    pub(crate) x: &'a [f32],
    pub(crate) a: &'a [f32],
    pub(crate) b: &'a [f32],
    pub(crate) scale: f32,
    pub(crate) rank: usize,
    /// `[rows, outputs]`, what is added to.
    pub(crate) y: &'a mut [f32],
}

/// `y += scale · x·Aᵀ·Bᵀ` for each of several adapters, side by side.
pub(crate) fn add_low_rank(mut parts: Vec<LowRank<'_>>) {
    let work: usize = parts.iter().map(|part| part.x.len() * part.rank + part.y.len() * part.rank).sum();
    if work < PIECE {
        parts.iter_mut().for_each(LowRank::add);
    } else {
        parts.par_iter_mut().for_each(LowRank::add);
    }
}

impl LowRank<'_> {
    fn add(&mut self) {
        let inputs = self.a.len() / self.rank;
        let outputs = self.b.len() / self.rank;
        let rows = self.x.len() / inputs;
        let mut by_rank = vec![0.0_f32; self.rank * rows];
        outputs_of(self.x, self.a, &mut by_rank, rows, inputs);
        let mut middle = vec![0.0_f32; rows * self.rank];
        for (row, middle) in middle.chunks_exact_mut(self.rank).enumerate() {
            for (middle, values) in middle.iter_mut().zip(by_rank.chunks_exact(rows)) {
                *middle = values[row] * self.scale;
            }
        }
        let mut by_output = vec![0.0_f32; outputs * rows];
        outputs_of(&middle, self.b, &mut by_output, rows, self.rank);
        for (row, y) in self.y.chunks_exact_mut(outputs).enumerate() {
            for (y, values) in y.iter_mut().zip(by_output.chunks_exact(rows)) {
                *y += values[row];
            }
        }
    }
}

cpu::kernel! {
    /// `[outputs, rows]`, on this thread.
    fn outputs_of<S>(
        simd;
        x: &'a [f32],
        weight: &'a [f32],
        y: &'a mut [f32],
        rows: usize,
        inputs: usize,
    ) {
        y.fill(0.0);
        for (weight, y) in weight.chunks(BLOCK * inputs).zip(y.chunks_mut(BLOCK * rows)) {
            for start in (0..inputs).step_by(COLUMNS) {
                let end = (start + COLUMNS).min(inputs);
                for first in (0..rows).step_by(GROUP) {
                    let last = (first + GROUP).min(rows);
                    for (w, y) in weight.chunks_exact(inputs).zip(y.chunks_exact_mut(rows)) {
                        add_dots::<S>(simd, &w[start..end], x, &mut y[first..last], first, inputs, start);
                    }
                }
            }
        }
    }
}

/// Adds the products of columns `start…` of the rows `first…` of `x` with a piece of a row of the weight.
#[inline(always)]
fn add_dots<S: Simd>(simd: S, w: &[f32], x: &[f32], y: &mut [f32], first: usize, inputs: usize, start: usize) {
    let mut row = 0;
    while row + TILE <= y.len() {
        let mut rows: [&[f32]; TILE] = [&[]; TILE];
        for (at, x_row) in rows.iter_mut().enumerate() {
            let from = (first + row + at) * inputs + start;
            *x_row = &x[from..from + w.len()];
        }
        let sums = dots(simd, w, rows);
        for (y, sum) in y[row..row + TILE].iter_mut().zip(sums) {
            *y += sum;
        }
        row += TILE;
    }
    while row < y.len() {
        let from = (first + row) * inputs + start;
        y[row] += dots(simd, w, [&x[from..from + w.len()]])[0];
        row += 1;
    }
}

/// `sums[j] = w·x[j]`. The order of each sum is the same for every `X`.
#[inline(always)]
fn dots<S: Simd, const X: usize>(simd: S, w: &[f32], x: [&[f32]; X]) -> [f32; X] {
    let mut sums = [[simd.splat_f32s(0.0); X]; UNROLLED];
    let whole = UNROLLED * size_of::<S::f32s>() / size_of::<f32>();
    let whole = w.len() / whole * whole;
    let (w, w_rest) = w.split_at(whole);
    let w = S::as_simd_f32s(w).0;
    let mut vectors: [&[S::f32s]; X] = [&[]; X];
    for (vectors, x) in vectors.iter_mut().zip(x) {
        *vectors = &S::as_simd_f32s(&x[..whole]).0[..w.len()];
    }
    let mut at = 0;
    while at + UNROLLED <= w.len() {
        for unrolled in 0..UNROLLED {
            let w = w[at + unrolled];
            for j in 0..X {
                sums[unrolled][j] = simd.mul_add_f32s(w, vectors[j][at + unrolled], sums[unrolled][j]);
            }
        }
        at += UNROLLED;
    }
    let mut totals = [0.0; X];
    for j in 0..X {
        let mut sum = sums[0][j];
        for more in &sums[1..] {
            sum = simd.add_f32s(sum, more[j]);
        }
        let rest: f32 = w_rest.iter().zip(&x[j][whole..]).map(|(w, x)| w * x).sum();
        totals[j] = simd.reduce_sum_f32s(sum) + rest;
    }
    totals
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ops::cpu::Floats;
    use crate::model::ops::finite_difference::{distance, random};

    #[test]
    fn equals_the_general_product_and_rows_do_not_see_each_other() {
        for (outputs, inputs) in [(1, 1), (5, 3), (33, 16), (700, 577), (40, 1700)] {
            let w = random((outputs, inputs), 2);
            let weight = Floats::of(&w).unwrap();
            for rows in 1..=MOST {
                let x = random((rows, inputs), rows as u64);
                let values = Floats::of(&x).unwrap();
                let y = product(&values, &weight, rows, outputs, inputs);
                let general = x.matmul(&w.t().unwrap()).unwrap();
                let tensor = cpu::tensor(y.clone(), &[rows, outputs]).unwrap();
                assert!(distance(&tensor, &general) < 2e-4, "{rows} rows, {outputs} × {inputs}");
                for row in 0..rows {
                    let alone = product(&values[row * inputs..(row + 1) * inputs], &weight, 1, outputs, inputs);
                    assert_eq!(alone, y[row * outputs..(row + 1) * outputs], "row {row} of {rows}");
                }
            }
        }
    }

    #[test]
    fn adapters_side_by_side_equal_their_products() {
        for (rows, rank, inputs, outputs) in [(1, 1, 3, 2), (2, 5, 33, 7), (3, 16, 576, 320)] {
            let random = |shape: (usize, usize), seed: usize| random(shape, seed as u64);
            let x: Vec<_> = (0..4).map(|seed| random((rows, inputs), seed)).collect();
            let a: Vec<_> = (0..4).map(|seed| random((rank, inputs), 10 + seed)).collect();
            let b: Vec<_> = (0..4).map(|seed| random((outputs, rank), 20 + seed)).collect();
            let y: Vec<_> = (0..4).map(|seed| random((rows, outputs), 30 + seed)).collect();
            let floats = |tensors: &[candle_core::Tensor]| -> Vec<Vec<f32>> {
                tensors.iter().map(|tensor| Floats::of(tensor).unwrap().to_vec()).collect()
            };
            let (xs, matrices_a, matrices_b, mut ys) = (floats(&x), floats(&a), floats(&b), floats(&y));
            let parts = ys.iter_mut().enumerate().map(|(at, y)| {
                let (x, a, b) = (&xs[at], &matrices_a[at], &matrices_b[at]);
                LowRank { x, a, b, scale: 1.5, rank, y }
            });
            add_low_rank(parts.collect());
            for (at, sum) in ys.into_iter().enumerate() {
                let middle = (x[at].matmul(&a[at].t().unwrap()).unwrap() * 1.5).unwrap();
                let expected = (&y[at] + middle.matmul(&b[at].t().unwrap()).unwrap()).unwrap();
                let sum = cpu::tensor(sum, &[rows, outputs]).unwrap();
                assert!(distance(&sum, &expected) < 1e-3, "{rows} rows of rank {rank}");
            }
        }
    }
}
