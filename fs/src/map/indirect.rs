//! Block maps: 12 direct pointers, then blocks of pointers one, two and
//! three levels deep.

use crate::disk::inode::BLOCK_AREA;
use crate::error::{Error, Result};
use crate::inode::Inode;
use crate::mount::{Ext4, le32};
use crate::pmem::Pmem;
use crate::store::Checked;
use crate::types::{FsBlock, Mapping};

use super::extents::hole;

/// Pointers to data in the inode.
pub(super) const DIRECT: u32 = 12;
/// Pointers looked at to find a contiguous run.
const RUN: usize = 64;

/// The way to a block: slot in the inode, then slots in pointer blocks.
pub(crate) struct Path {
    /// Slot in `i_block`.
    pub root: u32,
    /// Slots in the pointer blocks below, of which `depth` count.
    pub slots: [u32; 3],
    /// Pointer blocks on the way.
    pub depth: u32,
}

/// The way to a file block, or none past the format's limit.
pub(crate) fn path_of(block: u32, pointers: u32) -> Option<Path> {
    let bits = pointers.trailing_zeros();
    let mask = u64::from(pointers).saturating_sub(1);
    let mut rest = u64::from(block);
    if rest < u64::from(DIRECT) {
        return Some(Path {
            root: block,
            slots: [0; 3],
            depth: 0,
        });
    }
    rest = rest.saturating_sub(u64::from(DIRECT));
    for depth in 1..=3_u32 {
        let span = 1_u64.wrapping_shl(bits.saturating_mul(depth));
        if rest < span {
            let mut slots = [0; 3];
            for (i, slot) in slots.iter_mut().take(depth as usize).enumerate() {
                let below = depth.saturating_sub(1).saturating_sub(i as u32);
                *slot = (rest.wrapping_shr(bits.saturating_mul(below)) & mask) as u32;
            }
            return Some(Path {
                root: DIRECT.saturating_add(depth).saturating_sub(1),
                slots,
                depth,
            });
        }
        rest = rest.saturating_sub(span);
    }
    None
}

impl<P: Pmem> Ext4<P> {
    /// Pointers in a block.
    pub(crate) fn pointers(&self) -> u32 {
        self.geo.block_size >> 2
    }

    /// Checks the pointers to data in the inode. Those to blocks of pointers
    /// are checked when they are used.
    pub(crate) fn check_indirect_root(&self, inode: &Inode) -> Result<()> {
        for raw in inode.raw.i_block.chunks_exact(4).take(DIRECT as usize) {
            let block = le32(raw, 0).unwrap_or(0);
            if block != 0 && !self.geo.is_data_range(u64::from(block), 1) {
                return Err(Error::inode(
                    "a block pointer outside the file system",
                    inode.ino,
                ));
            }
        }
        Ok(())
    }

    fn check_pointer(&self, inode: &Inode, pointer: u32) -> Result<()> {
        if pointer == 0 || self.geo.is_data_range(u64::from(pointer), 1) {
            Ok(())
        } else {
            Err(Error::inode(
                "a block pointer outside the file system",
                inode.ino,
            ))
        }
    }

    /// Checks all pointers of a block before it is used for the first time.
    fn check_pointers(&self, inode: &Inode, block: u64) -> Result<()> {
        if self.store.is_verified(Checked::Pointers, block) {
            return Ok(());
        }
        for raw in self.store.read_block(block)?.chunks_exact(4) {
            let pointer = le32(raw, 0).unwrap_or(0);
            self.check_pointer(inode, pointer)?;
            if pointer != 0 && inode.ino >= self.geo.first_ino {
                self.check_not_system(inode, u64::from(pointer), 1)?;
            }
        }
        self.store.set_verified(Checked::Pointers, block);
        Ok(())
    }

    /// Where `target` is.
    pub(crate) fn indirect_lookup(&self, inode: &Inode, target: u32) -> Result<Mapping> {
        let pointers = self.pointers();
        let bits = pointers.trailing_zeros();
        let Some(path) = path_of(target, pointers) else {
            return Err(Error::inode(
                "i_size past what a block map can reach",
                inode.ino,
            ));
        };
        let root_at = path.root.saturating_mul(4) as usize;
        let mut pointer = le32(&inode.raw.i_block, root_at).unwrap_or(0);
        self.check_pointer(inode, pointer)?;
        if path.depth == 0 {
            let rest = inode
                .raw
                .i_block
                .get(root_at..BLOCK_AREA.saturating_sub(12));
            return Ok(self.pointer_run(target, pointer, rest.unwrap_or(&[])));
        }
        for level in 0..path.depth {
            let slot = path.slots.get(level as usize).copied().unwrap_or(0);
            if pointer == 0 {
                // The rest of what this pointer would describe is a hole.
                let height = path.depth.saturating_sub(level);
                let span = 1_u64.wrapping_shl(bits.saturating_mul(height));
                let mut within = 0_u64;
                for s in path
                    .slots
                    .iter()
                    .take(path.depth as usize)
                    .skip(level as usize)
                {
                    within = within.wrapping_shl(bits) | u64::from(*s);
                }
                let left = span.saturating_sub(within);
                return Ok(hole(target, u64::from(target).saturating_add(left)));
            }
            self.check_pointers(inode, u64::from(pointer))?;
            let at = slot.saturating_mul(4) as usize;
            if level.saturating_add(1) == path.depth {
                let left = (pointers.saturating_sub(slot) as usize).min(RUN);
                let mut raw = [0; RUN * 4];
                let raw = raw.get_mut(..left.saturating_mul(4)).unwrap_or(&mut []);
                self.store.read(u64::from(pointer), at, raw)?;
                let first = le32(raw, 0).unwrap_or(0);
                self.check_pointer(inode, first)?;
                return Ok(self.pointer_run(target, first, raw));
            }
            pointer = self.store.get_u32(u64::from(pointer), at)?;
            self.check_pointer(inode, pointer)?;
        }
        Ok(hole(target, u64::from(target).saturating_add(1)))
    }

    /// The run that a list of pointers starts with.
    fn pointer_run(&self, target: u32, first: u32, pointers: &[u8]) -> Mapping {
        let mut len = 0_u32;
        for raw in pointers.chunks_exact(4) {
            let pointer = le32(raw, 0).unwrap_or(0);
            let want = if first == 0 {
                0
            } else {
                first.saturating_add(len)
            };
            if pointer != want || u64::from(pointer) >= self.geo.blocks {
                break;
            }
            len = len.saturating_add(1);
        }
        let len = len.max(1);
        if first == 0 {
            hole(target, u64::from(target).saturating_add(u64::from(len)))
        } else {
            Mapping::Mapped {
                block: FsBlock(u64::from(first)),
                len,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        let p = path_of(11, 256).unwrap();
        assert_eq!((p.root, p.depth), (11, 0));
        let p = path_of(12, 256).unwrap();
        assert_eq!((p.root, p.depth, p.slots), (12, 1, [0, 0, 0]));
        let p = path_of(12 + 256, 256).unwrap();
        assert_eq!((p.root, p.depth, p.slots), (13, 2, [0, 0, 0]));
        let p = path_of(12 + 256 + 65536 + 65536 * 3 + 256 * 2 + 1, 256).unwrap();
        assert_eq!((p.root, p.depth, p.slots), (14, 3, [3, 2, 1]));
        assert!(path_of(u32::MAX, 256).is_none());
    }
}
