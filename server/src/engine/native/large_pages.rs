//! Large pages for what every step reads.
//!
//! On pages of 4 KiB the processor looks up a hundred thousand addresses for each token of a model of 500 MB, in a virtual machine through
//! two tables. Linux gives larger ones by itself only where it is set up so (`transparent_hugepage`), and on most systems whoever wants
//! them asks.

use std::collections::BTreeMap;
use std::ops::Range;

use candle_core::{CpuStorage, Storage, Tensor};
use tracing::debug;

use crate::os;

/// A large page of x86-64, and of AArch64 with pages of 4 KiB.
const PAGE: usize = 2 << 20;

/// Puts the values of tensors in f32 on the CPU on large pages where they fill at least half of one. Where the system refuses they stay as
/// they are.
pub(super) fn put<'a>(tensors: impl IntoIterator<Item = &'a Tensor>) {
    let mut pages: BTreeMap<usize, usize> = BTreeMap::new();
    for tensor in tensors {
        for (page, bytes) in filled(addresses(tensor)) {
            *pages.entry(page).or_default() += bytes;
        }
    }
    let (mut put, mut refused) = (0, None);
    for (page, _) in pages.into_iter().filter(|(_, bytes)| *bytes >= PAGE / 2) {
        match os::collapse(page, PAGE) {
            Ok(()) => put += 1,
            Err(error) => refused = Some(error),
        }
    }
    debug!(pages = put, refused = refused.map(tracing::field::display), "Weights are on large pages.");
}

/// Where a tensor's values are; nowhere if they are not f32 in one piece on the CPU.
fn addresses(tensor: &Tensor) -> Range<usize> {
    let (storage, layout) = tensor.storage_and_layout();
    match (&*storage, layout.contiguous_offsets()) {
        (Storage::Cpu(CpuStorage::F32(values)), Some((start, end))) => {
            let values = values[start..end].as_ptr_range();
            values.start.addr()..values.end.addr()
        }
        _ => 0..0,
    }
}

/// The large pages that a range lies on, by their addresses, and how many bytes of each it fills.
fn filled(range: Range<usize>) -> impl Iterator<Item = (usize, usize)> {
    let first = range.start / PAGE * PAGE;
    (first..range.end).step_by(PAGE).map(move |page| {
        let bytes = range.end.min(page + PAGE) - range.start.max(page);
        (page, bytes)
    })
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    #[test]
    fn a_range_fills_its_pages() {
        let pages = |range| filled(range).collect::<Vec<_>>();
        assert!(pages(0..0).is_empty());
        assert_eq!(pages(PAGE + 5..PAGE + 7), [(PAGE, 2)]);
        assert_eq!(pages(2 * PAGE - 1..3 * PAGE + 1), [(PAGE, 1), (2 * PAGE, PAGE), (3 * PAGE, 1)]);
    }

    #[test]
    fn values_stay_what_they_are() {
        let tensor = Tensor::rand(-1.0_f32, 1.0, (3, 1 << 20), &Device::Cpu).unwrap();
        let before = tensor.copy().unwrap();
        let range = addresses(&tensor);
        assert_eq!(range.len(), 12 << 20);
        put([&tensor, &tensor.narrow(0, 1, 1).unwrap()]);
        assert_eq!(addresses(&tensor), range);
        assert_eq!(tensor.to_vec2::<f32>().unwrap(), before.to_vec2::<f32>().unwrap());
        assert!(addresses(&tensor.t().unwrap()).is_empty());
        assert!(addresses(&tensor.to_dtype(DType::BF16).unwrap()).is_empty());
    }
}
