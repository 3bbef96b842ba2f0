//! Checks a kernel's ELF64 file and says what to load where.
//!
//! Only what a higher-half kernel needs is accepted: a fixed-address executable
//! for the right CPU whose segments lie at or above [`KERNEL_MIN`] in order of
//! address, share no page and are never both writable and executable. Everything
//! else is refused with the field that is wrong, before a byte of it is used.
//!
//! Limine gives a segment's access to everything that its `p_align` rounds it
//! to (4 KiB pages or not). So a file whose rounded segments overlap with
//! different access is refused here too, although 4 KiB pages would keep them
//! apart: what this loader takes, Limine takes.
//!
//! Specification: System V ABI, chapters 4 and 5 (ELF64).

use core::fmt;

use crate::bytes::{byte, le16, le32, le64};
use crate::{KERNEL_MIN, PAGE, page_down, page_up};

/// CPUs a kernel can be built for, with their ELF `e_machine` values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Machine {
    /// `EM_X86_64`.
    X86_64 = 62,
    /// `EM_AARCH64`.
    Aarch64 = 183,
}

/// What may be done with a segment's pages, beyond reading them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// The pages may be written.
    pub write: bool,
    /// The pages may be executed.
    pub exec: bool,
}

/// One loadable segment; all fields have been checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// Virtual address of its first byte.
    pub virt: u64,
    /// Its size in memory; what the file does not hold is zero.
    pub mem_size: u64,
    /// Where its bytes start in the file.
    pub file_offset: usize,
    /// How many bytes the file holds.
    pub file_size: usize,
    /// How its pages are to be mapped.
    pub access: Access,
    /// The alignment that it asks for.
    pub align: u64,
}

impl Segment {
    /// The whole pages that the segment occupies: start and end.
    pub fn pages(&self) -> (u64, u64) {
        (
            page_down(self.virt),
            page_up(self.virt.saturating_add(self.mem_size)),
        )
    }

    /// What it occupies when it is rounded to its own alignment, a power of two:
    /// start and end.
    fn rounded(&self) -> (u64, u64) {
        let mask = self.align.saturating_sub(1);
        let end = self.virt.saturating_add(self.mem_size);
        (self.virt & !mask, end.saturating_add(mask) & !mask)
    }
}

/// More loadable segments than any sane linker script makes.
pub const MAX_SEGMENTS: usize = 16;

/// The largest image accepted, text to the end of bss.
pub const MAX_IMAGE: u64 = 512 << 20;

/// A checked kernel image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Image {
    segments: [Segment; MAX_SEGMENTS],
    count: usize,
    /// Lowest virtual address, on a page boundary.
    pub base: u64,
    /// One past the highest virtual address, on a page boundary.
    pub end: u64,
    /// Virtual address of the first instruction.
    pub entry: u64,
    /// Alignment that the image's physical place should have.
    pub align: u64,
}

impl Image {
    /// The loadable segments in order of address.
    pub fn segments(&self) -> &[Segment] {
        self.segments.get(..self.count).unwrap_or(&[])
    }

    /// Bytes of memory that the image occupies.
    pub fn size(&self) -> u64 {
        self.end.saturating_sub(self.base)
    }

    /// True when `virt` is an address that may be jumped to.
    pub fn is_executable(&self, virt: u64) -> bool {
        self.segments().iter().any(|segment| {
            segment.access.exec
                && virt >= segment.virt
                && virt.wrapping_sub(segment.virt) < segment.mem_size
        })
    }
}

/// Why a file is not a kernel that can be loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ElfError {
    /// The file ends inside a structure.
    Truncated {
        /// The structure that is cut off.
        what: &'static str,
    },
    /// The first four bytes are not an ELF file's.
    NotElf,
    /// Not a 64-bit, little-endian, version 1 file.
    NotElf64,
    /// Built for another CPU.
    WrongMachine {
        /// The `e_machine` found.
        found: u16,
        /// The `e_machine` of this machine.
        wanted: u16,
    },
    /// Not a fixed-address executable.
    NotExecutable {
        /// The `e_type` found.
        kind: u16,
    },
    /// The program header table's entries have an unknown size.
    HeaderSize {
        /// The `e_phentsize` found.
        size: u16,
    },
    /// No loadable segment, or more than [`MAX_SEGMENTS`].
    SegmentCount,
    /// A loadable segment is wrong.
    Segment {
        /// Its index in the program header table.
        index: u16,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Two loadable segments have a page in common.
    Overlap {
        /// The address of the common page.
        at: u64,
    },
    /// Two loadable segments with different access, each rounded to its own
    /// alignment, overlap.
    Rounded {
        /// Where the overlap begins.
        at: u64,
        /// The alignment of the upper one.
        align: u64,
    },
    /// The loadable segments are not in order of address.
    Order {
        /// The address of the one that comes too late.
        at: u64,
    },
    /// The image spans more than [`MAX_IMAGE`].
    TooLarge {
        /// Its size in bytes.
        size: u64,
    },
    /// The entry point is not inside an executable segment.
    BadEntry {
        /// The address found.
        entry: u64,
    },
}

