//! Time stamps: 32-bit seconds, and an extra word with two more bits of
//! seconds and 30 bits of nanoseconds.

/// A moment: seconds since 1970 and nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp {
    /// Seconds since 1970-01-01 00:00 UTC; negative before.
    pub secs: i64,
    /// Nanoseconds, below 1,000,000,000.
    pub nanos: u32,
}

/// The earliest second that the format can hold.
pub const MIN_SECS: i64 = i32::MIN as i64;
/// The latest second that the format can hold, with the extra word.
pub const MAX_SECS: i64 = 0x3_7fff_ffff;

impl Timestamp {
    /// A moment in whole seconds.
    pub const fn from_secs(secs: i64) -> Self {
        Self { secs, nanos: 0 }
    }

    /// Decodes the two words of the media. Without the extra word, pass 0.
    pub fn decode(secs: u32, extra: u32) -> Self {
        let low = i64::from(secs as i32);
        // The two epoch bits count multiples of 2^32 s that are added to the
        // *signed* low word, so that old time stamps stay what they were.
        let epoch = i64::from(extra & 3) << 32;
        Self {
            secs: low.saturating_add(epoch),
            nanos: extra >> 2,
        }
    }

    /// The two words for the media; a time outside the format's reach
    /// becomes the nearest one inside.
    pub fn encode(self) -> (u32, u32) {
        let secs = self.secs.clamp(MIN_SECS, MAX_SECS);
        let low = secs as u32;
        let epoch = (secs.wrapping_sub(i64::from(low as i32)) >> 32) as u32 & 3;
        (low, (self.nanos << 2) | epoch)
    }

    /// The one word of an inode that has no extra word.
    pub fn encode_old(self) -> u32 {
        self.secs.clamp(MIN_SECS, i64::from(i32::MAX)) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_encodings() {
        // The table of Documentation/filesystems/ext4/inodes.rst.
        for (secs, extra, want) in [
            (0x8000_0000, 0, -0x8000_0000),
            (0xffff_ffff, 0, -1),
            (0, 0, 0),
            (0x7fff_ffff, 0, 0x7fff_ffff),
            (0x8000_0000, 1, 0x8000_0000),
            (0xffff_ffff, 1, 0xffff_ffff),
            (0, 1, 0x1_0000_0000),
            (0x7fff_ffff, 1, 0x1_7fff_ffff),
            (0x8000_0000, 2, 0x1_8000_0000),
            (0x7fff_ffff, 2, 0x2_7fff_ffff),
            (0x8000_0000, 3, 0x2_8000_0000),
            (0x7fff_ffff, 3, 0x3_7fff_ffff_i64),
        ] {
            let t = Timestamp::decode(secs, extra | (5 << 2));
            assert_eq!((t.secs, t.nanos), (want, 5));
            assert_eq!(t.encode(), (secs, extra | (5 << 2)));
        }
    }

    #[test]
    fn out_of_reach_is_clamped() {
        let far = Timestamp {
            secs: i64::MAX,
            nanos: 0,
        };
        assert_eq!(
            Timestamp::decode(far.encode().0, far.encode().1).secs,
            MAX_SECS
        );
        assert_eq!(far.encode_old(), i32::MAX as u32);
    }
}
