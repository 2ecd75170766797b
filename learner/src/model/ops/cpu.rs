//! What the CPU kernels share.

use std::ops::{Deref, Range};
use std::sync::RwLockReadGuard;

use candle_core::{CpuStorage, DType, Device, Layout, Result, Storage, Tensor, bail};

/// Whether a kernel of this module can take these tensors: f32 on the CPU.
pub(crate) fn takes(tensors: &[&Tensor]) -> bool {
    tensors.iter().all(|tensor| matches!(tensor.device(), Device::Cpu) && tensor.dtype() == DType::F32)
}

/// The values of a contiguous f32 tensor on the CPU, row-major.
pub(crate) struct Floats<'a> {
    storage: RwLockReadGuard<'a, Storage>,
    range: Range<usize>,
}

impl<'a> Floats<'a> {
    pub(crate) fn of(tensor: &'a Tensor) -> Result<Self> {
        let (storage, layout) = tensor.storage_and_layout();
        let range = contiguous(layout)?;
        match &*storage {
            Storage::Cpu(CpuStorage::F32(_)) => Ok(Self { storage, range }),
            _ => bail!("a CPU kernel was given a tensor that is not f32 on the CPU"),
        }
    }
}

impl Deref for Floats<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match &*self.storage {
            Storage::Cpu(CpuStorage::F32(values)) => &values[self.range.clone()],
            // `of` let nothing else in.
            _ => &[],
        }
    }
}

/// The values behind a custom operation's argument.
pub(crate) fn floats<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    Ok(&storage.as_slice::<f32>()?[contiguous(layout)?])
}

fn contiguous(layout: &Layout) -> Result<Range<usize>> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(start..end),
        None => bail!("a CPU kernel was given a tensor that is not contiguous"),
    }
}

/// A new f32 tensor on the CPU.
pub(crate) fn tensor(values: Vec<f32>, shape: &[usize]) -> Result<Tensor> {
    Tensor::from_vec(values, shape, &Device::Cpu)
}

/// Values whose elementwise work is worth a thread.
pub(crate) const WORTH_A_THREAD: usize = 1 << 15;

/// Declares a function whose body is compiled for the widest vector instructions of this machine, chosen at run time.
///
/// Whatever the body calls must be `#[inline(always)]`: code that is not inlined is compiled for the oldest machine, and
/// there a `mul_add` is a call into libm. A closure given to `pulp` has the same fate as soon as it is large, hence a
/// structure with an inlined method. Borrowed arguments have the lifetime `'a`.
///
/// With `<S>` and `simd;` before the arguments the body gets the vector instructions themselves, for loops that do not vectorise
/// by themselves.
macro_rules! kernel {
    ($(#[$attribute:meta])* $visibility:vis fn $name:ident($($arguments:tt)*) $body:block) => {
        $crate::model::ops::cpu::kernel! { $(#[$attribute])* $visibility fn $name<S>(_simd; $($arguments)*) $body }
    };
    (
        $(#[$attribute:meta])*
        $visibility:vis fn $name:ident<$simd_type:ident>($simd:ident; $($argument:ident: $type:ty),* $(,)?) $body:block
    ) => {
        $(#[$attribute])*
        #[allow(clippy::too_many_arguments, reason = "some kernels take many matrices and sizes")]
        $visibility fn $name<'a>($($argument: $type),*) {
            struct Call<'a> {
                $($argument: $type,)*
                lifetime: std::marker::PhantomData<&'a ()>,
            }
            impl pulp::WithSimd for Call<'_> {
                type Output = ();

                #[inline(always)]
                fn with_simd<$simd_type: pulp::Simd>(self, $simd: $simd_type) {
                    let Self { $($argument,)* lifetime: _ } = self;
                    $body
                }
            }
            pulp::Arch::new().dispatch(Call { $($argument,)* lifetime: std::marker::PhantomData });
        }
    };
}
pub(crate) use kernel;

/// eˣ within 2 units in the last place, for loops that vectorise: libm's is a call per element.
///
/// x = n·ln 2 + r with |r| ≤ ln 2 / 2; eʳ by Cephes' polynomial of degree 6, 2ⁿ by writing the exponent bits.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // Adding 1.5·2²³ rounds to the nearest integer and leaves it in the low bits of the mantissa.
    const ROUND: f32 = 12_582_912.0;
    let x = x.clamp(-87.0, 88.0);
    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-0.693_359_4, x);
    let r = n.mul_add(2.121_944_4e-4, r);
    let mut p = 1.987_569_1e-4_f32;
    p = p.mul_add(r, 1.398_199_9e-3);
    p = p.mul_add(r, 8.333_452e-3);
    p = p.mul_add(r, 4.166_579_6e-2);
    p = p.mul_add(r, 1.666_666_5e-1);
    p = p.mul_add(r, 0.5);
    p = p.mul_add(r * r, r) + 1.0;
    let power = shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23;
    p * f32::from_bits(power)
}

