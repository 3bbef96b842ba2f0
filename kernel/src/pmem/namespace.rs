//! Namespaces: what can be mounted, formatted or mapped, by name.
//!
//! A region without labels is one namespace, `pmem0`, `pmem1`, … in the order
//! of addresses; [`super::provision`] makes those that labels describe. Its
//! memory enters the direct map a GiB at a time, when it is first used:
//! write-back, never executable, and **read-only**. Somebody who claims it for
//! writing stores by way of its *write window*, a second mapping elsewhere, which
//! closes when the claim goes: a stray store to the direct map is caught at any
//! time. Where there is no window (`pmem_guard=off` on the command line, or
//! addresses beyond what windows reach) the direct map is writable meanwhile.
//!
//! A claim is exclusive and has a name ("mounted at /pmem0", "mkfs.ext4"), so
//! that whoever comes second is told who was first.
//!
//! Lock order: the registry, then a namespace's claim; nothing is called under
//! either but the page table's changes.

use super::badblocks::{self, BadBlocks};
use super::identity::{Identity, Mode};
use super::region::{PersistenceDomain, Region};
use crate::error::{Error, Result};
use crate::memmap::{self, Altmap, MemoryType, Pgmap, Spec};
use crate::sync::SpinLock;
use alloc::borrow::Cow;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};
use quire_arch::{PageSize, PhysAddr, VirtAddr, cache};
use quire_fs::{MediaError, Pmem};

/// How the memory of a region is reached. The kernel's own is
/// [`DirectMap`](super::DirectMap); tests bring ordinary memory.
pub trait Reach: Send + Sync {
    /// Where the bytes will be found once they are mapped.
    fn address(&self, range: Range<PhysAddr>) -> Result<VirtAddr>;
    /// Makes bytes readable, and writable if so said, at their address.
    fn map(&self, range: Range<PhysAddr>, writable: bool) -> Result<()>;
    /// Allows or forbids stores to mapped bytes.
    fn protect(&self, range: Range<PhysAddr>, writable: bool) -> Result<()>;
    /// Undoes `map`, as far as it was done.
    fn unmap(&self, range: Range<PhysAddr>) -> Result<()>;
    /// Where bytes are stored to if not at their address; `None`: there.
    fn window(&self, _range: &Range<PhysAddr>) -> Option<VirtAddr> {
        None
    }
    /// Makes stores to mapped bytes possible, in their window.
    fn open(&self, range: Range<PhysAddr>) -> Result<()> {
        self.protect(range, true)
    }
    /// Undoes `open`.
    fn close(&self, range: Range<PhysAddr>) -> Result<()> {
        self.protect(range, false)
    }
    /// Maps a device register of eight bytes (a flush hint).
    fn map_register(&self, at: PhysAddr) -> Result<VirtAddr>;
}

/// Which parts of a namespace are in the direct map.
///
/// They are mapped by the GiB when first used, so that attaching does not
/// depend on the size.
struct Windows {
    /// A bit for each, in order.
    mapped: Vec<AtomicU64>,
    /// Orders mapping, and changes of the right to store.
    writable: SpinLock<bool>,
}

/// Bytes in a window, and its alignment in physical memory.
const WINDOW: u64 = 1 << 30;

/// A namespace.
pub struct Namespace {
    name: String,
    identity: Identity,
    /// The region it is on, but of that only the part that is its data.
    region: Region,
    map: Arc<Pgmap>,
    base: VirtAddr,
    /// The write window, if it has one.
    store: Option<VirtAddr>,
    windows: Windows,
    hints: Vec<VirtAddr>,
    reach: Arc<dyn Reach>,
    user: SpinLock<Option<String>>,
    bad: badblocks::List,
}

