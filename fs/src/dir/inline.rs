//! Directories inside an inode: the parent's number, then entries in the rest
//! of `i_block`, then entries in the attribute `system.data`. `.` and `..`
//! are not stored.

use alloc::vec;
use alloc::vec::Vec;

use crate::disk::inode::BLOCK_AREA;
use crate::error::{Error, Result};
use crate::inode::Inode;
use crate::mount::{Ext4, le32};
use crate::pmem::Pmem;
use crate::types::{Dirent, FileType, Ino};

use super::block::{Entry, entries};
use super::edit::NewEntry;

/// Bytes of the parent's number.
const PARENT: usize = 4;

impl<P: Pmem> Ext4<P> {
    /// The parent, and all entries with the bytes they stand in: their
    /// offsets count from the start of the inline data.
    #[allow(clippy::type_complexity, reason = "used in this file only")]
    fn inline_entries(&self, dir: &Inode) -> Result<(u32, Vec<u8>, Vec<Result<Entry>>)> {
        let mut bytes = self.inline_bytes(dir)?;
        let wrong = Error::inode("inline directory", dir.ino);
        let parent = le32(&bytes, 0).ok_or(wrong)?;
        let size = usize::try_from(dir.size()).map_err(|_| wrong)?;
        if size > bytes.len() || size < BLOCK_AREA.min(bytes.len()) {
            return Err(wrong);
        }
        bytes.truncate(size);
        let mut all = Vec::new();
        for (from, to) in [(PARENT, BLOCK_AREA.min(size)), (BLOCK_AREA, size)] {
            let Some(part) = bytes.get(from..to) else {
                continue;
            };
            for entry in entries(&self.geo, part, dir.block) {
                all.push(entry.map(|e| Entry {
                    off: e.off.saturating_add(from),
                    ..e
                }));
            }
        }
        Ok((parent, bytes, all))
    }

    /// All names, `.` and `..` among them, ready to be written to a block.
    pub(crate) fn inline_names(&self, dir: &Inode) -> Result<Vec<NewEntry<'static>>> {
        let (parent, bytes, all) = self.inline_entries(dir)?;
        let mut names = vec![
            self.new_entry(b".", dir.ino, FileType::Directory),
            self.new_entry(b"..", parent, FileType::Directory),
        ];
        for entry in all {
            let entry = entry?;
            if entry.ino != 0 {
                names.push(NewEntry {
                    ino: entry.ino,
                    file_type: entry.file_type,
                    name: entry.name(&bytes).to_vec().into(),
                });
            }
        }
        Ok(names)
    }

    pub(super) fn inline_lookup(&self, dir: &Inode, name: &[u8]) -> Result<Option<u32>> {
        let (parent, bytes, all) = self.inline_entries(dir)?;
        match name {
            b"." => return Ok(Some(dir.ino)),
            b".." => return Ok(Some(parent)),
            _ => {}
        }
        for entry in all {
            let entry = entry?;
            if entry.ino != 0 && entry.name(&bytes) == name {
                return Ok(Some(entry.ino));
            }
        }
        Ok(None)
    }

    /// Cookies: 0 before `.`, 1 before `..`, then 2 + offset.
    pub(super) fn inline_readdir(
        &self,
        dir: &Inode,
        cookie: u64,
        f: &mut dyn FnMut(Dirent<'_>) -> bool,
    ) -> Result<()> {
        let (parent, bytes, all) = self.inline_entries(dir)?;
        for (at, next_cookie, ino, name) in [(0, 1, dir.ino, &b"."[..]), (1, 2, parent, b"..")] {
            let kind = Some(FileType::Directory);
            if cookie <= at
                && !f(Dirent {
                    ino: Ino(ino),
                    kind,
                    name,
                    next_cookie,
                })
            {
                return Ok(());
            }
        }
        for entry in all {
            let entry = entry?;
            let at = (entry.off as u64).saturating_add(2);
            if entry.ino == 0 || at < cookie {
                continue;
            }
            let dirent = Dirent {
                ino: Ino(entry.ino),
                kind: self.entry_kind(&entry),
                name: entry.name(&bytes),
                next_cookie: at.saturating_add(entry.rec_len as u64),
            };
            if !f(dirent) {
                return Ok(());
            }
        }
        Ok(())
    }
}
