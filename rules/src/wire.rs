//! Reads the wire form of a ruleset: postcard's, field by field.
//!
//! Postcard itself would do, and writes what is read here; but its derived readers are half of what a
//! browser would download. Whole numbers are of variable length (7 bits to a byte, little endian,
//! signed ones zigzag), floats eight bytes, sequences and texts are led by their length, options by
//! 0 or 1, variants by their number.
//!
//! A reader that has stopped stays stopped: what it reads from then on is zeros, and whoever asked
//! looks at the end. So nothing is compared and dropped after every field.

use alloc::string::String;
use alloc::vec::Vec;

/// Why reading ended early.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    Malformed(&'static str),
    /// There is something that this build leaves out.
    #[cfg_attr(feature = "full", allow(dead_code, reason = "nothing is left out"))]
    Tier,
}

pub(crate) struct Reader<'a> {
    rest: &'a [u8],
    /// The first one.
    stop: Option<Stop>,
}

pub(crate) trait Read: Sized {
    fn read(from: &mut Reader<'_>) -> Self;
}

/// The whole of `bytes` as one value, and what follows it.
#[inline(never)]
pub(crate) fn read<T: Read>(bytes: &[u8]) -> Result<(T, &[u8]), Stop> {
    let mut reader = Reader { rest: bytes, stop: None };
    let value = reader.read();
    match reader.stop {
        None => Ok((value, reader.rest)),
        Some(stop) => Err(stop),
    }
}

impl Reader<'_> {
    #[inline(always)]
    pub(crate) fn read<T: Read>(&mut self) -> T {
        T::read(self)
    }

    /// Nothing is left to read, so nobody reads on for long.
    #[cold]
    #[inline(never)]
    pub(crate) fn stop(&mut self, why: Stop) {
        self.rest = &[];
        self.stop.get_or_insert(why);
    }

    #[inline(never)]
    fn byte(&mut self) -> u8 {
        match self.rest.split_first() {
            Some((byte, rest)) => {
                self.rest = rest;
                *byte
            }
            None => {
                self.stop(END);
                0
            }
        }
    }

    #[inline(never)]
    fn varint(&mut self) -> u64 {
        let mut number = 0u64;
        for place in 0..10u32 {
            let byte = self.byte();
            // The tenth byte holds the last bit.
            if place == 9 && byte > 1 {
                break;
            }
            number |= u64::from(byte & 0x7f) << place.wrapping_mul(7);
            if byte < 0x80 {
                return number;
            }
        }
        self.stop(LONG);
        0
    }

    #[inline(never)]
    fn varint32(&mut self) -> u32 {
        u32::try_from(self.varint()).unwrap_or_else(|_| {
            self.stop(LONG);
            0
        })
    }

    /// The number of one of `count` variants; the first one where it is none.
    #[inline(never)]
    pub(crate) fn variant(&mut self, count: u32) -> u32 {
        let variant = self.varint32();
        if variant < count {
            return variant;
        }
        self.stop(Stop::Malformed("it has a word that this build does not know"));
        0
    }

    /// How many elements follow; each has a byte at least.
    #[inline(never)]
    fn count(&mut self) -> usize {
        let count = self.varint32() as usize;
        if count <= self.rest.len() {
            return count;
        }
        self.stop(END);
        0
    }
}

const END: Stop = Stop::Malformed("it ends early");
const LONG: Stop = Stop::Malformed("a number is too long");

/// Elements that a length is believed for at once; beyond, memory grows with what is read.
const BYTES_AT_ONCE: usize = 1 << 20;

impl Read for u32 {
    #[inline(always)]
    fn read(from: &mut Reader<'_>) -> u32 {
        from.varint32()
    }
}

impl Read for u64 {
    fn read(from: &mut Reader<'_>) -> u64 {
        from.varint()
    }
}

impl Read for i64 {
    fn read(from: &mut Reader<'_>) -> i64 {
        let number = from.varint();
        (number >> 1) as i64 ^ ((number & 1) as i64).wrapping_neg()
    }
}

impl Read for u8 {
    fn read(from: &mut Reader<'_>) -> u8 {
        from.byte()
    }
}

impl Read for bool {
    #[inline(never)]
    fn read(from: &mut Reader<'_>) -> bool {
        let byte = from.byte();
        if byte > 1 {
            from.stop(Stop::Malformed("a boolean is neither"));
        }
        byte == 1
    }
}

