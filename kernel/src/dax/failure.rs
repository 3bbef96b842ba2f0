//! A page of a file is lost (R39, R40): its leaves go, so that the next touch
//! asks and is told; those who want to know are called.
//!
//! The loss is of 4 KiB, whatever the folio's size: the other pages of a 2 MiB
//! folio come back as small leaves.

use super::file::{File, file_of};
use super::tree::Slot;
use crate::memmap::{OwnerId, Pgmap};
use crate::sync::Mutex;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::ops::Range;
use quire_fs::Ino;

/// Whoever wants to hear of lost pages of a file.
pub trait Lost: Send + Sync {
    /// These bytes of the file are lost. Called in a kernel thread, with
    /// nothing locked; the file can be read and written.
    fn lost(&self, bytes: Range<u64>);
}

static LISTENERS: Mutex<Vec<(OwnerId, Weak<dyn Lost>)>> = Mutex::new(Vec::new());

/// Finds whose page it is, and takes it out of the mappings: the file and the
/// block. `None`: no file that DAX knows has it.
pub fn memory_failure(map: &Pgmap, page: u64) -> Option<(Ino, u64)> {
    let info = map.info(page)?;
    let file = file_of(info.owner?)?;
    let block = info.index + (page - info.id.page);
    file.lost(block, page).then(|| (file.ino(), block))
}

impl File {
    /// Has `listener` called for each page of the file that is lost, as long
    /// as it lives.
    pub fn on_loss(&self, listener: &Arc<dyn Lost>) {
        let mut all = LISTENERS.lock();
        all.retain(|(_, other)| other.strong_count() > 0);
        all.push((self.owner(), Arc::downgrade(listener)));
    }

    /// The page under `block` is lost. False when the file has another page
    /// there by now.
    fn lost(&self, block: u64, page: u64) -> bool {
        let guard = self.locks.lock(|| self.entries().cover(block..block + 1));
        let (first, slot) = self.entries().slot(block);
        let same = matches!(slot, Slot::Mapped(folio) if folio.page + (block - first) == page);
        if same {
            self.unmap_blocks(guard.range());
        }
        drop(guard);
        if same {
            let all: Vec<Arc<dyn Lost>> = LISTENERS
                .lock()
                .iter()
                .filter(|(owner, _)| *owner == self.owner())
                .filter_map(|(_, listener)| listener.upgrade())
                .collect();
            for listener in all {
                listener.lost(block << 12..(block + 1) << 12);
            }
        }
        same
    }
}
