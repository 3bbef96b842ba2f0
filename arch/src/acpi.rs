//! The few firmware tables that this crate reads itself: SPCR for the
//! console, parts of the FADT for power and time.
//!
//! ACPI 6.5; SPCR revision 4 by Microsoft's specification of that table. All
//! readers work on byte slices, believe no length, and answer `None` for
//! what is not there.

use crate::addr::PhysAddr;
use crate::platform::Port;

/// Bytes of the header that every table starts with.
pub const HEADER_LEN: usize = 36;

/// `N` bytes at `at`.
pub fn bytes<const N: usize>(table: &[u8], at: usize) -> Option<[u8; N]> {
    let end = at.checked_add(N)?;
    table.get(at..end)?.try_into().ok()
}

/// The byte at `at`.
pub fn read_u8(table: &[u8], at: usize) -> Option<u8> {
    table.get(at).copied()
}

/// The little-endian 16-bit number at `at`.
pub fn read_u16(table: &[u8], at: usize) -> Option<u16> {
    bytes(table, at).map(u16::from_le_bytes)
}

/// The little-endian 32-bit number at `at`.
pub fn read_u32(table: &[u8], at: usize) -> Option<u32> {
    bytes(table, at).map(u32::from_le_bytes)
}

/// The little-endian 64-bit number at `at`.
pub fn read_u64(table: &[u8], at: usize) -> Option<u64> {
    bytes(table, at).map(u64::from_le_bytes)
}

/// The table cut to the length that its own header gives, if the header is
/// whole and has that signature.
pub fn table<'a>(raw: &'a [u8], signature: &[u8; 4]) -> Option<&'a [u8]> {
    if bytes::<4>(raw, 0)? != *signature {
        return None;
    }
    let len = usize::try_from(read_u32(raw, 4)?).ok()?;
    if len < HEADER_LEN {
        return None;
    }
    Some(raw.get(..len).unwrap_or(raw))
}

/// A Generic Address Structure (ACPI 6.5, 5.2.3.2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Gas {
    /// 0 memory, 1 I/O ports, 2 PCI configuration space.
    pub space: u8,
    /// Register width in bits.
    pub bit_width: u8,
    /// Access size: 0 undefined, 1 byte, 2 word, 3 dword, 4 qword.
    pub access: u8,
    /// Where.
    pub address: u64,
}

impl Gas {
    /// Memory.
    pub const MEMORY: u8 = 0;
    /// I/O ports.
    pub const IO: u8 = 1;

    /// The structure at `at`; `None` when cut off or when the address is 0,
    /// which means "not there".
    pub fn read(table: &[u8], at: usize) -> Option<Gas> {
        let b = bytes::<12>(table, at)?;
        let address = u64::from_le_bytes(bytes(&b, 4)?);
        let [space, bit_width, _offset, access, ..] = b;
        (address != 0).then_some(Gas {
            space,
            bit_width,
            access,
            address,
        })
    }

    /// As an I/O port.
    pub fn io_port(&self) -> Option<u16> {
        if self.space == Gas::IO {
            u16::try_from(self.address).ok()
        } else {
            None
        }
    }
}

/// The serial port that the SPCR names; `None` when the table is malformed or
/// the port's kind is unknown here.
pub fn spcr_port(raw: &[u8]) -> Option<Port> {
    let t = table(raw, b"SPCR")?;
    let interface = read_u8(t, 36)?;
    let gas = Gas::read(t, 40)?;
    let interrupt_type = read_u8(t, 52)?;
    let pc_irq = read_u8(t, 53)?;
    let gsi = read_u32(t, 54)?;
    // Bit 0: 8259; bits 1 to 3: I/O APIC, I/O SAPIC, GIC: a system interrupt.
    let irq = if interrupt_type & 0x0e != 0 {
        Some(gsi)
    } else if interrupt_type & 1 != 0 {
        Some(u32::from(pc_irq))
    } else {
        None
    };
    let baud = match read_u8(t, 58)? {
        3 => Some(9600),
        4 => Some(19200),
        6 => Some(57600),
        7 => Some(115_200),
        // 0: leave what the firmware set.
        _ => None,
    };
    // DBG2's subtypes: 0 full 16550, 1 16450-compatible, 0x12 16550 with the
    // layout that the GAS gives; 3 PL011, 0xd SBSA 32-bit only, 0xe SBSA.
    match interface {
        0 | 1 | 0x12 => match gas.space {
            Gas::IO => Some(Port::Io16550 {
                base: gas.io_port()?,
                baud,
                irq,
            }),
            Gas::MEMORY => {
                // The stride is the access size where given, else the width.
                let stride = match gas.access {
                    1 => 1,
                    2 => 2,
                    3 => 4,
                    _ => match gas.bit_width {
                        16 => 2,
                        32 => 4,
                        _ => 1,
                    },
                };
                Some(Port::Mmio16550 {
                    base: PhysAddr(gas.address),
                    stride,
                    baud,
                    irq,
                })
            }
            _ => None,
        },
        3 | 0xd | 0xe if gas.space == Gas::MEMORY => Some(Port::Pl011 {
            base: PhysAddr(gas.address),
            irq,
        }),
        _ => None,
    }
}