impl Read for f64 {
    #[inline(never)]
    fn read(from: &mut Reader<'_>) -> f64 {
        match from.rest.split_first_chunk::<8>() {
            Some((bytes, rest)) => {
                from.rest = rest;
                f64::from_le_bytes(*bytes)
            }
            None => {
                from.stop(END);
                0.0
            }
        }
    }
}

#[cfg(not(feature = "full"))]
impl Read for u128 {
    fn read(from: &mut Reader<'_>) -> u128 {
        from.stop(Stop::Tier);
        0
    }
}

/// A network's; up to nineteen bytes of seven bits.
#[cfg(feature = "full")]
impl Read for u128 {
    fn read(from: &mut Reader<'_>) -> u128 {
        let mut number = 0u128;
        for place in 0..19u32 {
            let byte = from.byte();
            if place == 18 && byte > 3 {
                break;
            }
            number |= u128::from(byte & 0x7f) << place.wrapping_mul(7);
            if byte < 0x80 {
                return number;
            }
        }
        from.stop(LONG);
        0
    }
}

impl Read for String {
    fn read(from: &mut Reader<'_>) -> String {
        let count = from.count();
        let (text, rest) = from.rest.split_at_checked(count).unwrap_or_default();
        from.rest = rest;
        match core::str::from_utf8(text) {
            Ok(text) => text.into(),
            Err(_) => {
                from.stop(Stop::Malformed("a text is not UTF-8"));
                String::new()
            }
        }
    }
}

impl<T: Read> Read for Option<T> {
    fn read(from: &mut Reader<'_>) -> Option<T> {
        let is_there: bool = from.read();
        is_there.then(|| from.read())
    }
}

impl<T: Read> Read for Vec<T> {
    #[inline(never)]
    fn read(from: &mut Reader<'_>) -> Vec<T> {
        let count = from.count();
        let at_once = BYTES_AT_ONCE.checked_div(size_of::<T>()).unwrap_or(0);
        let mut all = Vec::with_capacity(count.min(at_once));
        for _ in 0..count {
            all.push(from.read());
            if from.stop.is_some() {
                break;
            }
        }
        all
    }
}

/// Structs: their fields in their order.
macro_rules! read_fields {
    ($($name:ident { $($field:ident),* $(,)? })*) => {$(
        impl $crate::wire::Read for $name {
            fn read(from: &mut $crate::wire::Reader<'_>) -> Self {
                Self { $($field: from.read()),* }
            }
        }
    )*};
}

/// Enums without fields: their variants in their order.
macro_rules! read_words {
    ($($name:ident { $($variant:ident),* $(,)? })*) => {$(
        impl $crate::wire::Read for $name {
            #[inline(never)]
            fn read(from: &mut $crate::wire::Reader<'_>) -> Self {
                const COUNT: usize = [$(stringify!($variant)),*].len();
                let variant = from.variant(COUNT as u32);
                let mut place = 0u32;
                $(
                    if variant == place {
                        return $name::$variant;
                    }
                    place = place.wrapping_add(1);
                )*
                // There is no other; the compiler cannot know.
                let _ = place;
                let [first, ..] = [$($name::$variant),*];
                first
            }
        }
    )*};
}

/// Enums with fields: variants in their order, each with the names of its fields. What comes after
/// `or` is for the compiler, which cannot know that there is no other variant.
macro_rules! read_variants {
    ($($name:ident or $other:expr => {
        $($variant:ident $(($($one:ident),*))? $({$($field:ident),*})?,)*
    })*) => {$(
        impl $crate::wire::Read for $name {
            fn read(from: &mut $crate::wire::Reader<'_>) -> Self {
                const COUNT: usize = [$(stringify!($variant)),*].len();
                let variant = from.variant(COUNT as u32);
                let mut place = 0u32;
                $(
                    if variant == place {
                        $($(let $one = from.read();)*)?
                        return $name::$variant $(($($one),*))? $({$($field: from.read()),*})?;
                    }
                    place = place.wrapping_add(1);
                )*
                let _ = place;
                $other
            }
        }
    )*};
}