impl fmt::Display for ElfError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Truncated { what } => write!(f, "truncated: the file ends inside its {what}"),
            Self::NotElf => write!(f, "not an ELF file"),
            Self::NotElf64 => write!(f, "not a 64-bit little-endian ELF file"),
            Self::WrongMachine { found, wanted } => write!(
                f,
                "built for another CPU: e_machine is {found}, this machine is {wanted}"
            ),
            Self::NotExecutable { kind } => write!(
                f,
                "not a fixed-address executable: e_type is {kind}, 2 is needed"
            ),
            Self::HeaderSize { size } => write!(f, "e_phentsize is {size}, 56 is needed"),
            Self::SegmentCount => {
                write!(f, "needs 1 to {MAX_SEGMENTS} loadable segments")
            }
            Self::Segment { index, why } => write!(f, "program header {index}: {why}"),
            Self::Overlap { at } => write!(f, "two loadable segments share the page at {at:#x}"),
            Self::Rounded { at, align } => write!(
                f,
                "segments of different access share {align:#x}-byte units at {at:#x}: link with -z max-page-size=4096"
            ),
            Self::Order { at } => {
                write!(f, "the segment at {at:#x} comes behind one above it")
            }
            Self::TooLarge { size } => {
                write!(f, "the image spans {size} bytes, {MAX_IMAGE} at most")
            }
            Self::BadEntry { entry } => write!(
                f,
                "the entry point {entry:#x} is not inside an executable segment"
            ),
        }
    }
}

const PT_LOAD: u32 = 1;
const PF_X: u32 = 1;
const PF_W: u32 = 2;
const PHENT: usize = 56;

/// Reads and checks the headers of `file`.
pub fn parse(file: &[u8], machine: Machine) -> Result<Image, ElfError> {
    let header = ElfError::Truncated { what: "header" };
    if file.get(..4).ok_or(header)? != b"\x7fELF" {
        return Err(ElfError::NotElf);
    }
    if file.get(4..7).ok_or(header)? != [2, 1, 1] {
        return Err(ElfError::NotElf64);
    }
    // The last field of the ELF header; what lies before it is there as well.
    byte(file, 63).ok_or(header)?;
    let kind = le16(file, 16).ok_or(header)?;
    let found = le16(file, 18).ok_or(header)?;
    if found != machine as u16 {
        return Err(ElfError::WrongMachine {
            found,
            wanted: machine as u16,
        });
    }
    if kind != 2 {
        return Err(ElfError::NotExecutable { kind });
    }
    let entry = le64(file, 24).ok_or(header)?;
    let phoff = le64(file, 32).ok_or(header)?;
    let phentsize = le16(file, 54).ok_or(header)?;
    let phnum = le16(file, 56).ok_or(header)?;
    if usize::from(phentsize) != PHENT {
        return Err(ElfError::HeaderSize { size: phentsize });
    }

    let mut image = Image {
        segments: [Segment::default(); MAX_SEGMENTS],
        count: 0,
        base: 0,
        end: 0,
        entry,
        align: PAGE,
    };
    let table = ElfError::Truncated {
        what: "program headers",
    };
    let phoff = usize::try_from(phoff).map_err(|_| table)?;
    for index in 0..phnum {
        let start = usize::from(index)
            .checked_mul(PHENT)
            .and_then(|offset| offset.checked_add(phoff))
            .ok_or(table)?;
        let end = start.checked_add(PHENT).ok_or(table)?;
        let record = file.get(start..end).ok_or(table)?;
        let Some(segment) = load_segment(record, index, file.len())? else {
            continue;
        };
        let slot = image
            .segments
            .get_mut(image.count)
            .ok_or(ElfError::SegmentCount)?;
        *slot = segment;
        image.count = image.count.saturating_add(1);
        image.align = image.align.max(segment.align);
    }
    place(&mut image)?;
    Ok(image)
}

