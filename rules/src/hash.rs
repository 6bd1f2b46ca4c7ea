//! From a unit to a number: every algorithm, encoding and projection that `HashSpec` can name.
//!
//! The formulas and where they come from are in `profiles`, one function for each format. Next:
//! `split.rs`, which makes the number choose an arm.

use alloc::vec::Vec;

#[cfg(feature = "full")]
use sha2::Digest as _;

use crate::context::Value;
use crate::decimal;
use crate::model::{Algorithm, Arithmetic, Encode, Project};
use crate::ruleset::{Hash, HashPart, Ruleset, slice};
use crate::split::Unit;

/// What a hash's input is put together from.
#[derive(Debug, Clone, Copy)]
pub struct Parts<'a> {
    pub flag_key: &'a str,
    pub salt: &'a str,
    pub seed: &'a str,
    pub unit: Unit<'a>,
}

/// A projected hash, in the arithmetic that its format compares in.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Number {
    Int(u64),
    F32(f32),
    F64(f64),
}

impl Number {
    pub fn as_f64(self) -> f64 {
        match self {
            Number::Int(number) => number as f64,
            Number::F32(number) => f64::from(number),
            Number::F64(number) => number,
        }
    }

    /// Zero in `arithmetic`: where LaunchDarkly puts a unit that is not there.
    pub fn zero(arithmetic: Arithmetic) -> Number {
        match arithmetic {
            Arithmetic::Int => Number::Int(0),
            Arithmetic::F32 => Number::F32(0.0),
            Arithmetic::F64 => Number::F64(0.0),
        }
    }
}

/// The projected hash of a unit. `total` is what projections take for the sum of the weights.
#[cfg(feature = "full")]
pub fn number(
    rules: &Ruleset,
    hash: &Hash,
    parts: &Parts<'_>,
    total: u64,
    scratch: &mut Vec<u8>,
) -> Number {
    let raw = raw(rules, hash, parts, scratch);
    project(hash.project.clone(), hash.arithmetic, raw, total)
}

/// The native bucket: MurmurHash3 of `salt:unit`, scaled to `0..total`.
#[inline]
pub fn native(salt: &str, unit: Unit<'_>, total: u32, scratch: &mut Vec<u8>) -> u32 {
    scratch.clear();
    scratch.extend_from_slice(salt.as_bytes());
    scratch.push(b':');
    unit.write_to(scratch);
    mul_shift(murmur3(scratch, 0), u64::from(total)) as u32
}

/// `(hash · total) >> 32`; never at or above `total`.
#[inline]
fn mul_shift(hash: u32, total: u64) -> u64 {
    (u128::from(hash).wrapping_mul(u128::from(total)) >> 32) as u64
}

/// The hash before its projection.
#[cfg(feature = "full")]
fn raw(rules: &Ruleset, hash: &Hash, parts: &Parts<'_>, scratch: &mut Vec<u8>) -> u64 {
    scratch.clear();
    let input = slice(&rules.hash_parts, hash.input);
    match hash.encode {
        Encode::Utf8 | Encode::Utf16 => {
            for part in input {
                match text_of(rules, *part, parts) {
                    Some(text) => scratch.extend_from_slice(text.as_bytes()),
                    None => parts.unit.write_to(scratch),
                }
            }
        }
        Encode::Cbor => {
            if input.len() != 1 {
                cbor::head(cbor::ARRAY, input.len() as u64, scratch);
            }
            for part in input {
                match text_of(rules, *part, parts) {
                    Some(text) => cbor::text(text, scratch),
                    None => parts.unit.write_cbor(scratch),
                }
            }
        }
    }
    if hash.encode == Encode::Utf16 {
        return raw_utf16(&hash.algorithm, parts, scratch);
    }
    match hash.algorithm {
        Algorithm::Murmur3 { seed } => u64::from(murmur3(scratch, seed)),
        Algorithm::Murmur3SeededByHash { seed } => {
            u64::from(murmur3(scratch, murmur3(parts.salt.as_bytes(), seed)))
        }
        Algorithm::Fnv1a32 => u64::from(fnv1a32(scratch.iter().map(|byte| u32::from(*byte)))),
        Algorithm::Fnv1a32Twice => {
            twice(fnv1a32(scratch.iter().map(|byte| u32::from(*byte))), scratch)
        }
        Algorithm::Sha1Hex { digits } => {
            let digest: [u8; 20] = sha1::Sha1::digest(&scratch[..]).into();
            leading(&digest) >> 64u32.saturating_sub(u32::from(digits.clamp(1, 16)).wrapping_mul(4))
        }
        Algorithm::Md5Be32 => {
            let digest: [u8; 16] = md5::Md5::digest(&scratch[..]).into();
            leading(&digest) >> 32
        }
        Algorithm::Crc32 => u64::from(crc32(scratch)),
        Algorithm::Xxh3 => xxhash_rust::xxh3::xxh3_64(scratch),
        Algorithm::Sha256Be64 => {
            let digest: [u8; 32] = sha2::Sha256::digest(&scratch[..]).into();
            leading(&digest)
        }
    }
}

