//! `x·Wᵀ` for a few rows, f32 on the CPU: what a step of generation does.
//!
//! A general product first copies the weight into an order of its own, which for a few rows costs more than the product. Here
//! each row of the weight is read once from memory, where it is, and multiplied with all rows of `x`. Memory is the limit, so
//! the weight is read as one stream, which is what processors fetch ahead; a piece of it stays in the caches while it is
//! multiplied with some rows of `x` after the other. A row's result does not depend on how many others there are, to the last
//! bit.
//!
//! A weight in blocks of few bits ([`Blocks`]) is read as the blocks are, and made f32 in the first cache.

use std::ops::Range;

use pulp::Simd;
use rayon::prelude::*;

use super::cpu;
use super::quantised::Blocks;

/// Up to this many rows this is faster than the general product.
pub(crate) const MOST: usize = 32;
/// Multiplications that are worth a second thread.
pub(crate) const WORTH_THREADS: usize = 1 << 17;
/// Multiplications of the smallest piece that a thread takes.
const PIECE: usize = 1 << 15;
/// Pieces for each thread: who finishes early, or began late, takes fewer or more of them.
const PIECES: usize = 4;
/// Rows of the weight that are multiplied with one group of rows of `x` after the other.
const BLOCK: usize = 16;
/// Columns of them at a time; whole blocks of every format.
const COLUMNS: usize = 768;
/// Rows of a weight in blocks that are made f32 at a time: with the rows of `x` they fit into a first cache.
const BLOCK_READ: usize = 4;
/// Rows of `x` whose products are made in one pass over rows of the weight.
const TILE: usize = 4;
/// Vectors of a row that are summed side by side: with those of [`TILE`] rows they keep the multipliers busy.
const UNROLLED: usize = 2;

/// A weight where it is, row-major.
#[derive(Clone, Copy)]
pub(super) enum Matrix<'a> {
    Floats(&'a [f32]),
    Blocks(Blocks<'a>),
}

impl Matrix<'_> {
    /// Whole rows of a matrix of this width.
    fn rows(self, rows: Range<usize>, width: usize) -> Self {
        match self {
            Self::Floats(values) => Self::Floats(&values[rows.start * width..rows.end * width]),
            Self::Blocks(blocks) => Self::Blocks(blocks.rows(rows, width)),
        }
    }
}

/// `x` is `[rows, inputs]`, `weight` `[outputs, inputs]`; the result `[rows, outputs]`.
pub(super) fn product(x: &[f32], weight: Matrix<'_>, rows: usize, outputs: usize, inputs: usize) -> Vec<f32> {
    let mut y = vec![0.0_f32; rows * outputs];
    let (threads, of_output) = (rayon::current_num_threads(), (rows * inputs).max(1));
    let piece = if threads == 1 || outputs * of_output < WORTH_THREADS {
        outputs
    } else {
        outputs.div_ceil(threads * PIECES).max(PIECE.div_ceil(of_output))
    }
    .max(1);
    // The same columns of all rows belong to a piece.
    let mut pieces: Vec<Vec<&mut [f32]>> = Vec::new();
    pieces.resize_with(outputs.div_ceil(piece), || Vec::with_capacity(rows));
    for row in y.chunks_exact_mut(outputs.max(1)) {
        for (piece, part) in pieces.iter_mut().zip(row.chunks_mut(piece)) {
            piece.push(part);
        }
    }
    let x = Aligned::new(x, inputs);
    let multiply = |(at, mut y): (usize, Vec<&mut [f32]>)| {
        let weight = weight.rows(at * piece..((at + 1) * piece).min(outputs), inputs);
        add_product(x.values(), x.stride, weight, &mut y, inputs);
    };
    if piece == outputs {
        pieces.into_iter().enumerate().for_each(multiply);
    } else {
        pieces.into_par_iter().enumerate().for_each(multiply);
    }
    y
}

/// A copy of some rows, each from the beginning of a cache line on: a vector that lies in two takes as long to load as two.
struct Aligned {
    values: Vec<f32>,
    start: usize,
    stride: usize,
}

impl Aligned {
    fn new(rows: &[f32], width: usize) -> Self {
        const LINE: usize = 64;
        let floats = LINE / size_of::<f32>();
        let stride = width.next_multiple_of(floats);
        let mut values = vec![0.0_f32; rows.len() / width * stride + floats];
        let start = values.as_ptr().align_offset(LINE).min(floats);
        for (to, row) in values[start..].chunks_mut(stride).zip(rows.chunks_exact(width)) {
            to[..width].copy_from_slice(row);
        }
        Self { values, start, stride }
    }