impl Namespace {
    /// Makes one of the part of `region` that `identity` says; it isn't listed
    /// yet.
    pub(super) fn attach(
        identity: Identity,
        mut region: Region,
        reach: Arc<dyn Reach>,
        is_ram: &dyn Fn(Range<u64>) -> bool,
    ) -> Result<Arc<Self>> {
        let name = identity.device();
        region.range = identity.data();
        if identity.planned.read_only && region.read_only.is_none() {
            region.read_only = Some("its label says that it is read-only".into());
        }
        let range = PhysAddr(region.range.start)..PhysAddr(region.range.end);
        // Only when asked for: it writes to the media, if only where the info
        // block has room for that.
        let on_media = crate::boot::cmdline().get("memmap") == Some("dev");
        let reserved = identity
            .reserved()
            .filter(|_| on_media && region.read_only.is_none());
        let altmap = match reserved {
            Some(range) => Some(Altmap::new(PhysAddr(range.start)..PhysAddr(range.end))?),
            None => None,
        };
        let map = memmap::claim_with(
            Spec {
                name: name.clone(),
                kind: match identity.mode {
                    Mode::DevDax(_) => MemoryType::Generic,
                    _ => MemoryType::FsDax,
                },
                range: range.clone(),
                ops: None,
            },
            altmap,
            is_ram,
        )?;
        let give_up = |error| {
            map.kill();
            let _ = map.release();
            error
        };
        let windows = Windows::new(&region.range);
        let store = reach.window(&range);
        let base = reach.address(range).map_err(give_up)?;
        let mut hints = Vec::new();
        for hint in &region.flush_hints {
            match reach.map_register(PhysAddr(*hint)) {
                Ok(at) => hints.push(at),
                Err(error) => log::warn!("{name}: flush hint at {hint:#x} not used: {error}"),
            }
        }
        let bad = badblocks::List::default();
        if let Some(media) = &region.media {
            bad.set_media(media.0.clone());
        }
        Ok(Arc::new(Self {
            name,
            identity,
            region,
            map,
            base,
            store,
            windows,
            hints,
            reach,
            user: SpinLock::new(None),
            bad,
        }))
    }

    /// `pmem0` and so on.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The region it is on; its range is the namespace's data's.
    pub fn region(&self) -> &Region {
        &self.region
    }

    /// Its page descriptors.
    pub fn pgmap(&self) -> &Arc<Pgmap> {
        &self.map
    }

    /// Bytes.
    pub fn len(&self) -> u64 {
        self.region.size()
    }

    /// Never: a namespace has at least a page.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// First byte.
    pub fn phys(&self) -> PhysAddr {
        PhysAddr(self.region.range.start)
    }

    /// What mappings of a device-dax namespace are multiples of.
    pub fn dax_align(&self) -> PageSize {
        let align = match self.identity.mode {
            Mode::DevDax(info) => u64::from(info.align),
            _ => 0,
        };
        let sizes = PageSize::LARGEST_FIRST.into_iter();
        let fits = |size: &PageSize| size.bytes() <= align;
        sizes.filter(fits).max().unwrap_or(PageSize::Size4K)
    }

