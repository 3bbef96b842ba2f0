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
use crate::dax::{self, Mapping, Perms, Wait};
use crate::error::{Error, Result as KernelResult};
use crate::memmap::Pgmap;
use crate::mm::{frame, space};
use crate::pmem::trial::Trial;
use crate::pmem::{self, Claim, KernelPmem};
use crate::rules_as_tests;
use crate::sched;
use crate::sync::{SpinLock, WaitQueue};

use super::devices::{DeviceInfo, Devices};
use super::{Allocate, File, OpenOptions, Vfs, stress, wall_clock};

type Outcome = Result<(), String>;

mod failure;
mod parking;
#[cfg(all(test, not(loom)))]
mod power_cut;
mod users;

use failure::*;
use parking::*;
use users::*;

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
    gap_04_a_loss_is_one_page_of_a_large_folio,
    gap_16_a_read_ends_at_the_lost_byte,
    gap_21_only_the_same_range_waits,
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
        Self::made(order, |pmem| {
            let options = MkfsOptions {
                block_size: 4096,
                ..MkfsOptions::default()
            };
            mkfs(pmem, &options).map(drop).map_err(|e| e.to_string())
        })
    }

    /// A mount of what `make` makes.
    fn made(order: u32, make: impl FnOnce(&KernelPmem) -> Outcome) -> Result<Self, String> {
        let trial = Trial::new("trial", order).map_err(text)?;
        let devices = Arc::new(TrialDevices { trial });
        make(&devices.claim("mkfs", true).map_err(text)?.pmem())?;
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

/// A file of 6 MiB, and the first block of a 2 MiB folio in it.
fn large_file(rig: &Rig) -> Result<(File, u64), String> {
    let file = rig.open("/m/large")?;
    file.allocate(Allocate::Extend, 0, 6 << 20).map_err(text)?;
    let (mapping, dax) = populated(&file)?;
    let large = (0..3u64).find(|nth| {
        dax.folio_at(nth << 21)
            .is_some_and(|folio| folio.id.size == quire_arch::PageSize::Size2M)
    });
    drop(mapping);
    let nth = large.ok_or("no 2 MiB folio in a 16 MiB file system")?;
    Ok((file, nth * 512))
}

/// All of a large file mapped, with every leaf made.
fn populated(file: &File) -> Result<(Mapping, Arc<dax::File>), String> {
    let mapping = file.map(0..6 << 20, Perms::ReadWrite).map_err(text)?;
    mapping.populate(true).map_err(text)?;
    let dax = file.node().dax_file().map_err(text)?;
    Ok((mapping, dax))
}

impl core::ops::Deref for Rig {
    type Target = Vfs;
    fn deref(&self) -> &Vfs {
        &self.vfs
    }
}