    fn values(&self) -> &[f32] {
        let whole = (self.values.len() - self.start) / self.stride * self.stride;
        &self.values[self.start..][..whole]
    }
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
pub(crate) fn add_low_rank(parts: Vec<LowRank<'_>>) {
    let work: usize = parts.iter().map(|part| (part.x.len() + part.y.len()) * part.rank).sum();
    if work < WORTH_THREADS {
        parts.into_iter().for_each(LowRank::add);
    } else {
        let each = (work / (2 * rayon::current_num_threads())).max(PIECE);
        parts.into_iter().flat_map(|part| part.split(each)).collect::<Vec<_>>().into_par_iter().for_each(LowRank::add);
    }
}

impl<'a> LowRank<'a> {
    fn inputs(&self) -> usize {
        self.a.len() / self.rank
    }

    fn outputs(&self) -> usize {
        self.b.len() / self.rank
    }

    /// Parts of whole rows with about `work` multiplications.
    fn split(self, work: usize) -> Vec<LowRank<'a>> {
        let (inputs, outputs) = (self.inputs(), self.outputs());
        let rows = (work / ((inputs + outputs) * self.rank)).max(1);
        let Self { x, a, b, scale, rank, y } = self;
        x.chunks(rows * inputs)
            .zip(y.chunks_mut(rows * outputs))
            .map(|(x, y)| LowRank { x, a, b, scale, rank, y })
            .collect()
    }

    fn add(self) {
        let (inputs, outputs) = (self.inputs(), self.outputs());
        let rows = self.x.len() / inputs;
        let mut middle = vec![0.0_f32; rows * self.rank];
        add_product(
            self.x,
            inputs,
            Matrix::Floats(self.a),
            &mut middle.chunks_exact_mut(self.rank).collect::<Vec<_>>(),
            inputs,
        );
        middle.iter_mut().for_each(|value| *value *= self.scale);
        add_product(
            &middle,
            self.rank,
            Matrix::Floats(self.b),
            &mut self.y.chunks_exact_mut(outputs).collect::<Vec<_>>(),
            self.rank,
        );
    }
}

cpu::kernel! {
    /// Adds `x·Wᵀ` to the rows `y`, on this thread. Rows of `x` are `stride` apart.
    fn add_product<S>(
        simd;
        x: &'a [f32],
        stride: usize,
        weight: Matrix<'a>,
        y: &'a mut [&'a mut [f32]],
        inputs: usize,
    ) {
        let outputs = y.first().map_or(0, |y| y.len());
        match weight {
            Matrix::Floats(values) => {
                for (block, values) in values.chunks(BLOCK * inputs).enumerate() {
                    for start in (0..inputs).step_by(COLUMNS) {
                        let columns = start..(start + COLUMNS).min(inputs);
                        let piece = Piece { values, width: inputs, skip: start, columns, first: block * BLOCK };
                        add_piece(simd, x, stride, &piece, y);
                    }
                }
            }
            Matrix::Blocks(blocks) => {
                let mut read = Read([0.0; BLOCK_READ * COLUMNS]);
                for first in (0..outputs).step_by(BLOCK_READ) {
                    let rows = first..(first + BLOCK_READ).min(outputs);
                    for start in (0..inputs).step_by(COLUMNS) {
                        let columns = start..(start + COLUMNS).min(inputs);
                        let values = &mut read.0[..rows.len() * columns.len()];
                        blocks.read(rows.clone(), columns.clone(), inputs, values);
                        let piece = Piece { values, width: columns.len(), skip: 0, columns, first };
                        add_piece(simd, x, stride, &piece, y);
                    }
                }
            }
        }
    }
}

/// Values made of blocks, from the beginning of a cache line on.
#[repr(align(64))]
struct Read([f32; BLOCK_READ * COLUMNS]);

/// Some columns of some rows of a weight.
struct Piece<'a> {
    /// Whole rows, `width` apart; what is multiplied begins `skip` values after the beginning of each.
    values: &'a [f32],
    width: usize,
    skip: usize,
    /// The columns of `x` that belong to it.
    columns: Range<usize>,
    /// The output of the first of the rows.
    first: usize,
}

/// Adds the products of a piece with all rows of `x`.
#[inline(always)]
fn add_piece<S: Simd>(simd: S, x: &[f32], stride: usize, piece: &Piece<'_>, y: &mut [&mut [f32]]) {
    for (x, y) in x.chunks(TILE * stride).zip(y.chunks_mut(TILE)) {
        match y.len() {
            1 => add_dots::<S, 1>(simd, piece, x, stride, y),
            2 => add_dots::<S, 2>(simd, piece, x, stride, y),
            3 => add_dots::<S, 3>(simd, piece, x, stride, y),
            _ => add_dots::<S, TILE>(simd, piece, x, stride, y),
        }
    }
}

