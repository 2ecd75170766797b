//! The forward pass, f32 on the CPU: a few queries at a time as small matrix products that stay in the first caches, heads
//! side by side on several threads. A query's result does not depend on which others share its tile.

use pulp::Simd;
use rayon::prelude::*;

use super::kernel::softmax;
use super::{Heads, Span};
use crate::model::ops::cpu;

/// Queries at a time: with [`WIDE`], their sums fill the vector registers.
const TILE: usize = 6;
/// Vectors of keys, or of a value, at a time.
const WIDE: usize = 2;
/// Multiplications of a whole call below which threads cost more than they save.
const ALONE: usize = 1 << 17;

/// `out = softmax(q·kᵀ/√d)·v` for each span and head.
pub(super) fn forward(q: &[f32], k: &[f32], v: &[f32], out: &mut [f32], spans: &[Span], heads: Heads) {
    let work: usize =
        spans.iter().map(|span| span.queries.len() * span.keys()).sum::<usize>() * heads.query * heads.width;
    let jobs: Vec<(&Span, usize)> =
        spans.iter().flat_map(|span| (0..heads.key).map(move |key_head| (span, key_head))).collect();
    let one = |(span, key_head): (&Span, usize)| {
        let mut part = vec![0.0; span.queries.len() * heads.query / heads.key * heads.width];
        head(q, k, v, &mut part, span, heads, key_head);
        part
    };
    if work < ALONE {
        for job in jobs {
            place(&one(job), job.0, job.1, heads, out);
        }
    } else {
        let parts: Vec<Vec<f32>> = jobs.par_iter().map(|job| one(*job)).collect();
        for (part, (span, key_head)) in parts.iter().zip(jobs) {
            place(part, span, key_head, heads, out);
        }
    }
}

/// Writes `[query heads of the key head, queries, width]` to its place in the rows.
fn place(part: &[f32], span: &Span, key_head: usize, heads: Heads, out: &mut [f32]) {
    let (d, group) = (heads.width, heads.query / heads.key);
    let mut rows = part.chunks_exact(d);
    for head in key_head * group..(key_head + 1) * group {
        for (row, values) in span.queries.clone().zip(rows.by_ref()) {
            let at = row * heads.query * d + head * d;
            out[at..at + d].copy_from_slice(values);
        }
    }
}

cpu::kernel! {
    fn head<S>(
        simd;
        q: &'a [f32],
        k: &'a [f32],
        v: &'a [f32],
        out: &'a mut [f32],
        span: &'a Span,
        heads: Heads,
        key_head: usize,
    ) {
        let (d, group) = (heads.width, heads.query / heads.key);
        let (keys, queries) = (span.keys(), span.queries.len());
        let lanes = WIDE * size_of::<S::f32s>() / size_of::<f32>();
        let padded = keys.next_multiple_of(lanes);
        let wide = d.next_multiple_of(lanes);
        let scale = 1.0 / (d as f32).sqrt();
        // Keys in blocks of `lanes`, `[blocks, width, lanes]`; values as `[keys, width padded to lanes]`.
        let mut kt = vec![0.0_f32; padded * d];
        let mut vs = vec![0.0_f32; keys * wide];
        for (j, row) in span.prefix.clone().chain(span.own.clone()).enumerate() {
            let at = (row * heads.key + key_head) * d;
            let block = &mut kt[j / lanes * lanes * d..];
            for (i, value) in k[at..at + d].iter().enumerate() {
                block[i * lanes + j % lanes] = *value;
            }
            vs[j * wide..j * wide + d].copy_from_slice(&v[at..at + d]);
        }
        let mut qt = vec![0.0_f32; TILE * d];
        let mut p = vec![0.0_f32; TILE * padded];
        let mut mixed = vec![0.0_f32; TILE * wide];
        for (head, out) in (key_head * group..(key_head + 1) * group).zip(out.chunks_exact_mut(queries * d)) {
            for (tile, out) in out.chunks_mut(TILE * d).enumerate() {
                let first = tile * TILE;
                let count = out.len() / d;
                qt.fill(0.0);
                for t in 0..count {
                    let at = ((span.queries.start + first + t) * heads.query + head) * d;
                    for (i, value) in q[at..at + d].iter().enumerate() {
                        qt[i * TILE + t] = value * scale;
                    }
                }
                let seen = span.visible(first + count - 1);
                scores::<S>(simd, &qt, &kt, &mut p, lanes, d, padded, seen);
                for t in 0..TILE {
                    let row = &mut p[t * padded..(t + 1) * padded];
                    let visible = if t < count { span.visible(first + t) } else { 0 };
                    softmax(&mut row[..visible]);
                    row[visible..seen].fill(0.0);
                }
                mix::<S>(simd, &p, &vs, &mut mixed, lanes, padded, wide, seen);
                for (t, out) in out.chunks_exact_mut(d).enumerate() {
                    out.copy_from_slice(&mixed[t * wide..t * wide + d]);
                }
            }
        }
    }
}

/// `p[t][j] = Σᵢ qt[i][t] · kt[block of j][i][j]` for the first `seen` keys, rounded up to whole blocks.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "matrices and their sizes")]
fn scores<S: Simd>(simd: S, qt: &[f32], kt: &[f32], p: &mut [f32], lanes: usize, d: usize, padded: usize, seen: usize) {
    for block in 0..seen.div_ceil(lanes) {
        let mut sums = [[simd.splat_f32s(0.0); WIDE]; TILE];
        let keys = S::as_simd_f32s(&kt[block * lanes * d..(block + 1) * lanes * d]).0;
        for (keys, queries) in keys.chunks_exact(WIDE).zip(qt.chunks_exact(TILE)) {
            for t in 0..TILE {
                let query = simd.splat_f32s(queries[t]);
                for wide in 0..WIDE {
                    sums[t][wide] = simd.mul_add_f32s(query, keys[wide], sums[t][wide]);
                }
            }
        }
        for (t, sums) in sums.iter().enumerate() {
            let at = t * padded + block * lanes;
            S::as_mut_simd_f32s(&mut p[at..at + lanes]).0.copy_from_slice(sums);
        }
    }
}

/// `out[t] = Σⱼ p[t][j] · vs[j]` over the first `seen` keys.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "matrices and their sizes")]
fn mix<S: Simd>(
    simd: S,
    p: &[f32],
    vs: &[f32],
    out: &mut [f32],
    lanes: usize,
    padded: usize,
    wide: usize,
    seen: usize,
) {
    for column in (0..wide).step_by(lanes) {
        let mut sums = [[simd.splat_f32s(0.0); WIDE]; TILE];
        for j in 0..seen {
            let at = j * wide + column;
            let values = S::as_simd_f32s(&vs[at..at + lanes]).0;
            for t in 0..TILE {
                let weight = simd.splat_f32s(p[t * padded + j]);
                for wide in 0..WIDE {
                    sums[t][wide] = simd.mul_add_f32s(weight, values[wide], sums[t][wide]);
                }
            }
        }
        for (t, sums) in sums.iter().enumerate() {
            let at = t * wide + column;
            S::as_mut_simd_f32s(&mut out[at..at + lanes]).0.copy_from_slice(sums);
        }
    }
}
