//! Values for the software-generated interrupt registers.
//!
//! Pure logic, so that it is tested on any host. Spec: GIC architecture
//! (IHI 0069), "ICC_SGI1R_EL1".

/// The affinity fields of an MPIDR value.
pub const AFFINITY: u64 = 0xff_00ff_ffff;

/// The value of ICC_SGI1R_EL1 that sends SGI `id` (0 to 15) to the CPU with
/// this MPIDR. Aff0 above 15 goes by the range selector.
pub const fn sgi1r(mpidr: u64, id: u8) -> u64 {
    let aff0 = mpidr & 0xff;
    let aff1 = (mpidr >> 8) & 0xff;
    let aff2 = (mpidr >> 16) & 0xff;
    let aff3 = (mpidr >> 32) & 0xff;
    (aff3 << 48)
        | ((aff0 >> 4) << 44)
        | (aff2 << 32)
        | (((id & 0xf) as u64) << 24)
        | (aff1 << 16)
        | (1 << (aff0 & 0xf))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields() {
        assert_eq!(sgi1r(0, 0), 1);
        assert_eq!(sgi1r(0x8000_0003, 2), (2 << 24) | 0b1000);
        assert_eq!(
            sgi1r(0x12_0034_5678, 1),
            (0x12 << 48) | (7 << 44) | (0x34 << 32) | (1 << 24) | (0x56 << 16) | (1 << 8)
        );
    }
}
