//! The life of a pgmap and of its descriptors: R42 to R46.

use super::*;

pub fn r42_claim_conflicts_and_ram_overlap_fail() -> Outcome {
    let wanted = spec(MemoryType::FsDax, 1 << 30, None);
    let range = wanted.range.clone();
    let no_ram = |_: Range<u64>| false;
    let map = text(claim(wanted, &no_ram))?;
    let page = range.start.as_u64() >> 12;
    let found = of_frame(page + 1).ok_or("not in the look-up")?;
    check!(Arc::ptr_eq(&found, &map));
    check!(of_frame(page - 1).is_none() && of_frame(map.pages().end).is_none());
    let try_claim = |start: u64, end: u64, ram: bool| {
        let again = Spec {
            name: "again".into(),
            kind: MemoryType::FsDax,
            range: PhysAddr(start)..PhysAddr(end),
            ops: None,
        };
        claim(again, &|_| ram)
    };
    let (start, end) = (range.start.as_u64(), range.end.as_u64());
    check!(try_claim(start, end, false).is_err(), "the same range");
    check!(
        try_claim(start - 4096, start + 4096, false).is_err(),
        "its start"
    );
    check!(try_claim(end - 4096, end + 4096, false).is_err(), "its end");
    check!(try_claim(end, end + 4096, true).is_err(), "RAM");
    check!(try_claim(end, end, false).is_err(), "nothing");
    check!(
        try_claim(end + 1, end + 4096, false).is_err(),
        "no whole page"
    );
    // Any 4 KiB range will do.
    let beside = text(try_claim(end, end + 4096, false))?;
    check!(map.release().is_err(), "released alive");
    for map in [map, beside] {
        map.kill();
        check!(map.drain(None));
        text(map.release())?;
    }
    check!(of_frame(page + 1).is_none());
    Ok(())
}

struct Watch {
    map: SpinLock<Option<Arc<Pgmap>>>,
    alive_when_told: AtomicBool,
    told: AtomicU32,
}

impl Holder for Watch {
    fn removal(&self) {
        let alive = self.map.lock().take().is_some_and(|map| map.is_alive());
        self.alive_when_told.store(alive, Ordering::Relaxed);
        self.told.fetch_add(1, Ordering::Relaxed);
    }

    fn failure(&self, offset: u64, _: u64) -> KernelResult<()> {
        Err(Error::Poisoned {
            addr: offset,
            len: 0,
        })
    }
}

pub fn r43_kill_tells_the_holder_then_refuses() -> Outcome {
    let map = fsdax()?;
    let watch = Arc::new(Watch {
        map: SpinLock::new(Some(map.clone())),
        alive_when_told: AtomicBool::new(false),
        told: AtomicU32::new(0),
    });
    check!(map.notify_failure(0, 1).is_err());
    text(map.set_holder(Some(watch.clone())))?;
    check!(map.set_holder(Some(watch.clone())).is_err(), "two holders");
    check!(map.notify_failure(4096, 1) == Err(Error::Poisoned { addr: 4096, len: 0 }));
    let id = at(&map, 0, Size4K);
    text(map.associate(id, FILE, 0))?;
    text(map.map_leaves(id, 1))?;
    map.kill();
    check!(watch.told.load(Ordering::Relaxed) == 1);
    check!(
        watch.alive_when_told.load(Ordering::Relaxed),
        "told too late"
    );
    check!(!map.is_alive());
    check!(map.map_leaves(id, 1).is_err(), "mapped after the kill");
    check!(map.get(id.page).is_none(), "got after the kill");
    check!(map.associate(at(&map, 1, Size4K), FILE, 1).is_err());
    check!(
        map.notify_failure(0, 1).is_err(),
        "the holder is still there"
    );
    // Undoing goes on.
    map.unmap_leaves(id, 1);
    map.put(id, 1);
    check!(text(map.disassociate(id))?);
    Ok(())
}

pub fn r44_drain_waits_for_pins() -> Outcome {
    let map = fsdax()?;
    let owner = PinOwner::new("r44");
    let id = at(&map, 8, Size4K);
    text(map.associate(id, FILE, 0))?;
    text(map.map_leaves(id, 1))?;
    let held = pin(&owner, &map, id.page, 1)?;
    map.unmap_leaves(id, 1);
    map.put(id, 1);
    map.kill();
    let soon = sched::now_ns() + 2_000_000;
    check!(!map.drain(Some(soon)), "drained under a pin");
    check!(map.release().is_err());
    let drainer = {
        let map = map.clone();
        text(sched::spawn("r44", move || map.drain(None)))?
    };
    sched::sleep_ns(1_000_000);
    drop(held);
    check!(drainer.join());
    check!(map.busy_folios() == 0);
    Ok(())
}