/// FNV takes a code unit in one step. The other algorithms know bytes only: they get the units
/// little endian, which is what a JavaScript host would have to do too.
#[cfg(feature = "full")]
fn raw_utf16(algorithm: &Algorithm, parts: &Parts<'_>, scratch: &mut Vec<u8>) -> u64 {
    let text = std::mem::take(scratch);
    let units = || text.utf8_chunks().flat_map(|chunk| chunk.valid().encode_utf16());
    let answer = match algorithm {
        Algorithm::Fnv1a32 => u64::from(fnv1a32(units().map(u32::from))),
        Algorithm::Fnv1a32Twice => twice(fnv1a32(units().map(u32::from)), scratch),
        other => {
            let bytes: Vec<u8> = units().flat_map(u16::to_le_bytes).collect();
            match *other {
                Algorithm::Murmur3 { seed } => u64::from(murmur3(&bytes, seed)),
                Algorithm::Murmur3SeededByHash { seed } => {
                    u64::from(murmur3(&bytes, murmur3(parts.salt.as_bytes(), seed)))
                }
                Algorithm::Sha1Hex { digits } => {
                    let digest: [u8; 20] = sha1::Sha1::digest(&bytes).into();
                    let digits = u32::from(digits.clamp(1, 16));
                    leading(&digest) >> 64u32.saturating_sub(digits.wrapping_mul(4))
                }
                Algorithm::Md5Be32 => {
                    let digest: [u8; 16] = md5::Md5::digest(&bytes).into();
                    leading(&digest) >> 32
                }
                Algorithm::Sha256Be64 => {
                    let digest: [u8; 32] = sha2::Sha256::digest(&bytes).into();
                    leading(&digest)
                }
                Algorithm::Xxh3 => xxhash_rust::xxh3::xxh3_64(&bytes),
                _ => u64::from(crc32(&bytes)),
            }
        }
    };
    *scratch = text;
    answer
}

#[cfg(feature = "full")]
fn text_of<'a>(rules: &'a Ruleset, part: HashPart, parts: &Parts<'a>) -> Option<&'a str> {
    Some(match part {
        HashPart::Literal(text) => rules.str(text),
        HashPart::FlagKey => parts.flag_key,
        HashPart::Salt => parts.salt,
        HashPart::Seed => parts.seed,
        HashPart::Unit => return None,
        // Splits stand in flags; a segment's own percentage is not in the model.
        HashPart::SegmentKey => "",
    })
}

/// GrowthBook's version 2: the hash of the decimal text of the hash.
#[cfg(feature = "full")]
fn twice(first: u32, scratch: &mut Vec<u8>) -> u64 {
    scratch.clear();
    decimal::write(i64::from(first), scratch);
    u64::from(fnv1a32(scratch.iter().map(|byte| u32::from(*byte))))
}

/// The first eight bytes, big endian.
fn leading(digest: &[u8]) -> u64 {
    digest.first_chunk::<8>().map_or(0, |first| u64::from_be_bytes(*first))
}

