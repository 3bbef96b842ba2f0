//! Counting and identity: R1 to R9, R11 to R13.

use super::*;

pub fn r01_metadata_is_small_and_zero_at_rest() -> Outcome {
    check!(size_of::<Descriptor>() <= 32);
    let descriptor = Descriptor::new();
    check!(descriptor.is_zero() && descriptor.state() == State::Free);
    // Zeroed memory is such a descriptor.
    // SAFETY: the type is made of atomic integers; zeros are valid.
    let zeroed: Descriptor = unsafe { core::mem::zeroed() };
    check!(zeroed.is_zero() && zeroed.state() == State::Free);
    check!(!zeroed.try_get(), "a free page was got");
    Ok(())
}

pub fn r02_states_follow_the_counts() -> Outcome {
    let map = fsdax()?;
    let id = at(&map, 5, Size4K);
    check!(map.info(id.page).is_none(), "a fresh page isn't free");
    text(map.associate(id, FILE, 77))?;
    let state = || map.info(id.page).map_or("free", |info| info.state());
    check!(state() == "idle");
    text(map.map_leaves(id, 1))?;
    check!(state() == "mapped");
    let held = map.get(id.page).ok_or("a mapped folio can't be got")?;
    check!(state() == "busy");
    drop(held);
    check!(state() == "mapped");
    map.unmap_leaves(id, 1);
    map.put(id, 1);
    check!(state() == "idle");
    check!(text(map.disassociate(id))?);
    check!(map.info(id.page).is_none());
    Ok(())
}

pub fn r03_associating_writes_one_record() -> Outcome {
    let map = fsdax()?;
    let id = at(&map, 512, Size2M);
    text(map.associate(id, FILE, 1024))?;
    let info = map.info(id.page + 300).ok_or("no folio")?;
    check!(info.id == id && info.owner == Some(FILE) && info.index == 1024);
    check!(info.counts == Counts::default(), "{:?}", info.counts);
    let usage = map.usage();
    check!(usage.folios == [0, 1, 0], "{usage:?}");
    // The folio and the 1 GiB record above it, which says "split".
    check!(
        usage.descriptors() == 2 && usage.descriptor_pages == 2,
        "{usage:?}"
    );
    Ok(())
}

pub fn r03_associating_twice_conflicts() -> Outcome {
    let map = fsdax()?;
    text(map.associate(at(&map, 0, Size2M), FILE, 0))?;
    let before = map.usage();
    check!(map.associate(at(&map, 0, Size2M), FILE, 0).is_err());
    check!(map.associate(at(&map, 7, Size4K), FILE, 7).is_err());
    check!(map.associate(at(&map, 0, Size1G), FILE, 0).is_err());
    check!(
        map.associate(at(&map, 1, Size2M), FILE, 0).is_err(),
        "misaligned"
    );
    check!(
        map.associate(at(&map, 4 << 18, Size4K), FILE, 0).is_err(),
        "outside"
    );
    check!(map.usage().folios == before.folios && map.usage().split == before.split);
    Ok(())
}

pub fn r04_first_map_takes_one_ref_and_one_mapcount() -> Outcome {
    let map = fsdax()?;
    for (page, size) in [(3, Size4K), (512, Size2M), (1 << 18, Size1G)] {
        let id = at(&map, page, size);
        check!(map.map_leaves(id, 1).is_err(), "a free page was mapped");
        text(map.associate(id, FILE, 0))?;
        check!(map.get(id.page).is_none(), "an idle folio was got");
        text(map.map_leaves(id, 1))?;
        check!(map.counts(id) == counts(1, 1), "{:?}", map.counts(id));
    }
    check!(map.busy_folios() == 3);
    Ok(())
}

pub fn r05_further_leaves_count_on_their_folio() -> Outcome {
    let map = fsdax()?;
    let id = at(&map, 1024, Size2M);
    text(map.associate(id, FILE, 0))?;
    text(map.map_leaves(id, 1))?;
    // A 4 KiB leaf inside it counts on it.
    let found = map.info(id.page + 17).ok_or("no folio")?.id;
    check!(found == id);
    text(map.map_leaves(found, 1))?;
    check!(map.counts(id) == counts(2, 2));
    check!(map.busy_folios() == 1, "one folio, however many leaves");
    Ok(())
}

