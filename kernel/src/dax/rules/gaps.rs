//! What Linux's DAX gets wrong or leaves out, by the number that "Where a fresh
//! design can beat Linux DAX" gives it: each shows the fault absent. Those that
//! need a file system stand with `vfs::dax_rules`, those of folios with
//! `memmap::rules`.

use super::*;

/// Stores through leaves and by call, a hole and a truncation elsewhere in the
/// same entry, a sync, a power cut: nothing is lost (R37, I4).
pub fn gap_01_stores_beside_a_hole_survive_a_power_cut() -> Outcome {
    let rig = Rig::new(1024)?;
    rig.fs.lay_out(0..1024, 512)?;
    rig.memory.watch();
    let mapping = rig.map(Perms::ReadWrite)?;
    // The first 2 MiB is one large entry, of the second some are small.
    let small = rig.map_small(2 * MIB, 2 * MIB)?;
    for block in [100, 299, 301, 511] {
        store(&mapping, block << 12, 1);
    }
    store(&small, 5 << 12, 1);
    text(mapping.write_at(200 << 12, &[1]))?;
    let stored = [100, 200, 299, 301, 511, 517];
    for block in stored {
        // The model can lose what is not written back.
        check!(
            rig.after_cut(block)? != 1,
            "block {block} is not in a cache"
        );
    }
    let hole = text(rig.file.break_layout(300..301, Wait::No))?;
    rig.fs.punch(&hole, 300..301)?;
    drop(hole);
    let tail = text(rig.file.break_layout(600..u64::MAX, Wait::No))?;
    rig.fs.punch(&tail, 600..1024)?;
    rig.fs.set_size(600 << 12);
    drop(tail);
    text(rig.file.sync(0..u64::MAX))?;
    for block in stored {
        check!(
            rig.after_cut(block)? == 1,
            "the store to block {block} is lost"
        );
    }
    Ok(())
}

/// A truncation that waits for a pin wakes when it goes, although another
/// thread faults on the same pages all the time; and that thread gets them
/// after the lease.
pub fn gap_02_a_truncation_wakes_while_others_fault() -> Outcome {
    let rig = Rig::new(1024)?;
    rig.fs.lay_out(0..1024, 512)?;
    let mapping = Arc::new(rig.map(Perms::ReadWrite)?);
    let owner = PinOwner::new("gap 2");
    let pin = text(mapping.pin(0, &owner, &Term::Short, false))?;
    let stop = Arc::new(AtomicU32::new(0));
    let faulter = {
        let (mapping, stop) = (mapping.clone(), stop.clone());
        text(sched::spawn("gap 2 faulter", move || {
            let mut loads = 0u64;
            while stop.load(Ordering::Relaxed) == 0 {
                for block in [0, 7, 511, 512, 1023] {
                    load(&mapping, block << 12);
                    loads += 1;
                }
            }
            loads
        }))?
    };
    let breaker = {
        let file = rig.file.clone();
        text(sched::spawn("gap 2 breaker", move || {
            let until = sched::now_ns() + 60_000_000_000;
            file.break_layout(0..1024, Wait::Until(until)).is_ok()
        }))?
    };
    sched::sleep_ns(2_000_000);
    check!(!breaker.is_finished(), "broken under a pin");
    drop(pin);
    check!(breaker.join(), "the waiter slept on");
    // The lease is gone: the pages come back.
    load(&mapping, 0);
    stop.store(1, Ordering::Relaxed);
    check!(faulter.join() > 0);
    Ok(())
}

/// Only what is asked for is broken: leaves, entries, marks and pins elsewhere
/// are no matter.
pub fn gap_12_only_the_range_is_broken() -> Outcome {
    let rig = Rig::new(1536)?;
    rig.fs.lay_out(0..1536, 512)?;
    let mapping = rig.map(Perms::ReadWrite)?;
    text(mapping.populate(true))?;
    let owner = PinOwner::new("gap 12");
    let pins = [0, 2 * MIB - 4096, 4 * MIB].map(|at| mapping.pin(at, &owner, &Term::Short, true));
    let leaves = mapping.leaves();
    // Between what is pinned, of its own entry.
    let lease = text(rig.file.break_layout(600..700, Wait::No))?;
    check!(mapping.leaves() + 1 == leaves, "leaves elsewhere are gone");
    for at in [0, 2 * MIB - 4096, 4 * MIB] {
        check!(
            leaf(&mapping, at).is_some_and(|leaf| leaf.attrs.write),
            "{at:#x}"
        );
    }
    drop(lease);
    for pin in pins {
        drop(text(pin)?);
    }
    Ok(())
}