/// Checks one program header; nothing for those that load nothing.
fn load_segment(record: &[u8], index: u16, file_len: usize) -> Result<Option<Segment>, ElfError> {
    let bad = |why| ElfError::Segment { index, why };
    let cut = bad("cut off");
    if le32(record, 0).ok_or(cut)? != PT_LOAD {
        return Ok(None);
    }
    let flags = le32(record, 4).ok_or(cut)?;
    let offset = le64(record, 8).ok_or(cut)?;
    let virt = le64(record, 16).ok_or(cut)?;
    let file_size = le64(record, 32).ok_or(cut)?;
    let mem_size = le64(record, 40).ok_or(cut)?;
    let align = le64(record, 48).ok_or(cut)?;
    if mem_size == 0 {
        return Ok(None);
    }
    if file_size > mem_size {
        return Err(bad("more bytes in the file than in memory"));
    }
    let (Ok(file_offset), Ok(in_file)) = (usize::try_from(offset), usize::try_from(file_size))
    else {
        return Err(bad("lies beyond the end of the file"));
    };
    if in_file != 0
        && file_offset
            .checked_add(in_file)
            .is_none_or(|end| end > file_len)
    {
        return Err(bad("lies beyond the end of the file"));
    }
    if virt < KERNEL_MIN {
        return Err(bad("is linked below 0xffffffff80000000"));
    }
    // The last page of the address space stays free, so ends never wrap.
    if virt
        .checked_add(mem_size)
        .is_none_or(|end| end > page_down(u64::MAX))
    {
        return Err(bad("runs past the end of the address space"));
    }
    let align = align.max(1);
    if !align.is_power_of_two() || align > 1 << 30 {
        return Err(bad("has an alignment that is no power of two up to 1 GiB"));
    }
    if in_file != 0 && (virt ^ offset) & (align - 1) != 0 {
        return Err(bad("is not aligned as its file offset is"));
    }
    let access = Access {
        write: flags & PF_W != 0,
        exec: flags & PF_X != 0,
    };
    if access.write && access.exec {
        return Err(bad("is both writable and executable"));
    }
    Ok(Some(Segment {
        virt,
        mem_size,
        file_offset,
        file_size: in_file,
        access,
        align,
    }))
}

/// Checks the segments against one another.
fn place(image: &mut Image) -> Result<(), ElfError> {
    let segments = image
        .segments
        .get(..image.count)
        .ok_or(ElfError::SegmentCount)?;
    let (Some(first), Some(last)) = (segments.first(), segments.last()) else {
        return Err(ElfError::SegmentCount);
    };
    let (base, end) = (first.pages().0, last.pages().1);
    for pair in segments.windows(2) {
        let [low, high] = pair else { continue };
        if high.virt < low.virt {
            return Err(ElfError::Order { at: high.virt });
        }
        if high.pages().0 < low.pages().1 {
            return Err(ElfError::Overlap { at: high.pages().0 });
        }
    }
    // A coarsely aligned one may reach beyond its next neighbour.
    let mut reached = (0, Access::default());
    for segment in segments {
        let (start, end) = segment.rounded();
        if start < reached.0 && segment.access != reached.1 {
            let align = segment.align;
            return Err(ElfError::Rounded { at: start, align });
        }
        if end > reached.0 {
            reached = (end, segment.access);
        }
    }
    image.base = base;
    image.end = end;
    if image.size() > MAX_IMAGE {
        return Err(ElfError::TooLarge { size: image.size() });
    }
    // An image whose lowest address is less aligned than its segments gains
    // nothing from a more aligned physical place.
    let natural = 1 << base.trailing_zeros().min(30);
    image.align = image.align.min(natural).clamp(PAGE, 2 << 20);
    if !image.is_executable(image.entry) {
        return Err(ElfError::BadEntry { entry: image.entry });
    }
    Ok(())
}

#[cfg(test)]
#[path = "elf_tests.rs"]
mod tests;