pub fn r05_runs_are_counted_as_single_leaves_are() -> Outcome {
    let map = fsdax()?;
    let rest = map.usage();
    // Over a page of descriptors (128), and up to what another file has.
    text(map.associate(at(&map, 140, Size4K), owner(9), 0))?;
    let first = at(&map, 100, Size4K);
    check!(text(map.associate_mapped_run(first, 60, FILE, 7))? == 28);
    let second = at(&map, 128, Size4K);
    check!(text(map.associate_mapped_run(second, 32, FILE, 35))? == 12);
    check!(map.busy_folios() == 40, "{}", map.busy_folios());
    let below = map.usage().folios[0];
    check!(below == 41, "{below}");
    for page in 100..140 {
        let id = at(&map, page, Size4K);
        let info = map.info(id.page).ok_or("no folio")?;
        check!(
            info.counts == counts(1, 1) && info.owner == Some(FILE) && info.index == page - 93,
            "{info:?}"
        );
    }
    check!(text(map.map_leaves_run(second, 13))? == 13);
    check!(map.counts(at(&map, 140, Size4K)) == counts(1, 1));
    check!(map.counts(second) == counts(2, 2) && map.busy_folios() == 41);
    // Over a 2 MiB's end, or the pgmap's, there is no run.
    check!(
        map.associate_mapped_run(at(&map, 511, Size4K), 2, FILE, 0)
            .is_err()
    );
    check!(map.map_leaves_run(first, 0).is_err());
    map.drop_leaves(first.page, Size4K, 40);
    map.drop_leaves(second.page, Size4K, 13);
    check!(map.busy_folios() == 0);
    text(map.disassociate_run(first, 40))?;
    check!(text(map.disassociate(at(&map, 140, Size4K)))?);
    map.trim();
    check!(map.usage() == rest, "{:?} is not {rest:?}", map.usage());
    Ok(())
}

pub fn r06_zero_page_is_not_counted() -> Outcome {
    let owner = PinOwner::new("r06");
    let pin = owner.pin_zero();
    check!(pin.folio().is_none() && pin.count() == 0);
    check!(!pins().iter().any(|pin| pin.owner == "r06"));
    Ok(())
}

pub fn r07_unmap_drops_ref_after_shootdown() -> Outcome {
    let map = fsdax()?;
    let id = at(&map, 9, Size4K);
    text(map.associate(id, FILE, 0))?;
    text(map.map_leaves(id, 1))?;
    map.unmap_leaves(id, 1);
    // Between clearing the leaf and the end of the shoot-down another CPU may
    // still use it: the folio is busy, and can't be freed.
    check!(map.counts(id) == counts(1, 0));
    check!(!map.counts(id).is_idle());
    check!(map.disassociate(id).is_err());
    map.put(id, 1);
    check!(map.counts(id) == Counts::default());
    check!(text(map.disassociate(id))?);
    Ok(())
}

pub fn r08_pins_are_exact_and_outlive_the_mapping() -> Outcome {
    let map = fsdax()?;
    let owner = PinOwner::new("r08");
    for (page, size) in [(1, Size4K), (512, Size2M)] {
        let id = at(&map, page, size);
        text(map.associate(id, FILE, 0))?;
        text(map.map_leaves(id, 1))?;
        // Any part of it busies the whole folio.
        let held = pin(&owner, &map, id.pages().end - 1, 3)?;
        let info = map.info(id.page).ok_or("no folio")?;
        check!(info.counts == counts(4, 1) && info.pins == 3, "{info:?}");
        map.unmap_leaves(id, 1);
        map.put(id, 1);
        let info = map.info(id.page).ok_or("the folio went with its leaf")?;
        check!(info.counts == counts(3, 0) && info.pins == 3, "{info:?}");
        check!(info.state() == "busy");
        check!(holders(&map, id) == "r08 ×3", "{}", holders(&map, id));
        drop(held);
        let info = map.info(id.page).ok_or("no folio")?;
        check!(
            info.counts == Counts::default() && info.pins == 0,
            "{info:?}"
        );
    }
    check!(!pins().iter().any(|pin| pin.owner == "r08"));
    Ok(())
}

