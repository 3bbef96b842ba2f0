//! Turns the firmware's memory map into the protocol's.
//!
//! Regions are laid over one another in order of how much they forbid, so where
//! a careless firmware lets entries overlap, the stricter one wins. The result
//! is sorted, free of overlaps and page aligned, with neighbours of one kind
//! joined.
//!
//! Attributes do not count: the protocol calls all free memory usable, also where
//! it keeps its content without power or is for special purposes. The kernel, to
//! which the firmware's own map is handed on as well, knows what it may take.
//!
//! Specifications: UEFI 2.10 section 7.2.3; Limine boot protocol, "Memory Map
//! Feature".

use crate::{PAGE, page_down, page_up};

/// Kinds of region; the numbers are the protocol's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u64)]
pub enum Kind {
    /// RAM free for use.
    Usable = 0,
    /// Not to be touched.
    #[default]
    Reserved = 1,
    /// ACPI tables, free once they are no longer needed.
    AcpiReclaimable = 2,
    /// ACPI's own memory.
    AcpiNvs = 3,
    /// RAM with errors.
    Bad = 4,
    /// Used by the loader and the firmware's boot services until the kernel has
    /// read its answers and started its CPUs.
    Reclaimable = 5,
    /// The kernel image.
    Executable = 6,
    /// The screen's memory.
    Framebuffer = 7,
}

impl Kind {
    /// True when base revision `revision` has this kind in the direct map.
    pub fn in_direct_map(self, revision: u64) -> bool {
        match self {
            Self::Usable | Self::Reclaimable | Self::Executable | Self::Framebuffer => true,
            Self::AcpiReclaimable | Self::AcpiNvs => revision < 3,
            Self::Reserved | Self::Bad => false,
        }
    }
}

/// One region of physical memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Region {
    /// First address.
    pub base: u64,
    /// One past the last address.
    pub end: u64,
    /// What it is.
    pub kind: Kind,
}

/// One entry of the firmware's map, of those fields that count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// The EFI memory type.
    pub kind: u32,
    /// First address.
    pub base: u64,
    /// Number of 4 KiB pages.
    pub pages: u64,
    /// The EFI attributes.
    pub attributes: u64,
}

impl Descriptor {
    /// What the protocol calls this entry.
    pub fn limine_kind(&self) -> Kind {
        match self.kind {
            1..=4 => Kind::Reclaimable,
            7 => Kind::Usable,
            // The specification maps "anything else" to reserved; memory with
            // errors has a kind of its own, which is as unusable.
            8 => Kind::Bad,
            9 => Kind::AcpiReclaimable,
            10 => Kind::AcpiNvs,
            _ => Kind::Reserved,
        }
    }

    /// The entry as the firmware would have it in memory, in `stride` bytes; its
    /// virtual address is 0.
    pub fn write(&self, stride: &mut [u8]) {
        stride.fill(0);
        for (at, value) in [
            (0, u64::from(self.kind)),
            (8, self.base),
            (24, self.pages),
            (32, self.attributes),
        ] {
            if let Some(place) = stride.get_mut(at..).and_then(|rest| rest.first_chunk_mut()) {
                *place = value.to_le_bytes();
            }
        }
    }

    fn range(&self) -> (u64, u64) {
        let len = self.pages.saturating_mul(PAGE);
        (self.base, self.base.saturating_add(len))
    }
}

/// More regions than the map has room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// Room that a map of `descriptors` firmware entries needs.
pub const fn capacity(descriptors: usize) -> usize {
    // Each region laid over others splits at most one of them in two; eight
    // more for the kernel, the screen and the first page.
    descriptors.saturating_mul(2).saturating_add(8)
}

/// A map under construction, in memory that the caller provides.
#[derive(Debug)]
pub struct Map<'a> {
    regions: &'a mut [Region],
    len: usize,
}

impl<'a> Map<'a> {
    /// An empty map with room for `regions.len()` regions.
    pub fn new(regions: &'a mut [Region]) -> Self {
        Self { regions, len: 0 }
    }

    /// Fills the map from the firmware's entries; call [`Map::finish`] last.
    pub fn add_firmware<I>(&mut self, entries: I) -> Result<(), Full>
    where
        I: Iterator<Item = Descriptor> + Clone,
    {
        // From the most to the least permissive: later ones win.
        const ORDER: [Kind; 6] = [
            Kind::Usable,
            Kind::Reclaimable,
            Kind::AcpiReclaimable,
            Kind::AcpiNvs,
            Kind::Bad,
            Kind::Reserved,
        ];
        for kind in ORDER {
            for entry in entries.clone().filter(|entry| entry.limine_kind() == kind) {
                let (base, end) = entry.range();
                self.lay(base, end, kind)?;
            }
        }
        Ok(())
    }

