//! Blocks that are taken from a file while a device has them: R33 to R37, gap 13.

use super::*;

pub fn r33_truncation_parks_what_is_pinned() -> Outcome {
    let rig = Rig::new(12)?;
    let empty = rig.free()?;
    let file = rig.file("/m/f", 64)?;
    let owner = PinOwner::new("nic");
    let pins = pin(&file, 20..24, &owner)?;
    let full = rig.free()?;

    file.set_len(0).map_err(text)?;
    let parked = rig.vfs.parked();
    check!(parked.len() == 1, "{parked:?}");
    let lot = &parked[0].1;
    check!(
        lot.bytes == 4 << 12 && lot.holders.contains("nic"),
        "{lot:?}"
    );
    check!(rig.free()? == full + 60, "{} {full}", rig.free()?);

    // The device goes on; the file, and another one, take all that is free.
    let other = rig.open("/m/g")?;
    let mut at = 0;
    while other.write_at(&[0x11; 4096], at).is_ok() {
        at += 4096;
    }
    dma_write(&pins, 0xee);
    let mut back = vec![0; 4096];
    for block in 0..at / 4096 {
        other.read_at(&mut back, block * 4096).map_err(text)?;
        check!(
            back.iter().all(|b| *b == 0x11),
            "block {block} was stored to"
        );
    }
    check!(dma_reads(&pins, 0xee));
    drop((pins, other));
    rig.settled()?;
    rig.vfs.remove_file(b"/m/g").map_err(text)?;
    check!(
        rig.free()? == empty,
        "{} free, {empty} at first",
        rig.free()?
    );
    drop(file);
    rig.finish()
}

pub fn r33_a_hole_parks_what_is_pinned_of_it() -> Outcome {
    let rig = Rig::new(12)?;
    let file = rig.file("/m/f", 64)?;
    let owner = PinOwner::new("nic");
    let inside = pin(&file, 10..12, &owner)?;
    let beside = pin(&file, 40..42, &owner)?;
    file.allocate(Allocate::Punch, 8 << 12, 16 << 12)
        .map_err(text)?;
    let parked = rig.vfs.parked();
    check!(
        parked.len() == 1 && parked[0].1.bytes == 2 << 12,
        "{parked:?}"
    );
    dma_write(&inside, 0xee);
    dma_write(&beside, 0xdd);
    let mut block = vec![0; 4096];
    for (at, value) in [(7, 8), (10, 0), (11, 0), (24, 25), (40, 0xdd), (63, 64)] {
        file.read_at(&mut block, at << 12).map_err(text)?;
        check!(
            block.iter().all(|b| *b == value),
            "block {at}: {}",
            block[0]
        );
    }
    // A second hole in what is pinned beside it.
    file.allocate(Allocate::Punch, 41 << 12, 4096)
        .map_err(text)?;
    check!(rig.vfs.parked().len() == 2);
    drop((inside, beside));
    rig.settled()?;
    drop(file);
    rig.finish()
}

/// Whether a mapping and a read show these values, one for each block.
fn shows(file: &File, mapping: &crate::app::fs::Mapping, values: &[u8]) -> Outcome {
    for (at, value) in values.iter().enumerate() {
        for mapped in [false, true] {
            let mut block = vec![0; 4096];
            let offset = (at as u64) << 12;
            match mapped {
                true => mapping.read_at(offset, &mut block).map_err(text)?,
                false => drop(file.read_at(&mut block, offset).map_err(text)?),
            }
            check!(
                block.iter().all(|byte| byte == value),
                "block {at}: {} where {value} belongs (mapped: {mapped})",
                block[0]
            );
        }
    }
    Ok(())
}

