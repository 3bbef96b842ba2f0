//! Files that can be mapped, and the leases that keep their blocks where they
//! are.
//!
//! One table for each mounted file system knows the inodes that DAX has. Its
//! rule makes everything else simple: an inode's entry stays until DAX has let
//! go of the inode *completely*, so whoever finds no entry while holding the
//! table's lock knows that nothing is mapped or pinned, and that nothing will
//! be until the lock is let go.
//!
//! Lock order: this table, then the file system's lock. A lease of DAX's own
//! (on an inode that has an entry) is taken without this table's lock.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::ops::Range;

use quire_fs::{Ino as FsIno, LayoutLease};

use crate::dax;
use crate::error::Result;
use crate::sched;
use crate::sync::MutexGuard;

use super::file::Node;
use super::{Mutex, ext4::Shared};

type Table = BTreeMap<u32, Weak<dax::File>>;

/// How long a call that moves blocks waits for their pins: as long as a transfer
/// to the slowest of devices; then it says for whom.
const PATIENCE_NS: u64 = 30_000_000_000;

/// What becomes of the pins of what a lease covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pins {
    /// They stay, and the blocks are parked: for what takes blocks away.
    Park,
    /// They are waited for, a while: for what moves blocks.
    Wait,
}

/// The inodes of one file system that DAX has.
#[derive(Default)]
pub(super) struct MappedFiles(Mutex<Table>);

/// What DAX asks of an inode's file system. It keeps the inode: a file that is
/// mapped is open, whatever has become of its names.
struct DaxInode {
    shared: Arc<Shared>,
    ino: FsIno,
    /// Dropped after the entry has been taken out (see `drop` below).
    node: Node,
}

impl Drop for DaxInode {
    fn drop(&mut self) {
        self.shared.files.0.lock().remove(&self.ino.0);
    }
}

impl dax::Extents for DaxInode {
    fn size(&self) -> u64 {
        self.shared.size(self.node.inode()).unwrap_or(0)
    }

    fn extent(&self, block: u64, count: u64) -> Result<dax::Extent> {
        self.shared.extent(self.node.inode(), block, count)
    }

    fn allocate(&self, block: u64, count: u64) -> Result<dax::Extent> {
        self.shared.allocate(self.node.inode(), block, count)
    }

    fn settle(&self) -> Result<()> {
        self.shared.settle(self.ino, true)
    }

    fn dirtied(&self) {
        // The number is an inode's of this file system: it has a time.
        let _ = self.shared.stamp(self.node.inode(), super::wall_clock());
    }

    fn describe(&self) -> String {
        alloc::format!("{}: inode {}", self.shared.device_name, self.ino)
    }
}

impl MappedFiles {
    /// DAX's view of an inode, made when there is none.
    pub fn get(
        &self,
        shared: &Arc<Shared>,
        device: &Arc<dax::Device>,
        ino: FsIno,
        node: Node,
    ) -> Arc<dax::File> {
        loop {
            let mut table = self.0.lock();
            match table.get(&ino.0) {
                None => {
                    let extents = Arc::new(DaxInode {
                        shared: shared.clone(),
                        ino,
                        node,
                    });
                    let file = dax::File::new(ino, device.clone(), extents);
                    table.insert(ino.0, Arc::downgrade(&file));
                    return file;
                }
                Some(file) => {
                    if let Some(file) = file.upgrade() {
                        // `node` goes at the end of this call: the table's
                        // lock first, because freeing an inode takes it.
                        drop(table);
                        return file;
                    }
                }
            }
            // The last user is letting go right now.
            drop(table);
            sched::yield_now();
        }
    }

    /// The view that exists, if any does.
    pub fn live(&self, ino: FsIno) -> Option<Arc<dax::File>> {
        self.0.lock().get(&ino.0).and_then(Weak::upgrade)
    }

    /// All views.
    pub fn all(&self) -> Vec<Arc<dax::File>> {
        self.0.lock().values().filter_map(Weak::upgrade).collect()
    }

    /// Proof that these blocks of a file are neither mapped nor pinned.
    pub fn lease(&self, ino: FsIno, blocks: Range<u64>, pins: Pins) -> Result<Lease<'_>> {
        loop {
            let table = self.0.lock();
            match table.get(&ino.0) {
                None => return Ok(Lease::Unmapped(Unmapped { _table: table, ino })),
                Some(file) => {
                    let file = file.upgrade();
                    drop(table);
                    if let Some(file) = file {
                        let wait = match pins {
                            Pins::Park => dax::Wait::Park,
                            Pins::Wait => dax::Wait::Until(sched::now_ns() + PATIENCE_NS),
                        };
                        return Ok(Lease::Broken(file.break_layout(blocks, wait)?));
                    }
                }
            }
            sched::yield_now();
        }
    }
}

/// An inode that DAX does not have, and cannot get while this lives.
pub(super) struct Unmapped<'a> {
    _table: MutexGuard<'a, Table>,
    ino: FsIno,
}

// SAFETY: mappings and pins of a file are made through its `dax::File` alone.
// There was none when this was made, with the table locked, and the entry is
// taken out only after DAX has let go of everything; and none can be made as
// long as the table stays locked, which is as long as this lives.
unsafe impl LayoutLease for Unmapped<'_> {
    fn covers(&self, ino: FsIno, _: Range<u64>) -> bool {
        ino == self.ino
    }
}

/// A lease, however it came about.
pub(super) enum Lease<'a> {
    /// Nothing was mapped.
    Unmapped(Unmapped<'a>),
    /// DAX has broken the layout.
    Broken(dax::Lease),
}

impl Lease<'_> {
    /// Takes what is pinned out of the file, now that the file system has
    /// parked its blocks.
    pub fn park(&mut self) -> Option<dax::Parked> {
        match self {
            Lease::Unmapped(_) => None,
            Lease::Broken(lease) => lease.park(),
        }
    }

    /// Writes back what was dirty, for a call that moves the blocks: at its end
    /// the lease would not find them where they were.
    pub fn write_back(&mut self) {
        if let Lease::Broken(lease) = self {
            lease.write_back();
        }
    }

    /// What the file system asks for.
    pub fn as_layout(&self) -> &dyn LayoutLease {
        match self {
            Lease::Unmapped(lease) => lease,
            Lease::Broken(lease) => lease,
        }
    }
}