pub fn r45_descriptors_cost_no_media() -> Outcome {
    // Linux may put the metadata on the media, where it takes 1.56 % of it.
    // Here it is in RAM and all of the range is usable: the first and the last
    // page have descriptors like any other.
    let map = fsdax()?;
    let last = map.pages().end - map.pages().start - 1;
    for page in [0, last] {
        text(map.associate(at(&map, page, Size4K), FILE, page))?;
    }
    check!(map.usage().folios == [2, 0, 0]);
    Ok(())
}

pub fn r45_altmap_puts_them_on_the_media() -> Outcome {
    use crate::mm::frame;
    // Sixteen pages of a "device" with something on them.
    let frames = frame::alloc(4).ok_or("no memory")?;
    let memory = frame::direct(frames.phys()).as_mut_ptr::<u8>();
    // SAFETY: just taken.
    unsafe { memory.write_bytes(0xff, 16 << 12) };
    let reserved = frames.phys()..frames.phys() + (16 << 12);
    let altmap = text(Altmap::new(reserved.clone()))?;
    let map = text(Pgmap::with_altmap(
        spec(MemoryType::FsDax, 1 << 40, None),
        Some(altmap),
    ))?;
    let rest = map.usage();
    check!(rest.media == 0, "{rest:?}");
    // 12 pages of small records, and one each of the larger ones.
    for page in (0..12 * 128).step_by(128) {
        text(map.associate(at(&map, page, Size4K), FILE, page))?;
    }
    let full = map.usage();
    check!(
        full.media == 14 << 12 && full.descriptor_pages == 14,
        "{full:?}"
    );
    check!(
        full.folios == [12, 0, 0],
        "stale bytes became folios: {full:?}"
    );
    // Six more find room for two: the rest is in RAM.
    for page in (12 * 128..18 * 128).step_by(128) {
        text(map.associate(at(&map, page, Size4K), FILE, page))?;
    }
    let over = map.usage();
    check!(
        over.media == 16 << 12 && over.descriptor_pages == 20,
        "{over:?}"
    );
    check!(
        over.bytes - full.bytes == 4 << 12,
        "{over:?} after {full:?}"
    );
    for page in (0..18 * 128).step_by(128) {
        check!(text(map.disassociate(at(&map, page, Size4K)))?);
    }
    map.trim();
    check!(map.usage() == rest, "{:?} is not {rest:?}", map.usage());
    // Pages that have come back are at rest again.
    text(map.associate(at(&map, 7, Size4K), FILE, 7))?;
    check!(map.usage().folios == [1, 0, 0] && map.usage().media == 3 << 12);
    drop(map);
    // The reserved range has no descriptors of its own.
    let whole = Spec {
        name: "test".into(),
        kind: MemoryType::FsDax,
        range: reserved.start..reserved.start + (32 << 12),
        ops: None,
    };
    let altmap = text(Altmap::new(reserved))?;
    let map = text(Pgmap::with_altmap(whole, Some(altmap)))?;
    check!(map.associate(at(&map, 15, Size4K), FILE, 15).is_err());
    text(map.associate(at(&map, 16, Size4K), FILE, 16))?;
    drop(map);
    // SAFETY: taken above, and used by nobody any more.
    unsafe { frame::free(frames, 4) };
    Ok(())
}

pub fn r46_descriptor_memory_follows_the_leaves() -> Outcome {
    let small = pgmap(MemoryType::FsDax, 1 << 30)?.usage().bytes;
    let map = pgmap(MemoryType::FsDax, 1 << 40)?;
    let rest = map.usage().bytes;
    check!(
        rest <= 16 << 10,
        "1 TiB at rest takes {rest} bytes, 1 GiB {small}"
    );
    let span = 4u64 << 30;
    for nth in 0..span >> 21 {
        text(map.associate(at(&map, nth << 9, Size2M), FILE, nth << 9))?;
    }
    let used = map.usage().bytes - rest;
    // 0.01 % of the span, and directories of a page each.
    check!(
        used <= span / 10_000,
        "2 MiB leaves: {used} bytes for {span}"
    );
    let map = pgmap(MemoryType::FsDax, 1 << 40)?;
    let rest = map.usage().bytes;
    let span = 64u64 << 20;
    for page in 0..span >> 12 {
        text(map.associate(at(&map, page, Size4K), FILE, page))?;
    }
    // 0.8 % of the span, and what the larger records take (two pages and the
    // three directories, which serve 2 GiB and more).
    let used = map.usage().bytes - rest;
    let fixed = (2 << 12) + 3 * (4096 * 8);
    check!(
        used <= span / 125 + fixed,
        "4 KiB leaves: {used} bytes for {span}"
    );
    Ok(())
}

