//! Conversion between the generic timer's ticks and nanoseconds.
//!
//! Pure logic, so that it is tested on any host. A rate is kept as a 64-bit
//! fraction of a 128-bit product, chosen so that the result is exact to one
//! nanosecond over centuries of uptime.

const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// A conversion `value * mult >> shift`, with the largest `mult` that fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    mult: u64,
    shift: u32,
}

impl Rate {
    /// Nanoseconds for each tick of a counter of `hz`; `None` for 0 Hz.
    pub const fn nanos_per_tick(hz: u64) -> Option<Self> {
        Self::ratio(NANOS_PER_SECOND, hz)
    }

    /// Ticks for each nanosecond of a counter of `hz`; `None` for 0 Hz.
    pub const fn ticks_per_nano(hz: u64) -> Option<Self> {
        Self::ratio(hz, NANOS_PER_SECOND)
    }

    /// Builds a rate from what a lock-free cache holds.
    pub const fn from_parts(mult: u64, shift: u32) -> Self {
        Self { mult, shift }
    }

    /// The factor and the shift.
    pub const fn parts(self) -> (u64, u32) {
        (self.mult, self.shift)
    }

    /// The fraction `num / den`, rounded to nearest, with 63 or 64 significant
    /// bits.
    const fn ratio(num: u64, den: u64) -> Option<Self> {
        if num == 0 || den == 0 {
            return None;
        }
        // Start with the largest shift for which num << shift fits 128 bits,
        // and come down until the quotient fits 64. num >= 1 and den < 2^64
        // leave the quotient above 2^63 at the start or in the first steps.
        let mut shift = num.leading_zeros() + 63;
        loop {
            let wide = (num as u128) << shift;
            let mult = wide.saturating_add(den as u128 / 2) / den as u128;
            if mult <= u64::MAX as u128 {
                return Some(Self {
                    mult: mult as u64,
                    shift,
                });
            }
            shift -= 1;
        }
    }

    /// Converts `value`, rounding down; saturates at `u64::MAX`.
    pub const fn apply(self, value: u64) -> u64 {
        let wide = (value as u128 * self.mult as u128) >> self.shift;
        if wide > u64::MAX as u128 {
            u64::MAX
        } else {
            wide as u64
        }
    }

    /// Converts `value`, rounding up, so that a deadline is never early: one for
    /// what is cut off, one for the rounding of the rate itself.
    pub const fn apply_up(self, value: u64) -> u64 {
        self.apply(value).saturating_add(2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn zero_hertz_is_refused() {
        assert_eq!(Rate::nanos_per_tick(0), None);
        assert_eq!(Rate::ticks_per_nano(0), None);
    }

    #[test]
    fn usual_rates() {
        // QEMU's and a common board's counters.
        let qemu = Rate::nanos_per_tick(62_500_000).unwrap();
        assert_eq!(qemu.apply(62_500_000), 1_000_000_000);
        assert_eq!(qemu.apply(1), 16);
        let ghz = Rate::nanos_per_tick(1_000_000_000).unwrap();
        assert_eq!(ghz.apply(123_456_789), 123_456_789);
        let back = Rate::ticks_per_nano(62_500_000).unwrap();
        assert_eq!(back.apply(1_000_000_000), 62_500_000);
        assert_eq!(back.apply_up(0), 2);
    }

    proptest! {
        #[test]
        fn agrees_with_exact_arithmetic(hz in 1u64..=10_000_000_000, seconds in 0u64..3_000_000_000, rest: u64) {
            let Some(value) = seconds.checked_mul(hz).and_then(|v| v.checked_add(rest % hz)) else {
                return Ok(());
            };
            let exact = value as u128 * 1_000_000_000 / hz as u128;
            let got = Rate::nanos_per_tick(hz).unwrap().apply(value);
            let want = u64::try_from(exact).unwrap_or(u64::MAX);
            prop_assert!(got.abs_diff(want) <= 1, "{got} against {want}");
        }

        #[test]
        fn deadlines_are_never_early(hz in 1u64..=10_000_000_000, ns in 0u64..1 << 60) {
            let ticks = Rate::ticks_per_nano(hz).unwrap().apply_up(ns);
            // The exact instant of that tick is at or after the deadline.
            let instant = ticks as u128 * 1_000_000_000;
            prop_assert!(instant >= ns as u128 * hz as u128);
        }
    }
}
