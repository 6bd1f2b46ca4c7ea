//! Timestamps and durations, both as nanoseconds: the years 1 to 9999, and what 64 bits hold, some 292
//! years in both directions, as CEL has them. Time zones are offsets: there is no table of names here.

const NANOS: i128 = 1_000_000_000;
const MIN_SECONDS: i128 = -62_135_596_800;
const MAX_SECONDS: i128 = 253_402_300_799;

/// Nanoseconds since the epoch, if a timestamp may have them.
pub(super) fn timestamp_of(nanos: i128) -> Option<i128> {
    (MIN_SECONDS..=MAX_SECONDS).contains(&nanos.div_euclid(NANOS)).then_some(nanos)
}

pub(super) fn timestamp_of_seconds(seconds: i64) -> Option<i128> {
    timestamp_of(i128::from(seconds).checked_mul(NANOS)?)
}

pub(super) fn timestamp_of_millis(millis: i64) -> Option<i128> {
    timestamp_of(i128::from(millis).checked_mul(1_000_000)?)
}

pub(super) fn duration_of(nanos: i128) -> Option<i128> {
    i64::try_from(nanos).ok().map(i128::from)
}

pub(super) fn seconds(nanos: i128) -> i64 {
    i64::try_from(nanos.div_euclid(NANOS)).unwrap_or_default()
}

/// RFC 3339.
pub(super) fn timestamp(text: &str) -> Option<i128> {
    // The rules' own parser allows more than CEL does.
    if text.as_bytes().get(10) != Some(&b'T') || text.ends_with('z') {
        return None;
    }
    let millis = crate::date::parse_rfc3339(text)?;
    let digits = text.get(19..)?.strip_prefix('.').unwrap_or_default().bytes();
    let digits = digits.take_while(u8::is_ascii_digit).chain(std::iter::repeat(b'0')).take(9);
    let fraction = digits
        .fold(0i128, |sum, digit| sum.saturating_mul(10).saturating_add(i128::from(digit & 0x0f)));
    let seconds = i128::from(millis.div_euclid(1000));
    timestamp_of(seconds.checked_mul(NANOS)?.checked_add(fraction)?)
}

/// `1h30m`, `-1.5s`, `500ms`: as Go reads them.
pub(super) fn duration(text: &str) -> Option<i128> {
    let (negative, mut rest) = match text.split_at_checked(1) {
        Some(("-", rest)) => (true, rest),
        Some(("+", rest)) => (false, rest),
        _ => (false, text),
    };
    if rest == "0" {
        return Some(0);
    }
    let mut sum = 0i128;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let (whole, after) = digits(rest);
        let (fraction, after) = match after.strip_prefix('.') {
            Some(after) => digits(after),
            None => ("", after),
        };
        if whole.is_empty() && fraction.is_empty() {
            return None;
        }
        let units = [
            ("ns", 1),
            ("us", 1_000),
            ("µs", 1_000),
            ("μs", 1_000),
            ("ms", 1_000_000),
            ("s", NANOS),
            ("m", 60 * NANOS),
            ("h", 3600 * NANOS),
        ];
        let (unit, after) =
            units.iter().find_map(|(name, unit)| Some((*unit, after.strip_prefix(name)?)))?;
        if whole.len() > 18 || fraction.len() > 18 {
            return None;
        }
        let number = |text: &str| if text.is_empty() { Some(0) } else { text.parse::<i128>().ok() };
        let scale = 10i128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
        let part = number(fraction)?.checked_mul(unit)?.checked_div(scale)?;
        sum = sum.checked_add(number(whole)?.checked_mul(unit)?)?.checked_add(part)?;
        rest = after;
    }
    duration_of(if negative { sum.checked_neg()? } else { sum })
}

fn digits(text: &str) -> (&str, &str) {
    let end = text.bytes().take_while(u8::is_ascii_digit).count();
    text.split_at_checked(end).unwrap_or((text, ""))
}

/// Nanoseconds of `+02:00`, `-02:30`, `02:00` or `UTC`.
pub(super) fn offset(zone: &str) -> Option<i128> {
    if zone == "UTC" || zone == "Z" {
        return Some(0);
    }
    let (negative, rest) = match zone.split_at_checked(1)? {
        ("-", rest) => (true, rest),
        ("+", rest) => (false, rest),
        _ => (false, zone),
    };
    let [h1, h2, b':', m1, m2] = rest.as_bytes() else { return None };
    if ![h1, h2, m1, m2].iter().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let two = |tens: &u8, ones: &u8| {
        i128::from(tens & 0x0f).saturating_mul(10).saturating_add(i128::from(ones & 0x0f))
    };
    let (hours, minutes) = (two(h1, h2), two(m1, m2));
    if hours > 23 || minutes > 59 {
        return None;
    }
    let nanos = hours.saturating_mul(60).saturating_add(minutes).saturating_mul(60 * NANOS);
    Some(if negative { nanos.saturating_neg() } else { nanos })
}

/// A timestamp, taken apart as the calendar does.
pub(super) struct Civil {
    pub year: i64,
    /// From 1.
    pub month: i64,
    /// From 1.
    pub day: i64,
    pub day_of_week: i64,
    /// From 0.
    pub day_of_year: i64,
    pub hour: i64,
    pub minute: i64,
    pub second: i64,
    pub nanos: i64,
}

/// Howard Hinnant's `civil_from_days`.
#[expect(
    clippy::arithmetic_side_effects,
    reason = "timestamps are in the years 1 to 9999, give or take a day: nothing comes near an end"
)]
pub(super) fn civil(nanos: i128) -> Civil {
    let seconds = seconds(nanos);
    let days = seconds.div_euclid(86_400);
    let of_day = seconds.rem_euclid(86_400);
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let from_march = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * from_march + 2) / 153;
    let day = from_march - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    // March first is the day 59, or 60 in a leap year.
    let day_of_year = match month > 2 {
        true => from_march + 59 + i64::from(is_leap),
        false => from_march - 306,
    };
    Civil {
        year,
        month,
        day,
        // The epoch was a Thursday.
        day_of_week: (days + 4).rem_euclid(7),
        day_of_year,
        hour: of_day / 3600,
        minute: of_day / 60 % 60,
        second: of_day % 60,
        nanos: i64::try_from(nanos.rem_euclid(NANOS)).unwrap_or_default(),
    }
}

fn fraction(nanos: i64) -> String {
    let text = format!(".{nanos:09}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

pub(super) fn timestamp_text(nanos: i128) -> String {
    let c = civil(nanos);
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}{}Z",
        c.year,
        c.month,
        c.day,
        c.hour,
        c.minute,
        c.second,
        fraction(c.nanos)
    )
}

/// Of seconds, as protobuf's JSON writes it.
pub(super) fn duration_text(nanos: i128) -> String {
    let size = nanos.unsigned_abs();
    let seconds = size.checked_div(NANOS.unsigned_abs()).unwrap_or_default();
    let rest = size.checked_rem(NANOS.unsigned_abs()).unwrap_or_default();
    let sign = if nanos < 0 { "-" } else { "" };
    format!("{sign}{seconds}{}s", fraction(i64::try_from(rest).unwrap_or_default()))
}