    /// Bytes of it that are lost.
    pub fn bad_blocks(&self) -> BadBlocks<'_> {
        BadBlocks {
            list: &self.bad,
            map: &self.map,
        }
    }

    /// Why it can't be written, if it can't: from the start, or since its
    /// device has failed to make stores durable.
    pub fn read_only_reason(&self) -> Option<Cow<'_, str>> {
        if let Some(reason) = &self.region.read_only {
            return Some(reason.as_str().into());
        }
        let fault = self.region.flusher.as_ref()?.fault()?;
        Some(
            format!("a flush has failed, and what was stored before it may be lost: {fault}")
                .into(),
        )
    }

    /// Who has claimed it.
    pub fn user(&self) -> Option<String> {
        self.user.lock().clone()
    }

    /// Notes that these ranges of physical memory have lost their content, as
    /// far as they are the namespace's.
    pub fn mark_bad(&self, ranges: &[Range<u64>]) {
        let data = &self.region.range;
        for range in ranges {
            let (start, end) = (range.start.max(data.start), range.end.min(data.end));
            if start >= end {
                continue;
            }
            if let Err(error) = self.bad_blocks().add(start - data.start, end - start) {
                log::error!(
                    "{}: lost memory at {start:#x} not noted: {error}",
                    self.name
                );
            }
        }
    }

    /// Takes it for exclusive use, as `user`. With `write`, stores become
    /// possible as long as the claim lives.
    pub fn claim(self: &Arc<Self>, user: impl Into<String>, write: bool) -> Result<Claim> {
        if write && let Some(reason) = self.read_only_reason() {
            log::warn!("{}: not writable: {reason}", self.name);
            return Err(Error::NotPermitted {
                why: reason.to_string().into(),
            });
        }
        {
            let mut current = self.user.lock();
            if let Some(by) = &*current {
                return Err(Error::busy(format!("{}: {by}", self.name)));
            }
            *current = Some(user.into());
        }
        let claim = Claim(Arc::new(Held {
            namespace: self.clone(),
            writable: write,
        }));
        if write {
            self.set_writable(true)?;
        }
        Ok(claim)
    }

    /// The part of window `nth` that is the namespace's.
    fn window(&self, nth: u64) -> Range<PhysAddr> {
        let range = &self.region.range;
        let first = (range.start / WINDOW + nth) * WINDOW;
        PhysAddr(first.max(range.start))..PhysAddr((first + WINDOW).min(range.end))
    }

    /// Sees to it that bytes (checked to be inside) are in the direct map.
    fn ensure_mapped(&self, off: u64, len: u64) -> Result<()> {
        let start = self.region.range.start;
        let nth = |at: u64| (start + at) / WINDOW - start / WINDOW;
        for window in nth(off)..=nth(off + len.saturating_sub(1)) {
            if self.windows.is_mapped(window) {
                continue;
            }
            let writable = self.windows.writable.lock();
            if !self.windows.is_mapped(window) {
                let range = self.window(window);
                let guarded = self.store.is_some();
                self.reach.map(range.clone(), *writable && !guarded)?;
                if *writable && guarded {
                    self.reach.open(range)?;
                }
                self.windows.set_mapped(window);
            }
        }
        Ok(())
    }

    fn set_writable(&self, allow: bool) -> Result<()> {
        let mut writable = self.windows.writable.lock();
        for window in 0..self.windows.len() {
            if self.windows.is_mapped(window) {
                let range = self.window(window);
                match (self.store.is_some(), allow) {
                    (true, true) => self.reach.open(range)?,
                    (true, false) => self.reach.close(range)?,
                    (false, _) => self.reach.protect(range, allow)?,
                }
            }
        }
        *writable = allow;
        Ok(())
    }

    /// A new namespace with what this one, which is detached, was made of.
    pub(super) fn again(&self) -> Result<Arc<Self>> {
        // Its range was compared with RAM when it was found.
        let (identity, region) = (self.identity.clone(), self.region.clone());
        let new = Self::attach(identity, region, self.reach.clone(), &|_| false)?;
        // What is lost stays lost.
        for range in self.bad_blocks().list() {
            new.bad_blocks().add(range.start, range.end - range.start)?;
        }
        Ok(new)
    }

    /// Ends one that nobody uses and that isn't listed.
    pub(super) fn discard(&self) -> Result<()> {
        self.map.kill();
        self.map.drain(None);
        self.unmap()?;
        self.map.release()
    }

    /// Enters it in the list.
    pub(super) fn list(self: &Arc<Self>) {
        super::failure::watch(&self.region.range);
        let mut all = ALL.lock();
        let at = all.partition_point(|other| other.base < self.base);
        all.insert(at, self.clone());
    }

    /// Takes it for good. Fails when somebody has it.
    pub(super) fn seize(&self, why: &str) -> Result<()> {
        let mut user = self.user.lock();
        match &*user {
            Some(by) => Err(Error::busy(format!("{}: {by}", self.name))),
            None => {
                *user = Some(why.into());
                Ok(())
            }
        }
    }

    /// Undoes [`seize`](Self::seize).
    pub(super) fn let_go(&self) {
        self.user.lock().take();
    }

    /// Takes it out of the direct map.
    pub(super) fn unmap(&self) -> Result<()> {
        let _order = self.windows.writable.lock();
        for window in 0..self.windows.len() {
            if self.windows.is_mapped(window) {
                self.reach.unmap(self.window(window))?;
            }
        }
        Ok(())
    }
}

