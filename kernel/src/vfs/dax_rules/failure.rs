//! Lost memory: R38 to R41, gaps 4 and 16.

use super::*;

/// Where a file's block is in the namespace.
fn place(rig: &Rig, file: &File, block: u64) -> Result<u64, String> {
    let owner = PinOwner::new("look");
    let at = block << 12..(block + 1) << 12;
    let pins = file.pin(at, &owner, &Term::Short, false).map_err(text)?;
    Ok(pins.segments()[0].phys - rig.namespace().phys())
}

pub fn r38_a_report_marks_its_page_only() -> Outcome {
    let rig = Rig::new(12)?;
    let file = rig.file("/m/f", 8)?;
    let at = place(&rig, &file, 3)?;
    pmem::failure::lost(rig.namespace(), at + 100, 1).map_err(text)?;
    let bad = rig.namespace().bad_blocks();
    check!(
        bad.list().first() == Some(&(at..at + 4096)) && bad.list().len() == 1,
        "{:?}",
        bad.list()
    );
    let first = rig.map().pages().start + (at >> 12);
    check!(rig.map().is_poisoned(first));
    check!(!rig.map().is_poisoned(first - 1) && !rig.map().is_poisoned(first + 1));
    check!(pmem::failure::lost(rig.namespace(), u64::MAX - 5, 1).is_err());
    // A machine check elsewhere than in persistent memory is not taken.
    check!(!pmem::failure::report(PhysAddr(0x1234_5678_9000)));
    bad.clear(at, 4096).map_err(text)?;
    drop(file);
    rig.finish()
}

struct Listener(SpinLock<Vec<Range<u64>>>);

impl Lost for Listener {
    fn lost(&self, bytes: Range<u64>) {
        self.0.lock().push(bytes);
    }
}

pub fn r39_a_lost_page_leaves_its_mappings() -> Outcome {
    let rig = Rig::new(12)?;
    let (file, first) = large_file(&rig)?;
    let (mapping, dax) = populated(&file)?;
    let heard = Arc::new(Listener(SpinLock::new(Vec::new())));
    let listener: Arc<dyn Lost> = heard.clone();
    dax.on_loss(&listener);
    let block = first + 77;
    let folio = dax.folio_at(block << 12).ok_or("no folio")?;
    let at = (folio.id.page + 77 - rig.map().pages().start) << 12;
    let va = mapping.addr() + (block << 12);
    check!(space::translate(va).is_some());
    pmem::failure::lost(rig.namespace(), at, 1).map_err(text)?;
    check!(
        space::translate(va).is_none(),
        "a lost page is mapped still"
    );
    let bytes = block << 12..(block + 1) << 12;
    check!(*heard.0.lock() == [bytes], "{:?}", heard.0.lock());
    // The neighbours come back, as small leaves; the lost page doesn't.
    check!(matches!(
        dax::serve(va, false),
        Err(Error::Poisoned { len: 4096, .. })
    ));
    for near in [va - 4096, va + 4096] {
        dax::serve(near, true).map_err(text)?;
        let leaf = space::translate(near).ok_or("a good page is not mapped")?;
        check!(leaf.size == quire_arch::PageSize::Size4K);
    }
    let mut byte = [0];
    check!(matches!(
        mapping.read_at(block << 12, &mut byte),
        Err(Error::Poisoned { .. })
    ));
    mapping
        .read_at((block + 1) << 12, &mut byte)
        .map_err(text)?;
    let owner = PinOwner::new("nic");
    check!(matches!(
        file.pin(block << 12..(block + 1) << 12, &owner, &Term::Short, false),
        Err(Error::Poisoned { .. })
    ));
    rig.namespace().bad_blocks().clear(at, 4096).map_err(text)?;
    drop((mapping, dax, file));
    rig.finish()
}

pub fn r39_a_loss_of_metadata_makes_the_mount_read_only() -> Outcome {
    let rig = Rig::new(12)?;
    let file = rig.file("/m/f", 4)?;
    // Free blocks first: no harm is done.
    let end = rig.namespace().len() - 4096;
    pmem::failure::lost(rig.namespace(), end, 1).map_err(text)?;
    file.write_at(b"fine", 0).map_err(text)?;
    rig.namespace()
        .bad_blocks()
        .clear(end, 4096)
        .map_err(text)?;
    // Then the block after the superblock's: the group descriptors.
    pmem::failure::lost(rig.namespace(), 4096, 1).map_err(text)?;
    check!(
        matches!(file.set_len(100), Err(Error::ReadOnly)),
        "it is writable"
    );
    let mut back = [0; 4];
    file.read_at(&mut back, 0).map_err(text)?;
    check!(&back == b"fine");
    rig.namespace()
        .bad_blocks()
        .clear(4096, 4096)
        .map_err(text)?;
    drop(file);
    // Not clean: it can be taken out all the same.
    check!(matches!(
        rig.vfs.unmount(b"/m"),
        Ok(()) | Err(Error::ReadOnly)
    ));
    Ok(())
}

