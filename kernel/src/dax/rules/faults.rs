//! Faults: R21 to R29.

use super::*;

pub fn r21_faults_past_the_end_fail() -> Outcome {
    let rig = Rig::new(4)?;
    rig.fs.lay_out(0..4, 1)?;
    let mapping = text(map(&rig.file, 0, 8 << 12, Perms::ReadWrite))?;
    check!(serve(mapping.addr() + (4 << 12), false).is_err());
    check!(serve(mapping.addr() + (3 << 12), true).is_ok());
    check!(
        serve(mapping.addr() + (8 << 12), false).is_err(),
        "the guard page"
    );
    check!(
        text(map(&rig.file, 0, 4096, Perms::Read))
            .is_ok_and(|read_only| { serve(read_only.addr(), true).is_err() })
    );
    Ok(())
}

pub fn r22_holes_read_zeros_and_allocate_nothing() -> Outcome {
    let rig = Rig::new(16)?;
    let mapping = rig.map(Perms::ReadWrite)?;
    for block in 0..16 {
        check!(load(&mapping, block << 12) == 0);
    }
    check!(rig.fs.state.lock().blocks.is_empty(), "a read allocated");
    let leaf = leaf(&mapping, 0).ok_or("no leaf")?;
    check!(zero::is_zero(leaf.pa) && !leaf.attrs.write);
    check!(
        rig.map.usage().descriptors() == 0,
        "the zero page is counted"
    );
    Ok(())
}

pub fn r22_a_large_hole_is_one_zero_leaf() -> Outcome {
    let rig = Rig::new(1024)?;
    let mapping = rig.map(Perms::ReadWrite)?;
    let before = stat();
    check!(load(&mapping, 700 << 12) == 0);
    check!(leaf(&mapping, 512 << 12).is_some_and(|leaf| leaf.size == PageSize::Size2M));
    check!(stat().zero_large > before.zero_large);
    check!(mapping.leaves() == 1);
    store(&mapping, 600 << 12, 3);
    check!(load(&mapping, 600 << 12) == 3 && load(&mapping, 601 << 12) == 0);
    Ok(())
}

pub fn r23_write_faults_allocate_and_zero() -> Outcome {
    let rig = Rig::new(4)?;
    // What the device holds from before must not show.
    for block in 0..DEVICE_BLOCKS {
        rig.memory
            .write(block << 12, &[0xee; 4096])
            .map_err(|e| e.to_string())?;
    }
    let mapping = rig.map(Perms::ReadWrite)?;
    store(&mapping, 2 * 4096 + 1, 9);
    for offset in [2 * 4096, 2 * 4096 + 2, 3 * 4096 - 1] {
        check!(load(&mapping, offset) == 0, "old content at {offset:#x}");
    }
    check!(load(&mapping, 2 * 4096 + 1) == 9);
    let Entry::Mapped { dirty, .. } = rig.file.entry(2).1 else {
        return Err("no entry".into());
    };
    check!(dirty == Dirty::All);
    check!(
        rig.fs.state.lock().blocks.len() == 1,
        "allocated more than asked"
    );
    Ok(())
}

/// Blocks that are made data ahead of stores are none that a mapping shows as a
/// zero page: a write by call over data would not look for it (R29).
pub fn r23_blocks_made_ahead_have_no_zero_page() -> Outcome {
    let rig = Rig::new(40)?;
    let mapping = rig.map(Perms::ReadWrite)?;
    for hole in [6, 20] {
        check!(load(&mapping, hole * 4096) == 0);
    }
    for block in [2, 3, 4, 5, 7, 8] {
        store(&mapping, block * 4096, block as u8);
    }
    let data: Vec<u64> = rig.fs.state.lock().blocks.keys().copied().collect();
    check!(data.len() > 6, "nothing was made ahead: {data:?}");
    for block in data {
        let entry = rig.file.entry(block).1;
        check!(
            !matches!(entry, Entry::Zero(_)),
            "block {block} is data, and mapped as {entry:?}"
        );
    }
    check!(load(&mapping, 6 * 4096) == 0 && load(&mapping, 5 * 4096) == 5);
    Ok(())
}