impl Windows {
    fn new(range: &Range<u64>) -> Self {
        let count = range.end.div_ceil(WINDOW) - range.start / WINDOW;
        Self {
            mapped: (0..count.div_ceil(64)).map(|_| AtomicU64::new(0)).collect(),
            writable: SpinLock::new(false),
        }
    }

    /// Windows that may be mapped; those beyond the namespace never are.
    fn len(&self) -> u64 {
        self.mapped.len() as u64 * 64
    }

    fn is_mapped(&self, nth: u64) -> bool {
        // Acquire pairs with the Release below: who sees the bit sees the
        // leaves.
        self.mapped
            .get((nth / 64) as usize)
            .is_some_and(|word| word.load(Ordering::Acquire) >> (nth % 64) & 1 != 0)
    }

    fn set_mapped(&self, nth: u64) {
        if let Some(word) = self.mapped.get((nth / 64) as usize) {
            word.fetch_or(1 << (nth % 64), Ordering::Release);
        }
    }
}

struct Held {
    namespace: Arc<Namespace>,
    writable: bool,
}

impl Drop for Held {
    fn drop(&mut self) {
        let namespace = &self.namespace;
        if self.writable
            && let Err(error) = namespace.set_writable(false)
        {
            log::error!("{}: stays writable: {error}", namespace.name);
        }
        namespace.user.lock().take();
    }
}

/// Exclusive use of a namespace, until all of its copies are dropped.
#[derive(Clone)]
pub struct Claim(Arc<Held>);

impl Claim {
    /// The namespace.
    pub fn namespace(&self) -> &Arc<Namespace> {
        &self.0.namespace
    }

    /// The memory, for the file system. Keeps the claim.
    pub fn pmem(&self) -> KernelPmem {
        KernelPmem {
            claim: self.clone(),
        }
    }

    /// Changes the name under which others see it ("mounted at /pmem0").
    pub fn rename(&self, user: impl Into<String>) {
        *self.namespace().user.lock() = Some(user.into());
    }
}

/// A namespace's memory through the direct map.
///
/// Copies in and out, never references: mapped files alias the memory.
#[derive(Clone)]
pub struct KernelPmem {
    claim: Claim,
}

impl KernelPmem {
    /// The namespace.
    pub fn namespace(&self) -> &Arc<Namespace> {
        self.claim.namespace()
    }

    /// Physical address of an offset; `None` beyond the end.
    pub fn phys(&self, offset: u64) -> Option<PhysAddr> {
        (offset < self.namespace().len()).then(|| self.namespace().phys() + offset)
    }

    fn at(&self, off: u64, len: u64) -> Result<*mut u8, MediaError> {
        let namespace = self.namespace();
        match off.checked_add(len) {
            Some(end) if end <= namespace.len() => {}
            _ => return Err(MediaError::OutOfRange { offset: off, len }),
        }
        if let Err(error) = namespace.ensure_mapped(off, len) {
            log::error!(
                "{}: offset {off:#x} can't be mapped: {error}",
                namespace.name
            );
            return Err(MediaError::Host);
        }
        Ok((namespace.base + off).as_mut_ptr())
    }

    fn writable_at(&self, off: u64, len: u64) -> Result<*mut u8, MediaError> {
        if !self.claim.0.writable {
            return Err(MediaError::ReadOnly);
        }
        let at = self.at(off, len)?;
        let store = self.namespace().store;
        Ok(store.map_or(at, |window| (window + off).as_mut_ptr()))
    }

