//! Arithmetic between a counter's ticks and nanoseconds.

/// A counter of known frequency, as a factor: one is multiplied, not divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Nanoseconds in a tick, times 2^40.
    ns_mult: u64,
    /// Ticks in a nanosecond, times 2^40.
    tick_mult: u64,
}

const NS: u128 = 1_000_000_000;
/// Fraction bits of the factors: errors stay below a microsecond a day.
const SHIFT: u32 = 40;

impl Rate {
    /// The rate of `hz` ticks a second; `None` for 0.
    pub const fn new(hz: u64) -> Option<Rate> {
        if hz == 0 {
            return None;
        }
        Some(Rate {
            ns_mult: ((NS << SHIFT) / hz as u128) as u64,
            tick_mult: (((hz as u128) << SHIFT) / NS) as u64,
        })
    }

    /// Both factors, for atomics.
    pub const fn factors(self) -> (u64, u64) {
        (self.ns_mult, self.tick_mult)
    }

    /// From [`Rate::factors`].
    pub const fn from_factors((ns_mult, tick_mult): (u64, u64)) -> Rate {
        Rate { ns_mult, tick_mult }
    }

    /// Nanoseconds that `ticks` take, rounded down.
    pub const fn ns(self, ticks: u64) -> u64 {
        ((ticks as u128 * self.ns_mult as u128) >> SHIFT) as u64
    }

    /// Ticks that pass in `ns`, rounded up so that a deadline is not early;
    /// saturates.
    pub const fn ticks(self, ns: u64) -> u64 {
        let t = ((ns as u128 * self.tick_mult as u128) >> SHIFT) + 1;
        if t > u64::MAX as u128 {
            u64::MAX
        } else {
            t as u64
        }
    }
}

/// The frequency of a counter that made `ticks` in `ns`.
pub const fn frequency(ticks: u64, ns: u64) -> Option<u64> {
    if ns == 0 {
        return None;
    }
    Some((ticks as u128 * NS / ns as u128) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_is_right_to_the_microsecond() {
        for hz in [
            1_000_000,
            3_579_545,
            1_000_000_000,
            2_893_202_000,
            5_400_000_001,
        ] {
            let rate = Rate::new(hz).unwrap();
            let day = 86_400;
            let ns = rate.ns(hz * day);
            let expect = day * 1_000_000_000;

            assert!(expect - ns < 1_000, "{hz}: {ns}");
        }
        assert_eq!(Rate::new(0), None);
    }

    #[test]
    fn a_deadline_is_never_early() {
        let rate = Rate::new(2_893_202_000).unwrap();
        for ns in [0, 1, 999, 1_000_000, 123_456_789_012] {
            assert!(rate.ns(rate.ticks(ns)) + 2 >= ns);
            assert!(rate.ticks(ns) >= 1);
        }
        assert!(rate.ticks(u64::MAX) > 1 << 63);
    }

    #[test]
    fn frequency_from_a_measurement() {
        assert_eq!(frequency(10_000_000, 10_000_000), Some(1_000_000_000));
        assert_eq!(frequency(1, 0), None);
    }
}
