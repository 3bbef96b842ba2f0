//! What entries are, and who has them: R17 to R20, gap 19.

use super::*;

pub fn r17_entries_are_typed() -> Outcome {
    let rig = Rig::new(4)?;
    rig.fs.lay_out(1..2, 1)?;
    let mapping = rig.map(Perms::Read)?;
    check!(rig.file.entry(0).1 == Entry::Empty);
    check!(load(&mapping, 0) == 0 && load(&mapping, 4096) == 1 ^ 0x5a);
    check!(rig.file.entry(0).1 == Entry::Zero(PageSize::Size4K));
    let Entry::Mapped { folio, dirty } = rig.file.entry(1).1 else {
        return Err("block 1 isn't mapped".into());
    };
    check!(dirty == Dirty::Clean);
    let info = rig.map.info(folio.page).ok_or("no folio")?;
    check!(info.owner == Some(rig.file.owner()) && info.index == 1);
    check!(owner_name(rig.file.owner()).as_deref() == Some("the test's file"));
    Ok(())
}

pub fn r18_faults_wait_for_a_lease() -> Outcome {
    let rig = Rig::new(8)?;
    rig.fs.lay_out(0..8, 1)?;
    let mapping = Arc::new(rig.map(Perms::Read)?);
    let lease = text(rig.file.break_layout(2..4, Wait::No))?;
    let waiter = {
        let mapping = mapping.clone();
        text(sched::spawn("r18", move || load(&mapping, 2 << 12)))?
    };
    // Other blocks are not held up.
    check!(load(&mapping, 1 << 12) == 1 ^ 0x5a);
    sched::sleep_ns(2_000_000);
    check!(!waiter.is_finished(), "a fault went past the lease");
    drop(lease);
    check!(waiter.join() == 2 ^ 0x5a);
    Ok(())
}

pub fn r19_write_on_a_zero_entry_replaces_it() -> Outcome {
    let rig = Rig::new(4)?;
    let reader = rig.map(Perms::Read)?;
    let writer = rig.map(Perms::ReadWrite)?;
    check!(load(&reader, 4096) == 0 && load(&writer, 4096) == 0);
    store(&writer, 4100, 7);
    // The zero page is gone from both.
    check!(load(&reader, 4100) == 7, "a mapping still shows the hole");
    check!(matches!(rig.file.entry(1).1, Entry::Mapped { .. }));
    Ok(())
}

pub fn r20_dirty_marks_are_of_pages() -> Outcome {
    let rig = Rig::new(1024)?;
    rig.fs.lay_out(0..1024, 512)?;
    let mapping = rig.map(Perms::ReadWrite)?;
    text(mapping.write_at(5 * 4096 + 10, &[1; 5000]))?;
    let (first, Entry::Mapped { folio, dirty }) = rig.file.entry(6) else {
        return Err("no entry".into());
    };
    check!(first == 0 && folio.size == PageSize::Size2M);
    check!(
        dirty.runs(512) == core::slice::from_ref(&(5..7)),
        "{:?}",
        dirty.runs(512)
    );
    Ok(())
}

/// Gap 19: small entries do not forbid a large one for ever.
pub fn gap_19_idle_small_entries_give_way_to_a_large_one() -> Outcome {
    let rig = Rig::new(1024)?;
    rig.fs.lay_out(0..1024, 512)?;
    let small = rig.map_small(0, 4 * MIB)?;
    store(&small, 5 << 12, 1);
    check!(load(&small, 9 << 12) == 9 ^ 0x5a);
    let large = rig.map(Perms::ReadWrite)?;
    // In use: the large mapping gets small leaves, and says why.
    let before = stat();
    check!(load(&large, 6 << 12) == 6 ^ 0x5a);
    let reason = Fallback::Entries as usize;
    check!(stat().fallbacks[reason] > before.fallbacks[reason]);
    check!(leaf(&large, 6 << 12).is_some_and(|leaf| leaf.size == PageSize::Size4K));
    drop(small);
    drop(large);
    let large = rig.map(Perms::ReadWrite)?;
    check!(load(&large, 7 << 12) == 7 ^ 0x5a);
    check!(leaf(&large, 0).is_some_and(|leaf| leaf.size == PageSize::Size2M));
    check!(stat().merges > before.merges);
    check!(rig.map.usage().folios == [0, 1, 0], "{:?}", rig.map.usage());
    // What was stored before is dirty still, and only that.
    let (0, Entry::Mapped { dirty, .. }) = rig.file.entry(5) else {
        return Err("no large entry".into());
    };
    check!(
        dirty.runs(512) == core::slice::from_ref(&(5..6)),
        "{dirty:?}"
    );
    Ok(())
}