pub fn r33_what_moves_is_unmapped_and_waited_for() -> Outcome {
    let rig = Arc::new(Rig::new(12)?);
    let file = rig.file("/m/f", 16)?;
    let mapping = file.map(0..20 << 12, Perms::ReadWrite).map_err(text)?;
    mapping.populate(true).map_err(text)?;
    mapping.write_at(12 << 12, &[0xdd; 4096]).map_err(text)?;
    let mut values: Vec<u8> = (1..=16).collect();
    values[12] = 0xdd;
    // Stored through the mapping and not written back yet: moves all the same.
    file.allocate(Allocate::Collapse, 4 << 12, 3 << 12)
        .map_err(text)?;
    values.drain(4..7);
    shows(&file, &mapping, &values)?;
    mapping.write_at(9 << 12, &[0xcc; 4096]).map_err(text)?;
    values[9] = 0xcc;
    file.allocate(Allocate::Insert, 2 << 12, 5 << 12)
        .map_err(text)?;
    values.splice(2..2, [0; 5]);
    shows(&file, &mapping, &values)?;
    // What a device has does not move before it is done; what comes before the
    // range is nobody's concern.
    let owner = PinOwner::new("nic");
    let before = pin(&file, 1..2, &owner)?;
    let moved = pin(&file, 15..16, &owner)?;
    let mover = {
        let rig = rig.clone();
        sched::spawn("collapse", move || -> Outcome {
            let file = rig.open("/m/f")?;
            file.allocate(Allocate::Collapse, 2 << 12, 5 << 12)
                .map_err(text)
        })
        .map_err(text)?
    };
    sched::sleep_ns(20_000_000);
    check!(!mover.is_finished(), "blocks moved under a pin");
    dma_write(&moved, 0xbb);
    drop(moved);
    mover.join()?;
    dma_write(&before, 0xaa);
    drop(before);
    values[15] = 0xbb;
    values[1] = 0xaa;
    values.drain(2..7);
    shows(&file, &mapping, &values)?;
    drop((mapping, file));
    match Arc::try_unwrap(rig) {
        Ok(rig) => rig.finish(),
        Err(_) => Err("a thread has the file system still".into()),
    }
}

pub fn r33_zeroing_shows_in_mappings() -> Outcome {
    let rig = Rig::new(12)?;
    let file = rig.file("/m/f", 16)?;
    let mapping = file.map(0..16 << 12, Perms::ReadWrite).map_err(text)?;
    mapping.populate(true).map_err(text)?;
    let owner = PinOwner::new("nic");
    let pins = pin(&file, 6..7, &owner)?;
    file.allocate(Allocate::Zero, 5 << 12, 4 << 12)
        .map_err(text)?;
    check!(rig.vfs.parked().len() == 1, "{:?}", rig.vfs.parked());
    dma_write(&pins, 0xee);
    let mut values: Vec<u8> = (1..=16).collect();
    values[5..9].fill(0);
    shows(&file, &mapping, &values)?;
    mapping.write_at(6 << 12, &[9; 4096]).map_err(text)?;
    values[6] = 9;
    shows(&file, &mapping, &values)?;
    drop(pins);
    rig.settled()?;
    drop((mapping, file));
    rig.finish()
}

pub fn r33_growing_breaks_nothing() -> Outcome {
    let rig = Rig::new(12)?;
    let file = rig.file("/m/f", 16)?;
    let mapping = file.map(0..16 << 12, Perms::ReadWrite).map_err(text)?;
    mapping.populate(true).map_err(text)?;
    let owner = PinOwner::new("nic");
    let pins = pin(&file, 0..4, &owner)?;
    let (leaves, before) = (mapping.leaves(), dax::stat());
    file.set_len(1 << 20).map_err(text)?;
    file.allocate(Allocate::Extend, 0, 2 << 20).map_err(text)?;
    check!(mapping.leaves() == leaves, "growing took leaves away");
    check!(rig.vfs.parked().is_empty());
    let _ = before;
    drop(pins);
    drop((mapping, file));
    rig.finish()
}

