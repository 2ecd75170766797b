//! What the JPEG decoder does not check: that the file is whole, and that it does not repeat itself without end.
//!
//! The decoder fills what is missing with grey and calls it a success; an answer about half an image would be wrong without
//! anyone noticing. And a progressive file may refine the same pixels as often as it likes, for a few bytes each time.

/// Scans that a file may have. Encoders write up to about a dozen.
const MAX_SCANS: usize = 64;

const START_OF_SCAN: u8 = 0xda;
const END_OF_IMAGE: u8 = 0xd9;

/// Walks over the segments of a JPEG file up to its end marker.
///
/// # Errors
/// What is wrong with the file.
pub(super) fn check(bytes: &[u8]) -> Result<(), &'static str> {
    let mut scans = 0;
    let mut rest = bytes;
    while let Some((marker, after)) = next_marker(rest) {
        rest = match marker {
            END_OF_IMAGE => return Ok(()),
            // Start of image and the obsolete TEM have no length.
            0xd8 | 0x01 => after,
            _ => {
                scans += usize::from(marker == START_OF_SCAN);
                if scans > MAX_SCANS {
                    return Err("it has more than 64 scans");
                }
                segment_end(after).unwrap_or_default()
            }
        };
    }
    Err("it ends too early (there is no end-of-image marker)")
}

/// The next marker and what follows it. Coded pixels are passed over: in them, 0xff is followed by 0 or a restart marker.
fn next_marker(bytes: &[u8]) -> Option<(u8, &[u8])> {
    let mut rest = bytes;
    loop {
        let start = rest.iter().position(|byte| *byte == 0xff)?;
        rest = rest.get(start + 1..)?;
        match rest.split_first()? {
            (0x00 | 0xd0..=0xd7, after) => rest = after,
            // Fill bytes may precede a marker.
            (0xff, _) => {}
            (marker, after) => return Some((*marker, after)),
        }
    }
}

/// What follows a segment, whose length counts its own two bytes.
fn segment_end(bytes: &[u8]) -> Option<&[u8]> {
    let length = usize::from(u16::from_be_bytes([*bytes.first()?, *bytes.get(1)?]));
    bytes.get(length.max(2)..)
}

#[cfg(test)]
mod tests {
    use super::super::fixtures;
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_whole_file_passes_and_no_part_of_it() {
        let jpeg = fixtures::flat_jpeg(&[90, 128, 128], None);
        assert_eq!(check(&jpeg), Ok(()));
        for len in 0..jpeg.len() {
            assert!(check(&jpeg[..len]).is_err(), "{len} of {}", jpeg.len());
        }
        // Bytes after the end are common.
        assert_eq!(check(&[jpeg, vec![0; 10]].concat()), Ok(()));
    }

    #[test]
    fn an_end_marker_inside_a_segment_does_not_count() {
        let comment = [0xff, 0xd8, 0xff, 0xfe, 0, 4, 0xff, 0xd9];
        assert!(check(&comment).is_err());
    }

    #[test]
    fn scans_are_counted() {
        let scan = [0xff, START_OF_SCAN, 0, 2, 1, 2, 3, 0xff, 0, 0xff, 0xd0];
        for (count, passes) in [(64, true), (65, false)] {
            let file = [vec![0xff, 0xd8], scan.repeat(count), vec![0xff, END_OF_IMAGE]];
            assert_eq!(check(&file.concat()).is_ok(), passes, "{count}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_walked(bytes in proptest::collection::vec(prop_oneof![Just(0xffu8), any::<u8>()], 0..200)) {
            let _ = check(&bytes);
        }
    }
}
