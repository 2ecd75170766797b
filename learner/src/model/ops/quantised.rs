//! `y = x·Wᵀ` where W is held in blocks of 8 or 4 bits, on the CPU.
//!
//! The blocks are candle's (and llama.cpp's), the product is not: candle's rounds the rows of `x` to 8 bits, too, and its vector
//! instructions are chosen when it is compiled, so that a program for every x86-64 has none. Here a piece of the weight at a
//! time becomes f32 in the caches, and is multiplied there as f32. So the result is, to the last bits, that of the rounded
//! weight, and what is read from memory is the blocks.

use std::hint::black_box;
use std::ops::Range;
use std::sync::Arc;

use candle_core::backend::BackendStorage;
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::cpu;
use super::few_rows::{self, Matrix};

/// Values that are made f32 at a time for many rows: what fits beside the others into a second cache.
const PIECE: usize = 1 << 16;

/// `x·Wᵀ`. `x` is `[rows, in]`, f32, `weight` `[out, in]`, both on the CPU; the result `[rows, out]`.
///
/// # Errors
/// Shapes that do not fit, blocks of another kind than Q8_0, Q4_0 and Q4_K, another device. The backward pass: nothing is
/// trained on rounded weights.
pub fn quantised_linear(x: &Tensor, weight: &Arc<QTensor>) -> Result<Tensor> {
    x.contiguous()?.apply_op1(QuantisedLinear { weight: weight.clone() })
}

/// How the values of a block are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// 32 values: a scale d in f16, then an i8 q each. d·q.
    Q8_0,
    /// 32 values: d in f16, then 16 bytes with four bits of the first sixteen (low) and of the others (high). d·(q − 8).
    Q4_0,
    /// 256 values in eight runs of 32: d and m in f16, 12 bytes with six bits of scale s and of offset o for each run, then
    /// four bits for each value, the low ones of 32 bytes for one run, the high ones for the next. d·s·q − m·o.
    Q4K,
}

impl Format {
    fn of(blocks: GgmlDType) -> Result<Self> {
        match blocks {
            GgmlDType::Q8_0 => Ok(Self::Q8_0),
            GgmlDType::Q4_0 => Ok(Self::Q4_0),
            GgmlDType::Q4K => Ok(Self::Q4K),
            other => bail!("a quantised linear layer in blocks of {other:?}"),
        }
    }

    /// Values of a block.
    const fn values(self) -> usize {
        match self {
            Self::Q8_0 | Self::Q4_0 => 32,
            Self::Q4K => 256,
        }
    }

    /// Bytes of a block.
    const fn bytes(self) -> usize {
        match self {
            Self::Q8_0 => 34,
            Self::Q4_0 => 18,
            Self::Q4K => 144,
        }
    }

    /// The values of whole blocks.
    ///
    /// Within a block they lie side by side; the compiler would rather take the same value of several blocks, which do not. What
    /// it cannot see through (`black_box`) is not done for several blocks at once.
    #[inline(always)]
    fn read(self, blocks: &[u8], values: &mut [f32]) {
        match self {
            Self::Q8_0 => {
                for (block, values) in blocks.chunks_exact(34).zip(values.chunks_exact_mut(32)) {
                    let d = black_box(half(&block[..2]));
                    each::<32>(&block[2..], values, |q| d * f32::from(q.cast_signed()));
                }
            }
            Self::Q4_0 => {
                for (block, values) in blocks.chunks_exact(18).zip(values.chunks_exact_mut(32)) {
                    let d = black_box(half(&block[..2]));
                    let (low, high) = values.split_at_mut(16);
                    each::<16>(&block[2..], low, |q| d * (f32::from(q & 15) - 8.0));
                    each::<16>(&block[2..], high, |q| d * (f32::from(q >> 4) - 8.0));
                }
            }
            Self::Q4K => {
                for (block, values) in blocks.chunks_exact(144).zip(values.chunks_exact_mut(256)) {
                    let (d, m) = (black_box(half(&block[..2])), half(&block[2..4]));
                    let pairs = block[16..].chunks_exact(32).zip(values.chunks_exact_mut(64));
                    for (pair, (bytes, values)) in pairs.enumerate() {
                        let (low, high) = values.split_at_mut(32);
                        let (s, o) = six_bits(&block[4..16], 2 * pair);
                        let (scale, offset) = (d * f32::from(s), m * f32::from(o));
                        each::<32>(bytes, low, |q| scale * f32::from(q & 15) - offset);
                        let (s, o) = six_bits(&block[4..16], 2 * pair + 1);
                        let (scale, offset) = (d * f32::from(s), m * f32::from(o));
                        each::<32>(bytes, high, |q| scale * f32::from(q >> 4) - offset);
                    }
                }
            }
        }
    }
}