/// Gap 13: of a pinned 2 MiB folio the part that leaves the file is parked; the
/// file goes on with the rest, and the device with all of it.
pub fn gap_13_a_part_of_a_pinned_folio_is_parked() -> Outcome {
    let rig = Rig::new(12)?;
    let empty = rig.free()?;
    let (file, first) = large_file(&rig)?;
    let mapping = file.map(0..6 << 20, Perms::ReadWrite).map_err(text)?;
    let at = |block: u64| (first + block) << 12;
    for block in 0..512 {
        mapping
            .write_at(at(block), &[block as u8 | 1; 4096])
            .map_err(text)?;
    }
    let owner = PinOwner::new("disk");
    let pins = pin(&file, first..first + 512, &owner)?;
    check!(pins.folios() == 1, "not one folio");
    let full = rig.free()?;
    let begin = sched::now_ns();
    file.allocate(Allocate::Punch, at(100), 100 << 12)
        .map_err(text)?;
    let parked = rig.vfs.parked();
    check!(parked.len() == 1, "{parked:?}");
    let lot = &parked[0].1;
    check!(
        lot.bytes == 100 << 12 && lot.holders.contains("disk"),
        "{lot:?}"
    );
    check!(rig.free()? <= full, "blocks were freed under a pin");
    // The file: zeros in the hole, and the rest as it was, by call and by
    // leaves of its own.
    let mut back = vec![0; 4096];
    for block in [0, 99, 100, 199, 200, 511] {
        let expected = if (100..200).contains(&block) {
            0
        } else {
            block as u8 | 1
        };
        for mapped in [false, true] {
            match mapped {
                true => mapping.read_at(at(block), &mut back).map_err(text)?,
                false => drop(file.read_at(&mut back, at(block)).map_err(text)?),
            }
            check!(back.iter().all(|b| *b == expected), "block {block}");
        }
    }
    dax::serve(mapping.addr() + at(99), true).map_err(text)?;
    // The hole is filled again, with other blocks than the device's.
    for block in 100..200 {
        file.write_at(&[0x77; 4096], at(block)).map_err(text)?;
    }
    dma_write(&pins, 0xee);
    for (block, expected) in [(99, 0xee), (100, 0x77), (199, 0x77), (200, 0xee)] {
        file.read_at(&mut back, at(block)).map_err(text)?;
        check!(back.iter().all(|b| *b == expected), "block {block}");
    }
    // Then all of it is cut off: the rest of the folio is parked as well.
    file.set_len(first << 12).map_err(text)?;
    check!(
        sched::now_ns() - begin < 20_000_000_000,
        "waited for the pin"
    );
    let bytes: u64 = rig.vfs.parked().iter().map(|(_, lot)| lot.bytes).sum();
    check!(bytes == 2 << 20, "{bytes} bytes are parked");
    dma_write(&pins, 0xdd);
    check!(dma_reads(&pins, 0xdd));
    drop(pins);
    rig.settled()?;
    drop((mapping, file));
    rig.vfs.remove_file(b"/m/large").map_err(text)?;
    check!(rig.free()? == empty, "{} of {empty}", rig.free()?);
    rig.finish()
}

pub fn r34_no_block_is_reused_under_a_pin() -> Outcome {
    let rig = Arc::new(Rig::new(12)?);
    let rounds = if cfg!(target_os = "none") { 40 } else { 100 };
    rig.file("/m/f", 16)?;
    let truncator = {
        let rig = rig.clone();
        sched::spawn("truncate", move || -> Outcome {
            let file = rig.open("/m/f")?;
            for round in 0..rounds {
                file.set_len(0).map_err(text)?;
                // Whoever gets the freed blocks writes them at once.
                let name = format!("/m/g{}", round % 3);
                let other = rig.file(&name, 16)?;
                file.set_len(16 << 12).map_err(text)?;
                let mut block = vec![0; 4096];
                for at in 0..16u64 {
                    other.read_at(&mut block, at << 12).map_err(text)?;
                    let good = block.iter().all(|b| *b == at as u8 + 1);
                    check!(good, "round {round}: block {at} holds {:#x}", block[0]);
                }
                drop(other);
                rig.vfs.remove_file(name.as_bytes()).map_err(text)?;
            }
            Ok(())
        })
        .map_err(text)?
    };
    let file = rig.open("/m/f")?;
    let owner = PinOwner::new("dma");
    let mut pinned = 0u32;
    while !truncator.is_finished() {
        let at = u64::from(pinned) % 16;
        match file.pin(at << 12..(at + 1) << 12, &owner, &Term::Short, true) {
            Ok(pins) => {
                pinned += 1;
                dma_write(&pins, 0xee);
                sched::yield_now();
                check!(dma_reads(&pins, 0xee), "somebody else stored to it");
            }
            Err(Error::BadAddress { .. } | Error::NoSpace) => sched::yield_now(),
            Err(error) => return Err(text(error)),
        }
    }
    truncator.join()?;
    check!(pinned > 0, "nothing was pinned");
    drop(file);
    rig.settled()?;
    match Arc::try_unwrap(rig) {
        Ok(rig) => rig.finish(),
        Err(_) => Err("a thread has the file system still".into()),
    }
}

