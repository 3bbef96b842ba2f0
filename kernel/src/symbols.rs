//! Symbol names for addresses, from the kernel's own ELF file.
//!
//! The loader leaves the file in memory; its symbol table is searched where it
//! lies, without allocation, because the panic handler does it. The file is
//! ours, but it came from a disk: every offset is checked.
//!
//! ELF-64 object file format, version 1.2 (little endian).

use crate::sync::Once;
use alloc::format;
use alloc::string::String;
use core::fmt;
use core::ops::Range;

static KERNEL: Once<Symbols<'static>> = Once::new();

/// Remembers the kernel's own file. The first call counts. Returns the
/// addresses of the part that must be kept from then on.
pub fn set_kernel(elf: &'static [u8]) -> Range<usize> {
    match Symbols::parse(elf) {
        Some(symbols) => {
            KERNEL.call_once(|| symbols);
            let (table, names) = (symbols.table.as_ptr_range(), symbols.names.as_ptr_range());
            let start = table.start.min(names.start).addr();
            start..table.end.max(names.end).addr()
        }
        None => 0..0,
    }
}

/// The kernel's function (or variable) that holds `addr`.
pub fn find(addr: u64) -> Option<Symbol<'static>> {
    KERNEL.get()?.find(addr)
}

/// A symbol and how far into it an address lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Symbol<'a> {
    /// The name as the linker has it.
    pub name: &'a str,
    /// Bytes from its start.
    pub offset: u64,
}

impl Symbol<'_> {
    /// The function's name as its source has it.
    pub fn function(&self) -> String {
        // The alternate form leaves the hash away.
        format!("{:#}", rustc_demangle::demangle(self.name))
    }
}

impl fmt::Display for Symbol<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The alternate form leaves the hash away.
        write!(
            f,
            "{:#}+{:#x}",
            rustc_demangle::demangle(self.name),
            self.offset
        )
    }
}

/// The symbol table of an ELF file.
#[derive(Clone, Copy)]
pub struct Symbols<'a> {
    table: &'a [u8],
    names: &'a [u8],
}

const SHT_SYMTAB: u32 = 2;
const SYM_BYTES: usize = 24;

fn u16_at(b: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(
        b.get(at..at.checked_add(2)?)?.try_into().ok()?,
    ))
}

fn u32_at(b: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(
        b.get(at..at.checked_add(4)?)?.try_into().ok()?,
    ))
}

fn u64_at(b: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(
        b.get(at..at.checked_add(8)?)?.try_into().ok()?,
    ))
}

/// The content of a section, and the number in `sh_link`.
fn section(elf: &[u8], header: usize) -> Option<(&[u8], u32)> {
    let offset = usize::try_from(u64_at(elf, header.checked_add(24)?)?).ok()?;
    let size = usize::try_from(u64_at(elf, header.checked_add(32)?)?).ok()?;
    let link = u32_at(elf, header.checked_add(40)?)?;
    Some((elf.get(offset..offset.checked_add(size)?)?, link))
}

impl<'a> Symbols<'a> {
    /// Finds the symbol table; none when the file has none or is damaged.
    pub fn parse(elf: &'a [u8]) -> Option<Self> {
        if elf.get(..6)? != b"\x7fELF\x02\x01" {
            return None;
        }
        let headers = usize::try_from(u64_at(elf, 40)?).ok()?;
        let entry = usize::from(u16_at(elf, 58)?);
        let count = usize::from(u16_at(elf, 60)?);
        let header = |i: usize| headers.checked_add(i.checked_mul(entry)?);
        for i in 0..count {
            let at = header(i)?;
            if u32_at(elf, at.checked_add(4)?)? == SHT_SYMTAB {
                let (table, link) = section(elf, at)?;
                let link = usize::try_from(link).ok()?;
                if link >= count {
                    return None;
                }
                let (names, _) = section(elf, header(link)?)?;
                return Some(Self { table, names });
            }
        }
        None
    }