pub fn r24_a_store_after_sync_faults_again() -> Outcome {
    let rig = Rig::new(4)?;
    rig.fs.lay_out(0..4, 1)?;
    let mapping = rig.map(Perms::ReadWrite)?;
    store(&mapping, 0, 1);
    text(mapping.sync(0..4096))?;
    check!(
        leaf(&mapping, 0).is_some_and(|leaf| !leaf.attrs.write),
        "still writable"
    );
    let before = (stat().upgrades, rig.memory.flushed.load(Ordering::Relaxed));
    store(&mapping, 0, 2);
    check!(stat().upgrades > before.0);
    text(mapping.sync(0..4096))?;
    check!(rig.memory.flushed.load(Ordering::Relaxed) == before.1 + 4096);
    Ok(())
}

pub fn r27_large_leaves_where_extent_and_address_allow() -> Outcome {
    let rig = Rig::new(1024)?;
    rig.fs.lay_out(0..1024, 512)?;
    let mapping = rig.map(Perms::ReadWrite)?;
    let before = stat();
    check!(load(&mapping, 3 * MIB) == 0x5a);
    let read = leaf(&mapping, 2 * MIB).ok_or("no leaf")?;
    check!(read.size == PageSize::Size2M && !read.attrs.write);
    check!(stat().faults[1] > before.faults[1]);
    let whole = MapOptions::default().by_leaf();
    let writer = text(map_with(&rig.file, 0, 2 * MIB, Perms::ReadWrite, whole))?;
    store(&writer, MIB, 1);
    let stored = leaf(&writer, 0).ok_or("no leaf")?;
    check!(stored.size == PageSize::Size2M && stored.attrs.write);
    let info = rig.file.folio_at(3 * MIB).ok_or("no folio")?;
    check!(info.id.size == PageSize::Size2M);
    check!(info.counts.refs == 1 && info.counts.maps == 1, "{info:?}");
    Ok(())
}

pub fn r27_misaligned_mappings_fall_back_with_the_reason() -> Outcome {
    let rig = Rig::new(1024)?;
    // Memory of the wrong colour.
    rig.fs.lay_out(1..1024, 1)?;
    rig.fs.lay_out(0..1, 1)?;
    let count = |reason: Fallback| stat().fallbacks[reason as usize];
    let mapping = rig.map(Perms::Read)?;
    let before = count(Fallback::Alignment) + count(Fallback::Extent);
    check!(load(&mapping, 2 * MIB) == 0x5a);
    check!(count(Fallback::Alignment) + count(Fallback::Extent) > before);
    check!(leaf(&mapping, 2 * MIB).is_some_and(|leaf| leaf.size == PageSize::Size4K));
    // A part of the file that starts in the middle of a leaf.
    let before = count(Fallback::Mapping);
    let part = text(map(&rig.file, 4096, 3 * MIB, Perms::Read))?;
    check!(load(&part, 0) == 1 ^ 0x5a);
    check!(count(Fallback::Mapping) > before);
    Ok(())
}

pub fn r27_no_leaf_is_larger_than_asked_for() -> Outcome {
    let rig = Rig::new(1024)?;
    rig.fs.lay_out(0..1024, 512)?;
    let large = rig.map(Perms::Read)?;
    load(&large, 0);
    check!(leaf(&large, 0).is_some_and(|leaf| leaf.size == PageSize::Size2M));
    // Small leaves of a folio that is large, and of one that is not.
    let small = rig.map_small(0, 4 * MIB)?;
    for at in [0, 2 * MIB] {
        store(&small, at + 4096, 7);
        check!(leaf(&small, at + 4096).is_some_and(|leaf| leaf.size == PageSize::Size4K));
        check!(leaf(&small, at).is_none());
        check!(load(&large, at + 4096) == 7);
    }
    check!(small.leaves() == 2, "{}", small.leaves());
    Ok(())
}

