//! How numbers, times and modes are shown: as Linux's tools show them.

use alloc::format;
use alloc::string::String;

use quire::vfs::{FileKind, Time};

/// Year, month, day, hour, minute, second in UTC.
pub fn civil(time: Time) -> (i64, u32, u32, u32, u32, u32) {
    let days = time.seconds.div_euclid(86_400);
    let second = time.seconds.rem_euclid(86_400) as u32;
    // Days since 1 March 0000, in eras of 400 years: leap days come last in
    // such a year, so months have fixed lengths.
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let day_of_era = z.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = (day_of_year - (153 * month + 2) / 5 + 1) as u32;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (
        year,
        month as u32,
        day,
        second / 3600,
        second / 60 % 60,
        second % 60,
    )
}

/// `2026-11-23 21:07`
pub fn short_time(time: Time) -> String {
    let (year, month, day, hour, minute, _) = civil(time);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}")
}

/// `2026-11-23 21:07:33.000000001 +0000`
pub fn full_time(time: Time) -> String {
    let (year, month, day, hour, minute, second) = civil(time);
    let nanos = time.nanoseconds;
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}.{nanos:09} +0000")
}

/// `drwxr-xr-x`
pub fn mode_text(kind: FileKind, mode: u32) -> String {
    let mut text = String::new();
    text.push(kind.letter());
    for (shift, special, low, high) in [
        (6, 0o4000, 's', 'S'),
        (3, 0o2000, 's', 'S'),
        (0, 0o1000, 't', 'T'),
    ] {
        let bits = mode >> shift;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (bits & 1 != 0, mode & special != 0) {
            (true, true) => low,
            (false, true) => high,
            (true, false) => 'x',
            (false, false) => '-',
        });
    }
    text
}

/// `1.5G`, as `ls -h` rounds: up.
pub fn human(bytes: u64) -> String {
    if bytes < 1024 {
        return format!("{bytes}");
    }
    let mut unit = 1u128;
    let mut letter = 'B';
    for next in ['K', 'M', 'G', 'T', 'P', 'E'] {
        if u128::from(bytes) < unit * 1024 {
            break;
        }
        unit *= 1024;
        letter = next;
    }
    let tenths = (u128::from(bytes) * 10).div_ceil(unit);
    if tenths < 100 {
        format!("{}.{}{letter}", tenths / 10, tenths % 10)
    } else {
        format!("{}{letter}", u128::from(bytes).div_ceil(unit))
    }
}

/// A UUID's usual form.
pub fn uuid(bytes: &[u8; 16]) -> String {
    let mut text = String::new();
    for (index, byte) in bytes.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Time {
        Time {
            seconds,
            nanoseconds: 7,
        }
    }

    #[test]
    fn dates() {
        for (seconds, text) in [
            (0, "1970-01-01 00:00"),
            (-1, "1969-12-31 23:59"),
            (951_782_400, "2000-02-29 00:00"),
            (4_107_542_399, "2100-02-28 23:59"),
            (4_107_542_400, "2100-03-01 00:00"),
            (1_795_468_053, "2026-11-23 21:07"),
            (15_032_385_535, "2446-05-10 22:38"),
        ] {
            assert_eq!(short_time(at(seconds)), text);
        }
        assert_eq!(full_time(at(61)), "1970-01-01 00:01:01.000000007 +0000");
    }

    #[test]
    fn modes_and_sizes() {
        assert_eq!(mode_text(FileKind::Dir, 0o1777), "drwxrwxrwt");
        assert_eq!(mode_text(FileKind::File, 0o4755), "-rwsr-xr-x");
        assert_eq!(mode_text(FileKind::File, 0o2640), "-rw-r-S---");
        for (bytes, text) in [
            (0, "0"),
            (1023, "1023"),
            (1024, "1.0K"),
            (1025, "1.1K"),
            (10 << 20, "10M"),
            ((10 << 20) + 1, "11M"),
            (u64::MAX, "16E"),
        ] {
            assert_eq!(human(bytes), text);
        }
    }
}
