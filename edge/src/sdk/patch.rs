//! A client blob as its difference from another, in a form that a few lines of JavaScript undo:
//! operations one after the other, `0, start u32, length u32` copies from the base, `1, length u32,
//! bytes` inserts; numbers are little endian.
//!
//! Zstandard with a dictionary, which edges get, is shorter, but no browser's script can read it.
//! Whoever applies a patch checks the digest of what it gives, so a wrong one costs a download.

use std::collections::HashMap;

const COPY: u8 = 0;
const INSERT: u8 = 1;
/// What is looked for in the base. Shorter matches hardly pay for their operation.
const BLOCK: usize = 16;
/// A copy and the insert that it splits cost 14 bytes.
const MATCH_MIN: usize = 24;

/// Linear in both but for the matches' own lengths. None where it would not be shorter than `limit`.
pub fn make(base: &[u8], target: &[u8], limit: usize) -> Option<Vec<u8>> {
    let (base_len, target_len) =
        (u32::try_from(base.len()).ok()?, u32::try_from(target.len()).ok()?);
    if base_len == 0 || target_len == 0 {
        return None;
    }
    // The first of equal blocks: what repeats is found by going on where the last match ended.
    let mut blocks: HashMap<&[u8], usize> = HashMap::with_capacity(base.len() / BLOCK);
    for (index, block) in base.chunks_exact(BLOCK).enumerate() {
        blocks.entry(block).or_insert(index * BLOCK);
    }
    let mut patch = Vec::new();
    let (mut at, mut pending) = (0, 0);
    // Where the base would go on if nothing but bytes in place had changed.
    let mut diagonal = 0usize;
    while at + BLOCK <= target.len() {
        let window = &target[at..at + BLOCK];
        let straight = diagonal + (at - pending);
        let found = match base.get(straight..straight + BLOCK) {
            Some(block) if block == window => Some(straight),
            _ => blocks.get(window).copied(),
        };
        let Some(found) = found else {
            at += 1;
            continue;
        };
        let back = common(base[..found].iter().rev(), target[pending..at].iter().rev());
        let (from, start) = (found - back, at - back);
        let length = common(base[from..].iter(), target[start..].iter());
        if length < MATCH_MIN {
            at += 1;
            continue;
        }
        insert(&mut patch, &target[pending..start]);
        patch.push(COPY);
        patch.extend_from_slice(&(from as u32).to_le_bytes());
        patch.extend_from_slice(&(length as u32).to_le_bytes());
        at = start + length;
        pending = at;
        diagonal = from + length;
        if patch.len() >= limit {
            return None;
        }
    }
    insert(&mut patch, &target[pending..]);
    (patch.len() < limit).then_some(patch)
}

fn common<'a>(one: impl Iterator<Item = &'a u8>, other: impl Iterator<Item = &'a u8>) -> usize {
    one.zip(other).take_while(|(one, other)| one == other).count()
}

fn insert(patch: &mut Vec<u8>, bytes: &[u8]) {
    if !bytes.is_empty() {
        patch.push(INSERT);
        patch.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
        patch.extend_from_slice(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn apply(base: &[u8], mut patch: &[u8]) -> Vec<u8> {
        fn number(patch: &mut &[u8]) -> usize {
            let (number, rest) = patch.split_first_chunk().expect("a number");
            *patch = rest;
            u32::from_le_bytes(*number) as usize
        }
        let mut made = Vec::new();
        while let Some((kind, rest)) = patch.split_first() {
            patch = rest;
            let first = number(&mut patch);
            match *kind {
                COPY => {
                    let length = number(&mut patch);
                    made.extend_from_slice(&base[first..first + length]);
                }
                INSERT => {
                    let (bytes, rest) = patch.split_at(first);
                    made.extend_from_slice(bytes);
                    patch = rest;
                }
                kind => panic!("no operation: {kind}"),
            }
        }
        made
    }

    /// Reproducible, and without any order that a patch could use.
    fn noise(seed: u32, bytes: usize) -> Vec<u8> {
        let mut state = seed.wrapping_mul(2_654_435_761) | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state as u8
        };
        (0..bytes).map(|_| next()).collect()
    }

    #[test]
    fn whatever_was_cut_moved_or_changed_the_target_comes_out() {
        let base = noise(1, 5_000);
        let mut targets = vec![base.clone(), base[100..].to_vec(), base[..4_000].to_vec()];
        targets.push([noise(2, 33), base.clone(), noise(3, 1)].concat());
        targets.push([&base[3_000..], &base[..3_000]].concat());
        targets.push(vec![0; 5_000]);
        let mut flipped = base.clone();
        for at in [0, 17, 2_500, 2_501, 4_999] {
            flipped[at] ^= 1;
        }
        targets.push(flipped);
        for (index, target) in targets.iter().enumerate() {
            let patch = make(&base, target, usize::MAX).expect("a patch");
            assert!(apply(&base, &patch) == *target, "target {index}");
        }
        for seed in 0..50 {
            let at = seed as usize * 90;
            let target = [&base[..at], &noise(seed, at % 70), &base[at + at % 60..]].concat();
            let patch = make(&base, &target, usize::MAX).expect("a patch");
            assert!(apply(&base, &patch) == target, "seed {seed}");
            assert!(patch.len() < 250, "seed {seed}: {} bytes", patch.len());
        }
    }

    #[test]
    fn what_repeats_is_followed_in_place() {
        let base = vec![0; 100_000];
        let mut target = base.clone();
        target[50_000] = 1;
        let patch = make(&base, &target, usize::MAX).expect("a patch");
        assert!(patch.len() < 100, "{} bytes", patch.len());
        assert!(apply(&base, &patch) == target);
    }

    #[test]
    fn a_patch_that_saves_too_little_is_none() {
        let (base, target) = (noise(1, 4_000), noise(2, 4_000));
        assert!(make(&base, &target, target.len() / 2).is_none());
        assert!(make(b"", &target, usize::MAX).is_none());
        let near = [&base[..3_990], &target[..10]].concat();
        let patch = make(&base, &near, usize::MAX).expect("a patch");
        assert!(make(&base, &near, patch.len()).is_none());
        assert!(make(&base, &near, patch.len() + 1).is_some());
    }
}
