//! Leases and counts: R33 to R37, I1, I5.

use super::*;

pub fn r33_break_layout_unmaps_only_its_range() -> Outcome {
    let rig = Rig::new(1024)?;
    rig.fs.lay_out(0..1024, 512)?;
    let mapping = rig.map(Perms::Read)?;
    check!(load(&mapping, 0) == 0x5a && load(&mapping, 2 * MIB) == 0x5a);
    let lease = text(rig.file.break_layout(10..20, Wait::No))?;
    check!(lease.covers(INO, 10..20) && lease.covers(INO, 12..13));
    check!(!lease.covers(INO, 9..20) && !lease.covers(Ino(13), 10..20));
    check!(!lease.covers(INO, 10..21));
    check!(leaf(&mapping, 10 << 12).is_none());
    check!(
        leaf(&mapping, 2 * MIB).is_some(),
        "unmapped beyond the range"
    );
    check!(rig.file.entry(10).1 == Entry::Empty);
    // What sticks out of the range is a smaller entry now.
    let Entry::Mapped { folio, .. } = rig.file.entry(9).1 else {
        return Err("the neighbour's entry is gone".into());
    };
    check!(folio.size == PageSize::Size4K);
    rig.fs.punch(&lease, 10..20)?;
    drop(lease);
    check!(load(&mapping, 10 << 12) == 0 && load(&mapping, 9 << 12) == 9 ^ 0x5a);
    let all = text(rig.file.break_layout(0..u64::MAX, Wait::No))?;
    check!(all.covers(INO, 0..u64::MAX) && rig.file.entries().is_empty());
    check!(rig.map.usage().descriptors() == 0, "{:?}", rig.map.usage());
    Ok(())
}

pub fn r34_pins_keep_their_blocks_and_are_named() -> Outcome {
    let rig = Rig::new(1024)?;
    rig.fs.lay_out(0..1024, 512)?;
    let mapping = rig.map(Perms::ReadWrite)?;
    let owner = PinOwner::new("virtio-blk");
    let pin = text(mapping.pin(5 << 12, &owner, &Term::Short, true))?;
    let error = match rig.file.break_layout(0..1, Wait::No) {
        Ok(_) => return Err("a lease was given over a pinned folio".into()),
        Err(error) => error.to_string(),
    };
    check!(error.contains("virtio-blk"), "{error}");
    check!(
        matches!(rig.file.entry(0).1, Entry::Mapped { .. }),
        "entries were removed"
    );
    // Elsewhere in the file nothing stands in the way.
    check!(rig.file.break_layout(512..1024, Wait::No).is_ok());
    check!(mapping.pin(0, &owner, &Term::Long, true).is_err(), "R10");
    drop(pin);
    check!(rig.file.break_layout(0..1, Wait::No).is_ok());
    Ok(())
}

pub fn r35_pins_count_without_a_mapping() -> Outcome {
    let rig = Rig::new(4)?;
    rig.fs.lay_out(0..4, 1)?;
    let owner = PinOwner::new("r35");
    let mapping = rig.map(Perms::Read)?;
    let pin = text(mapping.pin(0, &owner, &Term::Short, false))?;
    drop(mapping);
    check!(!rig.file.is_mapped());
    check!(rig.file.break_layout(0..4, Wait::No).is_err());
    let soon = sched::now_ns() + 1_000_000;
    check!(rig.file.break_layout(0..4, Wait::Until(soon)).is_err());
    drop(pin);
    check!(rig.file.break_layout(0..4, Wait::No).is_ok());
    Ok(())
}

pub fn r36_dropping_a_file_leaves_no_folio() -> Outcome {
    let rig = Rig::new(1024)?;
    rig.fs.lay_out(0..1024, 512)?;
    let mapping = rig.map(Perms::ReadWrite)?;
    store(&mapping, 0, 1);
    text(mapping.write_at(2 * MIB, &[1]))?;
    drop(mapping);
    rig.at_rest()?;
    let Rig {
        file, map, memory, ..
    } = rig;
    check!(map.usage().folios == [0, 2, 0], "{:?}", map.usage());
    drop(file);
    check!(map.usage().descriptors() == 0, "{:?}", map.usage());
    let flushed = memory.flushed.load(Ordering::Relaxed);
    check!(flushed >= 2 * 4096, "dirty pages were forgotten");
    Ok(())
}

pub fn r37_breaking_keeps_dirty_marks_elsewhere() -> Outcome {
    // Gap 1: store at one place, punch at another of the same entry, sync: the
    // store must be written back.
    let rig = Rig::new(512)?;
    rig.fs.lay_out(0..512, 512)?;
    let mapping = rig.map(Perms::ReadWrite)?;
    text(mapping.write_at(100 << 12, &[1]))?;
    let lease = text(rig.file.break_layout(300..301, Wait::No))?;
    rig.fs.punch(&lease, 300..301)?;
    drop(lease);
    check!(rig.memory.flushed.load(Ordering::Relaxed) == 0);
    text(rig.file.sync(0..512))?;
    check!(
        rig.memory.flushed.load(Ordering::Relaxed) == 4096,
        "the store is lost"
    );
    // A lease whose operation fails loses nothing either.
    text(mapping.write_at(200 << 12, &[1]))?;
    drop(text(rig.file.break_layout(200..201, Wait::No))?);
    check!(rig.memory.flushed.load(Ordering::Relaxed) == 2 * 4096);
    Ok(())
}