#[cfg(feature = "full")]
fn project(project: Project, arithmetic: Arithmetic, raw: u64, total: u64) -> Number {
    let whole = |number: u64| match arithmetic {
        Arithmetic::Int => Number::Int(number),
        Arithmetic::F32 => Number::F32(number as f32),
        Arithmetic::F64 => Number::F64(number as f64),
    };
    let divided = |number: u64, divisor: u64| match arithmetic {
        Arithmetic::Int => Number::Int(number.checked_div(divisor).unwrap_or(0)),
        Arithmetic::F32 => Number::F32(number as f32 / divisor as f32),
        Arithmetic::F64 => Number::F64(number as f64 / divisor as f64),
    };
    match project {
        // Of a hash wider than 32 bits, its low half.
        Project::MulShift32 => whole(mul_shift(raw as u32, total)),
        Project::Modulo { n, plus } => {
            let n = if n == 0 { total } else { n };
            whole(raw.checked_rem(n).unwrap_or(0).wrapping_add(plus))
        }
        Project::ModuloFraction { n } => divided(raw.checked_rem(n).unwrap_or(0), n),
        Project::Divide { divisor } => divided(raw, divisor),
        Project::AbsI32Percent => {
            let size = (raw as u32 as i32).unsigned_abs();
            Number::F64(f64::from(size) / f64::from(i32::MAX) * 100.0)
        }
    }
}

/// MurmurHash3 x86 32 (Austin Appleby, public domain).
#[inline]
pub fn murmur3(bytes: &[u8], seed: u32) -> u32 {
    let mix =
        |block: u32| block.wrapping_mul(0xcc9e_2d51).rotate_left(15).wrapping_mul(0x1b87_3593);
    let (blocks, tail) = bytes.as_chunks::<4>();
    let mut hash = seed;
    for block in blocks {
        hash ^= mix(u32::from_le_bytes(*block));
        hash = hash.rotate_left(13).wrapping_mul(5).wrapping_add(0xe654_6b64);
    }
    if !tail.is_empty() {
        let mut last = [0u8; 4];
        for (to, from) in last.iter_mut().zip(tail) {
            *to = *from;
        }
        hash ^= mix(u32::from_le_bytes(last));
    }
    hash ^= bytes.len() as u32;
    hash = (hash ^ hash >> 16).wrapping_mul(0x85eb_ca6b);
    hash = (hash ^ hash >> 13).wrapping_mul(0xc2b2_ae35);
    hash ^ hash >> 16
}

/// FNV-1a, 32 bits. Steps are bytes, or UTF-16 units as GrowthBook has it.
pub fn fnv1a32(steps: impl Iterator<Item = u32>) -> u32 {
    steps.fold(0x811c_9dc5, |hash, step| (hash ^ step).wrapping_mul(0x0100_0193))
}

/// CRC-32 as of Ethernet and zip, by the nibble: tables by the byte are 1 kB that no compressor makes
/// smaller, the fast ones 16 kB, and what is hashed here is a name.
#[cfg(feature = "full")]
pub fn crc32(bytes: &[u8]) -> u32 {
    const NIBBLES: [u32; 16] = nibbles();
    let step = |crc: u32, bits: u8| {
        let place = (crc ^ u32::from(bits)) & 0x0f;
        crc >> 4 ^ NIBBLES.get(place as usize).copied().unwrap_or(0)
    };
    !bytes.iter().fold(u32::MAX, |crc, byte| step(step(crc, *byte), byte >> 4))
}

#[cfg(feature = "full")]
#[expect(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    reason = "runs in the compiler"
)]
const fn nibbles() -> [u32; 16] {
    let mut table = [0u32; 16];
    let mut place = 0;
    while place < 16 {
        let mut crc = place as u32;
        let mut bit = 0;
        while bit < 4 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
            bit += 1;
        }
        table[place] = crc;
        place += 1;
    }
    table
}

/// Deterministic CBOR (RFC 8949 4.2.1) of what JSON can say; flagd's `fractional` v3 hashes it.
#[cfg(feature = "full")]
pub mod cbor {
    use super::Value;

    pub const ARRAY: u8 = 4;
    const TEXT: u8 = 3;
    pub const MAP: u8 = 5;

    /// A major type with its argument in the shortest form.
    pub fn head(major: u8, argument: u64, out: &mut Vec<u8>) {
        let major = major << 5;
        if argument < 24 {
            out.push(major | argument as u8);
        } else if let Ok(argument) = u8::try_from(argument) {
            out.extend([major | 24, argument]);
        } else if let Ok(argument) = u16::try_from(argument) {
            out.push(major | 25);
            out.extend(argument.to_be_bytes());
        } else if let Ok(argument) = u32::try_from(argument) {
            out.push(major | 26);
            out.extend(argument.to_be_bytes());
        } else {
            out.push(major | 27);
            out.extend(argument.to_be_bytes());
        }
    }

