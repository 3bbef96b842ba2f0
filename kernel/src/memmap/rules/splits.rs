//! Folios that are split and merged, under pins as well: gap 13, I1, I2.

use super::*;

pub fn split_carries_state_down_and_merge_restores_it() -> Outcome {
    let map = fsdax()?;
    let large = at(&map, 1 << 18, Size1G);
    text(map.associate(large, FILE, 1 << 18))?;
    text(map.split(large))?;
    let second = at(&map, (1 << 18) + 512, Size2M);
    let info = map.info(second.page).ok_or("no folio below")?;
    check!(info.id == second && info.owner == Some(FILE) && info.index == (1 << 18) + 512);
    text(map.split(second))?;
    let page = at(&map, (1 << 18) + 512 + 3, Size4K);
    let info = map.info(page.page).ok_or("no folio below")?;
    check!(info.id == page && info.index == (1 << 18) + 515);
    check!(map.usage().folios == [512, 511, 0], "{:?}", map.usage());
    check!(!text(map.merge(large))?, "merged over a split neighbour");
    check!(text(map.merge(second))?);
    check!(map.usage().folios == [0, 512, 0], "{:?}", map.usage());
    check!(text(map.merge(large))?);
    check!(map.usage().folios == [0, 0, 1], "{:?}", map.usage());
    let info = map.info(page.page).ok_or("no folio")?;
    check!(info.id == large && info.owner == Some(FILE) && info.index == 1 << 18);
    check!(text(map.disassociate(large))?);
    check!(map.usage().descriptors() == 0, "{:?}", map.usage());
    Ok(())
}

pub fn split_and_merge_refuse_what_is_in_use() -> Outcome {
    let map = fsdax()?;
    let large = at(&map, 0, Size2M);
    text(map.associate(large, FILE, 0))?;
    text(map.map_leaves(large, 1))?;
    check!(map.split(large).is_err(), "split a mapped folio");
    map.unmap_leaves(large, 1);
    map.put(large, 1);
    text(map.split(large))?;
    let page = at(&map, 100, Size4K);
    text(map.map_leaves(page, 1))?;
    check!(!text(map.merge(large))?, "merged a mapped part");
    check!(map.counts(page) == counts(1, 1));
    map.unmap_leaves(page, 1);
    map.put(page, 1);
    // Another file's page among them.
    check!(text(map.disassociate(page))?);
    check!(!text(map.merge(large))?, "merged over a gap");
    text(map.associate(page, owner(5), 100))?;
    check!(!text(map.merge(large))?, "merged two owners");
    check!(text(map.disassociate(page))?);
    text(map.associate(page, FILE, 101))?;
    check!(!text(map.merge(large))?, "merged out of order");
    check!(text(map.disassociate(page))?);
    text(map.associate(page, FILE, 100))?;
    check!(text(map.merge(large))?);
    Ok(())
}

pub fn poison_is_one_page_of_a_large_folio() -> Outcome {
    let map = fsdax()?;
    let large = at(&map, 0, Size2M);
    text(map.associate(large, FILE, 0))?;
    let bad = map.pages().start + 300;
    text(map.set_poison(bad, true))?;
    check!(map.is_poisoned(bad) && !map.is_poisoned(bad - 1) && !map.is_poisoned(large.page));
    check!(map.info(large.page).ok_or("no folio")?.poisoned);
    check!(map.first_poisoned(map.pages()) == Some(bad));
    check!(map.first_poisoned(bad + 1..map.pages().end).is_none());
    text(map.split(large))?;
    check!(map.is_poisoned(bad), "lost in the split");
    check!(
        text(map.merge(large))? && map.is_poisoned(bad),
        "lost in the merge"
    );
    check!(text(map.disassociate(large))?);
    check!(map.is_poisoned(bad), "lost with the entry");
    text(map.set_poison(bad, false))?;
    check!(map.first_poisoned(map.pages()).is_none());
    map.trim();
    check!(map.usage().descriptor_pages == 0, "{:?}", map.usage());
    Ok(())
}

/// I1 and I2: after any history of mapping, pinning, splitting and merging all
/// counts are at rest and every field is 0.
pub fn random_histories_end_at_rest() -> Outcome {
    let map = fsdax()?;
    let pinner = PinOwner::new("random");
    let mut seed = 0x1234_5678_9abc_def1u64;
    let mut random = move |n: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed % n
    };
    let large = at(&map, 512, Size2M);
    text(map.associate(large, FILE, 0))?;
    let mut leaves: Vec<FolioId> = Vec::new();
    let mut pinned: Vec<Pin> = Vec::new();
    for _ in 0..20_000 {
        let page = large.page + random(512);
        let id = map.info(page).ok_or("the folio is gone")?.id;
        match random(6) {
            0 | 1 => {
                text(map.map_leaves(id, 1))?;
                leaves.push(id);
            }
            2 if !leaves.is_empty() => {
                let id = leaves.swap_remove(random(leaves.len() as u64) as usize);
                map.unmap_leaves(id, 1);
                map.put(id, 1);
            }
            3 => pinned.extend(pin(&pinner, &map, page, 1 + random(3) as u32).ok()),
            4 if !pinned.is_empty() => {
                drop(pinned.swap_remove(random(pinned.len() as u64) as usize));
            }
            5 => {
                let quiet = leaves.is_empty() && pinned.is_empty();
                if id.size == Size2M {
                    check!(map.split(id).is_ok() == (map.counts(id).refs == 0));
                } else {
                    check!(text(map.merge(large))? == quiet);
                }
                if random(4) == 0 {
                    pinned.clear();
                    for id in leaves.drain(..) {
                        map.unmap_leaves(id, 1);
                        map.put(id, 1);
                    }
                }
            }
            _ => {}
        }
        let held: u64 = pinned.iter().map(|pin| u64::from(pin.count())).sum();
        let expected = leaves.len() as u64 + held;
        if random(64) == 0 {
            let mut sum = 0;
            let mut page = large.page;
            while page < large.pages().end {
                let info = map.info(page).ok_or("the folio is gone")?;
                sum += u64::from(info.counts.refs);
                page = info.id.pages().end;
            }
            check!(sum == expected, "{sum} references, {expected} expected");
        }
    }
    pinned.clear();
    for id in leaves.drain(..) {
        map.unmap_leaves(id, 1);
        map.put(id, 1);
    }
    text(map.merge(large))?;
    check!(text(map.disassociate(large))?);
    check!(map.busy_folios() == 0 && map.usage().descriptors() == 0);
    map.trim();
    check!(
        map.usage().descriptor_pages == 0,
        "a field of a free record isn't 0"
    );
    Ok(())
}

