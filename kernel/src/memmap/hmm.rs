//! Private and coherent device memory, over a software device that hides its
//! memory and gets pages back when the CPU touches them: what Linux's test
//! device for heterogeneous memory does.
//!
//! The device mirrors a few pages of address space. *Migrating* a page moves
//! its content from a RAM frame to a page of the device's pool, and the leaf
//! with it: PRIVATE memory has none, so the next touch faults, and the fault
//! brings the page back; COHERENT memory is mapped where it is. The device's
//! own view of its memory is a copy in a table that no address leads to.

use super::FolioRef;
use super::descriptor::Counts;
use super::pgmap::{DeviceOps, FolioId, MemoryType, Spec};
use super::pin::{PinOwner, Refusal, Term};
use super::pool::Pool;
use crate::check;
use crate::error::{Error, Result as KernelResult};
use crate::mm::fault::{self, FaultHandler};
use crate::mm::{frame, space};
use crate::rules_as_tests;
use crate::sched;
use crate::sync::{Mutex, Once, SpinLock};
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, Ordering};
use quire_arch::layout::{MEMMAP, MEMMAP_LEN};
use quire_arch::table::Attrs;
use quire_arch::trap::{Fault, FaultOutcome};
use quire_arch::{PageSize, Pfn, PhysAddr, VirtAddr};

type Outcome = Result<(), String>;

rules_as_tests! {
    "folio.":
    private_memory_comes_back_when_touched,
    private_memory_is_touched_by_many_at_once,
    private_memory_outlives_a_device_reference,
    coherent_memory_is_used_where_it_is,
    coherent_memory_moves_before_a_long_term_pin,
}

const PAGES: u64 = 8;
/// Address space that nothing else uses: the end of what descriptors have.
const START: VirtAddr = VirtAddr(MEMMAP.0 + MEMMAP_LEN - (1 << 30));
type Page = [u8; 4096];

/// Where a mirrored page is.
enum Place {
    Ram(Pfn),
    Device(FolioRef),
}

/// Address space that the device shares with the CPU.
struct Mirror {
    start: VirtAddr,
    kind: MemoryType,
    pool: Pool,
    /// What the device's memory holds; for coherent memory it is in `frames`.
    hidden: SpinLock<BTreeMap<u64, Box<Page>>>,
    /// RAM in the place of coherent device memory.
    frames: Option<Pfn>,
    places: Mutex<Vec<Place>>,
    migrations: AtomicU32,
    freed: AtomicU32,
}

struct Driver(Weak<Mirror>);