pub fn r29_a_write_by_call_is_seen_by_mappings() -> Outcome {
    let rig = Rig::new(4)?;
    let mapping = rig.map(Perms::Read)?;
    check!(load(&mapping, 0) == 0);
    {
        let _guard = rig.file.before_write(0..1);
        rig.fs.lay_out(0..1, 1)?;
    }
    check!(
        load(&mapping, 0) == 0x5a,
        "the mapping still shows the hole"
    );
    Ok(())
}

pub fn mapping_is_the_memory_itself() -> Outcome {
    let rig = Rig::new(8)?;
    let first = rig.fs.lay_out(0..8, 1)?;
    let mapping = rig.map(Perms::ReadWrite)?;
    store(&mapping, 3 * 4096 + 5, 0xab);
    let mut byte = [0];
    let offset = ((first + 3) << 12) + 5;
    rig.memory
        .read(offset, &mut byte)
        .map_err(|e| e.to_string())?;
    check!(byte == [0xab], "the store went somewhere else");
    rig.memory
        .write(offset, &[0xcd])
        .map_err(|e| e.to_string())?;
    check!(load(&mapping, 3 * 4096 + 5) == 0xcd);
    let folio = rig.file.folio_at(3 * 4096).ok_or("no folio")?;
    check!(folio.id.phys() == rig.memory.base + ((first + 3) << 12));
    Ok(())
}

/// A fault that goes on where the one before ended brings the leaves behind it,
/// which allow no store: marks stay as fine as stores are.
pub fn neighbours_come_with_a_fault_that_goes_on() -> Outcome {
    let rig = Rig::new(100)?;
    let first = rig.fs.lay_out(0..20, 32)?;
    rig.fs.lay_out(20..80, 32)?;
    let mapping = rig.map(Perms::ReadWrite)?;
    let reached = |block: u64| leaf(&mapping, block << 12).map(|leaf| leaf.attrs.write);
    let counts = |block: u64| {
        rig.file
            .folio_at(block << 12)
            .map(|folio| folio.counts.refs)
    };
    // In no order: one each.
    for block in [9, 70, 3] {
        check!(load(&mapping, block << 12) == block as u8 ^ 0x5a);
    }
    check!(mapping.leaves() == 3 && counts(4).is_none());
    // In order: to the next multiple of 16, without what is there already.
    check!(load(&mapping, 4 << 12) == 4 ^ 0x5a);
    check!(mapping.leaves() == 8 && reached(8) == Some(false) && reached(10).is_none());
    store(&mapping, 10 << 12, 1);
    store(&mapping, 11 << 12, 1);
    check!(reached(10) == Some(true) && reached(15) == Some(false) && reached(16).is_none());
    // As far as the memory is one run.
    for block in 12..=17 {
        store(&mapping, block << 12, 1);
    }
    check!(reached(19) == Some(false) && reached(20).is_none());
    check!(
        leaf(&mapping, 19 << 12).is_some_and(|l| l.pa == rig.memory.base + ((first + 19) << 12))
    );
    check!(
        rig.file.entry(19)
            == (
                19,
                Entry::Mapped {
                    folio: rig.file.folio_at(19 << 12).ok_or("no folio")?.id,
                    dirty: Dirty::Clean
                }
            )
    );
    text(rig.file.sync(0..100))?;
    check!(rig.memory.flushed.load(Ordering::Relaxed) == 8 << 12);
    // By populate: all of it, and a second mapping counts for itself.
    let second = rig.map(Perms::ReadWrite)?;
    text(second.populate(false))?;
    check!(second.leaves() == 100 && counts(0) == Some(1) && counts(15) == Some(2));
    check!(leaf(&second, 79 << 12).is_some_and(|leaf| !leaf.attrs.write));
    drop(mapping);
    check!(counts(15) == Some(1));
    drop(second);
    rig.at_rest()?;
    // What a store may do from the start is dirty from the start.
    let third = rig.map(Perms::ReadWrite)?;
    text(third.populate(true))?;
    check!(third.leaves() == 100 && leaf(&third, 5 << 12).is_some_and(|l| l.attrs.write));
    text(rig.file.sync(0..100))?;
    check!(rig.memory.flushed.load(Ordering::Relaxed) == 108 << 12);
    drop(third);
    rig.at_rest()
}

