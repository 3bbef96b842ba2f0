//! Those who use a file at once, and device-dax: R15, I3, I4, gap 21.

use super::*;

struct Tenant {
    pins: SpinLock<Option<Pinned>>,
    asked: WaitQueue,
    wanted: SpinLock<bool>,
}

impl Revoke for Tenant {
    fn revoke(&self, _: FolioId) {
        *self.wanted.lock() = true;
        self.asked.wake_all();
    }
}

pub fn i3_leases_are_revoked_and_blocks_freed_after() -> Outcome {
    let rig = Rig::new(12)?;
    let empty = rig.free()?;
    let file = rig.file("/m/f", 8)?;
    let tenant = Arc::new(Tenant {
        pins: SpinLock::new(None),
        asked: WaitQueue::new(),
        wanted: SpinLock::new(false),
    });
    let owner = PinOwner::new("rdma");
    let long = file.pin(0..8 << 12, &owner, &Term::Long, true);
    check!(matches!(long, Err(Error::Unsupported { .. })), "R10");
    let revoke: Arc<dyn Revoke> = tenant.clone();
    let pins = file.pin(0..8 << 12, &owner, &Term::Lease(Some(revoke)), true);
    *tenant.pins.lock() = Some(pins.map_err(text)?);
    let theirs = tenant.clone();
    let holder = sched::spawn("tenant", move || {
        theirs.asked.wait_until(|| *theirs.wanted.lock());
        let pins = theirs.pins.lock().take();
        drop(pins);
    })
    .map_err(text)?;
    file.set_len(0).map_err(text)?;
    holder.join();
    rig.settled()?;
    drop(file);
    rig.vfs.remove_file(b"/m/f").map_err(text)?;
    check!(rig.free()? == empty);
    rig.finish()
}

pub fn i4_pinned_for_writing_stays_dirty() -> Outcome {
    let rig = Rig::new(12)?;
    let file = rig.file("/m/f", 8)?;
    let owner = PinOwner::new("disk");
    let pins = pin(&file, 4..6, &owner)?;
    let dax = file.node().dax_file().map_err(text)?;
    let dirty = |block: u64| match dax.entry(block).1 {
        dax::Entry::Mapped { dirty, .. } => dirty != dax::Dirty::Clean,
        _ => false,
    };
    file.sync_all().map_err(text)?;
    check!(
        dirty(4) && dirty(5),
        "cleaned while a device may store to it"
    );
    dma_write(&pins, 0xee);
    drop(pins);
    check!(dirty(4) && dirty(5), "the device's stores are forgotten");
    file.sync_all().map_err(text)?;
    check!(!dirty(4) && !dirty(5));
    drop((dax, file));
    rig.finish()
}

pub fn breaking_can_be_given_up() -> Outcome {
    let rig = Rig::new(12)?;
    let file = rig.file("/m/f", 8)?;
    let dax = file.node().dax_file().map_err(text)?;
    let owner = PinOwner::new("nic");
    let pins = pin(&file, 0..1, &owner)?;
    let mut asked = 0;
    let result = dax.break_layout_unless(0..8, || {
        asked += 1;
        asked > 3
    });
    match result {
        Err(Error::Busy { by }) => check!(by.contains("nic"), "{by}"),
        _ => return Err("broken under a pin".into()),
    }
    drop(pins);
    let lease = dax.break_layout_unless(0..8, || true).map_err(text)?;
    drop((lease, dax, file));
    rig.finish()
}

