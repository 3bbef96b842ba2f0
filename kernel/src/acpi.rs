//! ACPI tables, by signature, as byte slices.
//!
//! The layouts of the RSDP and of a table's header are the `acpi` crate's.
//! The walk over the tables is ours, because firmware is not believed here: a
//! length that is too small or absurd, an address outside memory, a wrong
//! checksum leave that one table out, with the reason in the log, and nothing
//! else. (The crate's own walk trusts each length, and reads the XSDT's
//! entries, which are only 4-aligned, as if they were 8-aligned.)
//!
//! The firmware's methods ([`evaluate`]) are made ready when somebody asks
//! first, which is no earlier than the devices that need them. What power-off
//! needs, the sleep type of `\_S5`, is found by its bytes.
//!
//! ACPI 6.5: 5.2.5 (RSDP), 5.2.6 (header), 5.2.7 and 5.2.8 (RSDT, XSDT).

pub mod aml;
pub mod events;
mod machine;
pub mod numa;
pub mod subtable;

pub use machine::{below, devices, evaluate, take_notifications};

use crate::error::{Error, Result};
use crate::mm;
use crate::sync::Once;
use ::acpi::rsdp::Rsdp;
use ::acpi::sdt::SdtHeader;
use alloc::vec::Vec;
use arch::PhysAddr;
use core::mem::size_of;
use quire_arch as arch;

/// A longer table is not believed.
const MAX_TABLE: u64 = 16 << 20;
/// So many tables are looked at.
const MAX_TABLES: usize = 256;
const HEADER: usize = size_of::<SdtHeader>();

/// A table that holds together: its length is in bounds and its bytes sum up
/// to 0.
#[derive(Debug, Clone, Copy)]
pub struct Table {
    /// Where it lies.
    pub phys: PhysAddr,
    /// All of it, header included.
    pub bytes: &'static [u8],
}

impl Table {
    /// The four letters.
    pub fn signature(&self) -> [u8; 4] {
        field(self.bytes, 0)
    }

    /// The revision.
    pub fn revision(&self) -> u8 {
        field::<1>(self.bytes, 8)[0]
    }

    /// Who made the firmware, six letters.
    pub fn oem_id(&self) -> [u8; 6] {
        field(self.bytes, 10)
    }

    /// Which machine, eight letters.
    pub fn oem_table_id(&self) -> [u8; 8] {
        field(self.bytes, 16)
    }
}

/// Bytes of a table; zeros beyond its end.
fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    for (i, b) in out.iter_mut().enumerate() {
        *b = bytes.get(at.saturating_add(i)).copied().unwrap_or(0);
    }
    out
}

static TABLES: Once<Vec<Table>> = Once::new();

/// How physical memory is read: some bytes at an address, if there is memory.
type Read<'a> = &'a dyn Fn(PhysAddr, u64) -> Result<&'static [u8]>;

/// Finds the tables. Once; what is found is in the log.
pub fn init(rsdp: PhysAddr) -> Result<()> {
    let tables = walk(rsdp, &|pa, len| {
        let va = mm::map_firmware(pa, len)?;
        // SAFETY: the bytes are mapped for good; firmware tables don't change
        // while the kernel runs.
        Ok(unsafe { core::slice::from_raw_parts(va.as_ptr(), len as usize) })
    })?;
    TABLES.call_once(|| tables);
    Ok(())
}

/// All tables, in the firmware's order (the DSDT follows the FADT).
pub fn tables() -> &'static [Table] {
    TABLES.get().map_or(&[], Vec::as_slice)
}

/// The `n`th table (from 0) with that signature, header included.
pub fn table(signature: &[u8; 4], n: usize) -> Option<&'static [u8]> {
    tables()
        .iter()
        .filter(|t| t.signature() == *signature)
        .nth(n)
        .map(|t| t.bytes)
}

fn bad(table: &str, offset: u64, reason: &'static str) -> Error {
    Error::Firmware {
        table: alloc::string::String::from(table).into(),
        offset,
        reason: reason.into(),
    }
}

fn sums_up(bytes: &[u8]) -> bool {
    bytes.iter().fold(0u8, |sum, b| sum.wrapping_add(*b)) == 0
}

/// Reads one table whole.
fn load(pa: PhysAddr, name: &str, read: Read<'_>) -> Result<Table> {
    let header = read(pa, HEADER as u64)?;
    let len = u64::from(u32::from_le_bytes(field(header, 4)));
    if len < HEADER as u64 {
        return Err(bad(name, 4, "length is less than a header's"));
    }
    if len > MAX_TABLE {
        return Err(bad(name, 4, "length is absurd"));
    }
    let bytes = read(pa, len)?;
    if !sums_up(bytes) {
        return Err(bad(name, 9, "checksum is wrong"));
    }
    Ok(Table { phys: pa, bytes })
}

