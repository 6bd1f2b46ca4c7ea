//! Versions, compared as each format compares them (INTEROP 3.3). Borrowed: parsing allocates
//! nothing, and numbers of any length compare as numbers.
//!
//! Ranges are Cargo's and npm's common ground: comparators joined by commas or spaces, with
//! `= > >= < <= ~ ^` and wildcards. A bare version means exactly that one (npm), not `^` (Cargo);
//! `||` and hyphen ranges are not known.

#[cfg(feature = "full")]
use alloc::string::String;
use core::cmp::Ordering;

use crate::model::VersionRule;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Version<'a> {
    /// Major, minor, patch as digits without leading zeros.
    numbers: [&'a str; 3],
    pre: &'a str,
    build: &'a str,
}

impl<'a> Version<'a> {
    /// Digits without leading zeros.
    pub fn major(&self) -> &'a str {
        let [major, _, _] = self.numbers;
        major
    }

    pub fn minor(&self) -> &'a str {
        let [_, minor, _] = self.numbers;
        minor
    }
}

/// What `text` is under `rule`; `None` if it is no version there. `Padded` knows no wrong
/// versions: use `padded`.
pub fn parse(text: &str, rule: VersionRule) -> Option<Version<'_>> {
    let text = match rule {
        VersionRule::Loose | VersionRule::GoMod | VersionRule::Padded => {
            text.strip_prefix(['v', 'V']).unwrap_or(text)
        }
        VersionRule::Strict | VersionRule::StrictWithBuild => text,
    };
    let (text, build) = match text.split_once('+') {
        Some((text, build)) => (text, Some(build)),
        None => (text, None),
    };
    let (core, pre) = match text.split_once('-') {
        Some((core, pre)) => (core, Some(pre)),
        None => (text, None),
    };
    let mut parts = core.split('.');
    let (major, minor, patch) = (parts.next()?, parts.next(), parts.next());
    if parts.next().is_some() {
        return None;
    }
    let whole = patch.is_some();
    let complete = match rule {
        VersionRule::Strict | VersionRule::StrictWithBuild => whole,
        // x/mod/semver: a short version has neither pre-release nor build.
        VersionRule::GoMod => whole || (pre.is_none() && build.is_none()),
        VersionRule::Loose | VersionRule::Padded => true,
    };
    let numbers = [major, minor.unwrap_or("0"), patch.unwrap_or("0")];
    let good = complete
        && numbers.iter().all(|number| is_number(number))
        && pre.is_none_or(|pre| pre.split('.').all(|part| is_identifier(part) && !zero_led(part)))
        && build.is_none_or(|build| build.split('.').all(is_identifier));
    good.then_some(Version { numbers, pre: pre.unwrap_or(""), build: build.unwrap_or("") })
}

/// The quick way for what nearly every version is: numbers, without pre-release or build, small
/// enough for an integer. `None` says nothing: ask `parse`. What it returns orders as `compare`
/// orders the same texts.
pub fn parse_plain(text: &str, rule: VersionRule) -> Option<[u64; 3]> {
    let mut text = text.as_bytes();
    let strict = matches!(rule, VersionRule::Strict | VersionRule::StrictWithBuild);
    if let [b'v' | b'V', rest @ ..] = text
        && !strict
    {
        text = rest;
    }
    let mut numbers = [0u64; 3];
    let mut parts = 0u32;
    for number in &mut numbers {
        let mut digits = 0u32;
        while let [digit @ b'0'..=b'9', rest @ ..] = text {
            // Eighteen digits cannot overflow; a leading zero is for `parse` to refuse.
            if digits == 18 || (digits > 0 && *number == 0) {
                return None;
            }
            *number = number.wrapping_mul(10).wrapping_add(u64::from(digit & 0x0f));
            digits = digits.wrapping_add(1);
            text = rest;
        }
        if digits == 0 {
            return None;
        }
        parts = parts.wrapping_add(1);
        match text {
            [] => return (parts == 3 || !strict).then_some(numbers),
            [b'.', rest @ ..] => text = rest,
            _ => return None,
        }
    }
    None
}

/// Precedence; with build metadata where the rule counts it.
pub fn compare(a: &Version<'_>, b: &Version<'_>, rule: VersionRule) -> Ordering {
    let numbers = a.numbers.iter().zip(&b.numbers).map(|(a, b)| compare_digits(a, b));
    let core = numbers.fold(Ordering::Equal, Ordering::then);
    let pre = || match (a.pre.is_empty(), b.pre.is_empty()) {
        (true, true) => Ordering::Equal,
        (true, false) => Ordering::Greater,
        (false, true) => Ordering::Less,
        (false, false) => compare_identifiers(a.pre, b.pre),
    };
    let build = || match rule {
        VersionRule::StrictWithBuild => compare_identifiers(a.build, b.build),
        _ => Ordering::Equal,
    };
    core.then_with(pre).then_with(build)
}

