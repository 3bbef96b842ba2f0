//! Extent trees that are in the inode as a whole: most files have a few extents,
//! which are changed there without a walk.

use zerocopy::IntoBytes;

use crate::disk::extent::{ENTRY_SIZE, Extent, ExtentHeader, ROOT_ENTRIES, RawExtent};
use crate::inode::Inode;
use crate::mount::parse;

use super::extents::entry_offset;
use super::grow::joins;

/// Room for one extent more than an inode has, for what does not fit.
const ROOM: usize = ROOT_ENTRIES as usize + 1;

const NONE: Extent = Extent {
    block: 0,
    len: 0,
    start: 0,
    unwritten: false,
};

/// The extents of an inode, in order.
pub(super) struct Leaf {
    all: [Extent; ROOM],
    len: usize,
}

impl Leaf {
    /// The extents, if all of them are in the inode, which was checked when it
    /// was loaded.
    pub fn of(inode: &Inode) -> Option<Self> {
        let header: ExtentHeader = parse(&inode.raw.i_block, 0)?;
        let entries = header.eh_entries.get();
        if header.eh_depth.get() != 0 || entries > ROOT_ENTRIES {
            return None;
        }
        let mut leaf = Self {
            all: [NONE; ROOM],
            len: usize::from(entries),
        };
        for (i, extent) in (0..entries).zip(&mut leaf.all) {
            let raw: RawExtent = parse(&inode.raw.i_block, entry_offset(i))?;
            *extent = raw.into();
        }
        Some(leaf)
    }

    fn extents(&self) -> &[Extent] {
        self.all.get(..self.len).unwrap_or(&[])
    }

    fn push(&mut self, extent: Extent) -> bool {
        match self.all.get_mut(self.len) {
            Some(slot) => *slot = extent,
            None => return false,
        }
        self.len = self.len.saturating_add(1);
        true
    }

    fn fits(&self) -> bool {
        self.len <= usize::from(ROOT_ENTRIES)
    }

    /// With an extent where there is a hole; `None` if that does not fit.
    pub fn insert(&self, new: Extent) -> Option<Self> {
        let mut more = Self {
            all: [NONE; ROOM],
            len: 0,
        };
        let pos = self.extents().partition_point(|e| e.block <= new.block);
        let (before, after) = self.extents().split_at_checked(pos)?;
        let (mut new, mut after) = (Some(new), after);
        for extent in before {
            more.push(*extent);
        }
        if let (Some(add), Some(last)) = (new, before.last())
            && joins(last, &add)
        {
            more.len = more.len.saturating_sub(1);
            more.push(Extent {
                len: last.len.saturating_add(add.len),
                ..*last
            });
            new = None;
        }
        if let (Some(add), Some((next, rest))) = (new, after.split_first())
            && joins(&add, next)
        {
            new = Some(Extent {
                len: add.len.saturating_add(next.len),
                ..add
            });
            after = rest;
        }
        for extent in new.iter().chain(after) {
            if !more.push(*extent) {
                return None;
            }
        }
        more.fits().then_some(more)
    }

    /// Without blocks `from..to` of the file, which `gone` is called with;
    /// `None`, and no call, if the pieces that are left do not fit.
    pub fn remove(&self, from: u64, to: u64, mut gone: impl FnMut(u64, u32)) -> Option<Self> {
        let mut less = Self {
            all: [NONE; ROOM],
            len: 0,
        };
        for e in self.extents() {
            let (start, end) = (u64::from(e.block), e.end());
            if end <= from || start >= to {
                less.push(*e);
                continue;
            }
            if start < from {
                less.push(Extent {
                    len: from.saturating_sub(start) as u32,
                    ..*e
                });
            }
            if end > to {
                less.push(Extent {
                    block: to as u32,
                    len: end.saturating_sub(to) as u32,
                    start: e.start.saturating_add(to.saturating_sub(start)),
                    ..*e
                });
            }
        }
        if !less.fits() {
            return None;
        }
        for e in self.extents() {
            let start = u64::from(e.block);
            let (cut_from, cut_to) = (start.max(from), e.end().min(to));
            if cut_from < cut_to {
                let head = cut_from.saturating_sub(start);
                gone(
                    e.start.saturating_add(head),
                    cut_to.saturating_sub(cut_from) as u32,
                );
            }
        }
        Some(less)
    }

    /// Lets the inode have these extents.
    pub fn store(&self, inode: &mut Inode) {
        inode.data_changed = true;
        let entries = self.len as u16;
        let bytes = &mut inode.raw.i_block;
        if let Some(count) = bytes.get_mut(2..4) {
            count.copy_from_slice(&entries.to_le_bytes());
        }
        for (i, extent) in (0..ROOT_ENTRIES).zip(&self.all) {
            let at = entry_offset(i);
            let Some(to) = bytes.get_mut(at..at.saturating_add(ENTRY_SIZE)) else {
                return;
            };
            if i < entries {
                to.copy_from_slice(RawExtent::from(*extent).as_bytes());
            } else {
                to.fill(0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    fn extent(block: u32, len: u32, start: u64) -> Extent {
        Extent {
            block,
            len,
            start,
            unwritten: false,
        }
    }

    fn leaf(of: &[Extent]) -> Leaf {
        let mut leaf = Leaf {
            all: [NONE; ROOM],
            len: 0,
        };
        for e in of {
            leaf.push(*e);
        }
        leaf
    }

    #[test]
    fn neighbours_join_and_five_do_not_fit() {
        let one = leaf(&[extent(10, 5, 100)]);
        let with = |of: &Leaf, e| of.insert(e).map(|l| l.extents().to_vec());
        assert_eq!(
            with(&one, extent(15, 2, 105)),
            Some([extent(10, 7, 100)].to_vec())
        );
        assert_eq!(
            with(&one, extent(8, 2, 98)),
            Some([extent(8, 7, 98)].to_vec())
        );
        let apart = [extent(0, 1, 7), extent(10, 5, 100)].to_vec();
        assert_eq!(with(&one, extent(0, 1, 7)), Some(apart));
        let four: Vec<_> = (0..4).map(|i| extent(i * 10, 1, 500)).collect();
        assert_eq!(with(&leaf(&four), extent(5, 1, 9)), None);
        assert!(with(&leaf(&four), extent(1, 1, 501)).is_some());
    }

    #[test]
    fn a_hole_leaves_both_ends() {
        let one = leaf(&[extent(10, 10, 100)]);
        let mut gone = Vec::new();
        let rest = one.remove(12, 15, |start, len| gone.push((start, len)));
        let rest = rest.map(|l| l.extents().to_vec());
        let want = [extent(10, 2, 100), extent(15, 5, 105)].to_vec();
        assert_eq!((rest, &gone[..]), (Some(want), &[(102, 3)][..]));
        let four: Vec<_> = (0..4).map(|i| extent(i * 10, 9, 500)).collect();
        assert!(leaf(&four).remove(12, 15, |_, _| panic!()).is_none());
        gone.clear();
        let none = leaf(&four).remove(0, 1 << 32, |start, len| gone.push((start, len)));
        assert_eq!((none.map(|l| l.len), gone.len()), (Some(0), 4));
    }
}