/// A store that goes on behind data takes more of a hole than its own block; one
/// anywhere else does not.
pub fn r23_holes_are_filled_ahead_of_stores_in_order() -> Outcome {
    let rig = Rig::new(64)?;
    let mapping = rig.map(Perms::ReadWrite)?;
    let blocks = || {
        rig.fs
            .state
            .lock()
            .blocks
            .keys()
            .copied()
            .collect::<Vec<_>>()
    };
    store(&mapping, 5 << 12, 1);
    store(&mapping, 40 << 12, 1);
    check!(blocks() == [5, 40], "{:?}", blocks());
    store(&mapping, 6 << 12, 1);
    let expected: Vec<u64> = (5..16).chain([40]).collect();
    check!(blocks() == expected, "{:?}", blocks());
    // They read as zeros, and are clean until they are stored to.
    check!(load(&mapping, (12 << 12) + 7) == 0);
    text(rig.file.sync(0..64))?;
    check!(rig.memory.flushed.load(Ordering::Relaxed) == 3 << 12);
    drop(mapping);
    rig.at_rest()
}

pub fn populate_takes_large_leaves() -> Outcome {
    let rig = Rig::new(1024)?;
    rig.fs.lay_out(0..1024, 512)?;
    let mapping = rig.map(Perms::ReadWrite)?;
    text(mapping.populate(true))?;
    check!(mapping.leaves() == 2, "{} leaves", mapping.leaves());
    let faults = stat().write_faults;
    store(&mapping, 0, 1);
    store(&mapping, 4 * MIB - 1, 1);
    check!(stat().write_faults - faults < 100_000);
    Ok(())
}

pub fn r25_private_stores_stay_in_the_mapping() -> Outcome {
    let rig = Rig::new(1024)?;
    rig.fs.lay_out(0..512, 512)?;
    rig.fs.lay_out(512..513, 1)?;
    let shared = rig.map(Perms::ReadWrite)?;
    let options = MapOptions::default().private();
    let private = text(map_with(&rig.file, 0, 4 * MIB, Perms::ReadWrite, options))?;
    // A page of a large leaf, one of a hole, one by checked access.
    check!(load(&private, 3 << 12) == 3 ^ 0x5a);
    store(&private, (3 << 12) + 1, 7);
    store(&private, 600 << 12, 8);
    text(private.write_at(512 << 12, &[9]))?;
    check!(load(&private, 3 << 12) == 3 ^ 0x5a && load(&private, (3 << 12) + 1) == 7);
    check!(load(&private, 600 << 12) == 8 && load(&private, (600 << 12) + 1) == 0);
    let mut byte = [0];
    text(private.read_at(512 << 12, &mut byte))?;
    check!(byte == [9] && load(&private, 512 << 12) == 9);
    check!(private.own_pages() == 3, "{}", private.own_pages());
    // The file has none of it, nothing was allocated, nothing is dirty.
    check!(load(&shared, (3 << 12) + 1) == 3 ^ 0x5a && load(&shared, 600 << 12) == 0);
    check!(load(&shared, 512 << 12) == 0x5a && rig.fs.state.lock().blocks.len() == 513);
    text(rig.file.sync(0..1024))?;
    check!(rig.memory.flushed.load(Ordering::Relaxed) == 0);
    // Other pages follow the file, and a lease takes no copy away.
    store(&shared, 4 << 12, 1);
    check!(load(&private, 4 << 12) == 1);
    drop(text(rig.file.break_layout(0..512, Wait::No))?);
    check!(load(&private, (3 << 12) + 1) == 7);
    let owner = PinOwner::new("r25");
    check!(private.pin(3 << 12, &owner, &Term::Short, false).is_err());
    drop(private);
    drop(shared);
    rig.at_rest()
}