fn walk(rsdp: PhysAddr, read: Read<'_>) -> Result<Vec<Table>> {
    let bytes = read(rsdp, size_of::<Rsdp>() as u64)?;
    if bytes.get(..8) != Some(b"RSD PTR ") {
        return Err(bad("RSDP", 0, "signature is wrong"));
    }
    if !sums_up(bytes.get(..20).unwrap_or(&[1])) {
        return Err(bad("RSDP", 8, "checksum is wrong"));
    }
    let revision = field::<1>(bytes, 15)[0];
    let xsdt = u64::from_le_bytes(field(bytes, 24));
    let (root, name, width) = if revision >= 2 && xsdt != 0 {
        if !sums_up(bytes) {
            return Err(bad("RSDP", 32, "extended checksum is wrong"));
        }
        (xsdt, "XSDT", 8)
    } else {
        (u64::from(u32::from_le_bytes(field(bytes, 16))), "RSDT", 4)
    };
    let root = load(PhysAddr(root), name, read)?;
    if root.signature() != *name.as_bytes() {
        return Err(bad(name, 0, "signature is wrong"));
    }

    let mut tables = Vec::new();
    let entries = root.bytes.get(HEADER..).unwrap_or(&[]);
    for entry in entries.chunks_exact(width).take(MAX_TABLES) {
        let pa = PhysAddr(u64::from_le_bytes(field(entry, 0)));
        add(&mut tables, pa, read);
        // The FADT alone names the DSDT: by 64 bits, else by 32.
        if let Some(fadt) = tables
            .last()
            .filter(|t| t.signature() == *b"FACP" && t.phys == pa)
        {
            let wide = u64::from_le_bytes(field(fadt.bytes, 140));
            let narrow = u64::from(u32::from_le_bytes(field(fadt.bytes, 40)));
            let dsdt = if wide != 0 { wide } else { narrow };
            if dsdt != 0 {
                add(&mut tables, PhysAddr(dsdt), read);
            }
        }
    }
    Ok(tables)
}

/// Adds a table, or logs why not.
fn add(tables: &mut Vec<Table>, pa: PhysAddr, read: Read<'_>) {
    let name = match read(pa, 4) {
        Ok(s) => field::<4>(s, 0).escape_ascii().to_string(),
        Err(e) => {
            log::warn!("acpi: table at={pa} left out: {e}");
            return;
        }
    };
    match load(pa, &name, read) {
        Ok(table) => tables.push(table),
        Err(e) => log::warn!("acpi: table={name} at={pa} left out: {e}"),
    }
}

use alloc::string::ToString;

/// The sleep types of `\_S5` for the two power-management blocks.
pub fn s5() -> Option<(u8, u8)> {
    tables()
        .iter()
        .filter(|t| matches!(&t.signature(), b"DSDT" | b"SSDT"))
        .find_map(|t| find_s5(t.bytes.get(HEADER..)?))
}

/// Looks for `Name (_S5_, Package () { a, b, … })` in AML (ACPI 6.5, 20.2):
/// the name, PackageOp, PkgLength, NumElements, then integers.
fn find_s5(aml: &[u8]) -> Option<(u8, u8)> {
    let mut from = 0usize;
    while let Some(at) = aml
        .get(from..)?
        .windows(4)
        .position(|w| w == b"_S5_")
        .and_then(|i| i.checked_add(from))
    {
        from = at.checked_add(4)?;
        if let Some(found) = s5_package(aml.get(from..)?) {
            return Some(found);
        }
    }
    None
}

fn s5_package(aml: &[u8]) -> Option<(u8, u8)> {
    let rest = aml.strip_prefix(&[0x12])?;
    // PkgLength: the top two bits of the first byte say how many follow.
    let more = usize::from(rest.first()? >> 6);
    let rest = rest.get(more.checked_add(1)?..)?;
    let count = *rest.first()?;
    let (a, rest) = integer(rest.get(1..)?)?;
    let b = if count > 1 { integer(rest)?.0 } else { a };
    (a < 8 && b < 8).then_some((a, b))
}

