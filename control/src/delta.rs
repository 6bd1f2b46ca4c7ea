//! A blob as its difference from another: Zstandard with the other as its dictionary, in the frame of
//! RFC 9842 ("dcz").
//!
//! An optimisation and nothing else: whoever asks for a delta can always have the whole, and checks
//! the digest of what it has put together. One flag switched among 5,000 is some 500 bytes of 3 MB.

use std::collections::VecDeque;
use std::io::{self, Write as _};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use rules::blob::Digest;
use tokio::sync::Semaphore;

/// RFC 9842, section 5: a skippable frame that holds the dictionary's SHA-256.
const MAGIC: [u8; 8] = [0x5e, 0x2a, 0x4d, 0x18, 0x20, 0, 0, 0];
/// Of the fast levels the one that makes the smallest deltas of snapshots (measured: 1 to 9).
const LEVEL: i32 = 3;
/// Both blobs have to be within the window.
const WINDOW_LOG_MIN: u32 = 20;
const WINDOW_LOG_MAX: u32 = 27;
/// A whole fleet asks for the same few.
const KEPT_MAX: usize = 64;
const KEPT_BYTES_MAX: usize = 16 << 20;
/// Encoding takes a core for some milliseconds.
const AT_ONCE: usize = 2;

/// The frame that turns `base` into `target`. Pure; some milliseconds a megabyte.
pub fn encode(base: &[u8], target: &[u8]) -> io::Result<Vec<u8>> {
    let mut frame = Vec::with_capacity(1024);
    frame.extend_from_slice(&MAGIC);
    frame.extend_from_slice(&Digest::of(base).0);
    let mut encoder = zstd::stream::write::Encoder::with_ref_prefix(frame, LEVEL, base)?;
    let together = (base.len() + target.len()).max(1);
    encoder.window_log((together.ilog2() + 1).clamp(WINDOW_LOG_MIN, WINDOW_LOG_MAX))?;
    encoder.long_distance_matching(true)?;
    encoder.set_pledged_src_size(Some(target.len() as u64))?;
    encoder.write_all(target)?;
    encoder.finish()
}

type Pair = (Digest, Digest);

/// Deltas that were asked for lately.
#[derive(Debug)]
pub struct Deltas {
    kept: Mutex<VecDeque<(Pair, Bytes)>>,
    places: Arc<Semaphore>,
}

impl Default for Deltas {
    fn default() -> Deltas {
        Deltas { kept: Mutex::default(), places: Arc::new(Semaphore::new(AT_ONCE)) }
    }
}

impl Deltas {
    /// None where the whole is hardly longer.
    pub async fn between(&self, base: (Digest, Bytes), target: (Digest, Bytes)) -> Option<Bytes> {
        let pair = (base.0, target.0);
        if let Some(delta) = self.find(pair) {
            return Some(delta);
        }
        let _place = self.places.clone().acquire_owned().await.ok()?;
        // Somebody may have made it while this one waited.
        if let Some(delta) = self.find(pair) {
            return Some(delta);
        }
        let whole = target.1.len();
        let made = tokio::task::spawn_blocking(move || encode(&base.1, &target.1)).await;
        match made {
            Ok(Ok(delta)) if delta.len() < whole / 2 => {
                let delta = Bytes::from(delta);
                self.keep(pair, delta.clone());
                Some(delta)
            }
            Ok(Ok(_)) => None,
            Ok(Err(error)) => {
                tracing::warn!(%error, "a delta could not be made; the whole is sent");
                None
            }
            Err(error) => {
                tracing::error!(%error, "making a delta panicked; the whole is sent");
                None
            }
        }
    }

    fn find(&self, pair: Pair) -> Option<Bytes> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.iter().find(|(of, _)| *of == pair).map(|(_, delta)| delta.clone())
    }

    fn keep(&self, pair: Pair, delta: Bytes) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.push_back((pair, delta));
        let mut bytes: usize = kept.iter().map(|(_, delta)| delta.len()).sum();
        while kept.len() > KEPT_MAX || bytes > KEPT_BYTES_MAX {
            bytes -= kept.pop_front().map_or(0, |(_, delta)| delta.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn a_delta_of_a_small_change_is_small_and_gives_the_target() {
        let base: Vec<u8> =
            (0..200_000u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
        let mut target = base.clone();
        target[400_000] ^= 1;
        let delta = encode(&base, &target).unwrap();
        assert!(delta.len() < 1_000, "{} bytes", delta.len());
        assert_eq!(delta[8..40], Digest::of(&base).0);
        let mut decoder =
            zstd::stream::read::Decoder::with_ref_prefix(&delta[40..], &base).unwrap();
        decoder.window_log_max(WINDOW_LOG_MAX).unwrap();
        let mut made = Vec::new();
        decoder.read_to_end(&mut made).unwrap();
        assert!(made == target);
    }

    #[test]
    fn what_is_empty_has_a_delta_too() {
        for (base, target) in [(&b""[..], &b"x"[..]), (b"x", b""), (b"", b"")] {
            assert!(encode(base, target).is_ok());
        }
    }

    #[tokio::test]
    async fn a_delta_is_made_once_and_one_that_saves_nothing_is_none() {
        let deltas = Deltas::default();
        let blob = |bytes: Vec<u8>| (Digest::of(&bytes), Bytes::from(bytes));
        let base = blob(vec![7; 10_000]);
        let target = blob([vec![7; 10_000], vec![8; 10]].concat());
        let first = deltas.between(base.clone(), target.clone()).await.unwrap();
        let again = deltas.between(base, target.clone()).await.unwrap();
        assert_eq!(first.as_ptr(), again.as_ptr(), "it was made again");
        let tiny = blob(vec![1]);
        assert!(deltas.between(target, tiny).await.is_none());
    }
}
