//! RFC 3339 times as milliseconds since the epoch, for the compiler and the evaluator alike.

/// The beginning of a day in UTC, `2026-01-31`.
pub fn day_ms(text: &str) -> Option<i64> {
    let day: &[u8; 10] = text.as_bytes().try_into().ok()?;
    let mut time = *b"0000-00-00T00:00:00Z";
    time.first_chunk_mut::<10>()?.copy_from_slice(day);
    parse_rfc3339(core::str::from_utf8(&time).ok()?)
}

/// `2026-01-31T12:00:00Z`, with `t`, `z` or a space as RFC 3339 allows, any number of digits of a
/// second (those beyond a millisecond are cut off) and an offset. A leap second counts as the
/// last millisecond before it ends, since the epoch has no number for it.
pub fn parse_rfc3339(text: &str) -> Option<i64> {
    let bytes = text.as_bytes();
    let (head, rest) = bytes.split_first_chunk::<19>()?;
    let [
        y1,
        y2,
        y3,
        y4,
        b'-',
        m1,
        m2,
        b'-',
        d1,
        d2,
        b'T' | b't' | b' ',
        h1,
        h2,
        b':',
        n1,
        n2,
        b':',
        s1,
        s2,
    ] = *head
    else {
        return None;
    };
    let year = number(&[y1, y2, y3, y4])?;
    let (month, day) = (number(&[m1, m2])?, number(&[d1, d2])?);
    let (hour, minute, second) = (number(&[h1, h2])?, number(&[n1, n2])?, number(&[s1, s2])?);
    let (millis, zone) = match rest.split_first() {
        Some((b'.', digits)) => {
            let len = digits.iter().take_while(|byte| byte.is_ascii_digit()).count();
            let (fraction, zone) = digits.split_at_checked(len)?;
            let digit = |at: usize| fraction.get(at).copied().unwrap_or(b'0');
            number(fraction.get(..1)?)?;
            (number(&[digit(0), digit(1), digit(2)])?, zone)
        }
        _ => (0, rest),
    };
    let offset_minutes = match *zone {
        [b'Z' | b'z'] => 0,
        [sign @ (b'+' | b'-'), h1, h2, b':', m1, m2] => {
            let (hours, minutes) = (number(&[h1, h2])?, number(&[m1, m2])?);
            if hours > 23 || minutes > 59 {
                return None;
            }
            let offset = hours.checked_mul(60)?.checked_add(minutes)?;
            if sign == b'-' { offset.checked_neg()? } else { offset }
        }
        _ => return None,
    };
    if !(1..=12).contains(&month) || day < 1 || day > days_in_month(year, month) {
        return None;
    }
    if hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let (second, millis) = if second == 60 { (59, 999) } else { (second, millis) };
    let minutes = days_since_epoch(year, month, day)
        .checked_mul(24)?
        .checked_add(hour)?
        .checked_mul(60)?
        .checked_add(minute)?
        .checked_sub(offset_minutes)?;
    minutes.checked_mul(60)?.checked_add(second)?.checked_mul(1000)?.checked_add(millis)
}

fn number(digits: &[u8]) -> Option<i64> {
    digits.iter().try_fold(0i64, |sum, digit| {
        let digit = digit.is_ascii_digit().then(|| i64::from(digit & 0x0f))?;
        sum.checked_mul(10)?.checked_add(digit)
    })
}

fn days_in_month(year: i64, month: i64) -> i64 {
    match month {
        4 | 6 | 9 | 11 => 30,
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        _ => 31,
    }
}

/// Howard Hinnant's `days_from_civil`, for the years 0 to 9999.
#[expect(
    clippy::arithmetic_side_effects,
    reason = "years of four digits, months and days in range: nothing comes near an i64's ends"
)]
fn days_since_epoch(year: i64, month: i64, day: i64) -> i64 {
    // Years begin in March, so that the leap day is the last one.
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let month = (month + 9) % 12;
    let day_of_year = (153 * month + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}