/// What this build leaves out: one of it is one too many.
#[cfg(not(feature = "full"))]
macro_rules! read_nothing {
    ($($name:ident = $nothing:expr;)*) => {$(
        impl $crate::wire::Read for $name {
            fn read(from: &mut $crate::wire::Reader<'_>) -> Self {
                from.stop($crate::wire::Stop::Tier);
                $nothing
            }
        }
    )*};
}

#[cfg(not(feature = "full"))]
pub(crate) use read_nothing;
pub(crate) use {read_fields, read_variants, read_words};

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde::de::DeserializeOwned;

    use super::*;
    use crate::model::*;
    use crate::ruleset::{
        self, Arg, Arm, Attr, Cel, CelLoop, CelOp, Clause, Expr, Flag, Hash, HashPart, Logic,
        LogicOp, Ruleset, Segment, Variant,
    };

    /// Postcard's reading of the same bytes: the same value and the same rest, or an error too.
    fn same<T: Read + DeserializeOwned + PartialEq + core::fmt::Debug>(bytes: &[u8]) -> bool {
        match (read::<T>(bytes), postcard::take_from_bytes::<T>(bytes)) {
            (Ok((ours, our_rest)), Ok((theirs, their_rest))) => {
                // What is not a number equals nothing, and is told by its bits.
                let alike = format!("{ours:?}") == format!("{theirs:?}");
                assert!(ours == theirs || alike, "{ours:?} is not {theirs:?}, from {bytes:?}");
                assert_eq!(our_rest, their_rest, "{ours:?} from {bytes:?}");
                true
            }
            (Err(_), Err(_)) => false,
            (ours, theirs) => panic!("{ours:?} is not {theirs:?}, from {bytes:?}"),
        }
    }

    macro_rules! every_type {
        ($bytes:expr) => {
            every_type!(@ $bytes; FlagType, Clients, OnFail, RuleReason, OnError, Fractional,
                MissingUnit, UnitTypes, PastEnd, Encode, Arithmetic, Compare, Bound, Order, Op,
                Missing, Negation, ArrayMode, Coerce, VersionRule, DateForm, BadArg, Algorithm,
                Project, LogicOp, CelLoop, CelOp, Expr, Arg, ruleset::Serve, HashPart, Logic, Cel,
                Flag, Variant, ruleset::Prerequisite, ruleset::Rule, Clause, Attr, ruleset::Split,
                Arm, ruleset::Shard, ruleset::Range, Hash, ruleset::Ramp, Segment, ruleset::Policy,
                ruleset::PolicyCall, Ruleset)
        };
        (@ $bytes:expr; $($type:ty),*) => {
            [$((stringify!($type), same::<$type>($bytes))),*]
        };
    }

    #[test]
    fn every_variant_is_the_one_that_postcard_reads() {
        let mut seen = std::collections::HashMap::<&str, u32>::new();
        for variant in 0..=80u8 {
            for rest in [[0u8; 60], [1; 60]] {
                let bytes = [&[variant][..], &rest].concat();
                for (name, good) in every_type!(&bytes) {
                    *seen.entry(name).or_default() += u32::from(good);
                }
            }
        }
        // Every type was read at least once, so that nothing is equal only in being refused.
        assert!(seen.values().all(|good| *good > 0), "{seen:?}");
        assert_eq!(seen["Op"], 2 * Op::ALL.len() as u32);
    }

    proptest! {
        #[test]
        fn any_bytes_are_what_postcard_reads(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            every_type!(&bytes);
        }

        #[test]
        fn small_bytes_are_what_postcard_reads(bytes in proptest::collection::vec(0u8..6, 0..80)) {
            every_type!(&bytes);
        }

        #[test]
        fn any_number_is_the_one_that_postcard_wrote(signed: i64, wide: u128, word: u32, text: String) {
            let bytes = postcard::to_allocvec(&(signed, wide, word, &text)).unwrap();
            let (read_signed, rest) = read::<i64>(&bytes).unwrap();
            let (read_wide, rest) = read::<u128>(rest).unwrap();
            let (read_word, rest) = read::<u32>(rest).unwrap();
            let (read_text, rest) = read::<String>(rest).unwrap();
            prop_assert_eq!((read_signed, read_wide, read_word, read_text), (signed, wide, word, text));
            prop_assert!(rest.is_empty());
        }
    }
}