/// A small integer object: Zero, One, or a byte, word or double word.
fn integer(aml: &[u8]) -> Option<(u8, &[u8])> {
    let (value, len) = match aml.first()? {
        0x00 => (0, 1),
        0x01 => (1, 1),
        0x0a => (u32::from(*aml.get(1)?), 2),
        0x0b => (u32::from(u16::from_le_bytes(field(aml, 1))), 3),
        0x0c => (u32::from_le_bytes(field(aml, 1)), 5),
        _ => return None,
    };
    Some((u8::try_from(value).ok()?, aml.get(len..)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;
    use std::vec;

    /// Physical memory of a test: pieces at addresses, leaked.
    #[derive(Clone, Default)]
    struct Memory(BTreeMap<u64, &'static [u8]>);

    impl Memory {
        fn put(&mut self, pa: u64, bytes: Vec<u8>) {
            self.0.insert(pa, bytes.leak());
        }

        fn read(&self, pa: PhysAddr, len: u64) -> Result<&'static [u8]> {
            let e = Error::BadAddress { addr: pa.0 };
            let (start, piece) = self.0.range(..=pa.0).next_back().ok_or(e.clone())?;
            let at = (pa.0 - start) as usize;
            piece.get(at..at + len as usize).ok_or(e)
        }
    }

    fn fix(t: &mut [u8], at: usize, range: core::ops::Range<usize>) {
        t[at] = 0;
        t[at] = 0u8.wrapping_sub(t[range].iter().fold(0, |s, b| s.wrapping_add(*b)));
    }

    fn make(signature: &[u8; 4], body: &[u8]) -> Vec<u8> {
        let mut t = vec![0; HEADER];
        t[..4].copy_from_slice(signature);
        t.extend(body);
        let len = t.len();
        t[4..8].copy_from_slice(&(len as u32).to_le_bytes());
        fix(&mut t, 9, 0..len);
        t
    }

    fn rsdp(xsdt: u64) -> Vec<u8> {
        let mut r = vec![0; 36];
        r[..8].copy_from_slice(b"RSD PTR ");
        r[15] = 2;
        r[20] = 36;
        r[24..32].copy_from_slice(&xsdt.to_le_bytes());
        fix(&mut r, 8, 0..20);
        fix(&mut r, 32, 0..36);
        r
    }

    fn machine() -> Memory {
        let mut m = Memory::default();
        m.put(0x1000, rsdp(0x2000));
        let mut fadt = vec![0; 240];
        fadt[140 - HEADER..148 - HEADER].copy_from_slice(&0x5000u64.to_le_bytes());
        let mut entries = Vec::new();
        for pa in [0x3000u64, 0x4000, 0x9_0000, 0x6000] {
            entries.extend(pa.to_le_bytes());
        }
        m.put(0x2000, make(b"XSDT", &entries));
        m.put(0x3000, make(b"FACP", &fadt));
        m.put(0x4000, make(b"NFIT", &[1, 2, 3, 4]));
        let aml = b"\x08_S4_\x0a\x01\x08_S5_\x12\x06\x04\x0a\x05\x0a\x03\x00\x00";
        m.put(0x5000, make(b"DSDT", aml));
        let mut wrong = make(b"SPCR", &[0; 44]);
        wrong[50] ^= 1;
        m.put(0x6000, wrong);
        m
    }

    #[test]
    fn tables_are_found_and_bad_ones_left_out() {
        let m = machine();
        let t = walk(PhysAddr(0x1000), &|pa, len| m.read(pa, len)).unwrap();
        let names: Vec<_> = t.iter().map(Table::signature).collect();
        assert_eq!(names, [*b"FACP", *b"DSDT", *b"NFIT"]);
        assert_eq!(t[2].bytes[HEADER..], [1, 2, 3, 4]);
    }

    #[test]
    fn s5_is_found_by_its_bytes() {
        let m = machine();
        let t = walk(PhysAddr(0x1000), &|pa, len| m.read(pa, len)).unwrap();
        assert_eq!(find_s5(&t[1].bytes[HEADER..]), Some((5, 3)));
        assert_eq!(find_s5(b"_S5_"), None);
        assert_eq!(find_s5(b"_S5_\x12\x06\x04\xff"), None);
    }

    #[test]
    fn an_absurd_length_is_an_error() {
        let mut m = machine();
        let mut x = make(b"XSDT", &[]);
        x[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        m.put(0x2000, x);
        let e = walk(PhysAddr(0x1000), &|pa, len| m.read(pa, len)).unwrap_err();
        assert!(matches!(e, Error::Firmware { offset: 4, .. }), "{e}");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(which in 0usize..6, at in 0usize..280, byte: u8, cut in 0usize..300) {
            let mut m = machine();
            let pa = *m.0.keys().nth(which).unwrap();
            let mut bytes = m.0[&pa].to_vec();
            if let Some(b) = bytes.get_mut(at) {
                *b = byte;
            }
            bytes.truncate(cut);
            m.put(pa, bytes);
            if let Ok(t) = walk(PhysAddr(0x1000), &|pa, len| m.read(pa, len)) {
                prop_assert!(t.len() <= 4);
                for t in t {
                    let _ = find_s5(t.bytes);
                }
            }
        }

        #[test]
        fn any_aml_is_scanned(aml in proptest::collection::vec(prop_oneof![Just(b'_'), Just(b'S'), Just(b'5'), Just(0x12u8), any::<u8>()], 0..200)) {
            let _ = find_s5(&aml);
        }
    }
}
