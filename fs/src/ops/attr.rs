//! Owner, permissions, times.

use crate::error::Result;
use crate::mount::Ext4;
use crate::pmem::Pmem;
use crate::types::{Ino, Timestamp};

impl<P: Pmem> Ext4<P> {
    /// Sets the permission bits (the lower 12 of `mode`).
    pub fn chmod(&mut self, ino: Ino, mode: u16) -> Result<()> {
        self.run(|fs| {
            let mut inode = fs.inode_or_orphan(ino)?;
            let kind = inode.raw.i_mode.get() & crate::disk::inode::S_IFMT;
            inode.raw.i_mode.set(kind | (mode & 0o7777));
            inode.set_ctime(fs.now());
            fs.put_inode(&mut inode)
        })
    }

    /// Sets owner and group; `None` leaves one as it is.
    pub fn chown(&mut self, ino: Ino, uid: Option<u32>, gid: Option<u32>) -> Result<()> {
        self.run(|fs| {
            let mut inode = fs.inode_or_orphan(ino)?;
            if let Some(uid) = uid {
                inode.raw.i_uid.set(uid as u16);
                inode.raw.l_i_uid_high.set((uid >> 16) as u16);
            }
            if let Some(gid) = gid {
                inode.raw.i_gid.set(gid as u16);
                inode.raw.l_i_gid_high.set((gid >> 16) as u16);
            }
            inode.set_ctime(fs.now());
            fs.put_inode(&mut inode)
        })
    }

    /// Sets access and modification time; `None` leaves one as it is.
    pub fn utimens(
        &mut self,
        ino: Ino,
        atime: Option<Timestamp>,
        mtime: Option<Timestamp>,
    ) -> Result<()> {
        self.run(|fs| {
            let mut inode = fs.inode_or_orphan(ino)?;
            if let Some(t) = atime {
                inode.set_atime(t);
            }
            if let Some(t) = mtime {
                inode.set_mtime(t);
            }
            inode.set_ctime(fs.now());
            fs.put_inode(&mut inode)
        })
    }
}
