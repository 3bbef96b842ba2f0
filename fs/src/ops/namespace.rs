//! Names: making, linking, renaming and removing objects.

use crate::allocate::blocks::Want;
use crate::allocate::inodes::NewInode;
use crate::disk::dir::NAME_MAX;
use crate::disk::features::{Incompat, RoCompat};
use crate::disk::inode::{BLOCK_AREA, InodeFlags, S_IFMT};
use crate::error::{Error, Result};
use crate::inode::Inode;
use crate::mount::Ext4;
use crate::pmem::Pmem;
use crate::types::{DeviceNumber, FileType, Ino, Release};

/// Set-group-id: on a directory, what is made in it gets its group.
const S_ISGID: u16 = 0o2000;
/// Most links to an object.
const LINK_MAX: u16 = 65000;

impl<P: Pmem> Ext4<P> {
    /// A directory that a name can be added to or removed from.
    fn writable_dir(&self, dir: Ino) -> Result<Inode> {
        let inode = self.directory(dir)?;
        if inode.raw.i_links_count.get() == 0 {
            return Err(Error::NotFound);
        }
        if inode.has(InodeFlags::CASEFOLD) {
            // The order of folded names needs Unicode's tables.
            return Err(Error::Unsupported {
                feature: "changing a directory with casefold",
            });
        }
        if inode.has(InodeFlags::IMMUTABLE) {
            return Err(Error::NotPermitted);
        }
        Ok(inode)
    }

    /// The same in a transaction, with its entries in blocks.
    fn changing_dir(&mut self, dir: Ino) -> Result<Inode> {
        let mut inode = self.writable_dir(dir)?;
        if inode.inline {
            self.spill_inline(&mut inode)?;
            self.put_inode(&mut inode)?;
        }
        Ok(inode)
    }

    /// Refuses to take a name from something that must keep it.
    fn check_removable(dir: &Inode, inode: &Inode) -> Result<()> {
        if dir.has(InodeFlags::APPEND)
            || inode
                .flags()
                .intersects(InodeFlags::IMMUTABLE | InodeFlags::APPEND)
        {
            return Err(Error::NotPermitted);
        }
        Ok(())
    }

    fn check_new_name(&self, dir: &Inode, name: &[u8]) -> Result<()> {
        if name == b"." || name == b".." {
            return Err(Error::Exists);
        }
        if name.is_empty() {
            return Err(Error::NotFound);
        }
        if name.len() > NAME_MAX {
            return Err(Error::NameTooLong);
        }
        if name.contains(&b'/') || name.contains(&0) {
            return Err(Error::Invalid);
        }
        match self.lookup_in(dir, name)? {
            Some(_) => Err(Error::Exists),
            None => Ok(()),
        }
    }

    fn make(
        &mut self,
        dir: Ino,
        name: &[u8],
        new: NewInode,
        mut fill: impl FnMut(&mut Self, &mut Inode) -> Result<()>,
    ) -> Result<Ino> {
        self.run(|fs| {
            let mut parent = fs.changing_dir(dir)?;
            fs.index_names(&parent)?;
            fs.check_new_name(&parent, name)?;
            let kind = FileType::from_mode(new.mode).ok_or(Error::Invalid)?;
            if kind == FileType::Directory {
                fs.check_dir_links(&parent)?;
            }
            let mut new = new;
            if parent.raw.i_mode.get() & S_ISGID != 0 {
                new.gid = parent.gid();
                if kind == FileType::Directory {
                    new.mode |= S_ISGID;
                }
            }
            let mut inode = fs.new_inode(&parent, new)?;
            if matches!(kind, FileType::Regular | FileType::Directory)
                && fs.geo.incompat.contains(Incompat::EXTENTS)
            {
                inode.set_flags(inode.flags() | InodeFlags::EXTENTS);
                Self::init_extents(&mut inode);
            }
            fill(fs, &mut inode)?;
            if kind == FileType::Directory {
                fs.start_directory(&mut inode, parent.ino)?;
                fs.count_subdir(&mut parent, true);
            }
            fs.put_inode(&mut inode)?;
            fs.add_entry(&mut parent, name, inode.ino, kind)?;
            let now = fs.now();
            parent.set_mtime(now);
            parent.set_ctime(now);
            fs.put_inode(&mut parent)?;
            Ok(Ino(inode.ino))
        })
    }

    /// Makes an empty regular file. `perm` are the permission bits.
    pub fn create(&mut self, dir: Ino, name: &[u8], perm: u16, uid: u32, gid: u32) -> Result<Ino> {
        let mode = FileType::Regular.mode_bits() | (perm & 0o7777);
        self.make(
            dir,
            name,
            NewInode {
                mode,
                uid,
                gid,
                links: 1,
            },
            |_, _| Ok(()),
        )
    }