    pub fn text(text: &str, out: &mut Vec<u8>) {
        head(TEXT, text.len() as u64, out);
        out.extend_from_slice(text.as_bytes());
    }

    pub fn null(out: &mut Vec<u8>) {
        out.push(0xf6);
    }

    pub fn bool(value: bool, out: &mut Vec<u8>) {
        out.push(if value { 0xf5 } else { 0xf4 });
    }

    pub fn int(value: i64, out: &mut Vec<u8>) {
        match u64::try_from(value) {
            Ok(value) => head(0, value, out),
            // -1 - n, which is the complement.
            Err(_) => head(1, !value as u64, out),
        }
    }

    /// Integral values in −2^63 to 2^64−1 as integers, the rest in the shortest float that
    /// holds it.
    pub fn float(value: f64, out: &mut Vec<u8>) {
        const TWO_63: f64 = 9_223_372_036_854_775_808.0;
        if value.fract() == 0.0 && (-TWO_63..TWO_63).contains(&value) {
            return int(value as i64, out);
        }
        if value.fract() == 0.0 && (TWO_63..TWO_63 * 2.0).contains(&value) {
            return head(0, value as u64, out);
        }
        let short = value as f32;
        if value.is_nan() {
            out.extend([0xf9, 0x7e, 0x00]);
        } else if f64::from(short) != value {
            out.push(0xfb);
            out.extend(value.to_be_bytes());
        } else if let Some(half) = half(short) {
            out.push(0xf9);
            out.extend(half.to_be_bytes());
        } else {
            out.push(0xfa);
            out.extend(short.to_be_bytes());
        }
    }

    /// The f16 of the same value, if there is one.
    fn half(value: f32) -> Option<u16> {
        let bits = value.to_bits();
        let sign = (bits >> 16) as u16 & 0x8000;
        let exponent = (bits >> 23 & 0xff) as i32;
        let fraction = bits & 0x007f_ffff;
        match exponent {
            0 if fraction == 0 => Some(sign),
            255 => Some(sign | 0x7c00),
            // Normal: 2^-14 to 2^15, ten bits of fraction.
            113..=142 if fraction & 0x1fff == 0 => {
                let exponent = (exponent.wrapping_sub(112) as u16) << 10;
                Some(sign | exponent | (fraction >> 13) as u16)
            }
            // Subnormal: a multiple of 2^-24.
            103..=112 => {
                let whole = fraction | 0x0080_0000;
                let shift = 126i32.wrapping_sub(exponent) as u32;
                let kept = whole >> shift;
                (kept << shift == whole).then_some(sign | kept as u16)
            }
            _ => None,
        }
    }

    /// A value of the context; keys of objects in the order of their encodings.
    pub fn value(from: &Value<'_>, out: &mut Vec<u8>) {
        match from {
            Value::Null => null(out),
            Value::Bool(value) => bool(*value, out),
            Value::Int(value) => int(*value, out),
            Value::Float(value) => float(*value, out),
            Value::Str(value) => text(value, out),
            Value::Array(items) => {
                head(ARRAY, items.len() as u64, out);
                items.iter().for_each(|item| value(&item, out));
            }
            Value::Object(items) => {
                head(MAP, items.len() as u64, out);
                let mut entries: Vec<_> = items.entries().collect();
                entries.sort_by(|(a, _), (b, _)| key_order(a, b));
                for (key, item) in entries {
                    text(key, out);
                    value(&item, out);
                }
            }
        }
    }

    /// The bytewise order of encoded text: the length comes first.
    pub fn key_order(a: &str, b: &str) -> std::cmp::Ordering {
        a.len().cmp(&b.len()).then_with(|| a.as_bytes().cmp(b.as_bytes()))
    }
}

/// Each format's formula as data (INTEROP 3.1). An importer puts one of these into a split.
#[cfg(feature = "full")]
pub mod profiles {
    use crate::model::{
        Algorithm, Arithmetic, Bound, Compare, Encode, HashPart, HashSpec, Order, Project,
    };

