//! Regions and DIMMs: what a source of persistent memory has found, checked.
//!
//! A [`Source`] (the NFIT, CXL, the firmware's maps) names ranges and devices. [`Found`] holds
//! what may be used: each range page-aligned, inside the physical address
//! space, apart from RAM and from every other range; what isn't so is left out
//! with an error that says where, and nothing of it is ever touched.
//!
//! Names are given by address and by handle, so that the same machine has the
//! same names at every start.

use super::badblocks::ClearPoison;
use super::label::format::TYPE_PERSISTENT;
use super::nfit::{Guid, PlatformCapabilities, StateFlags};
use crate::error::Error;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::{Deref, Range};

/// Where persistent memory can be learned from: the NFIT, the firmware's
/// memory map, CXL, and so on.
pub trait Source {
    /// Name in messages.
    fn name(&self) -> &'static str;

    /// Adds what it knows to `found`.
    fn discover(&self, found: &mut Found);
}

/// What the machine's memory looks like, for the checks.
pub trait Machine {
    /// Whether the bytes overlap RAM.
    fn is_ram(&self, range: Range<u64>) -> bool;

    /// First physical address beyond what can be mapped.
    fn limit(&self) -> u64;

    /// The proximity domain of a range, if the machine tells.
    fn domain(&self, range: &Range<u64>) -> Option<u32> {
        let _ = range;
        None
    }
}

/// How far the platform itself flushes on power loss.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PersistenceDomain {
    /// CPU caches included: stores are durable when they are visible.
    CpuCache,
    /// The memory controller's queues: caches must be written back.
    MemoryController,
    /// Not said: caches must be written back.
    #[default]
    Unknown,
}

impl PersistenceDomain {
    /// The name that `ndctl` uses.
    pub fn name(self) -> &'static str {
        match self {
            Self::CpuCache => "cpu_cache",
            Self::MemoryController => "memory_controller",
            Self::Unknown => "unknown",
        }
    }

    pub(super) fn of(capabilities: PlatformCapabilities) -> Self {
        if capabilities.cpu_cache_flush() {
            Self::CpuCache
        } else if capabilities.memory_controller_flush() {
            Self::MemoryController
        } else {
            Self::Unknown
        }
    }
}

/// A device that makes durable, when asked, what has been stored in its
/// memory.
pub trait Flush: Send + Sync {
    /// Makes everything durable that was stored, and written back by the CPU,
    /// before the call. May be called where blocking isn't possible: it waits
    /// without giving up the CPU then.
    fn flush(&self) -> crate::error::Result<()>;

    /// What a flush has failed with before: stores that cannot be named are
    /// lost since, so nothing more should be trusted to it.
    fn fault(&self) -> Option<String> {
        None
    }

    /// How the device is asked, for those who want evidence.
    fn describe(&self) -> String;
}

/// A shared device or service in a description; two are equal when they are
/// the same one.
pub struct Handle<T: ?Sized>(pub Arc<T>);

impl<T: ?Sized> Clone for Handle<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T: ?Sized> Deref for Handle<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: ?Sized> core::fmt::Debug for Handle<T> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Handle")
    }
}

impl<T: ?Sized> PartialEq for Handle<T> {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl<T: ?Sized> Eq for Handle<T> {}

/// A region's [`Flush`].
pub type Flusher = Handle<dyn Flush>;
/// A region's [`ClearPoison`].
pub type Media = Handle<dyn ClearPoison>;

/// An NVDIMM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dimm {
    /// `nmem0`, by handle.
    pub dev: String,
    /// Vendor, place and date where given, serial number.
    pub id: Option<String>,
    /// The firmware's handle.
    pub handle: u32,
    /// SMBIOS handle.
    pub phys_id: u16,
    /// State flags of all its regions together.
    pub flags: StateFlags,
    /// Addresses that flush its write queue.
    pub flush_hints: Vec<u64>,
    /// Where its labels are kept, if it has a place for them.
    pub labels: Option<super::LabelStore>,
}

impl Dimm {
    /// Why stores to it must not be made.
    pub fn read_only_reason(&self) -> Option<String> {
        if self.flags.not_armed() {
            Some(format!(
                "{} is not armed: stores would not survive a power loss",
                self.dev
            ))
        } else if self.flags.map_failed() {
            Some(format!("{}: firmware failed to map it", self.dev))
        } else {
            None
        }
    }

