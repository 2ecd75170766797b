//! Attention of one query over the keys and values of its sequence, f32 on the CPU: what a step of generation does.
//!
//! Keys and values are read once for all query heads that share them. Sums stay in registers while the keys go by.

use pulp::Simd;

use super::Heads;
use crate::model::ops::cpu;
use crate::model::ops::few_rows::Rows;

/// Query heads whose scores and sums are made side by side.
const TILE: usize = 4;
/// Vectors of a head's output that are summed side by side for one query head.
const VECTORS: usize = 8;

cpu::kernel! {
    /// The query heads of one key head, `[query heads / key heads · width]` in `q` and in `out`, over the first `keys` rows of
    /// `k` and `v`, `[tokens, key heads · width]`.
    pub(crate) fn attend<S>(
        simd;
        q: &'a [f32],
        k: &'a [f32],
        v: &'a [f32],
        keys: usize,
        heads: Heads,
        key_head: usize,
        out: &'a mut [f32],
    ) {
        let width = heads.width;
        let scale = 1.0 / (width as f32).sqrt();
        let mut scores = vec![0.0_f32; TILE.min(q.len() / width) * keys];
        for (q, out) in q.chunks(TILE * width).zip(out.chunks_mut(TILE * width)) {
            match q.len() / width {
                1 => score::<S, 1>(simd, q, rows(k, keys, heads, key_head), scale, &mut scores),
                2 => score::<S, 2>(simd, q, rows(k, keys, heads, key_head), scale, &mut scores),
                3 => score::<S, 3>(simd, q, rows(k, keys, heads, key_head), scale, &mut scores),
                _ => score::<S, TILE>(simd, q, rows(k, keys, heads, key_head), scale, &mut scores),
            }
            for (scores, out) in scores.chunks_exact_mut(keys).zip(out.chunks_exact_mut(width)) {
                softmax(scores);
                for start in (0..width).step_by(VECTORS * S::F32_LANES) {
                    add_values(simd, scores, rows(v, keys, heads, key_head), start, out);
                }
            }
        }
    }
}

/// What the first rows hold for one key head.
#[inline(always)]
fn rows(all: &[f32], count: usize, heads: Heads, key_head: usize) -> impl ExactSizeIterator<Item = &[f32]> {
    all.chunks_exact(heads.key * heads.width).take(count).map(move |row| &row[key_head * heads.width..][..heads.width])
}

/// `scale · q·k` of `X` heads with each key, `[heads, keys]`.
#[inline(always)]
fn score<'a, S: Simd, const X: usize>(
    simd: S,
    q: &[f32],
    keys: impl ExactSizeIterator<Item = &'a [f32]>,
    scale: f32,
    scores: &mut [f32],
) {
    let (width, count) = (q.len() / X, keys.len());
    let mut rows: [&[f32]; X] = [&[]; X];
    for (row, q) in rows.iter_mut().zip(q.chunks_exact(width)) {
        *row = q;
    }
    let q = Rows::<S, X>::new(rows);
    for (key, k) in keys.enumerate() {
        let dots = q.dots(simd, k);
        for head in 0..X {
            scores[head * count + key] = dots[head] * scale;
        }
    }
}

#[inline(always)]
fn softmax(scores: &mut [f32]) {
    let largest = cpu::largest(scores);
    for score in scores.iter_mut() {
        *score = cpu::exp(*score - largest);
    }
    let inverse = 1.0 / scores.iter().sum::<f32>();
    for score in scores {
        *score *= inverse;
    }
}

/// `Σ weight · value` in up to [`VECTORS`] vectors of columns from `start` on.
#[inline(always)]
fn add_values<'a, S: Simd>(
    simd: S,
    weights: &[f32],
    values: impl Iterator<Item = &'a [f32]>,
    start: usize,
    out: &mut [f32],
) {
    let end = (start + VECTORS * S::F32_LANES).min(out.len());
    let (vectors, rest) = S::as_mut_simd_f32s(&mut out[start..end]);
    let count = vectors.len();
    let mut sums = [simd.splat_f32s(0.0); VECTORS];
    for (weight, v) in weights.iter().zip(values) {
        let (v, v_rest) = S::as_simd_f32s(&v[start..end]);
        let weights = simd.splat_f32s(*weight);
        if let Ok(v) = <&[S::f32s; VECTORS]>::try_from(v) {
            for at in 0..VECTORS {
                sums[at] = simd.mul_add_f32s(weights, v[at], sums[at]);
            }
        } else {
            for at in 0..count {
                sums[at] = simd.mul_add_f32s(weights, v[at], sums[at]);
            }
        }
        for (rest, v) in rest.iter_mut().zip(v_rest) {
            *rest = weight.mul_add(*v, *rest);
        }
    }
    vectors.copy_from_slice(&sums[..count]);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::ops::cpu::Floats;
    use crate::model::ops::finite_difference::random;

    /// The definition, in f64.
    fn exact(q: &[f32], keys: &[&[f32]], values: &[&[f32]]) -> Vec<f64> {
        let scale = 1.0 / (q.len() as f64).sqrt();
        let score = |k: &&[f32]| q.iter().zip(*k).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum::<f64>() * scale;
        let weights: Vec<f64> = keys.iter().map(|k| score(k).exp()).collect();
        let total: f64 = weights.iter().sum();
        let column = |at: usize| weights.iter().zip(values).map(|(weight, v)| weight * f64::from(v[at])).sum::<f64>();
        (0..q.len()).map(|at| column(at) / total).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn equals_the_definition(
            key_heads in 1..4_usize,
            group in 1..8_usize,
            width in 1..140_usize,
            keys in 1..70_usize,
            seed in 0..1000_u64,
        ) {
            let heads = Heads { query: key_heads * group, key: key_heads, width };
            let values = |rows: usize, columns: usize, seed: u64| {
                Floats::of(&(random((rows, columns), seed) * 3.0).unwrap()).unwrap().to_vec()
            };
            // There is more room than there are keys.
            let (k, v) = (values(keys + 3, key_heads * width, seed), values(keys + 3, key_heads * width, seed + 1));
            let q = values(1, heads.query * width, seed + 2);
            for (head, q) in q.chunks_exact(group * width).enumerate() {
                let mut out = vec![0.0; group * width];
                attend(q, &k, &v, keys, heads, head, &mut out);
                fn of(all: &[f32], row: usize, at: usize, width: usize, keys: usize) -> Vec<&[f32]> {
                    all.chunks_exact(row).take(keys).map(|row| &row[at * width..][..width]).collect()
                }
                let row = key_heads * width;
                let (k, v) = (of(&k, row, head, width, keys), of(&v, row, head, width, keys));
                for (q, out) in q.chunks_exact(width).zip(out.chunks_exact(width)) {
                    for (out, exact) in out.iter().zip(exact(q, &k, &v)) {
                        prop_assert!((f64::from(*out) - exact).abs() < 1e-4, "{out} instead of {exact}");
                    }
                }
            }
        }
    }
}