/// Whoever breaks a layout says for whom it waited, and for how long is his
/// choice.
pub fn gap_13_all_holders_are_named_in_time() -> Outcome {
    let rig = Rig::new(8)?;
    rig.fs.lay_out(0..8, 1)?;
    let mapping = rig.map(Perms::ReadWrite)?;
    let (disk, nic) = (PinOwner::new("disk 13"), PinOwner::new("nic 13"));
    let first = text(mapping.pin(0, &disk, &Term::Short, true))?;
    let second = text(mapping.pin(5 << 12, &nic, &Term::Short, true))?;
    let begin = sched::now_ns();
    for wait in [Wait::No, Wait::Until(begin + 3_000_000)] {
        match rig.file.break_layout(0..8, wait) {
            Err(Error::Busy { by }) => {
                check!(by.contains("disk 13") && by.contains("nic 13"), "{by}");
                check!(by.contains("block 0") && by.contains("block 5"), "{by}");
            }
            _ => return Err("broken under pins".into()),
        }
    }
    check!(sched::now_ns() >= begin + 3_000_000, "it did not wait");
    drop((first, second));
    check!(rig.file.break_layout(0..8, Wait::No).is_ok());
    Ok(())
}

/// A mapping that was populated, and flushes for itself, never faults: not when
/// it stores, not after a sync of the file; and flushes just its own lines.
pub fn gap_17_populated_untracked_mappings_never_fault() -> Outcome {
    let rig = Rig::new(1024)?;
    // One part that a large leaf maps, one that needs small ones.
    rig.fs.lay_out(0..512, 512)?;
    rig.fs.lay_out(513..1024, 1)?;
    rig.fs.lay_out(512..513, 1)?;
    rig.memory.watch();
    let options = MapOptions::default().untracked();
    let mapping = text(map_with(&rig.file, 0, 4 * MIB, Perms::ReadWrite, options))?;
    text(mapping.populate(true))?;
    let allowed = |block: u64| leaf(&mapping, block << 12).is_some_and(|leaf| leaf.attrs.write);
    check!((0..1024).all(allowed), "a store would fault");
    check!(leaf(&mapping, 0).is_some_and(|leaf| leaf.size == PageSize::Size2M));
    for block in [3, 700] {
        store(&mapping, block << 12, 0x77);
    }
    text(rig.file.sync(0..1024))?;
    check!((0..1024).all(allowed), "a store would fault after a sync");
    check!(rig.after_cut(3)? != 0x77 && rig.after_cut(700)? != 0x77);
    let before = rig.memory.flushed.load(Ordering::Relaxed);
    for block in [3, 700] {
        text(mapping.persist(block << 12..(block << 12) + 64))?;
    }
    let flushed = rig.memory.flushed.load(Ordering::Relaxed) - before;
    check!(flushed == 128, "{flushed} bytes for two lines");
    check!(rig.after_cut(3)? == 0x77 && rig.after_cut(700)? == 0x77);
    Ok(())
}