/// Sum of products. Sixteen partial sums, because floating-point addition is not associative and one sum would not vectorise.
#[inline(always)]
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0_f32; 16];
    let (a_blocks, b_blocks) = (a.chunks_exact(16), b.chunks_exact(16));
    let rest: f32 = a_blocks.remainder().iter().zip(b_blocks.remainder()).map(|(x, y)| x * y).sum();
    for (x, y) in a_blocks.zip(b_blocks) {
        for lane in 0..16 {
            sums[lane] = x[lane].mul_add(y[lane], sums[lane]);
        }
    }
    sums.iter().sum::<f32>() + rest
}

/// The largest value; −∞ of none. NaN counts as smallest. Sixteen at a time, as in [`dot`].
#[inline(always)]
pub(crate) fn largest(values: &[f32]) -> f32 {
    let mut largest = [f32::NEG_INFINITY; 16];
    let blocks = values.chunks_exact(16);
    let rest = blocks.remainder();
    for block in blocks {
        for lane in 0..16 {
            largest[lane] = if block[lane] > largest[lane] { block[lane] } else { largest[lane] };
        }
    }
    largest.iter().chain(rest).copied().fold(f32::NEG_INFINITY, f32::max)
}

/// Σ exp(x − shift), in sixteen partial sums.
#[inline(always)]
pub(crate) fn sum_exp(values: &[f32], shift: f32) -> f32 {
    let mut sums = [0.0_f32; 16];
    let blocks = values.chunks_exact(16);
    let mut rest = 0.0;
    for x in blocks.remainder() {
        rest += exp(*x - shift);
    }
    for block in blocks {
        for lane in 0..16 {
            sums[lane] += exp(block[lane] - shift);
        }
    }
    sums.iter().sum::<f32>() + rest
}

/// `y += α·x`.
#[inline(always)]
pub(crate) fn axpy(alpha: f32, x: &[f32], y: &mut [f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y = x.mul_add(alpha, *y);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_agrees_with_libm() {
        let mut worst = 0.0_f64;
        for step in -8_600..8_800 {
            let x = step as f32 * 0.01;
            let exact = f64::from(x).exp();
            worst = worst.max((f64::from(exp(x)) - exact).abs() / exact);
        }
        assert!(worst < 3e-7, "relative error {worst}");
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(f32::NEG_INFINITY) < 1e-37);
    }

    #[test]
    fn largest_and_sum_of_every_length() {
        for length in [0, 1, 15, 16, 17, 40] {
            let values: Vec<f32> = (0..length).map(|i| ((i * 7) % 11) as f32 - 12.0).collect();
            let expected = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            assert_eq!(largest(&values), expected);
            let sum: f64 = values.iter().map(|x| f64::from(*x + 3.0).exp()).sum();
            assert!((f64::from(sum_exp(&values, -3.0)) - sum).abs() <= 1e-6 * sum);
        }
        assert_eq!(largest(&[f32::NAN, -1.0]), -1.0);
    }

    #[test]
    fn dot_of_every_length() {
        for length in [0, 1, 15, 16, 17, 40] {
            let a: Vec<f32> = (0..length).map(|i| i as f32).collect();
            assert_eq!(dot(&a, &a), (0..length).map(|i| (i * i) as f32).sum::<f32>());
        }
    }
}