pub fn r15_device_dax_maps_by_its_alignment() -> Outcome {
    use crate::dax::device::DaxDevice;
    use crate::memmap::MemoryType;
    use quire_arch::PageSize;
    for align in [PageSize::Size4K, PageSize::Size2M] {
        let trial = Trial::generic("dax9.0", 11, align).map_err(text)?;
        let device = DaxDevice::new(trial.namespace()).map_err(text)?;
        let (map, bytes) = (trial.namespace().pgmap(), align.bytes());
        check!(map.kind() == MemoryType::Generic && device.len() == 8 << 20);
        for (offset, len) in [
            (bytes / 2, bytes),
            (0, bytes + 512),
            (8 << 20, bytes),
            (0, 0),
        ] {
            let wrong = device.map(offset, len, Perms::Read);
            check!(
                matches!(wrong, Err(Error::Invalid { .. })),
                "{offset} {len}"
            );
        }
        let mapping = device
            .map(2 << 20, 4 << 20, Perms::ReadWrite)
            .map_err(text)?;
        mapping.write_at(5000, b"stored").map_err(text)?;
        let va = mapping.addr() + 4096;
        dax::serve(va, true).map_err(text)?;
        let leaf = space::translate(va).ok_or("no leaf")?;
        check!(leaf.size == align, "{} for {align}", leaf.size);
        let mut back = [0; 6];
        device.read_at((2 << 20) + 5000, &mut back).map_err(text)?;
        check!(&back == b"stored");
        // R14: it rests at 0 when nothing maps it, and keeps its owner.
        let page = map.pages().start + 512 + 1;
        let info = map.info(page).ok_or("no folio")?;
        check!(info.counts.refs == 1 && info.id.size == align);
        // Long-term pins need no lease here (R10).
        let owner = PinOwner::new("vfio");
        let range = 2 << 20..(2 << 20) + 100;
        let pins = device.file().pin_range(range, &owner, &Term::Long, true);
        drop(pins.map_err(text)?);
        drop(mapping);
        let info = map.info(page).ok_or("the folio is gone")?;
        check!(info.counts.refs == 0 && info.owner == Some(device.file().owner()));
        // R40: a lost page leaves the mappings.
        let mapping = device.map(0, 4 << 20, Perms::Read).map_err(text)?;
        dax::serve(mapping.addr(), false).map_err(text)?;
        pmem::failure::lost(trial.namespace(), 0, 1).map_err(text)?;
        check!(space::translate(mapping.addr()).is_none());
        check!(matches!(
            dax::serve(mapping.addr(), false),
            Err(Error::Poisoned { .. })
        ));
        device.write_at(0, &[1; 4096]).map_err(text)?;
        dax::serve(mapping.addr(), false).map_err(text)?;
        device.sync().map_err(text)?;
        drop((mapping, device));
        check!(map.busy_folios() == 0 && map.info(page).is_none());
    }
    Ok(())
}

pub fn random_use_by_threads_and_devices() -> Outcome {
    let rig = Arc::new(Rig::new(13)?);
    let plan = stress::Plan {
        dir: b"/m".to_vec(),
        seed: 0x5eed,
        until_ns: sched::now_ns() + 60_000_000_000,
        steps: if cfg!(target_os = "none") { 150 } else { 600 },
        disk: None,
        stop: Arc::default(),
    };
    let report = stress::run(&rig, &plan, 4)?;
    check!(report.transfers > 10 && report.parked > 0, "{report:?}");
    rig.settled()?;
    match Arc::try_unwrap(rig) {
        Ok(rig) => rig.finish(),
        Err(_) => Err("a thread has the file system still".into()),
    }
}

/// Gap 21: while a range is written, writers and readers of others go on; and
/// while one is read, other readers. Of the same range they wait.
pub fn gap_21_only_the_same_range_waits() -> Outcome {
    let rig = Rig::new(12)?;
    let file = Arc::new(rig.file("/m/f", 64)?);
    let mapping = file.map(0..64 << 12, Perms::ReadWrite).map_err(text)?;
    mapping.populate(false).map_err(text)?;
    let inode = file.node().inode().clone();
    let ranges = &inode.data.ranges;
    let mut block = vec![0; 4096];
    {
        let _writing = ranges.write(8 << 12..9 << 12);
        // In this very thread: it would wait for itself.
        for at in [0, 7, 9, 63] {
            file.write_at(&[0x55; 4096], at << 12).map_err(text)?;
            file.read_at(&mut block, at << 12).map_err(text)?;
            check!(block.iter().all(|b| *b == 0x55), "block {at}");
        }
    }
    {
        let _reading = ranges.read(0..64 << 12);
        for at in [0, 8, 63] {
            file.read_at(&mut block, at << 12).map_err(text)?;
        }
    }
    let writing = ranges.write(8 << 12..9 << 12);
    let waiter = {
        let file = file.clone();
        sched::spawn("gap 21", move || -> Outcome {
            let mut block = vec![0; 4096];
            file.read_at(&mut block, 8 << 12).map_err(text)?;
            check!(block.iter().all(|b| *b == 9));
            Ok(())
        })
        .map_err(text)?
    };
    sched::sleep_ns(2_000_000);
    check!(!waiter.is_finished(), "read what is being written");
    drop(writing);
    waiter.join()?;
    drop((mapping, inode, file));
    rig.finish()
}