    /// Makes an empty directory.
    pub fn mkdir(&mut self, dir: Ino, name: &[u8], perm: u16, uid: u32, gid: u32) -> Result<Ino> {
        let mode = FileType::Directory.mode_bits() | (perm & 0o7777);
        self.make(
            dir,
            name,
            NewInode {
                mode,
                uid,
                gid,
                links: 2,
            },
            |_, _| Ok(()),
        )
    }

    /// Makes a device, pipe or socket, or an empty regular file; `mode` has
    /// the type.
    pub fn mknod(
        &mut self,
        dir: Ino,
        name: &[u8],
        mode: u16,
        rdev: DeviceNumber,
        uid: u32,
        gid: u32,
    ) -> Result<Ino> {
        let kind = FileType::from_mode(mode).ok_or(Error::Invalid)?;
        if matches!(kind, FileType::Directory | FileType::Symlink) {
            return Err(Error::Invalid);
        }
        let new = NewInode {
            mode: mode & (S_IFMT | 0o7777),
            uid,
            gid,
            links: 1,
        };
        self.make(dir, name, new, |_, inode| {
            if matches!(kind, FileType::CharDevice | FileType::BlockDevice) {
                let (word, at) = if rdev.major < 256 && rdev.minor < 256 {
                    ((rdev.major << 8) | rdev.minor, 0)
                } else {
                    let low = (rdev.minor & 0xff) | (rdev.major << 8);
                    (low | ((rdev.minor & !0xff) << 12), 4_usize)
                };
                if let Some(to) = inode.raw.i_block.get_mut(at..at.saturating_add(4)) {
                    to.copy_from_slice(&word.to_le_bytes());
                }
            }
            Ok(())
        })
    }

    /// Makes a symbolic link.
    pub fn symlink(
        &mut self,
        dir: Ino,
        name: &[u8],
        target: &[u8],
        uid: u32,
        gid: u32,
    ) -> Result<Ino> {
        if target.is_empty() {
            return Err(Error::NotFound);
        }
        if target.contains(&0) {
            return Err(Error::Invalid);
        }
        if target.len() >= self.geo.bs().min(4096) {
            return Err(Error::NameTooLong);
        }
        let mode = FileType::Symlink.mode_bits() | 0o777;
        self.make(
            dir,
            name,
            NewInode {
                mode,
                uid,
                gid,
                links: 1,
            },
            |fs, inode| {
                inode.set_size(target.len() as u64);
                if target.len() < BLOCK_AREA {
                    inode.fast_symlink = true;
                    if let Some(to) = inode.raw.i_block.get_mut(..target.len()) {
                        to.copy_from_slice(target);
                    }
                    return Ok(());
                }
                if fs.geo.incompat.contains(Incompat::EXTENTS) {
                    inode.set_flags(inode.flags() | InodeFlags::EXTENTS);
                    Self::init_extents(inode);
                }
                let goal = fs.inode_goal(inode);
                let (block, _) = fs.alloc_blocks(Want { goal, len: 1 })?;
                fs.add_blocks(inode, 1)?;
                let mut bytes = target.to_vec();
                bytes.resize(fs.geo.bs(), 0);
                fs.store
                    .pmem()
                    .write_nt(fs.media_address(crate::types::FsBlock(block)), &bytes)?;
                fs.map_insert(inode, 0, block, 1, false)
            },
        )
    }

    /// Gives an object a further name.
    pub fn link(&mut self, ino: Ino, dir: Ino, name: &[u8]) -> Result<()> {
        self.run(|fs| {
            let mut parent = fs.changing_dir(dir)?;
            fs.index_names(&parent)?;
            let mut inode = fs.inode(ino)?;
            if inode.kind == FileType::Directory {
                return Err(Error::IsDir);
            }
            if inode
                .flags()
                .intersects(InodeFlags::IMMUTABLE | InodeFlags::APPEND)
            {
                return Err(Error::NotPermitted);
            }
            if inode.raw.i_links_count.get() >= LINK_MAX {
                return Err(Error::TooManyLinks);
            }
            fs.check_new_name(&parent, name)?;
            fs.add_entry(&mut parent, name, inode.ino, inode.kind)?;
            let now = fs.now();
            inode
                .raw
                .i_links_count
                .set(inode.raw.i_links_count.get().saturating_add(1));
            inode.set_ctime(now);
            parent.set_mtime(now);
            parent.set_ctime(now);
            fs.put_inode(&mut inode)?;
            fs.put_inode(&mut parent)
        })
    }

