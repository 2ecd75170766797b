//! Softmax attention over packed sequences: `out = softmax(q·kᵀ/√d)·v` for each head and each span of rows.
//!
//! Sequences of different lengths stand one after the other in the same matrix, so nothing is padded, and a prompt that
//! several answers share stands there once: each answer's span names it as its prefix. That is the whole tree mask.

mod forward;
mod kernel;
pub(crate) mod one_step;

use std::ops::Range;
use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp3, D, DType, Device, Layout, Result, Shape, Tensor, Var};

use super::cpu::{self, Floats};
use kernel::backward_spans;

/// Rows of queries and the rows of keys that they see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// Rows of the query matrix. Spans follow each other without a gap.
    pub queries: Range<usize>,
    /// Rows of the key matrix that every query sees: the shared prompt. May be empty.
    pub prefix: Range<usize>,
    /// Rows of the key matrix that belong to the same sequence as the queries.
    pub own: Range<usize>,
    /// Query i sees only the first `first + i + 1` rows of `own`.
    pub causal: bool,
    /// Place of the first query in `own`; 0 when every row of `own` is a query too.
    pub first: usize,
}

impl Span {
    /// A causal sequence after a prefix (empty for a sequence of its own).
    pub fn causal(rows: Range<usize>, prefix: Range<usize>) -> Self {
        Self { queries: rows.clone(), prefix, own: rows, causal: true, first: 0 }
    }

    /// Rows that all see each other, as the patches of an image do.
    pub fn full(rows: Range<usize>) -> Self {
        Self { queries: rows.clone(), prefix: 0..0, own: rows, causal: false, first: 0 }
    }

    fn keys(&self) -> usize {
        self.prefix.len() + self.own.len()
    }

    #[inline(always)]
    fn visible(&self, query: usize) -> usize {
        if self.causal { self.prefix.len() + self.first + query + 1 } else { self.keys() }
    }
}

/// How rows divide into heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Query heads.
    pub query: usize,
    /// Key and value heads; each serves `query / key` query heads.
    pub key: usize,
    /// Width of a head.
    pub width: usize,
}

/// Attention, differentiable in all three. `q` is `[queries, query heads · width]`, `k` and `v`
/// `[keys, key heads · width]`; the result has the shape of `q`.
///
/// # Errors
/// Shapes or spans that do not fit.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, spans: &Arc<[Span]>, heads: Heads) -> Result<Tensor> {
    check(q, k, v, spans, heads)?;
    if cpu::takes(&[q, k, v]) {
        let op = Attention { spans: spans.clone(), heads };
        q.contiguous()?.apply_op3(&k.contiguous()?, &v.contiguous()?, op)
    } else {
        composed(q, k, v, spans, heads)
    }
}

/// `(dL/dq, dL/dk, dL/dv)` from `dL/dout`. The probabilities are computed again instead of kept: they are the one
/// activation that grows with the square of the length.
///
/// # Errors
/// Shapes or spans that do not fit.
pub fn backward(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    spans: &Arc<[Span]>,
    heads: Heads,
    dout: &Tensor,
) -> Result<(Tensor, Tensor, Tensor)> {
    check(q, k, v, spans, heads)?;
    if !kernel_takes(q, k, v, spans) {
        let (q, k, v) = (Var::from_tensor(q)?, Var::from_tensor(k)?, Var::from_tensor(v)?);
        let out = composed(&q, &k, &v, spans, heads)?;
        let mut gradients = (out * dout)?.sum_all()?.backward()?;
        let mut take = |variable: &Var| match gradients.remove(variable) {
            Some(gradient) => Ok(gradient),
            None => variable.zeros_like(),
        };
        return Ok((take(&q)?, take(&k)?, take(&v)?));
    }
    let (q, k, v, dout) = (q.contiguous()?, k.contiguous()?, v.contiguous()?, dout.contiguous()?);
    let mut dq = vec![0.0_f32; q.elem_count()];
    let mut dk = vec![0.0_f32; k.elem_count()];
    let mut dv = vec![0.0_f32; v.elem_count()];
    {
        let (q, k, v, dout) = (Floats::of(&q)?, Floats::of(&k)?, Floats::of(&v)?, Floats::of(&dout)?);
        let (q, k, v, dout): (&[f32], &[f32], &[f32], &[f32]) = (&q, &k, &v, &dout);
        backward_spans(q, k, v, dout, &mut dq, &mut dk, &mut dv, spans, heads);
    }
    Ok((cpu::tensor(dq, q.dims())?, cpu::tensor(dk, k.dims())?, cpu::tensor(dv, v.dims())?))
}

