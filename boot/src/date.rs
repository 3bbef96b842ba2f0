//! Calendar date to Unix time, for the protocol's date at boot.

/// Seconds since 1970-01-01 00:00 UTC of a date and time as firmware gives it.
///
/// `zone` is UEFI's minutes between local time and UTC (`UTC = local + zone`),
/// nothing when the clock's zone is not known: it then counts as UTC. Fields out
/// of their range, as a clock with an empty battery has them, give nothing.
pub fn unix_time(
    (year, month, day): (u16, u8, u8),
    (hour, minute, second): (u8, u8, u8),
    zone: Option<i16>,
) -> Option<i64> {
    let fits = (1900..=9999).contains(&year)
        && (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && hour < 24
        && minute < 60
        && second < 60;
    if !fits {
        return None;
    }
    // Years that start in March put the leap day last.
    let (y, m) = if month > 2 {
        (i64::from(year), i64::from(month) - 3)
    } else {
        (i64::from(year) - 1, i64::from(month) + 9)
    };
    let (era, of_era) = (y.div_euclid(400), y.rem_euclid(400));
    let of_year = (153 * m + 2) / 5 + i64::from(day) - 1;
    let days = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468;
    let zone = zone.map_or(0, i64::from) * 60;
    Some(days * 86_400 + i64::from(hour) * 3600 + i64::from(minute) * 60 + i64::from(second) + zone)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_dates() {
        assert_eq!(unix_time((1970, 1, 1), (0, 0, 0), None), Some(0));
        assert_eq!(
            unix_time((2000, 2, 29), (12, 0, 0), None),
            Some(951_825_600)
        );
        assert_eq!(
            unix_time((2026, 11, 23), (21, 7, 19), None),
            Some(1_795_468_039)
        );
        assert_eq!(unix_time((1969, 12, 31), (23, 59, 59), None), Some(-1));
    }

    #[test]
    fn zone_is_added() {
        // One o'clock in a zone one hour east of UTC (UEFI writes -60).
        assert_eq!(unix_time((1970, 1, 1), (1, 0, 0), Some(-60)), Some(0));
    }

    #[test]
    fn a_dead_clock_gives_nothing() {
        assert_eq!(unix_time((0, 0, 0), (0, 0, 0), None), None);
        assert_eq!(unix_time((2026, 13, 1), (0, 0, 0), None), None);
        assert_eq!(unix_time((2026, 1, 1), (24, 0, 0), None), None);
    }
}
