//! `x·Wᵀ` for a few rows, f32 on the CPU: what a step of generation does.
//!
//! A general product first copies the weight into an order of its own, which for a few rows costs more than the product. Here
//! each row of the weight is read once, where it is, and multiplied with all rows of `x`. A row's result does not depend on how
//! many others there are, to the last bit.

use pulp::Simd;
use rayon::prelude::*;

use super::cpu;

/// Up to this many rows this is faster than the general product.
pub(crate) const MOST: usize = 24;
/// Multiplications that are worth a thread.
const PIECE: usize = 1 << 17;
/// Rows of the weight, and of `x`, whose products are made side by side: their sums and what they are made of fill the vector
/// registers.
const OUTPUTS: usize = 2;
const ROWS: usize = 4;

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
        let whole = y.len() / rows / OUTPUTS * OUTPUTS;
        let (weights, last_weights) = weight.split_at(whole * inputs);
        let (ys, last_ys) = y.split_at_mut(whole * rows);
        for (w, y) in weights.chunks_exact(OUTPUTS * inputs).zip(ys.chunks_exact_mut(OUTPUTS * rows)) {
            rows_of::<S, OUTPUTS>(simd, x, w, y, rows, inputs);
        }
        for (w, y) in last_weights.chunks_exact(inputs).zip(last_ys.chunks_exact_mut(rows)) {
            rows_of::<S, 1>(simd, x, w, y, rows, inputs);
        }
    }
}

/// Products of all rows of `x` with `W` rows of the weight, `[W, rows]`.
#[inline(always)]
fn rows_of<S: Simd, const W: usize>(simd: S, x: &[f32], w: &[f32], y: &mut [f32], rows: usize, inputs: usize) {
    let w: [&[f32]; W] = std::array::from_fn(|at| &w[at * inputs..(at + 1) * inputs]);
    let mut row = 0;
    while row + ROWS <= rows {
        let x: [&[f32]; ROWS] = std::array::from_fn(|at| &x[(row + at) * inputs..(row + at + 1) * inputs]);
        let sums = dots(simd, w, x);
        for (at, sums) in sums.iter().enumerate() {
            y[at * rows + row..at * rows + row + ROWS].copy_from_slice(sums);
        }
        row += ROWS;
    }
    while row < rows {
        let sums = dots(simd, w, [&x[row * inputs..(row + 1) * inputs]]);
        for (at, [sum]) in sums.iter().enumerate() {
            y[at * rows + row] = *sum;
        }
        row += 1;
    }
}

/// `sums[i][j] = w[i]·x[j]`. The order of each sum is the same for every `W` and `X`.
#[inline(always)]
fn dots<S: Simd, const W: usize, const X: usize>(simd: S, w: [&[f32]; W], x: [&[f32]; X]) -> [[f32; X]; W] {
    let mut sums = [[simd.splat_f32s(0.0); X]; W];
    let (w, w_rest) = (w.map(|w| S::as_simd_f32s(w).0), w.map(|w| S::as_simd_f32s(w).1));
    let (x, x_rest) = (x.map(|x| S::as_simd_f32s(x).0), x.map(|x| S::as_simd_f32s(x).1));
    let blocks = w[0].len();
    let (w, x) = (w.map(|w| &w[..blocks]), x.map(|x| &x[..blocks]));
    for block in 0..blocks {
        for i in 0..W {
            for j in 0..X {
                sums[i][j] = simd.mul_add_f32s(w[i][block], x[j][block], sums[i][j]);
            }
        }
    }
    let mut totals = [[0.0; X]; W];
    for i in 0..W {
        for j in 0..X {
            let rest: f32 = w_rest[i].iter().zip(x_rest[j]).map(|(w, x)| w * x).sum();
            totals[i][j] = simd.reduce_sum_f32s(sums[i][j]) + rest;
        }
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
        for (outputs, inputs) in [(1, 1), (5, 3), (33, 16), (700, 577)] {
            let w = random((outputs, inputs), 2);
            let weight = Floats::of(&w).unwrap();
            for rows in 1..=MOST {
                let x = random((rows, inputs), rows as u64);
                let values = Floats::of(&x).unwrap();
                let y = product(&values, &weight, rows, outputs, inputs);
                let general = x.matmul(&w.t().unwrap()).unwrap();
                let tensor = cpu::tensor(y.clone(), &[rows, outputs]).unwrap();
                assert!(distance(&tensor, &general) < 1e-4, "{rows} rows, {outputs} × {inputs}");
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