fn check(q: &Tensor, k: &Tensor, v: &Tensor, spans: &[Span], heads: Heads) -> Result<()> {
    let ((queries, q_width), (keys, k_width)) = (q.dims2()?, k.dims2()?);
    if heads.key == 0
        || !heads.query.is_multiple_of(heads.key)
        || q_width != heads.query * heads.width
        || k_width != heads.key * heads.width
        || k.dims() != v.dims()
    {
        candle_core::bail!("attention: q {:?}, k {:?}, v {:?}, {heads:?}", q.dims(), k.dims(), v.dims());
    }
    let mut next = 0;
    for span in spans {
        let fits = span.queries.start == next
            && span.queries.end >= span.queries.start
            && span.prefix.end <= keys
            && span.own.end <= keys
            && (!span.causal || span.first + span.queries.len() <= span.own.len());
        if !fits {
            candle_core::bail!("attention: {span:?} does not fit {queries} queries and {keys} keys");
        }
        next = span.queries.end;
    }
    if next != queries {
        candle_core::bail!("attention: the spans cover {next} of {queries} queries");
    }
    Ok(())
}

/// Above this many keys, the gradient of a full span is faster as matrix products with the scores in memory.
const LONG: usize = 256;

fn kernel_takes(q: &Tensor, k: &Tensor, v: &Tensor, spans: &[Span]) -> bool {
    cpu::takes(&[q, k, v]) && spans.iter().all(|span| span.causal || span.keys() <= LONG)
}

/// `[rows, heads · width]` → `[heads, rows, width]`, each key head repeated for the query heads that it serves.
fn by_head(x: &Tensor, heads: usize, repeat: usize) -> Result<Tensor> {
    let (rows, width) = x.dims2()?;
    let width = width / heads;
    x.reshape((rows, heads, 1, width))?
        .broadcast_as((rows, heads, repeat, width))?
        .reshape((rows, heads * repeat, width))?
        .transpose(0, 1)?
        .contiguous()
}

fn composed(q: &Tensor, k: &Tensor, v: &Tensor, spans: &[Span], heads: Heads) -> Result<Tensor> {
    let mut outs = Vec::with_capacity(spans.len());
    let rows = |x: &Tensor, span: &Span| -> Result<Tensor> {
        let own = x.narrow(0, span.own.start, span.own.len())?;
        if span.prefix.is_empty() {
            return Ok(own);
        }
        Tensor::cat(&[x.narrow(0, span.prefix.start, span.prefix.len())?, own], 0)
    };
    for span in spans.iter().filter(|span| !span.queries.is_empty()) {
        let queries = q.narrow(0, span.queries.start, span.queries.len())?;
        let repeat = heads.query / heads.key;
        let queries = by_head(&queries, heads.query, 1)?;
        let keys = by_head(&rows(k, span)?, heads.key, repeat)?;
        let values = by_head(&rows(v, span)?, heads.key, repeat)?;
        let scores = (queries.matmul(&keys.t()?)? * (1.0 / (heads.width as f64).sqrt()))?;
        let mut scores = scores.to_dtype(DType::F32)?;
        if span.causal {
            scores = scores.broadcast_add(&mask(span, q.device())?)?;
        }
        let probabilities = if q.track_op() || k.track_op() || v.track_op() {
            candle_nn::ops::softmax(&scores, D::Minus1)?
        } else {
            candle_nn::ops::softmax_last_dim(&scores)?
        };
        let out = probabilities.to_dtype(q.dtype())?.matmul(&values)?;
        outs.push(out.transpose(0, 1)?.reshape((span.queries.len(), heads.query * heads.width))?);
    }
    if outs.is_empty() { q.zeros_like() } else { Tensor::cat(&outs, 0) }
}

/// 0 where a query sees a key, −∞ elsewhere, `[queries, keys]`.
fn mask(span: &Span, device: &Device) -> Result<Tensor> {
    let (queries, keys) = (span.queries.len(), span.keys());
    let mut values = vec![0.0_f32; queries * keys];
    for (query, row) in values.chunks_exact_mut(keys).enumerate() {
        row[span.visible(query)..].fill(f32::NEG_INFINITY);
    }
    Tensor::from_vec(values, (queries, keys), device)
}

