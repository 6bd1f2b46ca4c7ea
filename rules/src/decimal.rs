//! Whole numbers as decimal text. `fmt` can do it too, but a browser would download it for this.

use alloc::vec::Vec;

/// Appends `number`.
pub fn write(number: i64, out: &mut Vec<u8>) {
    if number < 0 {
        out.push(b'-');
    }
    write_u64(number.unsigned_abs(), out);
}

/// Appends `number`.
pub fn write_u64(mut number: u64, out: &mut Vec<u8>) {
    // As many as `u64::MAX` has.
    let mut digits = [0u8; 20];
    let mut from = digits.len();
    for digit in digits.iter_mut().rev() {
        *digit = b'0' | (number % 10) as u8;
        from = from.saturating_sub(1);
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(digits.get(from..).unwrap_or_default());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    fn written(number: i64) -> String {
        let mut out = Vec::new();
        super::write(number, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_ends_are_written_whole() {
        for number in [0, 9, 10, -1, i64::MAX, i64::MIN] {
            assert_eq!(written(number), number.to_string());
        }
    }

    proptest! {
        #[test]
        fn any_number_is_written_as_fmt_writes_it(number: i64) {
            prop_assert_eq!(written(number), number.to_string());
        }
    }
}