    /// The state flags that are set, by `ndctl`'s keys.
    pub fn flag_names(&self) -> Vec<&'static str> {
        let all = [
            (self.flags.save_failed(), "flag_failed_save"),
            (self.flags.not_armed(), "flag_failed_arm"),
            (self.flags.restore_failed(), "flag_failed_restore"),
            (self.flags.flush_failed(), "flag_failed_flush"),
            (self.flags.health_observed(), "flag_smart_event"),
            (self.flags.map_failed(), "flag_failed_map"),
        ];
        all.into_iter()
            .filter_map(|(set, name)| set.then_some(name))
            .collect()
    }
}

/// The part of a DIMM that backs a region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// The DIMM.
    pub dimm: String,
    /// First byte in the DIMM.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// Place in the interleave set.
    pub position: usize,
}

/// A persistent range of physical addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Region {
    /// `region0`, by address.
    pub dev: String,
    /// Usable bytes: whole pages.
    pub range: Range<u64>,
    /// NUMA proximity domain.
    pub numa_node: Option<u32>,
    /// Identifies the interleave set; `None` without DIMMs.
    pub iset_id: Option<u64>,
    /// The same, as labels of version 1.1 have it.
    pub compat_iset_id: Option<u64>,
    /// What labels of version 1.2 call its memory. Linux takes no other, and has
    /// nil for CXL.
    pub type_guid: Guid,
    /// What backs it, in order.
    pub mappings: Vec<Mapping>,
    /// What a power loss spares.
    pub persistence_domain: PersistenceDomain,
    /// Why it must not be written.
    pub read_only: Option<String>,
    /// Addresses to write after a fence, so that what the DIMMs hold is
    /// flushed.
    pub flush_hints: Vec<u64>,
    /// The device that must be asked to make stores durable, where the CPU's
    /// write-back alone doesn't.
    pub flusher: Option<Flusher>,
    /// What must be told when bytes that were lost are written anew.
    pub media: Option<Media>,
    /// Where it was learned from.
    pub source: &'static str,
    /// Who else tells of it.
    pub also: Vec<&'static str>,
}

impl Region {
    /// One of which nothing is known but where it is.
    pub fn plain(range: Range<u64>, source: &'static str) -> Self {
        Self {
            dev: String::new(),
            range,
            numa_node: None,
            iset_id: None,
            compat_iset_id: None,
            type_guid: TYPE_PERSISTENT,
            mappings: Vec::new(),
            persistence_domain: PersistenceDomain::Unknown,
            read_only: None,
            flush_hints: Vec::new(),
            flusher: None,
            media: None,
            source,
            also: Vec::new(),
        }
    }

    /// Another source tells of the same range: what is not known yet is taken
    /// from it.
    fn confirm(&mut self, other: Region) {
        if other.source != self.source && !self.also.contains(&other.source) {
            self.also.push(other.source);
        }
        self.numa_node = self.numa_node.or(other.numa_node);
        self.read_only = self.read_only.take().or(other.read_only);
        self.flusher = self.flusher.take().or(other.flusher);
        self.media = self.media.take().or(other.media);
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.range.end - self.range.start
    }

    /// The largest leaf that its start allows.
    pub fn align(&self) -> u64 {
        let natural = 1u64 << self.range.start.trailing_zeros().min(30);
        natural.clamp(4096, 1 << 30)
    }
}

/// What all sources together have found.
pub struct Found<'m> {
    machine: &'m dyn Machine,
    /// DIMMs by handle.
    pub dimms: Vec<Dimm>,
    /// Regions by address.
    pub regions: Vec<Region>,
    /// What was left out, and why.
    pub errors: Vec<Error>,
    /// What was adapted.
    pub warnings: Vec<String>,
}

impl<'m> Found<'m> {
    /// Nothing yet.
    pub fn new(machine: &'m dyn Machine) -> Self {
        Self {
            machine,
            dimms: Vec::new(),
            regions: Vec::new(),
            errors: Vec::new(),
            warnings: Vec::new(),
        }
    }