    /// Removes a name of something that is no directory. Gives its inode and
    /// the number of names that are left. With none left, `release` says
    /// whether the object is freed now or kept until
    /// [`evict`](Self::evict).
    pub fn unlink(&mut self, dir: Ino, name: &[u8], release: Release<'_>) -> Result<(Ino, u32)> {
        let done = self.run(|fs| {
            let mut parent = fs.changing_dir(dir)?;
            fs.index_names(&parent)?;
            let (fb, block, entry) = fs.find_entry(&parent, name)?.ok_or(Error::NotFound)?;
            let mut inode = fs.inode(Ino(entry.ino))?;
            if inode.kind == FileType::Directory {
                return Err(Error::IsDir);
            }
            Self::check_removable(&parent, &inode)?;
            fs.remove_entry(&parent, fb, block, &entry, name)?;
            let now = fs.now();
            parent.set_mtime(now);
            parent.set_ctime(now);
            fs.put_inode(&mut parent)?;
            fs.drop_link(&mut inode, release)
        })?;
        self.note_open(done, release);
        Ok(done)
    }

    /// Takes one link from something that is no directory.
    fn drop_link(&mut self, inode: &mut Inode, release: Release<'_>) -> Result<(Ino, u32)> {
        let left = inode.raw.i_links_count.get().saturating_sub(1);
        inode.raw.i_links_count.set(left);
        inode.set_ctime(self.now());
        let ino = Ino(inode.ino);
        if left == 0 {
            match release {
                Release::Now(lease) => {
                    if !lease.covers(ino, 0..u64::MAX) || !lease.pinned(ino).is_empty() {
                        return Err(Error::NotLeased);
                    }
                    if !self.is_large(inode) {
                        self.destroy(inode)?;
                        return Ok((ino, 0));
                    }
                    self.orphan_add(inode);
                    self.alloc.large_orphan = Some(inode.ino);
                }
                Release::Later => self.orphan_add(inode),
            }
        }
        self.put_inode(inode)?;
        Ok((ino, u32::from(left)))
    }

    fn note_open(&mut self, (ino, left): (Ino, u32), release: Release<'_>) {
        match release {
            Release::Now(lease) => self.evict_large(lease),
            Release::Later if left == 0 => self.alloc.set_open_orphan(ino.0, true),
            Release::Later => {}
        }
    }

    /// Removes an empty directory.
    pub fn rmdir(&mut self, dir: Ino, name: &[u8]) -> Result<()> {
        if name == b"." {
            return Err(Error::Invalid);
        }
        if name == b".." {
            return Err(Error::NotEmpty);
        }
        self.run(|fs| {
            let mut parent = fs.changing_dir(dir)?;
            fs.index_names(&parent)?;
            let (fb, block, entry) = fs.find_entry(&parent, name)?.ok_or(Error::NotFound)?;
            let mut inode = fs.directory(Ino(entry.ino))?;
            if inode.ino == parent.ino || inode.ino == crate::disk::inode::ROOT_INO {
                return Err(Error::Busy);
            }
            if !fs.is_empty_dir(&inode)? {
                return Err(Error::NotEmpty);
            }
            Self::check_removable(&parent, &inode)?;
            fs.remove_entry(&parent, fb, block, &entry, name)?;
            fs.count_subdir(&mut parent, false);
            let now = fs.now();
            parent.set_mtime(now);
            parent.set_ctime(now);
            fs.put_inode(&mut parent)?;
            fs.destroy(&mut inode)
        })
    }

    /// Whether a directory may get a further subdirectory.
    fn check_dir_links(&self, dir: &Inode) -> Result<()> {
        if !self.geo.ro_compat.contains(RoCompat::DIR_NLINK)
            && dir.raw.i_links_count.get() >= LINK_MAX
        {
            return Err(Error::TooManyLinks);
        }
        Ok(())
    }

    /// Counts a subdirectory in or out. One link means "too many to count".
    pub(crate) fn count_subdir(&self, dir: &mut Inode, more: bool) {
        let links = dir.raw.i_links_count.get();
        let links = match (links, more) {
            (1, _) => 1,
            (LINK_MAX.., true) => 1,
            (_, true) => links.saturating_add(1),
            (0..=2, false) => links,
            (_, false) => links.saturating_sub(1),
        };
        dir.raw.i_links_count.set(links);
    }