    /// A copy has met lost memory and left so many bytes. If those are what is
    /// lost, that is the answer; a report that came by chance in the middle of
    /// the copy lets it go on.
    #[cold]
    fn read_short(&self, off: u64, buf: &mut [u8], mut left: usize) -> Result<(), MediaError> {
        let end = off + buf.len() as u64;
        loop {
            let at = end - left as u64;
            let phys = self.namespace().phys();
            if let Some(page) = super::failure::reported_in(phys + at..phys + end) {
                return Err(MediaError::Poisoned {
                    offset: page - phys,
                    len: 4096,
                });
            }
            self.check_poison(at, end - at)?;
            let rest = buf.len() - left;
            // SAFETY: as in `read`, the part that is left.
            let after = unsafe {
                let from = self.at(at, left as u64)?;
                cache::copy_checked(buf[rest..].as_mut_ptr(), from, left)
            };
            match after {
                0 => return Ok(()),
                // No way on, whatever the hardware said of the address.
                after if after == left => {
                    return Err(MediaError::Poisoned {
                        offset: at & !4095,
                        len: 4096,
                    });
                }
                after => left = after,
            }
        }
    }

    fn check_poison(&self, off: u64, len: u64) -> Result<(), MediaError> {
        let map = self.namespace().pgmap();
        if len == 0 || !map.has_poison() {
            return Ok(());
        }
        let first = map.pages().start + (off >> 12);
        let end = map.pages().start + ((off + len - 1) >> 12) + 1;
        match map.first_poisoned(first..end) {
            None => Ok(()),
            Some(page) => Err(MediaError::Poisoned {
                offset: (page - map.pages().start) << 12,
                len: 4096,
            }),
        }
    }

    /// Makes a store; bad pages that it covers wholly are good afterwards, and
    /// one that it covers in part is an error (R41).
    #[inline]
    fn storing(&self, off: u64, len: u64, store: impl FnOnce()) -> Result<(), MediaError> {
        if !self.namespace().pgmap().has_poison() {
            store();
            return Ok(());
        }
        let bad = self.namespace().bad_blocks();
        let pages = bad.storing(off, len)?;
        store();
        bad.stored(pages);
        Ok(())
    }

    fn needs_write_back(&self) -> bool {
        self.namespace().region.persistence_domain != PersistenceDomain::CpuCache
    }
}

impl Pmem for KernelPmem {
    fn len(&self) -> u64 {
        self.namespace().len()
    }

    fn is_writable(&self) -> bool {
        self.claim.0.writable
    }

    fn read(&self, off: u64, buf: &mut [u8]) -> Result<(), MediaError> {
        let len = buf.len() as u64;
        let from = self.at(off, len)?;
        self.check_poison(off, len)?;
        // SAFETY: `at` has checked that the bytes lie in the namespace, which
        // is mapped as long as the claim; `buf` is ours and elsewhere.
        let left = unsafe { cache::copy_checked(buf.as_mut_ptr(), from, buf.len()) };
        if left > 0 {
            return self.read_short(off, buf, left);
        }
        Ok(())
    }

    fn write(&self, off: u64, data: &[u8]) -> Result<(), MediaError> {
        let to = self.writable_at(off, data.len() as u64)?;
        self.storing(off, data.len() as u64, || {
            // SAFETY: as in `read`; the claim makes the memory writable, and
            // the caller sees to it that nobody else writes these bytes.
            unsafe { cache::copy(to, data.as_ptr(), data.len()) };
        })
    }

    fn write_nt(&self, off: u64, data: &[u8]) -> Result<(), MediaError> {
        let to = self.writable_at(off, data.len() as u64)?;
        self.storing(off, data.len() as u64, || {
            // SAFETY: as in `write`.
            unsafe { cache::copy_nt(to, data.as_ptr(), data.len()) };
        })
    }

    fn zero(&self, off: u64, len: u64) -> Result<(), MediaError> {
        let to = self.writable_at(off, len)?;
        self.storing(off, len, || {
            // `at` has shown that it lies in memory, so it fits a usize.
            // SAFETY: as in `write`.
            unsafe { cache::zero_nt(to, len as usize) };
        })
    }