    /// Adds a region after checking its range; names are given at the end.
    /// `origin` is the table and the offset in it. One that another source has
    /// told of already is shown once, with both names.
    pub fn add_region(&mut self, region: Region, origin: (&'static str, usize)) {
        let Some(region) = self.checked(region, origin) else {
            return;
        };
        let twin = self
            .regions
            .iter_mut()
            .find(|known| known.range == region.range && known.source != region.source);
        match twin {
            Some(known) => known.confirm(region),
            None => self.add_apart(region, origin),
        }
    }

    /// As [`add_region`](Self::add_region), but any overlap is an error.
    pub fn add_new(&mut self, region: Region, origin: (&'static str, usize)) {
        if let Some(region) = self.checked(region, origin) {
            self.add_apart(region, origin);
        }
    }

    /// Adds what a map describes that knows ranges and not devices: it may join
    /// the ranges of several. What contradicts a known region is an error, and
    /// the region stays as it is.
    pub fn add_described(&mut self, region: Region, origin: (&'static str, usize)) {
        let Some(region) = self.checked(region, origin) else {
            return;
        };
        let range = &region.range;
        let touched = |known: &&mut Region| overlap(&known.range, range);
        let known: Vec<&mut Region> = self.regions.iter_mut().filter(touched).collect();
        let inside =
            |known: &Region| range.start <= known.range.start && known.range.end <= range.end;
        let sum: u64 = known.iter().map(|known| known.size()).sum();
        if known.is_empty() {
            self.add_apart(region, origin);
        } else if known.iter().all(|known| inside(known)) && sum == region.size() {
            known
                .into_iter()
                .for_each(|known| known.confirm(region.clone()));
        } else {
            let mut reason = format!(
                "describes {:#x}..{:#x} as persistent, but",
                range.start, range.end
            );
            for known in &known {
                let Range { start, end } = known.range;
                reason += &format!(" {} has {start:#x}..{end:#x}", known.source);
            }
            self.errors.push(firmware(origin, reason));
        }
    }

    /// The region with a range of whole pages that is nobody's RAM.
    fn checked(&mut self, mut region: Region, origin: (&'static str, usize)) -> Option<Region> {
        match self.check_range(region.range.clone()) {
            Ok(range) => {
                if range != region.range {
                    self.warnings.push(format!(
                        "{} range {:#x}..{:#x} is not page-aligned: using {:#x}..{:#x}",
                        origin.0, region.range.start, region.range.end, range.start, range.end
                    ));
                }
                region.range = range;
                Some(region)
            }
            Err(reason) => {
                self.errors.push(firmware(origin, reason));
                None
            }
        }
    }

    fn add_apart(&mut self, region: Region, origin: (&'static str, usize)) {
        let range = &region.range;
        let other = self
            .regions
            .iter()
            .find(|other| overlap(&other.range, range));
        match other {
            None => self.regions.push(region),
            Some(other) => {
                let reason = format!(
                    "range {:#x}..{:#x} overlaps {:#x}..{:#x}",
                    range.start, range.end, other.range.start, other.range.end
                );
                self.errors.push(firmware(origin, reason));
            }
        }
    }

    fn check_range(&self, range: Range<u64>) -> Result<Range<u64>, String> {
        let text = |what: &str| format!("range {:#x}..{:#x} {what}", range.start, range.end);
        if range.end > self.machine.limit() {
            return Err(text("lies beyond the physical addresses of this machine"));
        }
        let start = range
            .start
            .checked_next_multiple_of(4096)
            .ok_or_else(|| text("is empty"))?;
        let pages = start..range.end & !4095;
        if pages.start >= pages.end {
            return Err(text("has no whole page"));
        }
        if self.machine.is_ram(pages.clone()) {
            return Err(text("overlaps RAM"));
        }
        Ok(pages)
    }

    /// Sorts and names everything. Called once, after all sources.
    pub fn finish(&mut self) {
        for region in &mut self.regions {
            region.numa_node = region.numa_node.or(self.machine.domain(&region.range));
        }
        self.regions.sort_by_key(|region| region.range.start);
        for (nth, region) in self.regions.iter_mut().enumerate() {
            region.dev = format!("region{nth}");
        }
    }
}

fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

pub(super) fn firmware(origin: (&'static str, usize), reason: impl Into<String>) -> Error {
    Error::Firmware {
        table: origin.0.into(),
        offset: origin.1 as u64,
        reason: reason.into().into(),
    }
}