pub fn r40_a_loss_without_a_holder_is_a_mark() -> Outcome {
    let trial = Trial::new("trial", 4).map_err(text)?;
    let namespace = trial.namespace();
    pmem::failure::lost(namespace, 8192, 1).map_err(text)?;
    let claim = namespace.claim("test", true).map_err(text)?;
    let pmem = claim.pmem();
    let mut bytes = [0; 10];
    check!(pmem.read(4096, &mut bytes).is_ok());
    check!(pmem.read(8190, &mut bytes).is_err());
    check!(pmem.write(8190, &bytes).is_err());
    pmem.zero(8192, 4096).map_err(|e| e.to_string())?;
    check!(pmem.read(8190, &mut bytes).is_ok());
    check!(namespace.bad_blocks().sectors() == 0);
    drop((pmem, claim));
    Ok(())
}

pub fn r41_a_lost_page_is_an_error_until_it_is_rewritten() -> Outcome {
    let rig = Rig::new(12)?;
    let file = rig.file("/m/f", 8)?;
    let at = place(&rig, &file, 3)?;
    let mapping = file.map(0..8 << 12, Perms::ReadWrite).map_err(text)?;
    mapping.populate(false).map_err(text)?;
    pmem::failure::lost(rig.namespace(), at, 1).map_err(text)?;
    let mut block = vec![0; 4096];
    check!(matches!(
        file.read_at(&mut block, 3 << 12),
        Err(Error::Poisoned { .. })
    ));
    file.read_at(&mut block, 2 << 12).map_err(text)?;
    file.read_at(&mut block, 4 << 12).map_err(text)?;
    let va = mapping.addr() + (3 << 12);
    check!(matches!(dax::serve(va, true), Err(Error::Poisoned { .. })));
    // A part of it can't be rewritten, the whole can.
    check!(file.write_at(b"part", 3 << 12).is_err());
    check!(rig.namespace().bad_blocks().sectors() == 8);
    file.write_at(&[0x77; 4096], 3 << 12).map_err(text)?;
    check!(rig.namespace().bad_blocks().list().is_empty());
    check!(!rig.map().has_poison());
    file.read_at(&mut block, 3 << 12).map_err(text)?;
    check!(block.iter().all(|b| *b == 0x77));
    dax::serve(va, true).map_err(text)?;
    drop((mapping, file));
    rig.finish()
}

/// Gap 4: of a 2 MiB folio one page is lost, not its head; who reads the others
/// goes on, by leaves and by call.
pub fn gap_04_a_loss_is_one_page_of_a_large_folio() -> Outcome {
    let rig = Rig::new(12)?;
    let (file, first) = large_file(&rig)?;
    let (mapping, dax) = populated(&file)?;
    let folio = dax.folio_at(first << 12).ok_or("no folio")?.id;
    check!(folio.size == quire_arch::PageSize::Size2M);
    let bad = 300;
    let at = (folio.page + bad - rig.map().pages().start) << 12;
    pmem::failure::lost(rig.namespace(), at + 17, 1).map_err(text)?;
    let mut block = vec![0; 4096];
    for page in 0..512 {
        check!(
            rig.map().is_poisoned(folio.page + page) == (page == bad),
            "page {page}"
        );
        let offset = (first + page) << 12;
        let served = dax::serve(mapping.addr() + offset, page % 2 == 0);
        let called = file.read_at(&mut block, offset);
        match page == bad {
            false => {
                served.map_err(text)?;
                check!(called.map_err(text)? == 4096, "page {page}");
            }
            true => check!(served.is_err() && called.is_err(), "the lost page was read"),
        }
    }
    rig.namespace().bad_blocks().clear(at, 4096).map_err(text)?;
    drop((mapping, dax, file));
    rig.finish()
}

/// Gap 16: a read gives what stands before the lost byte, and an error from
/// there on, not from its own start.
pub fn gap_16_a_read_ends_at_the_lost_byte() -> Outcome {
    let rig = Rig::new(12)?;
    let file = rig.file("/m/f", 8)?;
    let at = place(&rig, &file, 5)?;
    pmem::failure::lost(rig.namespace(), at, 1).map_err(text)?;
    let mut all = vec![0; 8 << 12];
    for start in [0, 100, 3 << 12, (5 << 12) - 1] {
        let count = file.read_at(&mut all, start).map_err(text)? as u64;
        check!(count == (5 << 12) - start, "{count} bytes from {start}");
        let good = (start..5 << 12)
            .zip(&all)
            .all(|(at, byte)| *byte == (at >> 12) as u8 + 1);
        check!(good, "other bytes from {start}");
    }
    for start in [5 << 12, (5 << 12) + 1, (6 << 12) - 1] {
        check!(
            matches!(file.read_at(&mut all, start), Err(Error::Poisoned { .. })),
            "{start}"
        );
    }
    let mut parts = [vec![0; 2 << 12], vec![0; 4 << 12]];
    let [one, two] = &mut parts;
    let count = file
        .read_vectored_at(&mut [one, two], 2 << 12)
        .map_err(text)?;
    check!(count == 3 << 12, "{count} bytes into two buffers");
    check!(file.read_at(&mut all, 6 << 12).map_err(text)? == 2 << 12);
    rig.namespace().bad_blocks().clear(at, 4096).map_err(text)?;
    drop(file);
    rig.finish()
}