/// One store to a large entry has its page written back: the first that is made
/// at all, one where the memory was read, and one after a sync. Many have all
/// of it, by one leaf.
pub fn gap_20_one_store_flushes_one_page() -> Outcome {
    let rig = Rig::new(1536)?;
    rig.fs.lay_out(0..1536, 512)?;
    let flushed = || rig.memory.flushed.swap(0, Ordering::Relaxed);
    let mapping = rig.map(Perms::ReadWrite)?;
    let large = |at: u64, write: bool| {
        leaf(&mapping, at).is_some_and(|l| l.size == PageSize::Size2M && l.attrs.write == write)
    };
    // Nothing was there.
    store(&mapping, 77 << 12, 1);
    let folio = rig.file.folio_at(0).ok_or("no folio")?;
    check!(folio.id.size == PageSize::Size2M, "the entry is small");
    text(rig.file.sync(0..1536))?;
    check!(flushed() == 4096, "the first store");
    // A large leaf that was read through.
    check!(load(&mapping, 2 * MIB) == 0x5a && large(2 * MIB, false));
    store(&mapping, 3 * MIB, 1);
    check!(mapping.leaves() == 1 + 512, "{}", mapping.leaves());
    check!(leaf(&mapping, 2 * MIB).is_some_and(|leaf| !leaf.attrs.write));
    let counts = rig.file.folio_at(2 * MIB).ok_or("no folio")?.counts;
    check!(counts.refs == 512 && counts.maps == 512, "{counts:?}");
    text(rig.file.sync(0..1536))?;
    check!(flushed() == 4096, "a store where the memory was read");
    // Again, after the sync; and each of a few.
    for block in [0, 1, 2, 511] {
        store(&mapping, block << 12, 2);
        store(&mapping, 2 * MIB + (block << 12), 2);
    }
    text(rig.file.sync(0..1536))?;
    check!(flushed() == 8 * 4096, "stores after a sync");
    // Many: a large leaf, and all of it.
    for block in 0..40 {
        store(&mapping, 4 * MIB + (block << 12), 3);
    }
    check!(large(4 * MIB, true), "small leaves for all that is stored");
    text(rig.file.sync(0..1536))?;
    check!(flushed() == 2 * MIB && large(4 * MIB, false));
    store(&mapping, 5 * MIB, 4);
    text(rig.file.sync(0..1536))?;
    check!(flushed() == 4096, "a store after many");
    for (at, value) in [
        (77 << 12, 1),
        (3 * MIB, 1),
        (4 * MIB + (39 << 12), 3),
        (5 * MIB, 4),
    ] {
        check!(load(&mapping, at) == value);
    }
    drop(mapping);
    rig.at_rest()
}

/// R26. No file system here shares blocks between files; one that two files
/// claim is damage, and the second gets an error instead of the first's memory.
pub fn r26_a_block_of_two_files_is_refused() -> Outcome {
    let rig = Rig::new(8)?;
    rig.fs.lay_out(0..8, 1)?;
    let mapping = rig.map(Perms::ReadWrite)?;
    store(&mapping, 0, 0x77);
    let other = File::new(Ino(13), rig.file.device().clone(), rig.fs.clone());
    let second = text(map(&other, 0, 8 << 12, Perms::ReadWrite))?;
    check!(
        serve(second.addr(), true).is_err(),
        "two files store to one block"
    );
    check!(second.read_at(0, &mut [0]).is_err());
    check!(load(&mapping, 0) == 0x77 && second.leaves() == 0);
    // What the first has not met yet is whose that asks first.
    text(second.write_at(5 << 12, &[1]))?;
    check!(serve(mapping.addr() + (5 << 12), false).is_err());
    drop((second, other));
    check!(load(&mapping, 5 << 12) == 1);
    Ok(())
}

/// I2: after any history a free folio's descriptor is all zero: a page of
/// descriptors goes only when all of it is.
pub fn i2_free_folios_are_all_zero() -> Outcome {
    let rig = Rig::new(1536)?;
    rig.fs.lay_out(0..1536, 512)?;
    let owner = PinOwner::new("i2");
    for round in 0..4u64 {
        let large = rig.map(Perms::ReadWrite)?;
        let small = rig.map_small(0, 6 * MIB)?;
        for block in (0..1536).step_by(97) {
            store(&large, block << 12, 1);
            load(&small, ((block + round) % 1536) << 12);
        }
        let pin = text(large.pin(512 << 12, &owner, &Term::Short, true))?;
        // Split under a pin and without, and merged again by the next round.
        drop(text(rig.file.break_layout(100..101, Wait::No))?);
        drop(text(rig.file.break_layout(600..601, Wait::Park))?);
        text(rig.file.sync(0..1536))?;
        drop((pin, large, small));
        rig.at_rest()?;
    }
    drop(text(rig.file.break_layout(0..u64::MAX, Wait::No))?);
    check!(rig.map.usage().descriptors() == 0, "{:?}", rig.map.usage());
    rig.map.trim();
    check!(
        rig.map.usage().descriptor_pages == 0,
        "a field of a free folio is not 0: {:?}",
        rig.map.usage()
    );
    Ok(())
}