pub fn r09_lock_free_pin_fails_at_zero() -> Outcome {
    let map = fsdax()?;
    let owner = PinOwner::new("r09");
    let id = at(&map, 2, Size4K);
    check!(pin(&owner, &map, id.page, 1).is_err(), "pinned a free page");
    text(map.associate(id, FILE, 0))?;
    check!(
        pin(&owner, &map, id.page, 1).is_err(),
        "pinned an idle folio"
    );
    check!(map.counts(id) == Counts::default());
    text(map.map_leaves(id, 1))?;
    let held = pin(&owner, &map, id.page, 1)?;
    check!(map.counts(id) == counts(2, 1));
    // The leaf has changed meanwhile: undoing is dropping.
    drop(held);
    check!(map.counts(id) == counts(1, 1));
    Ok(())
}

pub fn r11_last_ref_wakes_and_keeps_the_owner() -> Outcome {
    let record = Arc::new(Record::default());
    let driver = Box::new(Driver(record.clone()));
    let map = Arc::new(text(Pgmap::new(spec(
        MemoryType::FsDax,
        1 << 30,
        Some(driver),
    )))?);
    let id = at(&map, 4, Size4K);
    text(map.associate(id, FILE, 42))?;
    text(map.map_leaves(id, 1))?;
    let held = map.get(id.page).ok_or("not got")?;
    map.unmap_leaves(id, 1);
    map.put(id, 1);
    let waiter = {
        let map = map.clone();
        text(sched::spawn("r11", move || map.wait_idle(id, None)))?
    };
    sched::sleep_ns(2_000_000);
    check!(!waiter.is_finished(), "woke before the last reference went");
    drop(held);
    check!(waiter.join());
    let info = map.info(id.page).ok_or("the folio is gone")?;
    check!(info.owner == Some(FILE) && info.index == 42 && info.state() == "idle");
    check!(record.freed.lock().is_empty(), "a driver was called");
    Ok(())
}

pub fn r12_disassociating_resets_every_field() -> Outcome {
    let map = fsdax()?;
    for (page, size) in [(1, Size4K), (512, Size2M), (1 << 18, Size1G)] {
        let id = at(&map, page, size);
        text(map.associate(id, owner(9), 1 << 30))?;
        text(map.map_leaves(id, 2))?;
        check!(map.disassociate(id).is_err(), "a mapped folio was freed");
        map.unmap_leaves(id, 2);
        map.put(id, 2);
        check!(text(map.disassociate(id))?);
        let record = map.record(id.page, size).ok_or("no record")?;
        check!(record.is_zero(), "a field of a free {size} record isn't 0");
    }
    check!(map.usage().descriptors() == 0, "{:?}", map.usage());
    Ok(())
}

pub fn r13_reflink_counts_owners() -> Outcome {
    let map = fsdax()?;
    let id = at(&map, 6, Size4K);
    check!(map.share(id).is_err(), "shared what nobody has");
    text(map.associate(id, FILE, 3))?;
    check!(text(map.share(id))? == 2);
    let info = map.info(id.page).ok_or("no folio")?;
    check!(info.owner.is_none() && info.share == 2, "{info:?}");
    check!(text(map.share(id))? == 3);
    check!(!text(map.disassociate(id))?);
    check!(!text(map.disassociate(id))?);
    check!(map.info(id.page).ok_or("gone with an owner left")?.share == 1);
    check!(text(map.disassociate(id))?);
    check!(map.info(id.page).is_none());
    Ok(())
}

pub fn idle_is_refs_equal_mapcount() -> Outcome {
    // Gap 2: the waiter sleeps on a pinned folio; it is mapped again, then
    // unpinned. It must wake although refs never were 0.
    let map = fsdax()?;
    let owner = PinOwner::new("idle");
    let id = at(&map, 3, Size4K);
    text(map.associate(id, FILE, 0))?;
    text(map.map_leaves(id, 1))?;
    let held = pin(&owner, &map, id.page, 1)?;
    map.unmap_leaves(id, 1);
    map.put(id, 1);
    let waiter = {
        let map = map.clone();
        text(sched::spawn("idle", move || map.wait_idle(id, None)))?
    };
    sched::sleep_ns(2_000_000);
    text(map.map_leaves(id, 1))?;
    check!(!waiter.is_finished(), "woke under a pin");
    drop(held);
    check!(waiter.join());
    check!(map.counts(id) == counts(1, 1));
    Ok(())
}
