//! Blocks that a truncation or a hole has taken from a file while a device had
//! them pinned.
//!
//! The file system has moved them to an orphan ([`quire_fs::Ext4::take_parked`]),
//! DAX has taken their folios out of the file ([`dax::Lease::park`]). A thread
//! waits for the last pin; then the folios come to rest, and after that the
//! orphan is deleted, so that no block is another file's while anybody uses its
//! memory.

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Range;

use quire_fs::{Ino as FsIno, LayoutLease};

use crate::dax::Parked;
use crate::error::{Error, Result};
use crate::memmap::FolioId;
use crate::sched;
use crate::sync::WaitQueue;

use super::Mutex;
use super::ext4::Shared;

/// What one call has parked.
struct Lot {
    /// The file that the blocks were of.
    from: FsIno,
    /// Where they are now.
    orphans: Vec<FsIno>,
    /// `None` once they are at rest.
    folios: Mutex<Option<Parked>>,
    /// The same, for listings while the other is locked by whoever waits.
    list: Vec<FolioId>,
    bytes: u64,
}

/// All that a file system has parked.
#[derive(Default)]
pub(super) struct Lots {
    lots: Mutex<Vec<Arc<Lot>>>,
    changed: WaitQueue,
}

/// A line of what is parked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParkedInfo {
    /// Inode number of the file that the blocks were of.
    pub from: u64,
    /// Inode numbers of the orphans that keep them.
    pub orphans: Vec<u64>,
    /// Bytes.
    pub bytes: u64,
    /// The folios.
    pub folios: Vec<FolioId>,
    /// Who has them pinned.
    pub holders: String,
}

/// The lease for deleting an orphan that nothing can map.
struct Orphan(FsIno);

// SAFETY: made by `finish` alone, for an inode that has no name and that DAX
// has never been asked for, after every folio of its blocks was seen without
// a reference and let go by DAX.
unsafe impl LayoutLease for Orphan {
    fn covers(&self, ino: FsIno, _: Range<u64>) -> bool {
        ino == self.0
    }
}

impl Lots {
    /// What is parked now.
    pub fn list(&self) -> Vec<ParkedInfo> {
        let lots = self.lots.lock().clone();
        let info = |lot: &Arc<Lot>| ParkedInfo {
            from: lot.from.0.into(),
            orphans: lot.orphans.iter().map(|ino| ino.0.into()).collect(),
            bytes: lot.bytes,
            folios: lot.list.clone(),
            holders: match &*lot.folios.lock() {
                Some(parked) => parked.holders(),
                None => String::new(),
            },
        };
        lots.iter().map(info).collect()
    }

    /// Waits until nothing is parked any more; `Busy` with the names of those
    /// who hold it when the time came first.
    pub fn settle(&self, deadline_ns: u64) -> Result<()> {
        let none = || self.lots.lock().is_empty();
        if self.changed.wait_until_deadline(deadline_ns, none) {
            return Ok(());
        }
        let names: Vec<String> = self.list().into_iter().map(|lot| lot.holders).collect();
        if names.is_empty() {
            return Ok(());
        }
        Err(Error::busy(alloc::format!(
            "blocks that left their file are pinned by {}",
            names.join("; ")
        )))
    }
}

impl Shared {
    /// Takes over what a call has parked.
    pub(super) fn parked(self: &Arc<Self>, from: FsIno, orphans: Vec<FsIno>, folios: Parked) {
        let lot = Arc::new(Lot {
            from,
            orphans,
            list: folios.folios().to_vec(),
            bytes: folios.len(),
            folios: Mutex::new(Some(folios)),
        });
        self.lots.lots.lock().push(lot.clone());
        let (shared, theirs) = (self.clone(), lot.clone());
        let waiter = sched::spawn("parked", move || shared.finish(&theirs));
        if let Err(error) = waiter {
            // Then whoever truncates waits, as it would without parking.
            log::warn!("{}: parked: {error}", self.device_name);
            self.clone().finish(&lot);
        }
    }

    /// Waits for the last pin, and frees the blocks.
    fn finish(self: Arc<Self>, lot: &Arc<Lot>) {
        if let Some(map) = self.pgmap() {
            for folio in &lot.list {
                map.wait_idle(*folio, None);
            }
        }
        // They keep the device: they go before anybody hears of the end.
        let at_rest = match lot.folios.lock().take() {
            Some(mut parked) => parked.release(),
            None => Ok(()),
        };
        let freed = at_rest.and_then(|()| {
            lot.orphans
                .iter()
                .try_for_each(|ino| self.change(&[*ino], |fs| Ok(fs.evict(*ino, &Orphan(*ino))?)))
        });
        if let Err(error) = freed {
            // The next mount deletes the orphan.
            log::error!(
                "{}: blocks of inode {} stay parked: {error}",
                self.device_name,
                lot.from
            );
        }
        let lots = self.lots.clone();
        // Whoever finds nothing parked finds the file system unused by this
        // thread too.
        drop(self);
        lots.lots.lock().retain(|other| !Arc::ptr_eq(other, lot));
        lots.changed.wake_all();
    }
}