    /// Moves an object to another name, which may be in another directory. An
    /// object that has that name goes away; `release` says how, and its inode
    /// with the number of names left is given.
    pub fn rename(
        &mut self,
        from_dir: Ino,
        from: &[u8],
        to_dir: Ino,
        to: &[u8],
        release: Release<'_>,
    ) -> Result<Option<(Ino, u32)>> {
        let dots = [&b"."[..], b".."];
        if dots.contains(&from) || dots.contains(&to) {
            return Err(Error::Busy);
        }
        let done = self.run(|fs| fs.rename_in(from_dir, from, to_dir, to, release))?;
        if let Some(gone) = done {
            self.note_open(gone, release);
        }
        Ok(done)
    }

    fn rename_in(
        &mut self,
        from_dir: Ino,
        from: &[u8],
        to_dir: Ino,
        to: &[u8],
        release: Release<'_>,
    ) -> Result<Option<(Ino, u32)>> {
        let same_dir = from_dir == to_dir;
        let mut source = self.changing_dir(from_dir)?;
        self.index_names(&source)?;
        let mut target = if same_dir {
            source.clone()
        } else {
            self.changing_dir(to_dir)?
        };
        if !same_dir {
            self.index_names(&target)?;
        }
        let (_, _, entry) = self.find_entry(&source, from)?.ok_or(Error::NotFound)?;
        let mut moved = self.inode(Ino(entry.ino))?;
        let is_dir = moved.kind == FileType::Directory;
        Self::check_removable(&source, &moved)?;
        if is_dir && !same_dir {
            self.check_loop(&moved, &target)?;
        }
        let old = self.find_entry(&target, to)?;
        let now = self.now();
        let mut gone = None;
        if let Some((fb, block, other)) = old {
            if other.ino == moved.ino {
                // Two names of one object: nothing is to be done.
                return Ok(None);
            }
            let mut victim = self.inode(Ino(other.ino))?;
            match (is_dir, victim.kind == FileType::Directory) {
                (true, false) => return Err(Error::NotDir),
                (false, true) => return Err(Error::IsDir),
                (true, true) if !self.is_empty_dir(&victim)? => return Err(Error::NotEmpty),
                _ => {}
            }
            Self::check_removable(&target, &victim)?;
            self.replace_entry(&target, fb, block, &other, moved.ino, moved.kind)?;
            if is_dir {
                self.count_subdir(&mut target, false);
                if same_dir {
                    self.count_subdir(&mut source, false);
                }
                let ino = Ino(victim.ino);
                self.destroy(&mut victim)?;
                gone = Some((ino, u32::MAX));
            } else {
                gone = Some(self.drop_link(&mut victim, release)?);
            }
        } else {
            if to.len() > NAME_MAX {
                return Err(Error::NameTooLong);
            }
            if is_dir && !same_dir {
                self.check_dir_links(&target)?;
            }
            self.add_entry(&mut target, to, moved.ino, moved.kind)?;
            if same_dir {
                source = target.clone();
            }
        }
        // The directory may have been split: the old name is looked up again.
        let (fb, block, entry) = self
            .find_entry(&source, from)?
            .ok_or(Error::inode("a name is lost", source.ino))?;
        self.remove_entry(&source, fb, block, &entry, from)?;
        if is_dir && !same_dir {
            self.spill_inline(&mut moved)?;
            let (fb, block, dotdot) = self
                .find_entry(&moved, b"..")?
                .ok_or(Error::inode("a directory without ..", moved.ino))?;
            self.replace_entry(&moved, fb, block, &dotdot, target.ino, FileType::Directory)?;
            self.count_subdir(&mut source, false);
            self.count_subdir(&mut target, true);
        }
        moved.set_ctime(now);
        source.set_mtime(now);
        source.set_ctime(now);
        self.put_inode(&mut source)?;
        if !same_dir {
            target.set_mtime(now);
            target.set_ctime(now);
            self.put_inode(&mut target)?;
        }
        self.put_inode(&mut moved)?;
        Ok(gone.map(|(ino, left)| (ino, if left == u32::MAX { 0 } else { left })))
    }

    /// Refuses to move a directory below itself.
    fn check_loop(&self, moved: &Inode, target: &Inode) -> Result<()> {
        let mut at = target.ino;
        for _ in 0..self.geo.inodes {
            if at == moved.ino {
                return Err(Error::Loop);
            }
            if at == crate::disk::inode::ROOT_INO {
                return Ok(());
            }
            let dir = self.directory(Ino(at))?;
            at = self
                .lookup_in(&dir, b"..")?
                .ok_or(Error::inode("a directory without ..", at))?
                .0;
        }
        Err(Error::inode("directories form a loop", target.ino))
    }
}