    fn plain(input: Vec<HashPart>, algorithm: Algorithm, project: Project) -> HashSpec {
        HashSpec {
            input,
            encode: Encode::Utf8,
            algorithm,
            project,
            arithmetic: Arithmetic::Int,
            compare: Compare::Less,
            bound: Bound::Exact,
            order: Order::AsWritten,
        }
    }

    fn literal(text: &str) -> HashPart {
        HashPart::Literal(text.to_owned())
    }

    /// The native split, spelled out.
    pub fn native() -> HashSpec {
        let input = vec![HashPart::Salt, literal(":"), HashPart::Unit];
        plain(input, Algorithm::Murmur3 { seed: 0 }, Project::MulShift32)
    }

    /// flagd's `fractional` before April 2026, with an explicit unit.
    pub fn flagd_v1() -> HashSpec {
        let murmur = Algorithm::Murmur3 { seed: 0 };
        let hash = plain(vec![HashPart::Unit], murmur, Project::AbsI32Percent);
        HashSpec { arithmetic: Arithmetic::F64, ..hash }
    }

    pub fn flagd_v2() -> HashSpec {
        plain(vec![HashPart::Unit], Algorithm::Murmur3 { seed: 0 }, Project::MulShift32)
    }

    pub fn flagd_v3() -> HashSpec {
        HashSpec { encode: Encode::Cbor, ..flagd_v2() }
    }

    /// flagd without a first argument: the flag's key before the targeting key.
    pub fn flagd_v2_implicit() -> HashSpec {
        HashSpec { input: vec![HashPart::FlagKey, HashPart::Unit], ..flagd_v2() }
    }

    /// As `flagd_v2_implicit`; CBOR of the two as an array.
    pub fn flagd_v3_implicit() -> HashSpec {
        HashSpec { input: vec![HashPart::FlagKey, HashPart::Unit], ..flagd_v3() }
    }

    /// Salt: the group id. One arm whose weight is the percentage.
    pub fn unleash_rollout() -> HashSpec {
        let input = vec![HashPart::Salt, literal(":"), HashPart::Unit];
        let project = Project::Modulo { n: 100, plus: 1 };
        let hash = plain(input, Algorithm::Murmur3 { seed: 0 }, project);
        HashSpec { compare: Compare::LessOrEqual, ..hash }
    }

    /// Salt: the group id. Weights in thousandths; any sum.
    pub fn unleash_variant() -> HashSpec {
        HashSpec {
            algorithm: Algorithm::Murmur3 { seed: 86_028_157 },
            project: Project::Modulo { n: 0, plus: 1 },
            ..unleash_rollout()
        }
    }

    /// Weights of 100,000, walked in single precision.
    pub fn launchdarkly_salt() -> HashSpec {
        let dot = || literal(".");
        let input = vec![HashPart::FlagKey, dot(), HashPart::Salt, dot(), HashPart::Unit];
        let project = Project::Divide { divisor: 0x0fff_ffff_ffff_ffff };
        let hash = plain(input, Algorithm::Sha1Hex { digits: 15 }, project);
        HashSpec { arithmetic: Arithmetic::F32, ..hash }
    }

    pub fn launchdarkly_seed() -> HashSpec {
        let input = vec![HashPart::Seed, literal("."), HashPart::Unit];
        HashSpec { input, ..launchdarkly_salt() }
    }

    /// Arms by ranges of 0 to 1.
    pub fn growthbook_v1() -> HashSpec {
        let input = vec![HashPart::Unit, HashPart::Seed];
        let hash = plain(input, Algorithm::Fnv1a32, Project::ModuloFraction { n: 1_000 });
        HashSpec { encode: Encode::Utf16, arithmetic: Arithmetic::F64, ..hash }
    }

    pub fn growthbook_v2() -> HashSpec {
        HashSpec {
            input: vec![HashPart::Seed, HashPart::Unit],
            algorithm: Algorithm::Fnv1a32Twice,
            project: Project::ModuloFraction { n: 10_000 },
            ..growthbook_v1()
        }
    }

    /// Arms and shards by ranges of `0..total_shards`.
    pub fn eppo(total_shards: u64) -> HashSpec {
        let input = vec![HashPart::Salt, literal("-"), HashPart::Unit];
        plain(input, Algorithm::Md5Be32, Project::Modulo { n: total_shards, plus: 0 })
    }

