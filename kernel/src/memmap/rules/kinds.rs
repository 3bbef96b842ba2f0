//! Kinds of memory, and who may pin it for long: R10, R14 to R16.

use super::*;

pub fn r10_long_term_pins_by_memory_type() -> Outcome {
    struct Never;
    impl Revoke for Never {
        fn revoke(&self, _: FolioId) {}
    }
    let lease = || Term::Lease(Some(Arc::new(Never)));
    use MemoryType::{Coherent, FsDax, Generic, PciP2pdma, Private};
    check!(admit(FsDax, &Term::Short, false) == Ok(()));
    check!(admit(FsDax, &Term::Long, false) == Err(Refusal::LongTermFile));
    check!(admit(FsDax, &Term::Lease(None), false) == Err(Refusal::LongTermFile));
    check!(admit(FsDax, &lease(), false) == Ok(()));
    check!(admit(Generic, &Term::Long, false) == Ok(()));
    check!(admit(Coherent, &Term::Short, false) == Ok(()));
    check!(admit(Coherent, &Term::Long, false) == Err(Refusal::LongTermDevice));
    check!(admit(PciP2pdma, &Term::Short, false) == Err(Refusal::PeerToPeer));
    check!(admit(PciP2pdma, &Term::Short, true) == Ok(()));
    check!(admit(PciP2pdma, &Term::Long, true) == Err(Refusal::LongTermDevice));
    check!(admit(Private, &Term::Short, true) == Err(Refusal::NotCpuMemory));
    Ok(())
}

pub fn r14_owner_is_cleared_before_the_callback() -> Outcome {
    use MemoryType::{Coherent, PciP2pdma, Private};
    for kind in [PciP2pdma, Private, Coherent] {
        for size in [Size4K, Size2M] {
            let (record, map) = pooled(kind)?;
            let id = at(&map, 512, size);
            check!(map.get(id.page).is_none());
            let held = text(map.init_folio(id))?;
            check!(held.counts() == counts(1, 0));
            check!(map.pages_handed_out() == size.pages());
            check!(map.init_folio(id).is_err(), "handed out twice");
            let second = map.get(id.page).ok_or("not got")?;
            drop(held);
            check!(record.freed.lock().is_empty(), "freed under a reference");
            drop(second);
            check!(*record.freed.lock() == [id], "{:?}", record.freed.lock());
            check!(record.owner_at_free.load(Ordering::Relaxed) == 0);
            check!(map.pages_handed_out() == 0 && map.busy_folios() == 0);
            check!(map.usage().descriptors() == 0);
            drop(text(map.init_folio(id))?);
            record.map.lock().take();
        }
    }
    check!(fsdax()?.init_folio(at(&*fsdax()?, 0, Size4K)).is_err());
    Ok(())
}

pub fn r15_generic_rests_at_zero_and_keeps_its_owner() -> Outcome {
    let map = pgmap(MemoryType::Generic, 2 << 30)?;
    let id = at(&map, 1 << 18, Size1G);
    text(map.associate(id, FILE, 1 << 18))?;
    text(map.map_leaves(id, 1))?;
    map.unmap_leaves(id, 1);
    map.put(id, 1);
    let info = map.info(id.page).ok_or("the folio is gone")?;
    check!(
        info.counts == Counts::default(),
        "rests at {:?}",
        info.counts
    );
    check!(info.owner == Some(FILE) && info.index == 1 << 18);
    Ok(())
}

pub fn r16_private_memory_migrates_and_p2pdma_is_uncached() -> Outcome {
    let (record, map) = pooled(MemoryType::Private)?;
    let id = at(&map, 3, Size4K);
    check!(!map.kind().is_cpu_readable());
    text(map.touch_private(id))?;
    check!(record.migrated.load(Ordering::Relaxed) == 1);
    check!(fsdax()?.touch_private(id).is_err());
    check!(MemoryType::PciP2pdma.is_uncached() && !MemoryType::FsDax.is_uncached());
    record.map.lock().take();
    Ok(())
}

pub fn leases_can_be_revoked() -> Outcome {
    struct Lease(SpinLock<Option<Pin>>);
    impl Revoke for Lease {
        fn revoke(&self, _: FolioId) {
            let pin = self.0.lock().take();
            drop(pin);
        }
    }
    let map = fsdax()?;
    let owner = PinOwner::new("lease");
    let id = at(&map, 3, Size4K);
    text(map.associate(id, FILE, 0))?;
    text(map.map_leaves(id, 1))?;
    let lease = Arc::new(Lease(SpinLock::new(None)));
    let held = owner
        .pin(&map, id.page, 1, Term::Lease(Some(lease.clone())), false)
        .map_err(|refusal| Error::from(refusal).to_string())?;
    *lease.0.lock() = Some(held);
    check!(!map.counts(id).is_idle());
    check!(revoke(&map, id) == 1);
    check!(map.counts(id).is_idle(), "{:?}", map.counts(id));
    check!(revoke(&map, id) == 0);
    Ok(())
}