struct Attention {
    spans: Arc<[Span]>,
    heads: Heads,
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "packed-attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_layout: &Layout,
        k: &CpuStorage,
        k_layout: &Layout,
        v: &CpuStorage,
        v_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (q, k, v) = (cpu::floats(q, q_layout)?, cpu::floats(k, k_layout)?, cpu::floats(v, v_layout)?);
        let mut out = vec![0.0_f32; q.len()];
        forward::forward(q, k, v, &mut out, &self.spans, self.heads);
        Ok((CpuStorage::F32(out), q_layout.shape().clone()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        _out: &Tensor,
        dout: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (dq, dk, dv) = backward(q, k, v, &self.spans, self.heads, dout)?;
        Ok((Some(dq), Some(dk), Some(dv)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ops::finite_difference::{check as differentiate, distance, forms_agree, random};

    const HEADS: Heads = Heads { query: 4, key: 2, width: 6 };

    fn inputs(rows: usize) -> (Tensor, Tensor, Tensor) {
        (random((rows, 24), 1), random((rows, 12), 2), random((rows, 12), 3))
    }

    /// A prompt of 5, answers of 3 and 4 after it, a sequence of 2 of its own.
    fn tree() -> Arc<[Span]> {
        Arc::new([
            Span::causal(0..5, 0..0),
            Span::causal(5..8, 0..5),
            Span::causal(8..12, 0..5),
            Span::causal(12..14, 12..12),
        ])
    }

    #[test]
    fn gradients_and_both_forms() {
        let (q, k, v) = inputs(14);
        for spans in [tree(), Arc::new([Span::full(0..9), Span::full(9..14)]) as Arc<[Span]>] {
            differentiate(&[&q, &k, &v], |t| attention(&t[0], &t[1], &t[2], &spans, HEADS));
            forms_agree(&[&q, &k, &v], |t| attention(&t[0], &t[1], &t[2], &spans, HEADS));
            let dout = random((14, 24), 4);
            let wide = [&q, &k, &v, &dout].map(|tensor| tensor.to_dtype(DType::F64).unwrap());
            let kernel = backward(&q, &k, &v, &spans, HEADS, &dout).unwrap();
            let composed = backward(&wide[0], &wide[1], &wide[2], &spans, HEADS, &wide[3]).unwrap();
            for (kernel, composed) in [(kernel.0, composed.0), (kernel.1, composed.1), (kernel.2, composed.2)] {
                assert!(distance(&kernel, &composed.to_dtype(DType::F32).unwrap()) < 1e-5);
            }
        }
    }

    #[test]
    fn an_answer_sees_its_prompt_and_itself_alone() {
        let (q, k, v) = inputs(14);
        let packed = attention(&q, &k, &v, &tree(), HEADS).unwrap();
        // The second answer as a sequence of its own: prompt rows and its rows, nothing of the first answer.
        let alone = |x: &Tensor| Tensor::cat(&[x.narrow(0, 0, 5).unwrap(), x.narrow(0, 8, 4).unwrap()], 0).unwrap();
        let spans: Arc<[Span]> = Arc::new([Span::causal(0..9, 0..0)]);
        let single = attention(&alone(&q), &alone(&k), &alone(&v), &spans, HEADS).unwrap();
        assert!(distance(&packed.narrow(0, 8, 4).unwrap(), &single.narrow(0, 5, 4).unwrap()) < 1e-6);
    }

    #[test]
    fn queries_may_be_the_last_rows_only() {
        let (q, k, v) = inputs(9);
        let all: Arc<[Span]> = Arc::new([Span::causal(0..9, 0..0)]);
        let whole = attention(&q, &k, &v, &all, HEADS).unwrap();
        let tail: Arc<[Span]> = Arc::new([Span { queries: 0..2, prefix: 0..0, own: 0..9, causal: true, first: 7 }]);
        let last = attention(&q.narrow(0, 7, 2).unwrap(), &k, &v, &tail, HEADS).unwrap();
        assert!(distance(&whole.narrow(0, 7, 2).unwrap(), &last) < 1e-6);
    }

    #[test]
    fn long_spans_equal_the_composed_form_and_queries_do_not_see_each_other() {
        let (q, k, v) = inputs(300);
        for spans in [
            Arc::new([Span::full(0..300)]) as Arc<[Span]>,
            Arc::new([Span::causal(0..290, 0..0), Span::causal(290..300, 0..17)]),
        ] {
            let fused = attention(&q, &k, &v, &spans, HEADS).unwrap();
            assert!(distance(&fused, &composed(&q, &k, &v, &spans, HEADS).unwrap()) < 1e-5);
        }
        let all: Arc<[Span]> = Arc::new([Span::causal(0..300, 0..0)]);
        let whole = attention(&q, &k, &v, &all, HEADS).unwrap();
        for first in [0, 1, 7, 298] {
            let span = Span { queries: 0..2, prefix: 0..0, own: 0..300, causal: true, first };
            let two = attention(&q.narrow(0, first, 2).unwrap(), &k, &v, &(Arc::new([span]) as Arc<[Span]>), HEADS);
            assert_eq!(distance(&whole.narrow(0, first, 2).unwrap(), &two.unwrap()), 0.0, "query {first}");
        }
    }

    #[test]
    fn spans_that_do_not_fit_are_errors() {
        let (q, k, v) = inputs(4);
        for span in [Span::causal(0..5, 0..0), Span::causal(1..4, 0..0), Span::causal(0..4, 0..9), Span::full(0..3)] {
            assert!(attention(&q, &k, &v, &(Arc::new([span]) as Arc<[Span]>), HEADS).is_err());
        }
    }
}
