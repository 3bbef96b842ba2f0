//! Checked reads of little-endian and big-endian fields out of untrusted bytes.

/// Reads `N` bytes at `offset`, or nothing when they are not all there.
pub fn array<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    let end = offset.checked_add(N)?;
    bytes.get(offset..end)?.try_into().ok()
}

/// Reads one byte at `offset`.
pub fn byte(bytes: &[u8], offset: usize) -> Option<u8> {
    bytes.get(offset).copied()
}

/// Reads a little-endian 16-bit field at `offset`.
pub fn le16(bytes: &[u8], offset: usize) -> Option<u16> {
    array(bytes, offset).map(u16::from_le_bytes)
}

/// Reads a little-endian 32-bit field at `offset`.
pub fn le32(bytes: &[u8], offset: usize) -> Option<u32> {
    array(bytes, offset).map(u32::from_le_bytes)
}

/// Reads a little-endian 64-bit field at `offset`.
pub fn le64(bytes: &[u8], offset: usize) -> Option<u64> {
    array(bytes, offset).map(u64::from_le_bytes)
}

/// Reads a big-endian 32-bit field at `offset` (device trees).
pub fn be32(bytes: &[u8], offset: usize) -> Option<u32> {
    array(bytes, offset).map(u32::from_be_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_stop_at_the_end() {
        let bytes = [1, 2, 3, 4, 5, 6, 7, 8, 9];
        assert_eq!(le16(&bytes, 0), Some(0x0201));
        assert_eq!(le32(&bytes, 5), Some(0x0908_0706));
        assert_eq!(le32(&bytes, 6), None);
        assert_eq!(le64(&bytes, 1), Some(0x0908_0706_0504_0302));
        assert_eq!(be32(&bytes, 0), Some(0x0102_0304));
        assert_eq!(le64(&bytes, usize::MAX), None);
        assert_eq!(byte(&bytes, 9), None);
    }
}
