//! Dropout that needs no memory: the mask is a function of a key and the place.

use candle_core::{Result, Tensor};

use super::ops::cpu::{self, Floats};

/// Sets elements to zero with probability `p` and divides the rest by 1 − p. Which ones depends on `key` and the place in
/// the tensor alone, so that the backward pass applies the same mask without keeping it.
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
    let ones = vec![1.0_f32; x.elem_count()];
    let mut mask = vec![0.0_f32; x.elem_count()];
    drop_into(&ones, p, key, &mut mask);
    let mask = Tensor::from_vec(mask, x.dims(), x.device())?.to_dtype(x.dtype())?;
    x * mask
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
    use candle_core::{DType, Device};

    use super::*;

    #[test]
    fn dropout_keeps_the_mean_and_depends_on_the_key() {
        let x = Tensor::ones((100, 100), DType::F32, &Device::Cpu).unwrap();
        let dropped = dropout(&x, 0.05, 7).unwrap();
        let values = dropped.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let zeros = values.iter().filter(|value| **value == 0.0).count();
        assert!((400..600).contains(&zeros), "{zeros} of 10000 at p = 0.05");
        assert!(
            values
                .iter()
                .all(|value| *value == 0.0 || (value - 1.0 / 0.95).abs() < 1e-6)
        );
        let again = dropout(&x, 0.05, 7)
            .unwrap()
            .flatten_all()
            .unwrap()
            .to_vec1::<f32>()
            .unwrap();
        assert_eq!(values, again);
        let other = dropout(&x, 0.05, 8)
            .unwrap()
            .flatten_all()
            .unwrap()
            .to_vec1::<f32>()
            .unwrap();
        assert_ne!(values, other);
    }
}