/// A value of each byte. By way of copies, because the compiler does not know here that the two lie apart, and would do one
/// after the other.
#[inline(always)]
fn each<const N: usize>(bytes: &[u8], values: &mut [f32], value: impl Fn(u8) -> f32) {
    let (mut copied, mut results) = ([0; N], [0.0; N]);
    copied.copy_from_slice(bytes);
    for (result, byte) in results.iter_mut().zip(copied) {
        *result = value(byte);
    }
    values.copy_from_slice(&results);
}

/// Scale and offset of one of eight runs: the first four in the low six bits of a byte each, the others four bits in the last
/// four bytes and two above those of the first.
#[inline(always)]
fn six_bits(packed: &[u8], run: usize) -> (u8, u8) {
    if run < 4 {
        (packed[run] & 63, packed[run + 4] & 63)
    } else {
        let low = packed[run + 4];
        (low & 15 | packed[run - 4] >> 6 << 4, low >> 4 | packed[run] >> 6 << 4)
    }
}

/// A finite f16, little endian. Its bits, where those of an f32 are, are a number 2¹¹² times too small; that holds for
/// subnormal ones, too. The library's conversion would be a call.
#[inline(always)]
fn half(bytes: &[u8]) -> f32 {
    const UP: f32 = f32::from_bits((127 + 112) << 23);
    let bits = u32::from(bytes[0]) | u32::from(bytes[1]) << 8;
    let magnitude = f32::from_bits((bits & 0x7fff) << 13) * UP;
    f32::from_bits(magnitude.to_bits() | (bits & 0x8000) << 16)
}

/// A weight in blocks.
#[derive(Clone, Copy)]
pub(super) struct Blocks<'a> {
    bytes: &'a [u8],
    format: Format,
}

impl<'a> Blocks<'a> {
    /// Whole rows of a matrix of this width.
    pub(super) fn rows(self, rows: Range<usize>, width: usize) -> Self {
        let row = width / self.format.values() * self.format.bytes();
        Self { bytes: &self.bytes[rows.start * row..rows.end * row], ..self }
    }

    /// Writes some columns, from whole block to whole block, of some rows of a matrix of this width.
    #[inline(always)]
    pub(super) fn read(self, rows: Range<usize>, columns: Range<usize>, width: usize, values: &mut [f32]) {
        let (of_block, bytes) = (self.format.values(), self.format.bytes());
        let row = width / of_block * bytes;
        let within = columns.start / of_block * bytes..columns.end / of_block * bytes;
        for (values, row) in
            values.chunks_exact_mut(columns.len()).zip(self.bytes[rows.start * row..].chunks_exact(row))
        {
            self.format.read(&row[within.clone()], values);
        }
    }
}

cpu::kernel! {
    fn read_all(blocks: Blocks<'a>, width: usize, values: &'a mut [f32]) {
        blocks.read(0..values.len() / width, 0..width, width, values);
    }
}