    fn write_back(&self, off: u64, len: u64) {
        if self.needs_write_back()
            && let Ok(from) = self.at(off, len)
        {
            // SAFETY: `at` has checked that the bytes are mapped.
            unsafe { cache::write_back(from, len as usize) };
        }
    }

    fn fence(&self) {
        cache::fence();
    }

    fn drain(&self) -> Result<(), MediaError> {
        let namespace = self.namespace();
        if !namespace.hints.is_empty() {
            // What was written back has left the CPU before the DIMMs are
            // told.
            cache::fence();
            for hint in &namespace.hints {
                // SAFETY: the register was mapped for this by `map_register`;
                // any value written flushes.
                unsafe { hint.as_mut_ptr::<u64>().write_volatile(1) };
            }
            cache::fence();
        }
        let Some(flusher) = &namespace.region.flusher else {
            return Ok(());
        };
        cache::fence();
        flusher.flush().map_err(|error| {
            log::error!("{}: flush failed: {error}", namespace.name);
            MediaError::NotDurable
        })
    }

    fn needs_drain(&self) -> bool {
        self.namespace().region.flusher.is_some()
    }
}

pub(super) static ALL: SpinLock<Vec<Arc<Namespace>>> = SpinLock::new(Vec::new());

/// All namespaces, in order of their names' numbers.
pub fn namespaces() -> Vec<Arc<Namespace>> {
    ALL.lock().clone()
}

/// The namespace of that name.
pub fn find(name: &str) -> Result<Arc<Namespace>> {
    ALL.lock()
        .iter()
        .find(|namespace| namespace.name == name)
        .cloned()
        .ok_or_else(|| Error::not_found(format!("device {name}")))
}