    /// Lays a region over whatever the map has there.
    ///
    /// Memory that may be used shrinks to whole pages, everything else grows.
    pub fn lay(&mut self, base: u64, end: u64, kind: Kind) -> Result<(), Full> {
        let (base, end) = match kind {
            Kind::Usable | Kind::Reclaimable => (page_up(base), page_down(end)),
            _ => (page_down(base), page_up(end)),
        };
        if base >= end {
            return Ok(());
        }
        // The first region that ends behind the new one's start. Firmware lists
        // its entries in order, so mostly there is none and this is an append.
        let first = match self.regions().last() {
            Some(last) if last.end <= base => self.len,
            _ => self.regions().partition_point(|region| region.end <= base),
        };
        let after = self.regions().partition_point(|region| region.base < end);
        let left = self
            .regions()
            .get(first)
            .filter(|region| region.base < base)
            .map(|region| Region {
                end: base,
                ..*region
            });
        let right = after
            .checked_sub(1)
            .filter(|&last| last >= first)
            .and_then(|last| self.regions().get(last))
            .filter(|region| region.end > end)
            .map(|region| Region {
                base: end,
                ..*region
            });
        let new = [left, Some(Region { base, end, kind }), right];
        self.replace(first, after.max(first), new.into_iter().flatten())
    }

    /// Puts up to three regions in place of those from `first` to `after`.
    fn replace(
        &mut self,
        first: usize,
        after: usize,
        new: impl Iterator<Item = Region> + Clone,
    ) -> Result<(), Full> {
        let count = new.clone().count();
        let tail = self.len.checked_sub(after).ok_or(Full)?;
        let moved = first.checked_add(count).ok_or(Full)?;
        let len = moved.checked_add(tail).ok_or(Full)?;
        if len > self.regions.len() {
            return Err(Full);
        }
        self.regions.copy_within(after..self.len, moved);
        for (slot, region) in self.regions.iter_mut().skip(first).zip(new) {
            *slot = region;
        }
        self.len = len;
        Ok(())
    }

    /// Joins neighbours of one kind.
    pub fn finish(&mut self) {
        let mut kept = 0usize;
        for index in 0..self.len {
            let Some(region) = self.regions.get(index).copied() else {
                break;
            };
            let previous = kept
                .checked_sub(1)
                .and_then(|last| self.regions.get_mut(last));
            match previous {
                Some(last) if last.end == region.base && last.kind == region.kind => {
                    last.end = region.end;
                }
                _ => {
                    if let Some(slot) = self.regions.get_mut(kept) {
                        *slot = region;
                    }
                    kept = kept.saturating_add(1);
                }
            }
        }
        self.len = kept;
    }

    /// The regions, in order of address.
    pub fn regions(&self) -> &[Region] {
        self.regions.get(..self.len).unwrap_or(&[])
    }

    /// The ranges that the direct map covers, neighbours joined: start, end and
    /// whether it is the screen's memory, which has a caching mode of its own.
    ///
    /// Before base revision 3 the first 4 GiB are covered whatever they hold.
    pub fn direct_map(&self, revision: u64) -> impl Iterator<Item = (u64, u64, bool)> + '_ {
        let low = (revision < 3).then_some((0, LOW_END, false));
        let floor = if revision < 3 { LOW_END } else { 0 };
        let mut regions = self
            .regions()
            .iter()
            .filter(move |region| region.kind.in_direct_map(revision) && region.end > floor)
            .map(move |region| {
                let screen = region.kind == Kind::Framebuffer;
                (region.base.max(floor), region.end, screen)
            })
            .peekable();
        low.into_iter().chain(core::iter::from_fn(move || {
            let (base, mut end, screen) = regions.next()?;
            while let Some(next) = regions.next_if(|next| next.0 == end && next.2 == screen) {
                end = next.1;
            }
            Some((base, end, screen))
        }))
    }
}

/// End of what base revisions below 3 map unconditionally.
const LOW_END: u64 = 4 << 30;

#[cfg(test)]
#[path = "memmap_tests.rs"]
mod tests;
