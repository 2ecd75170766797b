//! The backward pass over packed sequences in one loop, f32 on the CPU.
//!
//! A head's keys are copied once for each span, transposed, so that the products with a query run along the keys and the
//! mixture of values along the width: both are sums of rows that stay in the first cache.

use super::{Heads, Span};
use crate::model::ops::cpu;

// With P the probabilities, dP = dout·Vᵀ: dS = P∘(dP − Σ P∘dP), dq = dS·K/√d, dk = dSᵀ·q/√d, dv = Pᵀ·dout.
cpu::kernel! {
    pub(super) fn backward_spans(
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    dout: &'a [f32],
    dq: &'a mut [f32],
    dk: &'a mut [f32],
    dv: &'a mut [f32],
    spans: &'a [Span],
    heads: Heads,
) {
        let d = heads.width;
        let (q_width, group) = (heads.query * d, heads.query / heads.key);
        let scale = 1.0 / (d as f32).sqrt();
        let (mut kt, mut vt, mut ks) = (Vec::new(), Vec::new(), Vec::new());
        let (mut p, mut ds) = (Vec::new(), Vec::new());
        let (mut dks, mut dvs) = (Vec::new(), Vec::new());
        for span in spans {
            let keys = span.keys();
            p.resize(keys, 0.0);
            ds.resize(keys, 0.0);
            for key_head in 0..heads.key {
                columns(k, span, heads, key_head, &mut kt);
                columns(v, span, heads, key_head, &mut vt);
                rows(k, span, heads, key_head, &mut ks);
                dks.clear();
                dks.resize(keys * d, 0.0);
                dvs.clear();
                dvs.resize(keys * d, 0.0);
                for head in key_head * group..(key_head + 1) * group {
                    for (i, row) in span.queries.clone().enumerate() {
                        let at = row * q_width + head * d;
                        let visible = span.visible(i);
                        let (p, ds) = (&mut p[..visible], &mut ds[..visible]);
                        let (q, dout) = (&q[at..at + d], &dout[at..at + d]);
                        products(q, &kt, keys, scale, p);
                        softmax(p);
                        products(dout, &vt, keys, 1.0, ds);
                        let mean = cpu::dot(p, ds);
                        for (ds, p) in ds.iter_mut().zip(p.iter()) {
                            *ds = p * (*ds - mean) * scale;
                        }
                        mixture(ds, &ks, &mut dq[at..at + d]);
                        for ((dk, dv), (ds, p)) in dks
                            .chunks_exact_mut(d)
                            .zip(dvs.chunks_exact_mut(d))
                            .zip(ds.iter().zip(p.iter()))
                        {
                            cpu::axpy(*ds, q, dk);
                            cpu::axpy(*p, dout, dv);
                        }
                    }
                }
                let key_width = heads.key * d;
                let places = span.prefix.clone().chain(span.own.clone());
                for ((row, dks), dvs) in places.zip(dks.chunks_exact(d)).zip(dvs.chunks_exact(d)) {
                    let at = row * key_width + key_head * d;
                    cpu::axpy(1.0, dks, &mut dk[at..at + d]);
                    cpu::axpy(1.0, dvs, &mut dv[at..at + d]);
                }
            }
        }
    }
}

/// One head's rows of a span, `[keys, width]`.
#[inline(always)]
fn rows(x: &[f32], span: &Span, heads: Heads, head: usize, out: &mut Vec<f32>) {
    let (d, width) = (heads.width, heads.key * heads.width);
    out.clear();
    for row in span.prefix.clone().chain(span.own.clone()) {
        let at = row * width + head * d;
        out.extend_from_slice(&x[at..at + d]);
    }
}

/// The same transposed, `[width, keys]`: products with a query then run along the keys.
#[inline(always)]
fn columns(x: &[f32], span: &Span, heads: Heads, head: usize, out: &mut Vec<f32>) {
    let (d, width, keys) = (heads.width, heads.key * heads.width, span.keys());
    out.resize(keys * d, 0.0);
    for (j, row) in span.prefix.clone().chain(span.own.clone()).enumerate() {
        let at = row * width + head * d;
        for (i, value) in x[at..at + d].iter().enumerate() {
            out[i * keys + j] = *value;
        }
    }
}

/// `out[j] = scale · Σᵢ x[i] · columns[i][j]` for the first `out.len()` of `keys` columns.
#[inline(always)]
fn products(x: &[f32], columns: &[f32], keys: usize, scale: f32, out: &mut [f32]) {
    out.fill(0.0);
    let n = out.len();
    let quads = x.chunks_exact(4);
    let rest = quads.remainder();
    let done = x.len() - rest.len();
    for (quad, rows) in quads.zip(columns.chunks_exact(4 * keys)) {
        let (a, b, c, e) = (quad[0] * scale, quad[1] * scale, quad[2] * scale, quad[3] * scale);
        let (r0, r1) = (&rows[..n], &rows[keys..keys + n]);
        let (r2, r3) = (&rows[2 * keys..2 * keys + n], &rows[3 * keys..3 * keys + n]);
        for j in 0..n {
            out[j] = a.mul_add(r0[j], b.mul_add(r1[j], c.mul_add(r2[j], e.mul_add(r3[j], out[j]))));
        }
    }
    for (x, row) in rest.iter().zip(columns[done * keys..].chunks_exact(keys)) {
        cpu::axpy(x * scale, &row[..n], out);
    }
}

/// `out += Σⱼ p[j] · rows[j]`.
#[inline(always)]
fn mixture(p: &[f32], rows: &[f32], out: &mut [f32]) {
    let d = out.len();
    let quads = p.chunks_exact(4);
    let rest = quads.remainder();
    let done = p.len() - rest.len();
    for (quad, rows) in quads.zip(rows.chunks_exact(4 * d)) {
        let (r0, r1) = (&rows[..d], &rows[d..2 * d]);
        let (r2, r3) = (&rows[2 * d..3 * d], &rows[3 * d..4 * d]);
        for i in 0..d {
            out[i] =
                quad[0].mul_add(r0[i], quad[1].mul_add(r1[i], quad[2].mul_add(r2[i], quad[3].mul_add(r3[i], out[i]))));
        }
    }
    for (p, row) in rest.iter().zip(rows[done * d..].chunks_exact(d)) {
        cpu::axpy(*p, row, out);
    }
}

#[inline(always)]
pub(super) fn softmax(p: &mut [f32]) {
    let mut largest = f32::NEG_INFINITY;
    for p in p.iter() {
        largest = if *p > largest { *p } else { largest };
    }
    for p in p.iter_mut() {
        *p = cpu::exp(*p - largest);
    }
    let mut sums = [0.0_f32; 16];
    let blocks = p.chunks_exact(16);
    let rest: f32 = blocks.remainder().iter().sum();
    for block in blocks {
        for lane in 0..16 {
            sums[lane] += block[lane];
        }
    }
    let inverse = 1.0 / (sums.iter().sum::<f32>() + rest);
    for p in p.iter_mut() {
        *p *= inverse;
    }
}