/// Makes a raw namespace of a region and lists it as `pmemN`.
pub fn attach(
    number: usize,
    region: Region,
    reach: Arc<dyn Reach>,
    is_ram: &dyn Fn(Range<u64>) -> bool,
) -> Result<Arc<Namespace>> {
    let identity = Identity::whole(number, &region);
    let new = Namespace::attach(identity, region, reach, is_ram)?;
    new.list();
    Ok(new)
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{HostMemory, host_region};
    use super::*;

    fn namespace(number: usize, edit: impl FnOnce(&mut Region)) -> Arc<Namespace> {
        let memory = Arc::new(HostMemory::new(1 << 20, 1 << 21));
        let mut region = host_region(memory.phys().as_u64(), 1 << 20);
        edit(&mut region);
        attach(number, region, memory, &|_| false).unwrap()
    }

    #[test]
    fn reads_back_what_was_written_and_checks_bounds() {
        let namespace = namespace(100, |_| ());
        let claim = namespace.claim("test", true).unwrap();
        let pmem = claim.pmem();
        pmem.write(4090, b"hello world").unwrap();
        pmem.write_back(4090, 11);
        pmem.fence();
        pmem.drain().unwrap();
        let mut buf = [0; 11];
        pmem.read(4090, &mut buf).unwrap();
        assert_eq!(&buf, b"hello world");
        pmem.zero(4090, 5).unwrap();
        pmem.read(4090, &mut buf).unwrap();
        assert_eq!(&buf, b"\0\0\0\0\0 world");
        let end = pmem.len();
        for (off, len) in [(end, 1), (end - 3, 4), (u64::MAX, 2)] {
            let mut buf = vec![0; len];
            assert!(matches!(
                pmem.read(off, &mut buf),
                Err(MediaError::OutOfRange { .. })
            ));
            assert!(pmem.write(off, &buf).is_err());
            assert!(pmem.zero(off, len as u64).is_err());
            pmem.write_back(off, len as u64);
        }
        assert_eq!(pmem.phys(5), Some(namespace.phys() + 5));
        assert_eq!(pmem.phys(end), None);
    }

    #[test]
    fn a_claim_excludes_and_names_its_user() {
        let namespace = namespace(101, |_| ());
        let first = namespace.claim("mounted at /a", false).unwrap();
        let second = namespace.claim("mkfs.ext4", true).err().unwrap();
        assert!(second.to_string().contains("mounted at /a"), "{second}");
        let pmem = first.pmem();
        assert_eq!(pmem.write(0, &[1]), Err(MediaError::ReadOnly));
        drop(first);
        assert!(namespace.user().is_some(), "the memory keeps the claim");
        drop(pmem);
        assert!(namespace.claim("mkfs.ext4", true).is_ok());
        assert_eq!(namespace.user(), None);
    }

    struct Device {
        flushes: AtomicU64,
        works: bool,
    }

    impl super::super::Flush for Device {
        fn flush(&self) -> Result<()> {
            self.flushes.fetch_add(1, Ordering::Relaxed);
            match self.works {
                true => Ok(()),
                false => Err(Error::io("the device says no")),
            }
        }

        fn fault(&self) -> Option<String> {
            let failed = !self.works && self.flushes.load(Ordering::Relaxed) > 0;
            failed.then(|| "the device says no".into())
        }

        fn describe(&self) -> String {
            "a device of a test".into()
        }
    }

    #[test]
    fn a_drain_asks_the_device_and_tells_when_it_fails() {
        for (number, works) in [(115, true), (116, false)] {
            let device = Arc::new(Device {
                flushes: AtomicU64::new(0),
                works,
            });
            let flusher: super::super::Flusher = super::super::region::Handle(device.clone());
            let namespace = namespace(number, |r| r.flusher = Some(flusher));
            let pmem = namespace.claim("test", true).unwrap().pmem();
            assert!(pmem.needs_drain());
            let expected = works.then_some(()).ok_or(MediaError::NotDurable);
            assert_eq!(pmem.drain(), expected);
            assert_eq!(pmem.barrier(), expected);
            assert_eq!(device.flushes.load(Ordering::Relaxed), 2);
            // Whoever comes next can't rely on it; reading stays possible.
            drop(pmem);
            assert_eq!(namespace.claim("next", true).is_ok(), works);
            assert!(namespace.claim("reader", false).is_ok());
            let reason = namespace.read_only_reason();
            assert_eq!(reason.is_some_and(|r| r.contains("says no")), !works);
        }
    }

    #[test]
    fn unarmed_memory_is_never_claimed_for_writing() {
        let namespace = namespace(102, |r| r.read_only = Some("nmem0 is not armed".into()));
        assert!(namespace.claim("mkfs", true).is_err());
        assert_eq!(namespace.user(), None);
        assert!(namespace.claim("mount", false).is_ok());
    }

    #[test]
    fn poison_is_an_error_of_its_page_only() {
        let namespace = namespace(103, |_| ());
        let claim = namespace.claim("test", false).unwrap();
        let pmem = claim.pmem();
        let page = namespace.pgmap().pages().start + 3;
        namespace.pgmap().set_poison(page, true).unwrap();
        let mut buf = [0; 4096];
        assert!(pmem.read(2 * 4096, &mut buf).is_ok());
        assert!(pmem.read(4 * 4096, &mut buf).is_ok());
        assert_eq!(
            pmem.read(4 * 4096 - 1, &mut buf),
            Err(MediaError::Poisoned {
                offset: 3 * 4096,
                len: 4096
            })
        );
    }

    #[test]
    fn the_platform_decides_about_write_back() {
        let count = |domain| {
            let n = namespace(104, |r| r.persistence_domain = domain);
            let pmem = n.claim("test", true).unwrap().pmem();
            pmem.needs_write_back()
        };
        assert!(count(PersistenceDomain::MemoryController));
        assert!(count(PersistenceDomain::Unknown));
        assert!(!count(PersistenceDomain::CpuCache));
    }

    #[test]
    fn descriptions_have_ndctls_keys() {
        let namespace = namespace(106, |_| ());
        let json = super::super::describe::namespace(&namespace).to_string();
        assert!(
            json.starts_with(
                "{\"dev\":\"pmem106\",\"mode\":\"raw\",\"map\":\"mem\",\"size\":1048576,"
            ),
            "{json}"
        );
        assert!(json.contains("\"blockdev\":\"pmem106\""), "{json}");
    }
}
