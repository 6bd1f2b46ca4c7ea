//! A blob put together from one that is there and a difference: Zstandard in the frame of RFC 9842
//! ("dcz"), as control makes it.
//!
//! What comes out is believed no more than a whole blob: `sync.rs` checks the digest. Memory is
//! bounded by what the head announced, whatever the frame says of itself.

use std::io::{self, Read as _};

use rules::blob::Digest;

/// RFC 9842, section 5.
const MAGIC: [u8; 8] = [0x5e, 0x2a, 0x4d, 0x18, 0x20, 0, 0, 0];
const HEADER_BYTES: usize = 8 + 32;
/// 8 MB, which the RFC asks of every reader.
const WINDOW_LOG_MIN: u32 = 23;
const WINDOW_LOG_MAX: u32 = 27;

#[derive(Debug, thiserror::Error)]
pub enum DeltaError {
    #[error("it is no dcz frame")]
    Frame,
    #[error("it is made on another dictionary")]
    Dictionary,
    #[error("it gives more than {bytes_max} bytes")]
    TooLong { bytes_max: u64 },
    #[error("it cannot be decoded")]
    Decode(#[from] io::Error),
}

pub fn apply(base: (Digest, &[u8]), frame: &[u8], bytes_max: u64) -> Result<Vec<u8>, DeltaError> {
    let (header, body) = frame.split_at_checked(HEADER_BYTES).ok_or(DeltaError::Frame)?;
    let dictionary = header.strip_prefix(&MAGIC).ok_or(DeltaError::Frame)?;
    if dictionary != base.0.0 && !seam::planted("any-base-of-a-delta") {
        return Err(DeltaError::Dictionary);
    }
    let mut decoder = zstd::stream::read::Decoder::with_ref_prefix(body, base.1)?.single_frame();
    let together = (base.1.len() as u64).saturating_add(bytes_max).max(1);
    decoder.window_log_max((together.ilog2() + 1).clamp(WINDOW_LOG_MIN, WINDOW_LOG_MAX))?;
    // Likely as long as the base; what is announced is not believed beyond it.
    let mut made = Vec::with_capacity(base.1.len().min(bytes_max as usize));
    decoder.take(bytes_max.saturating_add(1)).read_to_end(&mut made)?;
    match made.len() as u64 > bytes_max {
        true => Err(DeltaError::TooLong { bytes_max }),
        false => Ok(made),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn frame(base: &[u8], target: &[u8]) -> Vec<u8> {
        let mut frame = MAGIC.to_vec();
        frame.extend_from_slice(&Digest::of(base).0);
        let mut encoder = zstd::stream::write::Encoder::with_ref_prefix(frame, 3, base).unwrap();
        encoder.write_all(target).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn the_right_base_gives_the_target_and_another_does_not() {
        let (base, target) = ([b"a".repeat(5_000), b"b".to_vec()].concat(), b"a".repeat(5_001));
        let frame = frame(&base, &target);
        let of = |bytes: &[u8]| Digest::of(bytes);
        assert_eq!(apply((of(&base), &base), &frame, 5_001).unwrap(), target);
        let other = b"c".repeat(5_000);
        let refused = apply((of(&other), &other), &frame, 5_001);
        assert!(matches!(refused, Err(DeltaError::Dictionary)), "{refused:?}");
    }

    #[test]
    fn a_frame_that_gives_too_much_ends_at_the_limit() {
        let base = (Digest::of(b""), &b""[..]);
        let refused = apply(base, &frame(b"", &vec![0; 100_000]), 1_000);
        assert!(matches!(refused, Err(DeltaError::TooLong { bytes_max: 1_000 })), "{refused:?}");
        let bomb = frame(b"", &vec![0; 100_000_000]);
        assert!(bomb.len() < 20_000, "a bomb of {} bytes", bomb.len());
        assert!(apply(base, &bomb, 1_000).is_err());
    }

    #[test]
    fn a_frame_that_is_cut_or_flipped_never_panics() {
        let base: Vec<u8> = (0..2_000u32).flat_map(|n| n.to_le_bytes()).collect();
        let mut target = base.clone();
        target[777] ^= 0xff;
        let whole = frame(&base, &target);
        let digest = Digest::of(&base);
        for len in 0..whole.len() {
            let made = apply((digest, &base), &whole[..len], 100_000);
            assert!(made.as_ref().ok() != Some(&target), "{len} of {} bytes", whole.len());
        }
        for at in 0..whole.len() {
            for bit in 0..8 {
                let mut flipped = whole.clone();
                flipped[at] ^= 1 << bit;
                // It may give the target all the same (zstd has bits that mean nothing), or an
                // error, or other bytes, which the digest finds.
                let _ = apply((digest, &base), &flipped, 100_000);
            }
        }
    }
}