/// What the FADT says about power, reset and the PM timer (ACPI 6.5, 5.2.9).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fadt {
    /// PM1a control register.
    pub pm1a_control: Option<Gas>,
    /// PM1b control register.
    pub pm1b_control: Option<Gas>,
    /// PM timer and whether it counts 32 bits (else 24).
    pub pm_timer: Option<(Gas, bool)>,
    /// Reset register and the value to write.
    pub reset: Option<(Gas, u8)>,
    /// Sleep control register of hardware-reduced machines.
    pub sleep_control: Option<Gas>,
    /// ACPI is reduced: none of the PM1 blocks exist.
    pub hardware_reduced: bool,
    /// Arm: PSCI is there.
    pub psci: bool,
    /// Arm: PSCI is called by HVC, else by SMC.
    pub psci_hvc: bool,
}

impl Fadt {
    /// Reads the table; what it is too short for is absent.
    pub fn parse(raw: &[u8]) -> Option<Fadt> {
        let t = table(raw, b"FACP")?;
        let flags = read_u32(t, 112).unwrap_or(0);
        let io = |at: usize, bit_width: u8| {
            let port = read_u32(t, at)?;
            (port != 0).then_some(Gas {
                space: Gas::IO,
                bit_width,
                access: 0,
                address: u64::from(port),
            })
        };
        // The extended blocks, where present, win over the 32-bit ports.
        let block = |extended: usize, port: usize, bits: u8| {
            Gas::read(t, extended).or_else(|| io(port, bits))
        };
        let arm = read_u16(t, 129).unwrap_or(0);
        let reset_supported = flags & (1 << 10) != 0;
        Some(Fadt {
            pm1a_control: block(172, 64, 16),
            pm1b_control: block(184, 68, 16),
            pm_timer: block(208, 76, 32).map(|g| (g, flags & (1 << 8) != 0)),
            reset: Gas::read(t, 116)
                .zip(read_u8(t, 128))
                .filter(|_| reset_supported),
            sleep_control: Gas::read(t, 244),
            hardware_reduced: flags & (1 << 20) != 0,
            psci: arm & 1 != 0,
            psci_hvc: arm & 2 != 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header(signature: &[u8; 4], len: usize) -> Vec<u8> {
        let mut t = vec![0; len];
        t[..4].copy_from_slice(signature);
        t[4..8].copy_from_slice(&(len as u32).to_le_bytes());
        t
    }

    fn gas(space: u8, width: u8, access: u8, address: u64) -> [u8; 12] {
        let mut g = [0; 12];
        g[0] = space;
        g[1] = width;
        g[3] = access;
        g[4..].copy_from_slice(&address.to_le_bytes());
        g
    }

    #[test]
    fn spcr_of_a_pc() {
        let mut t = header(b"SPCR", 80);
        t[36] = 0;
        t[40..52].copy_from_slice(&gas(1, 8, 1, 0x3f8));
        t[52] = 3;
        t[53] = 4;
        t[54] = 4;
        t[58] = 7;
        assert_eq!(
            spcr_port(&t),
            Some(Port::Io16550 {
                base: 0x3f8,
                baud: Some(115_200),
                irq: Some(4)
            })
        );
        for cut in 0..59 {
            assert_eq!(spcr_port(&t[..cut]), None, "cut at {cut}");
        }
    }

    #[test]
    fn spcr_of_an_arm_machine() {
        let mut t = header(b"SPCR", 80);
        t[36] = 3;
        t[40..52].copy_from_slice(&gas(0, 32, 3, 0x900_0000));
        t[52] = 8;
        t[54] = 33;
        assert_eq!(
            spcr_port(&t),
            Some(Port::Pl011 {
                base: PhysAddr(0x900_0000),
                irq: Some(33)
            })
        );
    }

    #[test]
    fn memory_16550_takes_its_stride_from_the_access_size() {
        let mut t = header(b"SPCR", 80);
        t[36] = 0x12;
        t[40..52].copy_from_slice(&gas(0, 32, 3, 0xfe00_0000));
        assert_eq!(
            spcr_port(&t),
            Some(Port::Mmio16550 {
                base: PhysAddr(0xfe00_0000),
                stride: 4,
                baud: None,
                irq: None
            })
        );
    }

    #[test]
    fn fadt_prefers_extended_blocks() {
        let mut t = header(b"FACP", 276);
        t[64..68].copy_from_slice(&0x604u32.to_le_bytes());
        t[76..80].copy_from_slice(&0x608u32.to_le_bytes());
        t[112..116].copy_from_slice(&((1u32 << 10) | (1 << 8)).to_le_bytes());
        t[116..128].copy_from_slice(&gas(1, 8, 0, 0xcf9));
        t[128] = 0xf;
        let f = Fadt::parse(&t).unwrap();
        assert_eq!(f.pm1a_control.unwrap().io_port(), Some(0x604));
        assert_eq!(f.pm1b_control, None);
        assert_eq!(f.reset.unwrap().0.io_port(), Some(0xcf9));
        assert_eq!(f.reset.unwrap().1, 0xf);
        assert!(f.pm_timer.unwrap().1);
        t[172..184].copy_from_slice(&gas(1, 16, 2, 0x1804));
        let f = Fadt::parse(&t).unwrap();
        assert_eq!(f.pm1a_control.unwrap().io_port(), Some(0x1804));
    }

    proptest! {
        #[test]
        fn no_bytes_make_a_reader_panic(mut t in proptest::collection::vec(any::<u8>(), 0..300), spcr: bool) {
            if t.len() >= 4 {
                t[..4].copy_from_slice(if spcr { b"SPCR" } else { b"FACP" });
            }
            let _ = spcr_port(&t);
            let _ = Fadt::parse(&t);
        }
    }
}
