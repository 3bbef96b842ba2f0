//! What a file system, DAX and a device do together: the rules R33 to R41 and
//! the invariants, as tests on a whole ext4 over ordinary memory. Run by
//! `selftest dax` in the real kernel and by `cargo test` on the host.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;

use quire_arch::PhysAddr;
use quire_fs::Pmem;
use quire_fs::mkfs::{MkfsOptions, mkfs};

use crate::app::dma::{FolioId, PinOwner, Pinned, Revoke, Term};
use crate::check;
use crate::dax::failure::Lost;
use crate::dax::{self, Perms, Wait};
use crate::error::{Error, Result as KernelResult};
use crate::memmap::Pgmap;
use crate::mm::{frame, space};
use crate::pmem::trial::Trial;
use crate::pmem::{self, Claim};
use crate::rules_as_tests;
use crate::sched;
use crate::sync::{SpinLock, WaitQueue};

use super::devices::{DeviceInfo, Devices};
use super::{Allocate, File, OpenOptions, Vfs, stress, wall_clock};

type Outcome = Result<(), String>;

rules_as_tests! {
    "dax.":
    r33_truncation_parks_what_is_pinned,
    r33_a_hole_parks_what_is_pinned_of_it,
    r33_what_moves_is_unmapped_and_waited_for,
    r33_zeroing_shows_in_mappings,
    r33_growing_breaks_nothing,
    gap_13_a_part_of_a_pinned_folio_is_parked,
    r34_no_block_is_reused_under_a_pin,
    r35_parking_needs_no_mapping,
    r36_a_removed_file_lives_until_it_is_unpinned,
    r36_unmounting_waits_for_what_is_parked,
    r37_a_parked_break_that_fails_loses_nothing,
    r38_a_report_marks_its_page_only,
    r39_a_lost_page_leaves_its_mappings,
    r39_a_loss_of_metadata_makes_the_mount_read_only,
    r40_a_loss_without_a_holder_is_a_mark,
    r41_a_lost_page_is_an_error_until_it_is_rewritten,
    i3_leases_are_revoked_and_blocks_freed_after,
    i4_pinned_for_writing_stays_dirty,
    breaking_can_be_given_up,
    r15_device_dax_maps_by_its_alignment,
    random_use_by_threads_and_devices,
}

fn text(error: Error) -> String {
    error.to_string()
}

/// A namespace of 16 MiB of RAM, as `trial`.
struct TrialDevices {
    trial: Trial,
}

impl TrialDevices {
    fn claim(&self, user: &str, writable: bool) -> KernelResult<Claim> {
        self.trial.namespace().claim(user, writable)
    }
}

struct Shared(Arc<TrialDevices>);

impl Devices for Shared {
    fn list(&self) -> Vec<DeviceInfo> {
        Vec::new()
    }

    fn open(
        &self,
        _: &str,
        writable: bool,
        user: &str,
    ) -> KernelResult<Arc<dyn Pmem + Send + Sync>> {
        Ok(Arc::new(self.0.claim(user, writable)?.pmem()))
    }

    fn pgmap(&self, _: &str) -> Option<Arc<Pgmap>> {
        Some(self.0.trial.namespace().pgmap().clone())
    }
}

/// A mounted file system; unmounted and checked at the end of the test.
pub(super) struct Rig {
    pub vfs: Vfs,
    devices: Arc<TrialDevices>,
}

impl Rig {
    pub(super) fn new(order: u32) -> Result<Self, String> {
        let trial = Trial::new("trial", order).map_err(text)?;
        let devices = Arc::new(TrialDevices { trial });
        {
            let pmem = devices.claim("mkfs", true).map_err(text)?.pmem();
            let options = MkfsOptions {
                block_size: 4096,
                ..MkfsOptions::default()
            };
            mkfs(&pmem, &options).map_err(|e| e.to_string())?;
        }
        let vfs = Vfs::new(Box::new(Shared(devices.clone())), wall_clock);
        vfs.mount("trial", b"/m", true).map_err(text)?;
        Ok(Self { vfs, devices })
    }

    fn namespace(&self) -> &Arc<pmem::Namespace> {
        self.devices.trial.namespace()
    }

    fn map(&self) -> &Arc<Pgmap> {
        self.namespace().pgmap()
    }

    pub(super) fn open(&self, name: &str) -> Result<File, String> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true);
        self.vfs.open(name.as_bytes(), &options).map_err(text)
    }

    /// A file of so many blocks; each byte tells its block.
    fn file(&self, name: &str, blocks: u64) -> Result<File, String> {
        let file = self.open(name)?;
        for block in 0..blocks {
            let bytes = [block as u8 + 1; 4096];
            file.write_at(&bytes, block * 4096).map_err(text)?;
        }
        Ok(file)
    }

    fn free(&self) -> Result<u64, String> {
        Ok(self.vfs.statfs(b"/m").map_err(text)?.free)
    }

    /// Waits until nothing is parked any more.
    pub(super) fn settled(&self) -> Outcome {
        let until = sched::now_ns() + 20_000_000_000;
        while !self.vfs.parked().is_empty() {
            check!(sched::now_ns() < until, "{:?}", self.vfs.parked());
            sched::sleep_ns(200_000);
        }
        Ok(())
    }

    /// Unmounts, and lets the checker look.
    pub(super) fn finish(self) -> Outcome {
        self.vfs.unmount(b"/m").map_err(text)?;
        let pmem = self.devices.claim("check", false).map_err(text)?.pmem();
        let mut problems = String::new();
        let report = quire_fs::check::check(&pmem, &mut |p| problems += &format!("{p}; "));
        let found = report.map_err(|e| e.to_string())?.problems;
        check!(found == 0, "the checker finds: {problems}");
        check!(self.map().busy_folios() == 0, "a folio is referenced still");
        Ok(())
    }
}