pub fn r35_parking_needs_no_mapping() -> Outcome {
    let rig = Rig::new(12)?;
    let file = rig.file("/m/f", 4)?;
    let dax = file.node().dax_file().map_err(text)?;
    let owner = PinOwner::new("nic");
    let pins = pin(&file, 1..2, &owner)?;
    check!(!dax.is_mapped());
    file.set_len(4096).map_err(text)?;
    check!(rig.vfs.parked().len() == 1);
    drop(pins);
    rig.settled()?;
    drop((dax, file));
    rig.finish()
}

pub fn r36_a_removed_file_lives_until_it_is_unpinned() -> Outcome {
    let rig = Rig::new(12)?;
    let empty = rig.free()?;
    let file = rig.file("/m/f", 8)?;
    let owner = PinOwner::new("nic");
    let pins = pin(&file, 0..8, &owner)?;
    let full = rig.free()?;
    drop(file);
    rig.vfs.remove_file(b"/m/f").map_err(text)?;
    check!(rig.free()? == full, "blocks were freed under a pin");
    dma_write(&pins, 0xee);
    check!(matches!(rig.vfs.unmount(b"/m"), Err(Error::Busy { .. })));
    drop(pins);
    check!(rig.free()? == empty);
    rig.finish()
}

pub fn r36_unmounting_waits_for_what_is_parked() -> Outcome {
    let rig = Rig::new(12)?;
    let file = rig.file("/m/f", 8)?;
    let owner = PinOwner::new("nic");
    let pins = pin(&file, 0..8, &owner)?;
    file.set_len(0).map_err(text)?;
    drop(file);
    check!(matches!(rig.vfs.unmount(b"/m"), Err(Error::Busy { .. })));
    drop(pins);
    // The last pin is gone: unmounting waits for the rest by itself.
    rig.finish()
}

pub fn r37_a_parked_break_that_fails_loses_nothing() -> Outcome {
    let rig = Rig::new(12)?;
    let file = rig.file("/m/f", 8)?;
    let dax = file.node().dax_file().map_err(text)?;
    let mapping = file.map(0..8 << 12, Perms::ReadWrite).map_err(text)?;
    mapping.write_at(5 << 12, b"stored").map_err(text)?;
    let owner = PinOwner::new("nic");
    let pins = pin(&file, 2..4, &owner)?;
    {
        // The file system changes its mind: nothing is parked.
        let lease = dax.break_layout(0..8, Wait::Park).map_err(text)?;
        check!(quire_fs::LayoutLease::pinned(&lease, dax.ino()) == core::slice::from_ref(&(2..4)));
    }
    check!(rig.vfs.parked().is_empty());
    let folio = dax.folio_at(2 << 12).ok_or("the pinned entry is gone")?;
    check!(folio.pins == 1);
    let dirty = |block: u64| match dax.entry(block).1 {
        dax::Entry::Mapped { dirty, .. } => dirty != dax::Dirty::Clean,
        _ => false,
    };
    check!(dirty(2) && dirty(3), "what a device stores is forgotten");
    let mut back = [0; 6];
    mapping.read_at(5 << 12, &mut back).map_err(text)?;
    check!(&back == b"stored");
    dma_write(&pins, 0xee);
    drop(pins);
    drop((mapping, dax, file));
    rig.finish()
}