pub fn r28_synchronous_mappings_need_no_call() -> Outcome {
    let rig = Rig::new(8)?;
    rig.fs.lay_out(0..1, 1)?;
    let options = || MapOptions::default().synchronous();
    let mapping = text(map_with(&rig.file, 0, 8 << 12, Perms::ReadWrite, options()))?;
    let drains = rig.memory.drains.load(Ordering::Relaxed);
    for block in [0, 5] {
        store(&mapping, block << 12, 1);
        // The block is data in the file system before the store is done.
        check!(rig.fs.state.lock().blocks.contains_key(&block));
    }
    check!(rig.memory.drains.load(Ordering::Relaxed) == drains);
    // Where a fence does not reach the media there is no such mapping.
    rig.memory.needs_drain.store(true, Ordering::Relaxed);
    check!(map_with(&rig.file, 0, 8 << 12, Perms::ReadWrite, options()).is_err());
    check!(map(&rig.file, 0, 8 << 12, Perms::ReadWrite).is_ok());
    Ok(())
}

/// Gap 17: for who flushes by himself, one fault a leaf and no more.
pub fn untracked_mappings_fault_once() -> Outcome {
    let rig = Rig::new(1024)?;
    rig.fs.lay_out(0..1024, 512)?;
    let options = MapOptions::default().untracked();
    let mapping = text(map_with(&rig.file, 0, 4 * MIB, Perms::ReadWrite, options))?;
    check!(load(&mapping, 0) == 0x5a);
    let writable = || leaf(&mapping, 0).is_some_and(|leaf| leaf.attrs.write);
    check!(writable(), "a store would fault");
    text(mapping.populate(true))?;
    check!(mapping.leaves() == 2);
    store(&mapping, 5, 1);
    text(mapping.persist(0..64))?;
    check!(rig.memory.flushed.load(Ordering::Relaxed) == 64);
    text(rig.file.sync(0..1024))?;
    check!(
        rig.memory.flushed.load(Ordering::Relaxed) == 64,
        "a store was tracked"
    );
    check!(writable());
    Ok(())
}

/// What can't be served reaches the application, which may go on with zeros.
pub fn r21_failures_reach_the_application() -> Outcome {
    let rig = Rig::new(4)?;
    rig.fs.lay_out(0..4, 1)?;
    let heard = Arc::new(AtomicU64::new(0));
    let handler = {
        let heard = heard.clone();
        move |failure: &Failure<'_>| {
            heard.fetch_add(1 + (failure.offset << 8), Ordering::Relaxed);
            match failure.offset >> 12 {
                5 => Recovery::Zeros,
                _ => Recovery::Panic,
            }
        }
    };
    let options = MapOptions::default().on_error(Arc::new(handler));
    let mapping = text(map_with(&rig.file, 0, 8 << 12, Perms::ReadWrite, options))?;
    check!(load(&mapping, 0) == 0x5a && heard.load(Ordering::Relaxed) == 0);
    check!(load(&mapping, (5 << 12) + 3) == 0, "no zeros");
    check!(heard.load(Ordering::Relaxed) == 1 + (((5 << 12) + 3) << 8));
    store(&mapping, 5 << 12, 9);
    check!(load(&mapping, 5 << 12) == 9 && mapping.own_pages() == 1);
    check!(
        rig.fs.state.lock().blocks.len() == 4,
        "a block beyond the end"
    );
    Ok(())
}

/// The 2 MiB of the file and those of the memory need not begin at one place.
pub fn populate_takes_memory_of_any_colour() -> Outcome {
    for write in [false, true] {
        let rig = Rig::new(1024)?;
        // 100 blocks that keep the rest out of step.
        rig.fs.lay_out(0..100, 1)?;
        rig.fs.lay_out(200..1024, 1)?;
        rig.fs.lay_out(100..200, 1)?;
        let mapping = rig.map(Perms::ReadWrite)?;
        text(mapping.populate(write))?;
        check!(mapping.leaves() == 1024, "{}", mapping.leaves());
        for block in 0..1024u64 {
            check!(
                load(&mapping, block << 12) == block as u8 ^ 0x5a,
                "block {block}"
            );
            let allowed = leaf(&mapping, block << 12).is_some_and(|leaf| leaf.attrs.write);
            check!(allowed == write, "block {block}");
        }
        drop(mapping);
        rig.at_rest()?;
    }
    Ok(())
}