    /// The function or variable that holds `addr`.
    pub fn find(&self, addr: u64) -> Option<Symbol<'a>> {
        let mut best: Option<(u64, u64, u32)> = None;
        for sym in self.table.chunks_exact(SYM_BYTES) {
            let name = u32_at(sym, 0)?;
            let kind = sym.get(4)? & 0xf;
            let value = u64_at(sym, 8)?;
            let size = u64_at(sym, 16)?;
            // Functions and objects; labels of assembly have no type or size,
            // and serve where nothing better holds the address.
            let holds = match kind {
                1 | 2 => value <= addr && (addr - value < size || size == 0),
                0 => value <= addr && size == 0 && value != 0,
                _ => false,
            };
            if !holds {
                continue;
            }
            let better = match best {
                None => true,
                Some((start, len, _)) => (size > 0, value) > (len > 0, start),
            };
            if better {
                best = Some((value, size, name));
            }
        }
        let (start, _, name) = best?;
        let name = self.names.get(usize::try_from(name).ok()?..)?;
        let end = name.iter().position(|b| *b == 0)?;
        let name = core::str::from_utf8(name.get(..end)?).ok()?;
        (!name.is_empty()).then_some(Symbol {
            name,
            offset: addr - start,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    /// An ELF file with the given symbols (name, start, size, kind).
    fn elf(symbols: &[(&str, u64, u64, u8)]) -> Vec<u8> {
        let mut names = vec![0u8];
        let mut table = vec![0u8; SYM_BYTES];
        for (name, start, size, kind) in symbols {
            table.extend((names.len() as u32).to_le_bytes());
            table.extend([*kind, 0, 0, 0]);
            table.extend(start.to_le_bytes());
            table.extend(size.to_le_bytes());
            names.extend(name.as_bytes());
            names.push(0);
        }
        let mut f = b"\x7fELF\x02\x01".to_vec();
        f.resize(64, 0);
        let table_at = f.len() as u64;
        f.extend(&table);
        let names_at = f.len() as u64;
        f.extend(&names);
        let headers = f.len() as u64;
        for (kind, at, len, link) in [
            (0u32, 0u64, 0usize, 0u32),
            (SHT_SYMTAB, table_at, table.len(), 2),
            (3, names_at, names.len(), 0),
        ] {
            let mut h = vec![0u8; 64];
            h[4..8].copy_from_slice(&kind.to_le_bytes());
            h[24..32].copy_from_slice(&at.to_le_bytes());
            h[32..40].copy_from_slice(&(len as u64).to_le_bytes());
            h[40..44].copy_from_slice(&link.to_le_bytes());
            f.extend(h);
        }
        f[40..48].copy_from_slice(&headers.to_le_bytes());
        f[58..60].copy_from_slice(&64u16.to_le_bytes());
        f[60..62].copy_from_slice(&3u16.to_le_bytes());
        f
    }
    use std::vec;

    #[test]
    fn the_symbol_that_holds_the_address() {
        let f = elf(&[
            ("_ZN5quire4boot5start17h0123456789abcdefE", 0x1000, 0x100, 2),
            ("label", 0x1800, 0, 0),
            ("second", 0x2000, 0x10, 2),
        ]);
        let s = Symbols::parse(&f).unwrap();
        let found = s.find(0x1042).unwrap();
        assert_eq!(std::format!("{found}"), "quire::boot::start+0x42");
        assert_eq!(s.find(0x2008).unwrap().name, "second");
        assert_eq!(s.find(0x1900).unwrap().name, "label");
        assert!(s.find(0xfff).is_none());
    }

    #[test]
    fn this_very_program_has_symbols() {
        let file = std::fs::read("/proc/self/exe").unwrap();
        let s = Symbols::parse(&file).unwrap();
        assert!(s.table.len() > 100 * SYM_BYTES);
    }

    proptest! {
        #[test]
        fn damage_is_not_followed(at in 0usize..400, byte: u8, cut in 0usize..500, addr: u64) {
            let mut f = elf(&[("one", 0x1000, 0x100, 2), ("two", 0x3000, 0, 0)]);
            if let Some(b) = f.get_mut(at) {
                *b = byte;
            }
            f.truncate(cut);
            if let Some(s) = Symbols::parse(&f) {
                let _ = s.find(addr);
                let _ = s.find(0x1010);
            }
        }
    }
}