/// GrowthBook's `paddedVersionString`: compared as text.
#[cfg(feature = "full")]
pub fn padded(text: &str) -> String {
    let text = if text.is_empty() { "0" } else { text };
    let text = text.strip_prefix('v').unwrap_or(text);
    let text = text.split_once('+').map_or(text, |(text, _)| text);
    let mut out = String::new();
    let mut count = 0u32;
    for part in text.split(['-', '.']) {
        if count > 0 {
            out.push('-');
        }
        count = count.saturating_add(1);
        if !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()) {
            out.extend(core::iter::repeat_n(' ', 5usize.saturating_sub(part.len())));
        }
        out.push_str(part);
    }
    if count == 3 {
        out.push_str("-~");
    }
    out
}

/// A range that versions are tested against.
#[cfg(feature = "full")]
#[derive(Debug, Clone, PartialEq)]
pub struct Range(semver::VersionReq);

/// `None` where `text` is no range; the one parser of the compiler and the evaluator.
#[cfg(feature = "full")]
pub fn parse_range(text: &str) -> Option<Range> {
    let mut joined = String::with_capacity(text.len().saturating_add(8));
    let mut operator_waits = false;
    for token in text.split([',', ' ', '\t']).filter(|token| !token.is_empty()) {
        let version = token.trim_start_matches(['=', '>', '<', '~', '^']);
        let operator = token.strip_suffix(version)?;
        if operator_waits && !operator.is_empty() {
            return None;
        }
        if !joined.is_empty() && !operator_waits {
            joined.push(',');
        }
        match (operator, operator_waits) {
            ("", false) if !version.starts_with(['*', 'x', 'X']) => joined.push('='),
            _ => joined.push_str(operator),
        }
        joined.push_str(version.strip_prefix('v').unwrap_or(version));
        operator_waits = version.is_empty();
    }
    if joined.is_empty() || operator_waits {
        return None;
    }
    semver::VersionReq::parse(&joined).ok().map(Range)
}

/// As Cargo: a pre-release is in a range only if the range names a pre-release of that version.
#[cfg(feature = "full")]
pub fn in_range(version: &Version<'_>, range: &Range) -> bool {
    let [major, minor, patch] = version.numbers.map(|number| number.parse::<u64>().ok());
    let (Some(major), Some(minor), Some(patch)) = (major, minor, patch) else { return false };
    let Ok(pre) = semver::Prerelease::new(version.pre) else { return false };
    let build = semver::BuildMetadata::EMPTY;
    range.0.matches(&semver::Version { major, minor, patch, pre, build })
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) && !zero_led(text)
}

fn zero_led(text: &str) -> bool {
    text.len() > 1 && text.starts_with('0') && text.bytes().all(|byte| byte.is_ascii_digit())
}

fn is_identifier(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

/// By value; equal values with more leading zeros (only builds have them) are greater.
fn compare_digits(a: &str, b: &str) -> Ordering {
    let (x, y) = (a.trim_start_matches('0'), b.trim_start_matches('0'));
    x.len().cmp(&y.len()).then_with(|| x.cmp(y)).then_with(|| a.len().cmp(&b.len()))
}

/// Dot-separated; numbers by value and before words, fewer before more.
fn compare_identifiers(a: &str, b: &str) -> Ordering {
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let (mut a, mut b) = (a.split('.'), b.split('.'));
    loop {
        let order = match (a.next(), b.next()) {
            (None, None) => return Ordering::Equal,
            (None, Some(_)) => Ordering::Less,
            (Some(_), None) => Ordering::Greater,
            (Some(a), Some(b)) => match (digits(a), digits(b)) {
                (true, true) => compare_digits(a, b),
                // The empty build is one empty part: before everything.
                (true, false) => {
                    if b.is_empty() {
                        Ordering::Greater
                    } else {
                        Ordering::Less
                    }
                }
                (false, true) => {
                    if a.is_empty() {
                        Ordering::Less
                    } else {
                        Ordering::Greater
                    }
                }
                (false, false) => a.cmp(b),
            },
        };
        if order.is_ne() {
            return order;
        }
    }
}