/// Gap 13: a folio that is pinned can be split when a part of it leaves its
/// file. The pin keeps all parts; the last unpin frees them and wakes who waits
/// for any.
pub fn gap_13_a_held_folio_is_split_and_keeps_its_parts() -> Outcome {
    let map = fsdax()?;
    let device = PinOwner::new("held");
    let large = at(&map, 512, Size2M);
    text(map.associate(large, FILE, 512))?;
    text(map.map_leaves(large, 1))?;
    let held = pin(&device, &map, large.page + 7, 1)?;
    let again = held.folio().ok_or("no folio")?.clone();
    check!(map.split_held(large).is_err(), "split under a leaf");
    map.unmap_leaves(large, 1);
    map.put(large, 1);
    check!(map.split(large).is_err(), "split as if it were idle");
    text(map.split_held(large))?;

    let part = at(&map, 512 + 9, Size4K);
    let info = map.info(part.page).ok_or("no part")?;
    check!(info.id == part && info.owner == Some(FILE) && info.index == 521);
    check!(info.pins == 1 && info.state() == "busy", "{info:?}");
    check!(!map.is_idle(part) && map.pins_of(part) == 1);
    check!(map.first_referenced(at(&map, 512, Size4K), 512) == Some(at(&map, 512, Size4K)));
    check!(
        holders(&map, part).contains("held"),
        "the holder isn't named"
    );
    check!(map.disassociate(part).is_err(), "freed under a pin");
    check!(map.disassociate_run(part, 3).is_err(), "freed under a pin");
    check!(!text(map.merge(large))?, "merged under a pin");
    check!(!map.wait_idle(part, Some(sched::now_ns() + 1_000_000)));
    // The file goes on using its parts.
    text(map.map_leaves(part, 1))?;
    check!(map.counts(part) == counts(1, 1) && !map.is_idle(part));
    let other = pin(&device, &map, part.page, 1)?;
    check!(map.pins_of(part) == 2 && map.pins_of(at(&map, 512, Size4K)) == 1);
    map.drop_leaves(part.page, Size4K, 1);

    let waiter = {
        let map = map.clone();
        text(sched::spawn("gap 13", move || map.wait_idle(part, None)))?
    };
    drop(held);
    // A reference is enough to keep them.
    check!(!map.is_idle(at(&map, 600, Size4K)) && map.pins_of(part) == 1);
    drop(again);
    check!(map.is_idle(at(&map, 600, Size4K)));
    sched::sleep_ns(1_000_000);
    check!(!waiter.is_finished(), "woke under the part's own pin");
    drop(other);
    check!(waiter.join());
    check!(text(map.disassociate(part))?);
    text(map.disassociate_run(at(&map, 512, Size4K), 9))?;
    text(map.disassociate_run(at(&map, 512 + 10, Size4K), 502))?;
    check!(map.busy_folios() == 0 && map.usage().descriptors() == 0);
    map.trim();
    check!(map.usage().descriptor_pages == 0, "{:?}", map.usage());
    Ok(())
}

/// The same, two sizes down.
pub fn gap_13_parts_of_a_held_gigabyte_wait_for_it() -> Outcome {
    let map = fsdax()?;
    let device = PinOwner::new("held");
    let huge = at(&map, 1 << 18, Size1G);
    text(map.associate(huge, FILE, 0))?;
    text(map.map_leaves(huge, 1))?;
    let held = pin(&device, &map, huge.page, 2)?;
    map.drop_leaves(huge.page, Size1G, 1);
    text(map.split_held(huge))?;
    let large = at(&map, (1 << 18) + 512, Size2M);
    // And a part of it, which somebody else has pinned, again.
    text(map.map_leaves(large, 1))?;
    let second = pin(&device, &map, large.page, 1)?;
    map.drop_leaves(large.page, Size2M, 1);
    text(map.split_held(large))?;
    let (page, beside) = (at(&map, (1 << 18) + 515, Size4K), at(&map, 1 << 18, Size2M));
    check!(map.pins_of(page) == 3 && map.pins_of(beside) == 2);
    drop(held);
    check!(map.pins_of(page) == 1 && !map.is_idle(page) && map.is_idle(beside));
    check!(!text(map.merge(large))?);
    drop(second);
    check!(map.is_idle(page));
    check!(text(map.merge(large))? && text(map.merge(huge))?);
    check!(text(map.disassociate(huge))?);
    check!(map.busy_folios() == 0 && map.usage().descriptors() == 0);
    map.trim();
    check!(map.usage().descriptor_pages == 0, "{:?}", map.usage());
    Ok(())
}