/// For more rows than [`few_rows`] takes: the general product of each piece.
fn many_rows(x: &CpuStorage, x_layout: &Layout, weight: Blocks<'_>, shape: (usize, usize, usize)) -> Result<Vec<f32>> {
    let (rows, outputs, inputs) = shape;
    let piece = (PIECE / inputs).max(1);
    let products = (0..outputs.div_ceil(piece)).into_par_iter().map(|at| {
        let range = at * piece..((at + 1) * piece).min(outputs);
        let width = range.len();
        let mut values = vec![0.0_f32; width * inputs];
        read_all(weight.rows(range, inputs), inputs, &mut values);
        let transposed = Layout::contiguous((width, inputs)).transpose(0, 1)?;
        match x.matmul(&CpuStorage::F32(values), (1, rows, width, inputs), x_layout, &transposed)? {
            CpuStorage::F32(product) => Ok(product),
            _ => bail!("quantised linear: a product of another type"),
        }
    });
    let products = products.collect::<Result<Vec<_>>>()?;
    let mut y = vec![0.0_f32; rows * outputs];
    y.par_chunks_mut(outputs).enumerate().for_each(|(row, y)| {
        for (y, product) in y.chunks_mut(piece).zip(&products) {
            y.copy_from_slice(&product[row * y.len()..(row + 1) * y.len()]);
        }
    });
    Ok(y)
}

struct QuantisedLinear {
    weight: Arc<QTensor>,
}

impl CustomOp1 for QuantisedLinear {
    fn name(&self) -> &'static str {
        "quantised-linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, x_layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let ((rows, inputs), (outputs, columns)) = (x_layout.shape().dims2()?, self.weight.shape().dims2()?);
        if columns != inputs {
            bail!("quantised linear: x has {inputs} columns, the weight {columns}");
        }
        let bytes = self.weight.data()?;
        let weight = Blocks { bytes: &bytes, format: Format::of(self.weight.dtype())? };
        let y = match rows {
            0 => Vec::new(),
            _ if outputs * inputs == 0 => vec![0.0; rows * outputs],
            1..=few_rows::MOST => {
                few_rows::product(cpu::floats(x, x_layout)?, Matrix::Blocks(weight), rows, outputs, inputs)
            }
            _ => many_rows(x, x_layout, weight, (rows, outputs, inputs))?,
        };
        Ok((CpuStorage::F32(y), (rows, outputs).into()))
    }

    fn bwd(&self, _x: &Tensor, _y: &Tensor, _dy: &Tensor) -> Result<Option<Tensor>> {
        bail!("there is no gradient through a quantised layer: a base is trained on in full precision")
    }
}

#[cfg(test)]
mod tests {
    use candle_core::quantized::QMatMul;
    use candle_core::{DType, Device, Module, Var};
    use proptest::prelude::*;

    use super::*;
    use crate::model::ops::finite_difference::{distance, random};

    const FORMATS: [GgmlDType; 3] = [GgmlDType::Q8_0, GgmlDType::Q4_0, GgmlDType::Q4K];

    fn quantised(weight: &Tensor, format: GgmlDType) -> Arc<QTensor> {
        Arc::new(QTensor::quantize(weight, format).unwrap())
    }

    fn row(y: &Tensor, at: usize) -> Vec<f32> {
        y.get(at).unwrap().to_vec1().unwrap()
    }

    #[test]
    fn every_half_is_what_candle_says() {
        let bytes: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        let candles = Tensor::from_raw_buffer(&bytes, DType::F16, &[1 << 16], &Device::Cpu).unwrap();
        let candles = candles.to_dtype(DType::F32).unwrap().to_vec1::<f32>().unwrap();
        for (bytes, exact) in bytes.chunks_exact(2).zip(candles).filter(|(_, exact)| exact.is_finite()) {
            assert_eq!(half(bytes).to_bits(), exact.to_bits(), "{bytes:?}");
        }
    }

