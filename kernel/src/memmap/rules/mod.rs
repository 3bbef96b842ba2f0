//! The counting rules R1 to R16 and R42 to R46, one named test each, run by
//! `selftest folio` in the real kernel and by `cargo test` on the host.
//!
//! The pgmaps here cover addresses where no memory is: the rules are about
//! descriptors, and nothing behind them is touched.

use super::descriptor::Descriptor;
use super::pin::admit;
use super::*;
use crate::error::{Error, Result as KernelResult};
use crate::rules_as_tests;
use crate::sched;
use crate::{check, sync::SpinLock};
use alloc::boxed::Box;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::num::NonZeroU32;
use core::ops::Range;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use quire_arch::{PageSize, PhysAddr};

type Outcome = Result<(), String>;

mod counts;
mod kinds;
mod life;
mod splits;

use counts::*;
use kinds::*;
use life::*;
use splits::*;

rules_as_tests! {
    "folio.":
    r01_metadata_is_small_and_zero_at_rest,
    r02_states_follow_the_counts,
    r03_associating_writes_one_record,
    r03_associating_twice_conflicts,
    r04_first_map_takes_one_ref_and_one_mapcount,
    r05_further_leaves_count_on_their_folio,
    r05_runs_are_counted_as_single_leaves_are,
    r06_zero_page_is_not_counted,
    r07_unmap_drops_ref_after_shootdown,
    r08_pins_are_exact_and_outlive_the_mapping,
    r09_lock_free_pin_fails_at_zero,
    r10_long_term_pins_by_memory_type,
    r11_last_ref_wakes_and_keeps_the_owner,
    r12_disassociating_resets_every_field,
    r13_reflink_counts_owners,
    r14_owner_is_cleared_before_the_callback,
    r15_generic_rests_at_zero_and_keeps_its_owner,
    r16_private_memory_migrates_and_p2pdma_is_uncached,
    r42_claim_conflicts_and_ram_overlap_fail,
    r43_kill_tells_the_holder_then_refuses,
    r44_drain_waits_for_pins,
    r45_descriptors_cost_no_media,
    r45_altmap_puts_them_on_the_media,
    r46_descriptor_memory_follows_the_leaves,
    gap_13_a_held_folio_is_split_and_keeps_its_parts,
    gap_13_parts_of_a_held_gigabyte_wait_for_it,
    split_carries_state_down_and_merge_restores_it,
    split_and_merge_refuse_what_is_in_use,
    poison_is_one_page_of_a_large_folio,
    idle_is_refs_equal_mapcount,
    trim_gives_back_what_is_at_rest,
    descriptors_at_rest_go_when_memory_is_short,
    leases_can_be_revoked,
    random_histories_end_at_rest,
}

/// A place nothing else uses: 4 TiB apart from 256 TiB on.
fn next_base() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(256 << 40);
    NEXT.fetch_add(4 << 40, Ordering::Relaxed)
}

fn spec(kind: MemoryType, len: u64, ops: Option<Box<dyn DeviceOps>>) -> Spec {
    let base = next_base();
    Spec {
        name: "test".into(),
        kind,
        range: PhysAddr(base)..PhysAddr(base + len),
        ops,
    }
}

fn pgmap(kind: MemoryType, len: u64) -> Result<Arc<Pgmap>, String> {
    text(Pgmap::new(spec(kind, len, None))).map(Arc::new)
}

fn fsdax() -> Result<Arc<Pgmap>, String> {
    pgmap(MemoryType::FsDax, 4 << 30)
}

fn text<T>(result: KernelResult<T>) -> Result<T, String> {
    result.map_err(|error| error.to_string())
}

const FILE: OwnerId = OwnerId(NonZeroU32::MIN);

fn owner(n: u32) -> OwnerId {
    OwnerId(NonZeroU32::MIN.saturating_add(n))
}

fn at(map: &Pgmap, page: u64, size: PageSize) -> FolioId {
    FolioId {
        page: map.pages().start + page,
        size,
    }
}

use PageSize::{Size1G, Size2M, Size4K};

fn counts(refs: u32, maps: u32) -> Counts {
    Counts { refs, maps }
}

fn pin(owner: &PinOwner, map: &Arc<Pgmap>, page: u64, n: u32) -> Result<Pin, String> {
    owner
        .pin(map, page, n, Term::Short, false)
        .map_err(|refusal| Error::from(refusal).to_string())
}

#[derive(Default)]
struct Record {
    freed: SpinLock<Vec<FolioId>>,
    owner_at_free: AtomicU32,
    migrated: AtomicU32,
    map: SpinLock<Option<Arc<Pgmap>>>,
}

struct Driver(Arc<Record>);

impl DeviceOps for Driver {
    fn folio_free(&self, id: FolioId) {
        let map = self.0.map.lock().clone();
        let info = map.and_then(|map| map.info(id.page));
        let owner = info.and_then(|info| info.owner);
        self.0
            .owner_at_free
            .store(owner.map_or(0, |o| o.0.get()), Ordering::Relaxed);
        self.0.freed.lock().push(id);
    }

    fn migrate_to_ram(&self, _: FolioId) -> KernelResult<()> {
        self.0.migrated.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

fn pooled(kind: MemoryType) -> Result<(Arc<Record>, Arc<Pgmap>), String> {
    let record = Arc::new(Record::default());
    let driver = Box::new(Driver(record.clone()));
    let map = Arc::new(text(Pgmap::new(spec(kind, 1 << 30, Some(driver))))?);
    *record.map.lock() = Some(map.clone());
    Ok((record, map))
}