impl DeviceOps for Driver {
    fn folio_free(&self, id: FolioId) {
        if let Some(mirror) = self.0.upgrade() {
            mirror.hidden.lock().remove(&id.page);
            mirror.freed.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn migrate_to_ram(&self, id: FolioId) -> KernelResult<()> {
        let mirror = self.0.upgrade().ok_or(Error::BadAddress { addr: 0 })?;
        mirror.bring_back(id)
    }
}

/// One mirror at a time: there is one range of addresses.
static TURN: Mutex<()> = Mutex::new(());
static CURRENT: SpinLock<Option<Arc<Mirror>>> = SpinLock::new(None);

struct Handler;

impl FaultHandler for Handler {
    fn fault(&self, fault: &Fault) -> FaultOutcome {
        match serve(fault.addr) {
            Ok(()) => FaultOutcome::Resume,
            Err(_) => FaultOutcome::Fatal,
        }
    }
}

fn serve(va: VirtAddr) -> KernelResult<()> {
    let mirror = CURRENT.lock().clone();
    let mirror = mirror.ok_or(Error::BadAddress { addr: va.as_u64() })?;
    let nth = (va - mirror.start) >> 12;
    let id = {
        let places = mirror.places.lock();
        match places.get(nth as usize) {
            Some(Place::Device(folio)) if mirror.kind == MemoryType::Private => folio.id(),
            // Somebody else has brought it back meanwhile.
            Some(_) => return Ok(()),
            None => return Err(Error::BadAddress { addr: va.as_u64() }),
        }
    };
    match mirror.pool.pgmap().touch_private(id) {
        // As above: the page is there, or on its way.
        Err(Error::NotFound { .. }) => Ok(()),
        result => result,
    }
}

fn text<T>(result: KernelResult<T>) -> Result<T, String> {
    result.map_err(|e| e.to_string())
}

impl Mirror {
    fn new(kind: MemoryType) -> Result<Arc<Self>, String> {
        let frames = match kind {
            MemoryType::Coherent => Some(frame::alloc_zeroed(3).ok_or("no memory")?),
            _ => None,
        };
        // Private memory is at addresses where no memory is.
        let base = frames.map_or(PhysAddr(254 << 40), Pfn::phys);
        let mut places = Vec::new();
        for _ in 0..PAGES {
            places.push(Place::Ram(frame::alloc_zeroed(0).ok_or("no memory")?));
        }
        let mirror = Arc::new_cyclic(|weak: &Weak<Self>| {
            let spec = Spec {
                name: "software device".into(),
                kind,
                range: base..base + (PAGES << 12),
                ops: Some(Box::new(Driver(weak.clone()))),
            };
            let pool = match Pool::new(spec) {
                Ok(pool) => pool,
                Err(error) => panic!("a pool of eight pages: {error}"),
            };
            Self {
                start: START,
                kind,
                pool,
                hidden: SpinLock::new(BTreeMap::new()),
                frames,
                places: Mutex::new(places),
                migrations: AtomicU32::new(0),
                freed: AtomicU32::new(0),
            }
        });
        for (nth, place) in (0u64..).zip(mirror.places.lock().iter()) {
            if let Place::Ram(pfn) = place {
                text(mirror.map_ram(nth, *pfn))?;
            }
        }
        static REGISTERED: Once<bool> = Once::new();
        let range = START..START + (PAGES << 12);
        let registered = REGISTERED.call_once(|| fault::register(range, &Handler));
        check!(*registered, "no room for a handler of faults");
        *CURRENT.lock() = Some(mirror.clone());
        Ok(mirror)
    }

    fn address(&self, nth: u64) -> VirtAddr {
        self.start + (nth << 12)
    }

    fn map_ram(&self, nth: u64, pfn: Pfn) -> KernelResult<()> {
        let (va, size) = (self.address(nth), PageSize::Size4K);
        Ok(space::map_leaf(va, pfn.phys(), size, Attrs::READ_WRITE)?)
    }

    /// Takes the leaf away, and its count when it was of device memory.
    fn unmap(&self, nth: u64) -> KernelResult<()> {
        let va = self.address(nth);
        let mut gone = None;
        space::unmap(va..va + 4096, &mut |_, leaf| {
            let page = leaf.pa.as_u64() >> 12;
            if self.pool.pgmap().pages().contains(&page) {
                gone = Some(self.pool.pgmap().unmap_leaf_at(page));
            }
        })?;
        if let Some(id) = gone {
            self.pool.pgmap().put(id, 1);
        }
        Ok(())
    }

    /// RAM → device.
    fn migrate(&self, nth: u64) -> KernelResult<()> {
        let mut places = self.places.lock();
        let Some(Place::Ram(pfn)) = places.get(nth as usize) else {
            return Err(Error::invalid("it is there already"));
        };
        let pfn = *pfn;
        let folio = self.pool.take(PageSize::Size4K)?;
        self.unmap(nth)?;
        let mut content = Box::new([0; 4096]);
        // SAFETY: the frame is the mirror's, and no leaf leads to it any more.
        unsafe {
            core::ptr::copy_nonoverlapping(
                frame::direct(pfn.phys()).as_ptr::<u8>(),
                content.as_mut_ptr(),
                4096,
            );
            frame::free(pfn, 0);
        }
        let id = folio.id();
        self.device_store(id, content);
        if self.kind == MemoryType::Coherent {
            self.pool.pgmap().map_leaves(id, 1)?;
            let va = self.address(nth);
            space::map_leaf(va, id.phys(), id.size, Attrs::READ_WRITE)?;
        }
        places[nth as usize] = Place::Device(folio);
        Ok(())
    }

    /// Device → RAM: what a touch does, and what must come before a pin.
    fn bring_back(&self, id: FolioId) -> KernelResult<()> {
        let mut places = self.places.lock();
        let found = places
            .iter()
            .position(|place| matches!(place, Place::Device(folio) if folio.id() == id));
        let nth = found.ok_or_else(|| Error::not_found("a page that is on the device"))?;
        let pfn = frame::alloc_zeroed(0).ok_or(Error::NoMemory)?;
        if self.kind == MemoryType::Coherent {
            self.unmap(nth as u64)?;
        }
        let content = self.device_load(id);
        // SAFETY: just taken, and mapped nowhere.
        unsafe {
            core::ptr::copy_nonoverlapping(
                content.as_ptr(),
                frame::direct(pfn.phys()).as_mut_ptr::<u8>(),
                4096,
            );
        }
        self.map_ram(nth as u64, pfn)?;
        // The device's reference goes: the last one frees the page.
        places[nth] = Place::Ram(pfn);
        self.migrations.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn device_store(&self, id: FolioId, content: Box<Page>) {
        if self.frames.is_some() {
            let to = frame::direct(id.phys()).as_mut_ptr::<u8>();
            // SAFETY: the frames are the mirror's.
            unsafe { core::ptr::copy_nonoverlapping(content.as_ptr(), to, 4096) };
        } else {
            self.hidden.lock().insert(id.page, content);
        }
    }

    fn device_load(&self, id: FolioId) -> Box<Page> {
        if self.frames.is_some() {
            let mut copy = Box::new([0; 4096]);
            let from = frame::direct(id.phys()).as_ptr::<u8>();
            // SAFETY: the frames are the mirror's.
            unsafe { core::ptr::copy_nonoverlapping(from, copy.as_mut_ptr(), 4096) };
            copy
        } else {
            self.hidden
                .lock()
                .get(&id.page)
                .cloned()
                .unwrap_or_else(|| Box::new([0xdb; 4096]))
        }
    }

    /// The device works on its memory.
    fn device_adds(&self, id: FolioId, what: u8) {
        let mut content = self.device_load(id);
        content
            .iter_mut()
            .for_each(|byte| *byte = byte.wrapping_add(what));
        self.device_store(id, content);
    }

    fn folio(&self, nth: u64) -> Result<FolioId, String> {
        match self.places.lock().get(nth as usize) {
            Some(Place::Device(folio)) => Ok(folio.id()),
            _ => Err("the page is not on the device".into()),
        }
    }

    fn has_leaf(&self, nth: u64) -> bool {
        space::translate(self.address(nth)).is_some()
    }

    /// A CPU's access. The host has no MMU: it walks the page table and
    /// faults in software.
    fn byte(&self, nth: u64) -> *mut u8 {
        let va = self.address(nth) + 100;
        if cfg!(target_os = "none") {
            return va.as_mut_ptr();
        }
        loop {
            if let Some(leaf) = space::translate(va) {
                return frame::direct(leaf.pa + va.offset_in(leaf.size.bytes())).as_mut_ptr();
            }
            if let Err(error) = serve(va) {
                panic!("access to {va} failed: {error}");
            }
        }
    }

    fn load(&self, nth: u64) -> u8 {
        // SAFETY: a mirrored page; a fault is served.
        unsafe { self.byte(nth).read_volatile() }
    }

    fn store(&self, nth: u64, value: u8) {
        // SAFETY: as in `load`; nobody else stores there.
        unsafe { self.byte(nth).write_volatile(value) };
    }

    /// Everything goes; whether the pool has all its pages back.
    fn end(&self) -> Outcome {
        CURRENT.lock().take();
        for nth in 0..PAGES {
            text(self.unmap(nth))?;
        }
        for place in self.places.lock().drain(..) {
            if let Place::Ram(pfn) = place {
                // SAFETY: the mirror's, and unmapped.
                unsafe { frame::free(pfn, 0) };
            }
        }
        let map = self.pool.pgmap();
        check!(map.busy_folios() == 0 && map.pages_handed_out() == 0);
        check!(map.usage().descriptors() == 0, "{:?}", map.usage());
        check!(self.pool.free() == PAGES << 12, "{} free", self.pool.free());
        map.trim();
        check!(map.usage().descriptor_pages == 0, "a field isn't at rest");
        if let Some(pfn) = self.frames {
            // SAFETY: taken in `new` with this order; unmapped.
            unsafe { frame::free(pfn, 3) };
        }
        Ok(())
    }
}

fn counts(refs: u32, maps: u32) -> Counts {
    Counts { refs, maps }
}

fn private_memory_comes_back_when_touched() -> Outcome {
    let _turn = TURN.lock();
    let mirror = Mirror::new(MemoryType::Private)?;
    let map = mirror.pool.pgmap().clone();
    mirror.store(3, 40);
    text(mirror.migrate(3))?;
    let id = mirror.folio(3)?;
    check!(!mirror.has_leaf(3), "private memory is mapped");
    check!(map.counts(id) == counts(1, 0), "{:?}", map.counts(id));
    check!(map.pages_handed_out() == 1);
    let owner = PinOwner::new("hmm");
    let refused = owner.pin(&map, id.page, 1, Term::Short, true).err();
    check!(refused == Some(Refusal::NotCpuMemory), "{refused:?}");
    mirror.device_adds(id, 2);
    check!(mirror.load(3) == 42, "loaded {}", mirror.load(3));
    check!(mirror.has_leaf(3) && mirror.migrations.load(Ordering::Relaxed) == 1);
    check!(map.info(id.page).is_none(), "the device's page isn't free");
    check!(mirror.freed.load(Ordering::Relaxed) == 1);
    check!(mirror.hidden.lock().is_empty());
    // A store brings a page back as well.
    text(mirror.migrate(3))?;
    mirror.store(3, 7);
    check!(mirror.load(3) == 7 && mirror.migrations.load(Ordering::Relaxed) == 2);
    // What is still on the device at the end goes back to the pool.
    text(mirror.migrate(5))?;
    mirror.end()
}

fn private_memory_is_touched_by_many_at_once() -> Outcome {
    let _turn = TURN.lock();
    let mirror = Mirror::new(MemoryType::Private)?;
    for round in 0..20u8 {
        for nth in 0..PAGES {
            mirror.store(nth, round.wrapping_add(nth as u8));
            text(mirror.migrate(nth))?;
            mirror.device_adds(mirror.folio(nth)?, 100);
        }
        let mut threads = Vec::new();
        for _ in 0..4 {
            let mirror = mirror.clone();
            let touch = move || (0..PAGES).map(|nth| mirror.load(nth)).collect::<Vec<u8>>();
            threads.push(text(sched::spawn("hmm", touch))?);
        }
        for thread in threads {
            for (nth, byte) in (0u8..).zip(thread.join()) {
                let expected = round.wrapping_add(nth).wrapping_add(100);
                check!(byte == expected, "page {nth}: {byte}, not {expected}");
            }
        }
    }
    let migrations = mirror.migrations.load(Ordering::Relaxed);
    check!(migrations == 20 * PAGES as u32, "{migrations} migrations");
    check!(mirror.freed.load(Ordering::Relaxed) == migrations);
    mirror.end()
}

fn private_memory_outlives_a_device_reference() -> Outcome {
    let _turn = TURN.lock();
    let mirror = Mirror::new(MemoryType::Private)?;
    let map = mirror.pool.pgmap().clone();
    text(mirror.migrate(0))?;
    let id = mirror.folio(0)?;
    // The device's engine is at the page while the CPU takes it back.
    let engine = map.get(id.page).ok_or("a page in use can't be got")?;
    mirror.load(0);
    check!(map.counts(id) == counts(1, 0), "{:?}", map.counts(id));
    check!(mirror.freed.load(Ordering::Relaxed) == 0, "freed in use");
    check!(mirror.pool.free() == (PAGES - 1) << 12);
    drop(engine);
    check!(mirror.freed.load(Ordering::Relaxed) == 1);
    mirror.end()
}

fn coherent_memory_is_used_where_it_is() -> Outcome {
    let _turn = TURN.lock();
    let mirror = Mirror::new(MemoryType::Coherent)?;
    let map = mirror.pool.pgmap().clone();
    mirror.store(2, 50);
    text(mirror.migrate(2))?;
    let id = mirror.folio(2)?;
    // The pool's reference and the leaf's.
    check!(map.counts(id) == counts(2, 1), "{:?}", map.counts(id));
    mirror.device_adds(id, 5);
    check!(mirror.load(2) == 55);
    mirror.store(2, 60);
    check!(
        mirror.device_load(id)[100] == 60,
        "the device doesn't see it"
    );
    check!(mirror.migrations.load(Ordering::Relaxed) == 0);
    let owner = PinOwner::new("hmm");
    let pin = owner.pin(&map, id.page, 1, Term::Short, false);
    let pin = pin.map_err(|refusal| Error::from(refusal).to_string())?;
    check!(map.counts(id) == counts(3, 1));
    drop(pin);
    mirror.end()
}

fn coherent_memory_moves_before_a_long_term_pin() -> Outcome {
    let _turn = TURN.lock();
    let mirror = Mirror::new(MemoryType::Coherent)?;
    let map = mirror.pool.pgmap().clone();
    mirror.store(1, 9);
    text(mirror.migrate(1))?;
    let id = mirror.folio(1)?;
    let owner = PinOwner::new("hmm");
    let refused = owner.pin(&map, id.page, 1, Term::Long, false).err();
    check!(refused == Some(Refusal::LongTermDevice), "{refused:?}");
    // So it is moved first, and what is pinned then is ordinary memory.
    text(mirror.bring_back(id))?;
    check!(mirror.load(1) == 9);
    check!(map.info(id.page).is_none() && mirror.freed.load(Ordering::Relaxed) == 1);
    mirror.end()
}