pub fn trim_gives_back_what_is_at_rest() -> Outcome {
    let map = fsdax()?;
    let rest = map.usage();
    for page in (0..4096).step_by(128) {
        text(map.associate(at(&map, page, Size4K), FILE, page))?;
    }
    let kept = at(&map, 0, Size4K);
    text(map.map_leaves(kept, 1))?;
    let held = map.get(kept.page).ok_or("not got")?;
    let full = map.usage();
    check!(map.trim() == 0, "trimmed what is in use");
    check!(map.usage() == full);
    for page in (128..4096).step_by(128) {
        check!(text(map.disassociate(at(&map, page, Size4K)))?);
    }
    check!(map.trim() == 31 << 12);
    check!(held.counts() == counts(2, 1), "{:?}", held.counts());
    drop(held);
    map.unmap_leaves(kept, 1);
    map.put(kept, 1);
    check!(text(map.disassociate(kept))?);
    check!(map.trim() > 0);
    check!(map.usage() == rest, "{:?} is not {rest:?}", map.usage());
    Ok(())
}

/// All memory there is, in pieces, given back when dropped.
#[cfg(target_os = "none")]
struct Everything(Option<(quire_arch::Pfn, u32)>);

#[cfg(target_os = "none")]
impl Everything {
    fn take() -> Self {
        use crate::mm::frame;
        let mut last = None;
        for order in (0..=10).rev() {
            while let Some(pfn) = frame::alloc(order) {
                // The list lies in the pieces: there is no memory for it.
                let at = frame::direct(pfn.phys()).as_mut_ptr();
                // SAFETY: just taken, and large enough.
                unsafe { core::ptr::write::<Option<(quire_arch::Pfn, u32)>>(at, last) };
                last = Some((pfn, order));
            }
        }
        Self(last)
    }
}

#[cfg(target_os = "none")]
impl Drop for Everything {
    fn drop(&mut self) {
        use crate::mm::frame;
        while let Some((pfn, order)) = self.0 {
            // SAFETY: `take` has taken it with this order and written the rest
            // of the list there.
            unsafe {
                self.0 = frame::direct(pfn.phys())
                    .as_ptr::<Option<(quire_arch::Pfn, u32)>>()
                    .read();
                frame::free(pfn, order);
            }
        }
    }
}

pub fn descriptors_at_rest_go_when_memory_is_short() -> Outcome {
    let map = text(claim(spec(MemoryType::FsDax, 1 << 40, None), &|_| false))?;
    for page in (0..64 * 128).step_by(128) {
        text(map.associate(at(&map, page, Size4K), FILE, page))?;
    }
    for page in (128..64 * 128).step_by(128) {
        check!(text(map.disassociate(at(&map, page, Size4K)))?);
    }
    // Not as long as there is memory.
    check!(map.usage().descriptor_pages >= 64, "{:?}", map.usage());
    #[cfg(target_os = "none")]
    let after = {
        let everything = Everything::take();
        let after = map.usage().descriptor_pages;
        drop(everything);
        after
    };
    // Other tests share the host's memory: only ask.
    #[cfg(not(target_os = "none"))]
    let after = {
        let inside = text(map.enter())?;
        crate::mm::frame::shrink();
        check!(map.usage().descriptor_pages >= 64, "trimmed under somebody");
        drop(inside);
        // Others may have the list of pgmaps for a moment.
        while map.usage().descriptor_pages >= 64 {
            crate::mm::frame::shrink();
            sched::yield_now();
        }
        map.usage().descriptor_pages
    };
    // The one in use, and those of the two larger sizes above it.
    check!(after == 3, "{after} pages of descriptors are left");
    check!(
        map.info(at(&map, 0, Size4K).page).is_some(),
        "the folio went"
    );
    check!(text(map.disassociate(at(&map, 0, Size4K)))?);
    map.kill();
    check!(map.drain(None));
    text(map.release())
}