fn bytes(at: PhysAddr) -> *mut u8 {
    frame::direct(at).as_mut_ptr()
}

/// A device stores to what is pinned.
fn dma_write(pins: &Pinned, value: u8) {
    for piece in pins.segments() {
        // SAFETY: pinned for writing, and in the direct map as RAM is.
        unsafe { bytes(piece.phys).write_bytes(value, piece.len as usize) };
    }
}

/// Whether all that is pinned reads as `value`.
fn dma_reads(pins: &Pinned, value: u8) -> bool {
    pins.segments().iter().all(|piece| {
        // SAFETY: pinned, and in the direct map as RAM is.
        (0..piece.len).all(|at| unsafe { bytes(piece.phys + at).read_volatile() } == value)
    })
}

fn pin(file: &File, blocks: Range<u64>, owner: &PinOwner) -> Result<Pinned, String> {
    file.pin(
        blocks.start << 12..blocks.end << 12,
        owner,
        &Term::Short,
        true,
    )
    .map_err(text)
}

fn r33_truncation_parks_what_is_pinned() -> Outcome {
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

fn r33_a_hole_parks_what_is_pinned_of_it() -> Outcome {
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

fn r33_what_moves_is_unmapped_and_waited_for() -> Outcome {
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

fn r33_zeroing_shows_in_mappings() -> Outcome {
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

fn r33_growing_breaks_nothing() -> Outcome {
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

/// Blocks of a 2 MiB folio, if the file has one.
fn large_file(rig: &Rig) -> Result<Option<(File, u64)>, String> {
    let file = rig.open("/m/large")?;
    file.allocate(Allocate::Extend, 0, 6 << 20).map_err(text)?;
    let mapping = file.map(0..6 << 20, Perms::ReadWrite).map_err(text)?;
    mapping.populate(true).map_err(text)?;
    let dax = file.node().dax_file().map_err(text)?;
    let large = (0..3u64).find(|nth| {
        dax.folio_at(nth << 21)
            .is_some_and(|folio| folio.id.size == quire_arch::PageSize::Size2M)
    });
    drop(mapping);
    Ok(large.map(|nth| (file, nth * 512)))
}

/// Gap 13: of a pinned 2 MiB folio the part that leaves the file is parked; the
/// file goes on with the rest, and the device with all of it.
fn gap_13_a_part_of_a_pinned_folio_is_parked() -> Outcome {
    let rig = Rig::new(12)?;
    let empty = rig.free()?;
    let Some((file, first)) = large_file(&rig)? else {
        return Err("no 2 MiB folio in a 16 MiB file system".into());
    };
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

fn r34_no_block_is_reused_under_a_pin() -> Outcome {
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

fn r35_parking_needs_no_mapping() -> Outcome {
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

fn r36_a_removed_file_lives_until_it_is_unpinned() -> Outcome {
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

fn r36_unmounting_waits_for_what_is_parked() -> Outcome {
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

fn r37_a_parked_break_that_fails_loses_nothing() -> Outcome {
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

/// Where a file's block is in the namespace.
fn place(rig: &Rig, file: &File, block: u64) -> Result<u64, String> {
    let owner = PinOwner::new("look");
    let at = block << 12..(block + 1) << 12;
    let pins = file.pin(at, &owner, &Term::Short, false).map_err(text)?;
    Ok(pins.segments()[0].phys - rig.namespace().phys())
}

fn r38_a_report_marks_its_page_only() -> Outcome {
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

fn r39_a_lost_page_leaves_its_mappings() -> Outcome {
    let rig = Rig::new(12)?;
    let Some((file, first)) = large_file(&rig)? else {
        return Err("no 2 MiB folio in a 16 MiB file system".into());
    };
    let mapping = file.map(0..6 << 20, Perms::ReadWrite).map_err(text)?;
    mapping.populate(true).map_err(text)?;
    let dax = file.node().dax_file().map_err(text)?;
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

fn r39_a_loss_of_metadata_makes_the_mount_read_only() -> Outcome {
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

fn r40_a_loss_without_a_holder_is_a_mark() -> Outcome {
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

fn r41_a_lost_page_is_an_error_until_it_is_rewritten() -> Outcome {
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

fn i3_leases_are_revoked_and_blocks_freed_after() -> Outcome {
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

fn i4_pinned_for_writing_stays_dirty() -> Outcome {
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

fn breaking_can_be_given_up() -> Outcome {
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

fn r15_device_dax_maps_by_its_alignment() -> Outcome {
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

impl core::ops::Deref for Rig {
    type Target = Vfs;
    fn deref(&self) -> &Vfs {
        &self.vfs
    }
}

fn random_use_by_threads_and_devices() -> Outcome {
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