pub fn i1_counts_are_zero_after_unmap() -> Outcome {
    let rig = Rig::new(1024)?;
    rig.fs.lay_out(0..512, 512)?;
    rig.fs.lay_out(512..1024, 1)?;
    let one = rig.map(Perms::ReadWrite)?;
    let two = rig.map(Perms::Read)?;
    // 4 KiB leaves of a large folio: a mapping of the wrong reach.
    let part = text(map(&rig.file, 4096, 64 << 12, Perms::Read))?;
    for block in (0..1024).step_by(7) {
        store(&one, block << 12, 1);
        check!(load(&two, block << 12) == 1);
    }
    for block in 0..64 {
        load(&part, block << 12);
    }
    let info = rig.file.folio_at(0).ok_or("no folio")?;
    check!(info.counts.refs == 66 && info.counts.maps == 66, "{info:?}");
    drop(part);
    let info = rig.file.folio_at(0).ok_or("no folio")?;
    check!(info.counts.refs == 2 && info.counts.maps == 2, "{info:?}");
    check!(one.leaves() > 1 && two.leaves() > 1);
    drop(one);
    drop(two);
    rig.at_rest()?;
    check!(!rig.file.is_mapped());
    Ok(())
}

pub fn i5_a_breaker_wakes_while_others_fault() -> Outcome {
    let rig = Rig::new(8)?;
    rig.fs.lay_out(0..8, 1)?;
    let mapping = Arc::new(rig.map(Perms::ReadWrite)?);
    let owner = PinOwner::new("i5");
    let pin = text(mapping.pin(0, &owner, &Term::Short, true))?;
    let breaker = {
        let file = rig.file.clone();
        text(sched::spawn("i5 breaker", move || {
            file.break_layout(0..1, Wait::Forever).is_ok()
        }))?
    };
    let stop = Arc::new(AtomicU32::new(0));
    let faulter = {
        let (mapping, stop) = (mapping.clone(), stop.clone());
        text(sched::spawn("i5 faulter", move || {
            while stop.load(Ordering::Relaxed) == 0 {
                for block in 0..8 {
                    load(&mapping, block << 12);
                }
            }
        }))?
    };
    sched::sleep_ns(3_000_000);
    check!(!breaker.is_finished(), "broken under a pin");
    drop(pin);
    check!(breaker.join());
    stop.store(1, Ordering::Relaxed);
    faulter.join();
    Ok(())
}

pub fn leases_are_revoked_by_breaking() -> Outcome {
    struct Holder(SpinLock<Option<Pin>>);
    impl memmap::Revoke for Holder {
        fn revoke(&self, _: memmap::FolioId) {
            let pin = self.0.lock().take();
            drop(pin);
        }
    }
    let rig = Rig::new(4)?;
    rig.fs.lay_out(0..4, 1)?;
    let mapping = rig.map(Perms::ReadWrite)?;
    let owner = PinOwner::new("rdma");
    let holder = Arc::new(Holder(SpinLock::new(None)));
    let lease = Term::Lease(Some(holder.clone()));
    let pin = text(mapping.pin(0, &owner, &lease, true))?;
    *holder.0.lock() = Some(pin);
    check!(rig.file.break_layout(0..1, Wait::No).is_ok());
    check!(holder.0.lock().is_none());
    Ok(())
}

pub fn r09_get_and_pin_by_address() -> Outcome {
    let rig = Rig::new(8)?;
    rig.fs.lay_out(0..4, 1)?;
    let mapping = rig.map(Perms::ReadWrite)?;
    let counts = |folio: &memmap::FolioRef| (folio.counts().refs, folio.counts().maps);
    // The slow path: there is no leaf yet.
    check!(leaf(&mapping, 4096).is_none());
    let held = text(mapping.get(4096 + 5))?.ok_or("no folio")?;
    check!(leaf(&mapping, 4096).is_some() && counts(&held) == (2, 1));
    check!(held.owner() == Some(rig.file.owner()) && held.index() == 1);
    // The fast one.
    let owner = PinOwner::new("by address");
    let pin = text(mapping.pin(4096, &owner, &Term::Short, false))?;
    check!(counts(&held) == (3, 1) && held.pins() == 1);
    // A pin for storing needs a leaf that allows it: the slow path again.
    let stored = text(mapping.pin(4096, &owner, &Term::Short, true))?;
    check!(leaf(&mapping, 4096).is_some_and(|leaf| leaf.attrs.write));
    check!(held.pins() == 2);
    // A hole has nothing to hold, and what lies beyond the file is an error.
    check!(text(mapping.get(6 << 12))?.is_none());
    rig.fs.set_size(7 << 12);
    check!(mapping.get(7 << 12).is_err() && mapping.get(8 << 12).is_err());
    drop((pin, stored));
    check!(counts(&held) == (2, 1) && held.pins() == 0);
    drop(mapping);
    check!(counts(&held) == (1, 0));
    drop(held);
    rig.at_rest()
}
