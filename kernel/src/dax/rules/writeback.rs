//! Write-back: R30 to R32, gap 11.

use super::*;

pub fn r31_sync_flushes_only_what_is_dirty() -> Outcome {
    let rig = Rig::new(1024)?;
    rig.fs.lay_out(0..1024, 512)?;
    let mapping = rig.map(Perms::ReadWrite)?;
    text(mapping.write_at(100 * 4096, &[1; 10]))?;
    text(mapping.write_at(900 * 4096, &[1; 10]))?;
    text(rig.file.sync(0..1024))?;
    let flushed = rig.memory.flushed.load(Ordering::Relaxed);
    check!(
        flushed == 2 * 4096,
        "{flushed} bytes for two pages of 4 MiB"
    );
    check!(
        rig.memory.drains.load(Ordering::Relaxed) == 1,
        "more than one drain"
    );
    text(rig.file.sync(0..1024))?;
    check!(
        rig.memory.flushed.load(Ordering::Relaxed) == flushed,
        "clean pages flushed"
    );
    Ok(())
}

pub fn gap_11_pinned_pages_stay_dirty() -> Outcome {
    // Gap 11: a device may store after the sync, without a fault.
    let rig = Rig::new(4)?;
    rig.fs.lay_out(0..4, 1)?;
    let mapping = rig.map(Perms::ReadWrite)?;
    let owner = PinOwner::new("device");
    let pin = text(mapping.pin(0, &owner, &Term::Short, true))?;
    text(rig.file.sync(0..4))?;
    let flushed = rig.memory.flushed.load(Ordering::Relaxed);
    text(rig.file.sync(0..4))?;
    check!(rig.memory.flushed.load(Ordering::Relaxed) == flushed + 4096);
    drop(pin);
    text(rig.file.sync(0..4))?;
    text(rig.file.sync(0..4))?;
    check!(rig.memory.flushed.load(Ordering::Relaxed) == flushed + 2 * 4096);
    Ok(())
}

pub fn r30_sync_of_a_part_leaves_the_rest_dirty() -> Outcome {
    let rig = Rig::new(1024)?;
    rig.fs.lay_out(0..1024, 512)?;
    let flushed = || rig.memory.flushed.load(Ordering::Relaxed);
    let options = MapOptions::default().by_leaf();
    let mapping = text(map_with(&rig.file, 0, 4 * MIB, Perms::ReadWrite, options))?;
    // A large leaf that may be stored to: the part goes to the media, and the
    // leaf stays as it is.
    store(&mapping, 0, 1);
    text(mapping.sync(8192..12288))?;
    check!(flushed() == 4096, "{}", flushed());
    check!(leaf(&mapping, 0).is_some_and(|leaf| leaf.attrs.write));
    text(rig.file.sync(0..1024))?;
    check!(flushed() == 4096 + 2 * MIB, "{}", flushed());
    // Small leaves one by one.
    let small = rig.map_small(2 * MIB, 2 * MIB)?;
    for block in 0..4 {
        store(&small, block << 12, 1);
    }
    let before = flushed();
    text(small.sync(4096..8192))?;
    check!(flushed() == before + 4096);
    check!(leaf(&small, 4096).is_some_and(|leaf| !leaf.attrs.write));
    check!(leaf(&small, 8192).is_some_and(|leaf| leaf.attrs.write));
    text(rig.file.sync(0..1024))?;
    check!(flushed() == before + 4 * 4096);
    Ok(())
}

pub fn r32_no_leaf_of_any_mapping_allows_stores_after_sync() -> Outcome {
    let rig = Rig::new(1024)?;
    rig.fs.lay_out(0..512, 512)?;
    rig.fs.lay_out(512..1024, 1)?;
    let one = rig.map(Perms::ReadWrite)?;
    let two = text(map(&rig.file, 4096, 600 << 12, Perms::ReadWrite))?;
    for block in [1, 7, 520] {
        store(&one, block << 12, 1);
        store(&two, (block - 1) << 12, 2);
    }
    text(rig.file.sync(0..1024))?;
    for block in [1, 7, 520] {
        check!(leaf(&one, block << 12).is_some_and(|leaf| !leaf.attrs.write));
        check!(leaf(&two, (block - 1) << 12).is_some_and(|leaf| !leaf.attrs.write));
    }
    let before = rig.memory.flushed.load(Ordering::Relaxed);
    store(&two, 6 << 12, 3);
    text(rig.file.sync(0..1024))?;
    let flushed = rig.memory.flushed.load(Ordering::Relaxed) - before;
    check!(
        flushed == 4096,
        "{flushed} bytes for one page by a small leaf"
    );
    check!(rig.memory.drains.load(Ordering::Relaxed) == 2);
    Ok(())
}