    /// Weights as percentages; Flipt's server truncates the bounds, its client rounds them.
    pub fn flipt_variant() -> HashSpec {
        let input = vec![HashPart::FlagKey, HashPart::Unit];
        let hash = plain(input, Algorithm::Crc32, Project::Modulo { n: 1_000, plus: 0 });
        HashSpec { arithmetic: Arithmetic::F32, bound: Bound::Truncate, ..hash }
    }

    /// One arm whose weight is the percentage.
    pub fn flipt_threshold() -> HashSpec {
        let input = vec![HashPart::Unit, HashPart::FlagKey];
        plain(input, Algorithm::Crc32, Project::Modulo { n: 100, plus: 0 })
    }

    /// Weights in thousandths of a percent; their whole sum is the modulus.
    pub fn go_feature_flag() -> HashSpec {
        let input = vec![HashPart::FlagKey, HashPart::Unit];
        let hash = plain(input, Algorithm::Fnv1a32, Project::Modulo { n: 0, plus: 0 });
        HashSpec { bound: Bound::Truncate, order: Order::NameDescending, ..hash }
    }

    /// Weights as whole percentages.
    pub fn configcat() -> HashSpec {
        let input = vec![HashPart::FlagKey, HashPart::Unit];
        plain(input, Algorithm::Sha1Hex { digits: 7 }, Project::Modulo { n: 100, plus: 0 })
    }

    /// Salt: the target's id. Weights as shares of one.
    pub fn devcycle_variation() -> HashSpec {
        let algorithm = Algorithm::Murmur3SeededByHash { seed: 1 };
        let project = Project::Divide { divisor: u32::MAX as u64 };
        HashSpec {
            arithmetic: Arithmetic::F64,
            order: Order::NameDescending,
            ..plain(vec![HashPart::Unit], algorithm, project)
        }
    }

    /// One arm whose weight is the share of one.
    pub fn devcycle_rollout() -> HashSpec {
        HashSpec {
            input: vec![HashPart::Unit, literal("_rollout")],
            compare: Compare::LessOrEqual,
            order: Order::AsWritten,
            ..devcycle_variation()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc_32_is_the_one_of_everybody() {
        // The check value of the catalogue of parametrised CRC algorithms, and Python's zlib.
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
        assert_eq!(crc32(b""), 0);
        assert_eq!(crc32(b"The quick brown fox jumps over the lazy dog"), 0x414f_a339);
    }

    #[test]
    fn cbor_takes_the_shortest_form_that_holds_the_value() {
        let encoded = |value: f64| {
            let mut out = Vec::new();
            cbor::float(value, &mut out);
            out.iter().map(|byte| format!("{byte:02x}")).collect::<String>()
        };
        // RFC 8949, appendix A, but integral floats are integers (flagd's ADR).
        assert_eq!(encoded(1.5), "f93e00");
        assert_eq!(encoded(1.1), "fb3ff199999999999a");
        assert_eq!(encoded(5.960_464_477_539_063e-8), "f90001");
        assert_eq!(encoded(0.000_061_035_156_25), "f90400");
        assert_eq!(encoded(3.402_823_466_385_288_6e38), "fa7f7fffff");
        assert_eq!(encoded(-4.1), "fbc010666666666666");
        assert_eq!(encoded(-0.0), "00");
        assert_eq!(encoded(65504.5), "fa477fe080");
        assert_eq!(encoded(1e300), "fb7e37e43c8800759c");
        assert_eq!(encoded(18_446_744_073_709_549_568.0), "1bfffffffffffff800");
        assert_eq!(encoded(-9_223_372_036_854_775_808.0), "3b7fffffffffffffff");
        assert_eq!(encoded(f64::INFINITY), "f97c00");
        assert_eq!(encoded(0.000_030_517_578_125), "f90200");
    }

    #[test]
    fn murmur3_answers_the_reference_vectors() {
        assert_eq!(murmur3(b"", 0), 0);
        assert_eq!(murmur3(b"", 1), 0x514e_28b7);
        assert_eq!(murmur3(b"test", 0), 0xba6b_d213);
        assert_eq!(murmur3(b"Hello, world!", 0x9747_b28c), 0x2488_4cba);
        assert_eq!(murmur3(b"aaa", 0x9747_b28c), 0x283e_0130);
    }
}
