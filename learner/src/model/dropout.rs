//! Dropout that needs no memory: the mask is a function of a key and the place.

use candle_core::{DType, Device, Result, Tensor};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::ops::cpu::{self, Floats};

/// Sets elements to zero with probability `p` and divides the rest by 1 − p. Which ones depends on `key` and the place in
/// the tensor alone, so that the backward pass applies the same mask without keeping it. `x` is `[rows, width]`.
pub(crate) fn dropout(x: &Tensor, p: f64, key: u64) -> Result<Tensor> {
    let x = x.contiguous()?;
    if cpu::takes(&[&x]) {
        let mut y = vec![0.0_f32; x.elem_count()];
        {
            let x = Floats::of(&x)?;
            let x: &[f32] = &x;
            drop_into(x, p, key, &mut y);
        }
        return cpu::tensor(y, x.dims());
    }
    let mask = if x.device().is_cpu() {
        let mut mask = vec![0.0_f32; x.elem_count()];
        drop_into(&vec![1.0_f32; x.elem_count()], p, key, &mut mask);
        cpu::tensor(mask, x.dims())?
    } else {
        composed(x.dims2()?, p, key, x.device())?
    };
    &x * mask.to_dtype(x.dtype())?
}

/// The mask on the device where it is used, `[rows, width]`, f32: to make it here and copy it would take a GPU longer than the layer.
///
/// Element (i, j) is dropped where the fractional part of aᵢ·bⱼ is below p, aᵢ and bⱼ random. For two elements of a row, the parts of
/// aᵢ·bⱼ and aᵢ·bₖ are independent if aᵢ·(bⱼ − bₖ) covers many whole numbers as aᵢ varies; likewise for a column. So any two
/// elements are, which dropout needs: it shall not drop neighbours together. The products stay below 2¹², which leaves the
/// fractional part 12 bits: p is met within 2⁻¹².
fn composed((rows, width): (usize, usize), p: f64, key: u64, device: &Device) -> Result<Tensor> {
    let mut rng = ChaCha8Rng::seed_from_u64(key);
    let mut random =
        |count: usize, from: f32| -> Vec<f32> { (0..count).map(|_| rng.random_range(from..64.0)).collect() };
    let a = Tensor::from_vec(random(rows, 0.0), (rows, 1), device)?;
    let b = Tensor::from_vec(random(width, 16.0), (1, width), device)?;
    let products = a.broadcast_mul(&b)?;
    let parts = (&products - products.floor()?)?;
    parts.ge(p)?.to_dtype(DType::F32)? * (1.0 / (1.0 - p))
}

cpu::kernel! {
    fn drop_into(x: &'a [f32], p: f64, key: u64, y: &'a mut [f32]) {
        let threshold = (p * 4_294_967_296.0) as u32;
        let factor = (1.0 / (1.0 - p)) as f32;
        let (low, high) = (key as u32, (key >> 32) as u32);
        for (index, (y, x)) in y.iter_mut().zip(x).enumerate() {
            // Murmur3's finaliser: every bit of the index reaches every bit of the result, in operations that vectorise.
            let mut h = (index as u32).wrapping_mul(0x9E37_79B9) ^ low;
            h ^= h >> 16;
            h = h.wrapping_mul(0x85EB_CA6B) ^ high;
            h ^= h >> 13;
            h = h.wrapping_mul(0xC2B2_AE35);
            h ^= h >> 16;
            *y = if h >= threshold { x * factor } else { 0.0 };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropout_keeps_the_mean_and_depends_on_the_key() {
        let x = Tensor::ones((100, 100), DType::F32, &Device::Cpu).unwrap();
        let dropped = dropout(&x, 0.05, 7).unwrap();
        let values = dropped.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let zeros = values.iter().filter(|value| **value == 0.0).count();
        assert!((400..600).contains(&zeros), "{zeros} of 10000 at p = 0.05");
        assert!(values.iter().all(|value| *value == 0.0 || (value - 1.0 / 0.95).abs() < 1e-6));
        let again = dropout(&x, 0.05, 7).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(values, again);
        let other = dropout(&x, 0.05, 8).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_ne!(values, other);
    }

    #[test]
    fn the_composed_mask_drops_each_element_alike_and_no_two_together() {
        let (rows, width, p) = (1000, 200, 0.05);
        let mask = |key| composed((rows, width), p, key, &Device::Cpu).unwrap();
        let kept = (mask(7).to_vec2::<f32>().unwrap(), mask(7).to_vec2::<f32>().unwrap());
        assert_eq!(kept.0, kept.1);
        assert_ne!(kept.0, mask(8).to_vec2::<f32>().unwrap());
        let dropped: Vec<Vec<f64>> =
            kept.0.iter().map(|row| row.iter().map(|v| f64::from(*v == 0.0)).collect()).collect();
        assert!(kept.0.iter().flatten().all(|value| *value == 0.0 || (value - 1.0 / 0.95).abs() < 1e-6));
        // Shares have a standard deviation of √(p(1 − p)/n), here at most 1.6 % of a row and 0.7 % of a column.
        let share = |values: &mut dyn Iterator<Item = f64>, count: usize| values.sum::<f64>() / count as f64;
        for row in &dropped {
            let share = share(&mut row.iter().copied(), width);
            assert!((share - p).abs() < 5.0 * (p * (1.0 - p) / width as f64).sqrt(), "{share} of a row");
        }
        for column in 0..width {
            let share = share(&mut dropped.iter().map(|row| row[column]), rows);
            assert!((share - p).abs() < 5.0 * (p * (1.0 - p) / rows as f64).sqrt(), "{share} of a column");
        }
        // Two columns, or two rows, are dropped together p² of the time.
        let deviation = |count: usize| (p * p * (1.0 - p * p) / count as f64).sqrt();
        for column in 1..width {
            let together = share(&mut dropped.iter().map(|row| row[column] * row[column - 1]), rows);
            assert!((together - p * p).abs() < 6.0 * deviation(rows), "{together} of columns {column} and before");
        }
        for pair in dropped.windows(2) {
            let together = share(&mut pair[0].iter().zip(&pair[1]).map(|(a, b)| a * b), width);
            assert!((together - p * p).abs() < 8.0 * deviation(width), "{together} of two rows");
        }
    }
}