    #[test]
    fn blocks_are_read_as_candle_reads_them() {
        for format in FORMATS {
            for scale in [1.0, 1e-6, 1e4] {
                let blocks = quantised(&(random((7, 1536), 1) * scale).unwrap(), format);
                let bytes = blocks.data().unwrap();
                let held = Blocks { bytes: &bytes, format: Format::of(format).unwrap() };
                let mut values = vec![0.0; 7 * 1536];
                read_all(held, 1536, &mut values);
                let candles = blocks.dequantize(&Device::Cpu).unwrap().flatten_all().unwrap();
                assert_eq!(values, candles.to_vec1::<f32>().unwrap(), "{format:?}");
                // A part of some rows.
                let mut part = vec![0.0; 2 * 512];
                held.rows(1..6, 1536).read(2..4, 768..1280, 1536, &mut part);
                assert_eq!(part[..512], values[3 * 1536 + 768..3 * 1536 + 1280]);
                assert_eq!(part[512..], values[4 * 1536 + 768..4 * 1536 + 1280]);
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        /// Against candle's product with what it makes of the blocks, and each row against itself alone.
        #[test]
        fn it_is_the_product_with_the_rounded_weight(
            format in prop::sample::select(FORMATS.to_vec()),
            rows in prop_oneof![1..=few_rows::MOST, 33..90_usize],
            outputs in prop_oneof![1..40_usize, 400..520_usize],
            blocks in 1..8_usize,
            threads in 1..4_usize,
            seed in 0..1000_u64,
        ) {
            let inputs = blocks * format.block_size();
            let (x, w) = (random((rows, inputs), seed), random((outputs, inputs), seed + 1));
            let blocks = quantised(&w, format);
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let y = pool.install(|| quantised_linear(&x, &blocks)).unwrap();
            let rounded = blocks.dequantize(&Device::Cpu).unwrap();
            let expected = x.matmul(&rounded.t().unwrap()).unwrap();
            prop_assert!(distance(&y, &expected) < 2e-6 * inputs as f32, "{}", distance(&y, &expected));
            for at in [0, rows / 2, rows - 1] {
                let alone = quantised_linear(&x.narrow(0, at, 1).unwrap(), &blocks).unwrap();
                if rows <= few_rows::MOST {
                    prop_assert_eq!(row(&alone, 0), row(&y, at));
                } else {
                    prop_assert!(distance(&alone, &y.narrow(0, at, 1).unwrap()) < 2e-6 * inputs as f32);
                }
            }
        }
    }

    /// candle rounds each value of `x`, of at most 1 here, to a 127th of the largest beside it: it is off by 0.3 of that, root
    /// mean square, and a sum of 1024 products with values of 0.6 by 32 · 0.6 times that. Six times so much is not seen.
    #[test]
    fn it_is_candles_own_within_the_rounding_of_x() {
        let (x, w) = (random((5, 1024), 1), random((96, 1024), 2));
        for format in FORMATS {
            let blocks = quantised(&w, format);
            let ours = quantised_linear(&x, &blocks).unwrap();
            let candles = QMatMul::from_arc(blocks).unwrap().forward(&x).unwrap();
            let apart = distance(&ours, &candles);
            assert!(apart < 6.0 * 32.0 * 0.6 * 0.3 / 127.0, "{format:?}: {apart}");
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let blocks = quantised(&random((8, 64), 1), GgmlDType::Q8_0);
        let error = quantised_linear(&random((2, 32), 2), &blocks).unwrap_err().to_string();
        assert!(error.contains("x has 32 columns, the weight 64"), "{error}");
        let other = quantised(&random((8, 64), 1), GgmlDType::Q5_0);
        let error = quantised_linear(&random((2, 64), 2), &other).unwrap_err().to_string();
        assert!(error.contains("Q5_0"), "{error}");
        let x = Var::from_tensor(&random((2, 64), 2)).unwrap();
        let error = quantised_linear(&x, &blocks).unwrap().sum_all().unwrap().backward().unwrap_err().to_string();
        assert!(error.contains("no gradient through a quantised layer"), "{error}");
        let none = Tensor::zeros((0, 64), DType::F32, &Device::Cpu).unwrap();
        assert_eq!(quantised_linear(&none, &blocks).unwrap().dims(), [0, 8]);
    }
}