/// Adds the products of a piece with `X` rows of `x`.
#[inline(always)]
fn add_dots<S: Simd, const X: usize>(simd: S, piece: &Piece<'_>, x: &[f32], stride: usize, y: &mut [&mut [f32]]) {
    let mut rows: [&[f32]; X] = [&[]; X];
    for (row, x) in rows.iter_mut().zip(x.chunks(stride)) {
        *row = &x[piece.columns.clone()];
    }
    let x = Rows::<S, X>::new(rows);
    let within = piece.skip..piece.skip + piece.columns.len();
    for (output, w) in (piece.first..).zip(piece.values.chunks_exact(piece.width)) {
        let sums = x.dots(simd, &w[within.clone()]);
        for (y, sum) in y.iter_mut().zip(sums) {
            y[output] += sum;
        }
    }
}

/// `X` rows of one length: their whole vectors, and what is left of each.
pub(crate) struct Rows<'a, S: Simd, const X: usize> {
    vectors: [&'a [S::f32s]; X],
    rests: [&'a [f32]; X],
}

impl<'a, S: Simd, const X: usize> Rows<'a, S, X> {
    #[inline(always)]
    pub(crate) fn new(rows: [&'a [f32]; X]) -> Self {
        let (mut vectors, mut rests): ([&[S::f32s]; X], [&[f32]; X]) = ([&[]; X], [&[]; X]);
        for row in 0..X {
            (vectors[row], rests[row]) = S::as_simd_f32s(rows[row]);
        }
        Self { vectors, rests }
    }

    /// The product of each row with `w`, which has their length. The order of each sum is the same for every `X`.
    #[inline(always)]
    pub(crate) fn dots(&self, simd: S, w: &[f32]) -> [f32; X] {
        let (w, rest) = S::as_simd_f32s(w);
        let mut rows: [&[S::f32s]; X] = [&[]; X];
        for (row, vectors) in rows.iter_mut().zip(self.vectors) {
            *row = &vectors[..w.len()];
        }
        let mut sums = [[simd.splat_f32s(0.0); X]; UNROLLED];
        let mut at = 0;
        while at + UNROLLED <= w.len() {
            for unrolled in 0..UNROLLED {
                for row in 0..X {
                    sums[unrolled][row] =
                        simd.mul_add_f32s(w[at + unrolled], rows[row][at + unrolled], sums[unrolled][row]);
                }
            }
            at += UNROLLED;
        }
        while at < w.len() {
            for row in 0..X {
                sums[0][row] = simd.mul_add_f32s(w[at], rows[row][at], sums[0][row]);
            }
            at += 1;
        }
        let mut totals = [0.0; X];
        for row in 0..X {
            let mut sum = sums[0][row];
            for more in &sums[1..] {
                sum = simd.add_f32s(sum, more[row]);
            }
            let rest: f32 = rest.iter().zip(self.rests[row]).map(|(w, x)| w * x).sum();
            totals[row] = simd.reduce_sum_f32s(sum) + rest;
        }
        totals
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::ops::cpu::Floats;
    use crate::model::ops::finite_difference::{distance, random};

    fn exact(x: &[f32], w: &[f32]) -> f64 {
        x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Against sums in f64, on pools of several sizes, and each row against itself alone.
        #[test]
        fn rows_are_products_and_do_not_see_each_other(
            (rows, outputs, inputs) in prop_oneof![
                (1..=MOST, 1..40_usize, 1..80_usize),
                (1..=MOST, 1..300_usize, 550..600_usize),
                (1..=MOST, 1..40_usize, 760..1700_usize),
            ],
            threads in 1..4_usize,
            seed in 0..1000_u64,
        ) {
            let (x, w) = (random((rows, inputs), seed), random((outputs, inputs), seed + 1));
            let (x, w) = (Floats::of(&x).unwrap().to_vec(), Floats::of(&w).unwrap().to_vec());
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let y = pool.install(|| product(&x, Matrix::Floats(&w), rows, outputs, inputs));
            for (row, (x, y)) in x.chunks_exact(inputs).zip(y.chunks_exact(outputs)).enumerate() {
                for (w, y) in w.chunks_exact(inputs).zip(y) {
                    prop_assert!((f64::from(*y) - exact(x, w)).abs() < 1e-6 * inputs as f64, "row {row}");
                }
                prop_assert_eq!(product(x, Matrix::Floats(&w), 1, outputs, inputs), y, "row {} of {}", row, rows);
            }
        }
    }

    #[test]
    fn of_nothing_it_is_nothing() {
        assert!(product(&[1.0, 2.0], Matrix::Floats(&[]), 1, 0, 2).is_empty());
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
