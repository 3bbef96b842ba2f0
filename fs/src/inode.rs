//! Inodes: found, checked as Linux checks them when it loads one, and shown.

use alloc::vec;
use alloc::vec::Vec;

use zerocopy::IntoBytes;

use crate::disk::features::{Compat, Incompat, RoCompat};
use crate::disk::inode::{
    BLOCK_AREA, BOOT_LOADER_INO, GOOD_OLD_SIZE, GRP_QUOTA_INO, InodeFlags, JOURNAL_INO,
    RAW_INODE_SIZE, RESIZE_INO, ROOT_INO, RawInode, USR_QUOTA_INO, has_checksum_hi, inode_checksum,
    inode_seed, seal_record,
};
use crate::error::{Error, Result};
use crate::inode_field;
use crate::mount::{Ext4, le32};
use crate::pmem::Pmem;
use crate::store::{Checked, Seal, line_mask};
use crate::types::{DeviceNumber, FileType, Ino, Stat, Timestamp};

/// Bit of `s_default_mount_opts`: owners have 16 bits.
const DEFAULT_UID16: u32 = 0x10;

/// An inode in memory. A copy: changes reach the media by
/// [`Ext4::put_inode`].
#[derive(Clone, Debug)]
pub(crate) struct Inode {
    pub ino: u32,
    pub kind: FileType,
    /// The named fields; zero where the record is shorter.
    pub raw: RawInode,
    /// Where the record is.
    pub block: u64,
    pub off: usize,
    /// Bytes of the record's fields: 128 + `i_extra_isize`.
    pub fields: usize,
    /// `i_size_high` counts.
    pub wide_size: bool,
    /// `i_block` itself is the link's target.
    pub fast_symlink: bool,
    /// The data is inside the inode. The flag alone does not say so: mke2fs
    /// sets it on sparse files too.
    pub inline: bool,
    /// Something changed without which data is not found (for `fdatasync`).
    pub data_changed: bool,
}

impl Inode {
    /// One of which nothing but its record is known.
    pub fn of(ino: u32, kind: FileType, raw: RawInode, (block, off): (u64, usize)) -> Self {
        Self {
            ino,
            kind,
            raw,
            block,
            off,
            fields: GOOD_OLD_SIZE,
            wide_size: true,
            fast_symlink: false,
            inline: false,
            data_changed: true,
        }
    }

    pub fn size(&self) -> u64 {
        let high = if self.wide_size {
            self.raw.i_size_high.get()
        } else {
            0
        };
        u64::from(self.raw.i_size_lo.get()) | (u64::from(high) << 32)
    }

    pub fn set_size(&mut self, size: u64) {
        self.data_changed |= size != self.size();
        self.raw.i_size_lo.set(size as u32);
        self.raw.i_size_high.set((size >> 32) as u32);
    }

    pub fn flags(&self) -> InodeFlags {
        InodeFlags::from_bits_retain(self.raw.i_flags.get())
    }

    pub fn set_flags(&mut self, flags: InodeFlags) {
        self.raw.i_flags.set(flags.bits());
    }

    pub fn has(&self, flag: InodeFlags) -> bool {
        self.flags().contains(flag)
    }

    pub fn file_acl(&self) -> u64 {
        u64::from(self.raw.i_file_acl_lo.get())
            | (u64::from(self.raw.l_i_file_acl_high.get()) << 32)
    }

    pub fn set_file_acl(&mut self, block: u64) {
        self.raw.i_file_acl_lo.set(block as u32);
        self.raw.l_i_file_acl_high.set((block >> 32) as u16);
    }

    /// Whether the record reaches to the end of a field.
    pub fn fits(&self, offset: usize, len: usize) -> bool {
        offset.saturating_add(len) <= self.fields
    }

    pub fn uid(&self) -> u32 {
        u32::from(self.raw.i_uid.get()) | (u32::from(self.raw.l_i_uid_high.get()) << 16)
    }

    pub fn gid(&self) -> u32 {
        u32::from(self.raw.i_gid.get()) | (u32::from(self.raw.l_i_gid_high.get()) << 16)
    }

    fn time(&self, secs: u32, extra: u32, extra_at: usize) -> Timestamp {
        Timestamp::decode(secs, if self.fits(extra_at, 4) { extra } else { 0 })
    }

    pub fn mtime(&self) -> Timestamp {
        let r = &self.raw;
        self.time(
            r.i_mtime.get(),
            r.i_mtime_extra.get(),
            inode_field!(i_mtime_extra),
        )
    }

    pub fn ctime(&self) -> Timestamp {
        let r = &self.raw;
        self.time(
            r.i_ctime.get(),
            r.i_ctime_extra.get(),
            inode_field!(i_ctime_extra),
        )
    }

    pub fn atime(&self) -> Timestamp {
        let r = &self.raw;
        self.time(
            r.i_atime.get(),
            r.i_atime_extra.get(),
            inode_field!(i_atime_extra),
        )
    }

    /// Whether `i_block` holds references to blocks.
    pub fn has_block_map(&self) -> bool {
        match self.kind {
            FileType::Regular | FileType::Directory => !self.inline,
            FileType::Symlink => !self.inline && !self.fast_symlink,
            _ => false,
        }
    }

    /// The seed of the checksums of its blocks.
    pub fn seed(&self, fs_seed: u32) -> u32 {
        inode_seed(fs_seed, self.ino, self.raw.i_generation.get())
    }
}

impl<P: Pmem> Ext4<P> {
    /// Block and offset of an inode's record.
    pub(crate) fn inode_location(&self, ino: u32) -> Result<(u64, usize)> {
        let wrong = Error::inode("no such inode", ino);
        let (group, index) = self.geo.group_of_inode(ino).ok_or(wrong)?;
        let byte = u64::from(index).saturating_mul(u64::from(self.geo.inode_size));
        let table = match self.alloc.tables.get(group) {
            Some(table) => table,
            None => {
                let table = self.readable_desc(group)?.inode_table();
                let end = table.saturating_add(u64::from(self.geo.itable_blocks));
                if table <= u64::from(self.geo.first_data_block) || end > self.geo.blocks {
                    return Err(Error::corrupt(
                        "inode table outside the file system",
                        crate::error::Place::Group(group),
                    ));
                }
                self.alloc.tables.set(group, table);
                table
            }
        };
        let block = table.saturating_add(byte.wrapping_shr(self.geo.block_shift));
        let off = byte as usize & (self.geo.bs().saturating_sub(1));
        Ok((block, off))
    }

    /// An inode that users may name: the root and those past the reserved
    /// ones.
    #[inline]
    pub(crate) fn inode(&self, ino: Ino) -> Result<Inode> {
        if !self.geo.is_valid_ino(ino.0) {
            return Err(Error::inode("inode number", ino.0));
        }
        let inode = self.load_inode(ino.0)?;
        if inode.has(InodeFlags::EA_INODE) {
            return Err(Error::inode("an attribute value is no file", ino.0));
        }
        Ok(inode)
    }

    /// An inode of the file system's own, such as the journal.
    pub(crate) fn special_inode(&self, ino: u32) -> Result<Inode> {
        let special = [
            ROOT_INO,
            USR_QUOTA_INO,
            GRP_QUOTA_INO,
            BOOT_LOADER_INO,
            JOURNAL_INO,
            RESIZE_INO,
            self.sb.s_usr_quota_inum.get(),
            self.sb.s_grp_quota_inum.get(),
            self.sb.s_prj_quota_inum.get(),
            self.sb.s_orphan_file_inum.get(),
        ];
        if ino < self.geo.first_ino && !special.contains(&ino) {
            return Err(Error::inode("inode number", ino));
        }
        self.load_inode(ino)
    }

    /// An inode with names.
    #[inline]
    pub(crate) fn load_inode(&self, ino: u32) -> Result<Inode> {
        let inode = self.load_inode_any(ino)?;
        if inode.raw.i_links_count.get() == 0 {
            return Err(Error::inode("a deleted inode is referred to", ino));
        }
        Ok(inode)
    }

    /// An inode that is in use, perhaps without a name.
    #[inline]
    pub(crate) fn load_inode_any(&self, ino: u32) -> Result<Inode> {
        match self.inodes.get(ino) {
            Some(inode) => Ok(inode.clone()),
            None => self.read_inode(ino),
        }
    }

    /// The same from the media or the running transaction.
    fn read_inode(&self, ino: u32) -> Result<Inode> {
        let (block, off) = self.inode_location(ino)?;
        let size = usize::from(self.geo.inode_size);
        // Of a record of the usual size all of it, in case it is to be checked.
        let mut record = [0; 256];
        let len = if size == record.len() {
            size
        } else {
            size.min(RAW_INODE_SIZE)
        };
        let bytes = record.get_mut(..len).unwrap_or(&mut []);
        let known = self.store.is_verified(Checked::Inode, u64::from(ino));
        let bytes = match known {
            true => bytes.get_mut(..len.min(RAW_INODE_SIZE)).unwrap_or(&mut []),
            false => bytes,
        };
        self.store.read(block, off, bytes)?;
        let (head, _) = record
            .split_first_chunk::<RAW_INODE_SIZE>()
            .ok_or(Error::inode("record size", ino))?;
        let mut raw: RawInode = zerocopy::transmute!(*head);
        if !self.geo.incompat.contains(Incompat::BIT64) {
            // Not a part of the number then, whatever it holds.
            raw.l_i_file_acl_high = 0.into();
        }
        if self.sb.s_default_mount_opts.get() & DEFAULT_UID16 != 0 {
            raw.l_i_uid_high = 0.into();
            raw.l_i_gid_high = 0.into();
        }

        let extra = if size > GOOD_OLD_SIZE {
            usize::from(raw.i_extra_isize.get())
        } else {
            0
        };
        if GOOD_OLD_SIZE.saturating_add(extra) > size || extra & 3 != 0 {
            return Err(Error::inode("i_extra_isize", ino));
        }
        if !known {
            let record = (len == record.len()).then_some(&record);
            self.verify_inode_checksum(ino, block, off, &raw, record)?;
        }
        let kind = FileType::from_mode(raw.i_mode.get()).ok_or(Error::inode("i_mode", ino))?;
        let fields = GOOD_OLD_SIZE.saturating_add(extra);
        let wide_size = kind == FileType::Regular || self.geo.incompat.contains(Incompat::LARGEDIR);
        let mut inode = Inode {
            ino,
            kind,
            raw,
            block,
            off,
            fields,
            wide_size,
            fast_symlink: false,
            inline: false,
            data_changed: false,
        };
        inode.inline = inode.has(InodeFlags::INLINE_DATA) && self.has_inline_data(&inode)?;
        inode.fast_symlink = self.is_fast_symlink(&inode);
        self.check_inode(&inode)?;
        if !known {
            if inode.has_block_map() && ino >= self.geo.first_ino {
                self.check_root_blocks(&inode)?;
            }
            if inode.file_acl() != 0 {
                self.check_not_system(&inode, inode.file_acl(), 1)?;
            }
            self.store.set_verified(Checked::Inode, u64::from(ino));
        }
        Ok(inode)
    }

    /// The whole record.
    pub(crate) fn inode_record(&self, block: u64, off: usize) -> Result<Vec<u8>> {
        let mut record = vec![0; usize::from(self.geo.inode_size)];
        self.store.read(block, off, &mut record)?;
        Ok(record)
    }

    fn verify_inode_checksum(
        &self,
        ino: u32,
        block: u64,
        off: usize,
        raw: &RawInode,
        record: Option<&[u8; 256]>,
    ) -> Result<()> {
        let bit = 1_u64.wrapping_shl(self.index_in_block(off));
        if !self.geo.has_csum() || self.store.is_inode_unsealed(block, bit) {
            return Ok(());
        }
        let other;
        let record: &[u8] = match record {
            Some(record) => record,
            None => {
                other = self.inode_record(block, off)?;
                &other
            }
        };
        let seed = inode_seed(self.geo.seed, ino, raw.i_generation.get());
        let want = inode_checksum(seed, record);
        let lo = u32::from(raw.l_i_checksum_lo.get());
        let right = if has_checksum_hi(record) {
            want == lo | (u32::from(raw.i_checksum_hi.get()) << 16)
        } else {
            want & 0xffff == lo
        };
        if right {
            Ok(())
        } else {
            Err(Error::inode("inode checksum", ino))
        }
    }

    /// How Linux tells a target in the inode from one in a block.
    fn is_fast_symlink(&self, inode: &Inode) -> bool {
        if inode.kind != FileType::Symlink || inode.inline {
            return false;
        }
        if self.geo.incompat.contains(Incompat::EA_INODE) {
            return inode.size() != 0 && inode.size() < BLOCK_AREA as u64;
        }
        // No blocks, other than perhaps one of attributes.
        let cluster = u64::from(self.geo.block_size).wrapping_shl(self.geo.cluster_bits) >> 9;
        let acl = if inode.file_acl() == 0 { 0 } else { cluster };
        self.inode_sectors(inode) == acl
    }

    /// What Linux refuses when it loads an inode.
    fn check_inode(&self, inode: &Inode) -> Result<()> {
        let wrong = |what| Err(Error::inode(what, inode.ino));
        let geo = &self.geo;
        let flags = inode.flags();
        if inode.size() > i64::MAX as u64 {
            return wrong("i_size");
        }
        if flags.contains(InodeFlags::INDEX)
            && !geo.compat.contains(Compat::DIR_INDEX)
            && geo.has_csum()
            && inode.kind == FileType::Directory
        {
            return wrong("a hash tree without dir_index");
        }
        if flags.contains(InodeFlags::INLINE_DATA) {
            if !geo.incompat.contains(Incompat::INLINE_DATA) {
                return wrong("inline data without the feature");
            }
            if flags.contains(InodeFlags::EXTENTS) {
                return wrong("inline data and extents");
            }
        }
        if inode.kind == FileType::Symlink
            && flags.intersects(InodeFlags::APPEND | InodeFlags::IMMUTABLE)
        {
            return wrong("a symbolic link that is immutable or append-only");
        }
        if flags.contains(InodeFlags::CASEFOLD) && !geo.incompat.contains(Incompat::CASEFOLD) {
            return wrong("casefold without the feature");
        }
        let acl = inode.file_acl();
        if acl != 0 && !geo.is_data_range(acl, 1) {
            return wrong("i_file_acl");
        }
        if inode.has_block_map() {
            self.check_root_map(inode)?;
        }
        if inode.fast_symlink {
            let size = inode.size() as usize;
            let target = inode.raw.i_block.get(..size).unwrap_or(&[]);
            if size == 0 || target.contains(&0) || inode.raw.i_block.get(size) != Some(&0) {
                return wrong("length of a link target");
            }
        }
        Ok(())
    }

    /// Space in units of 512 bytes.
    pub(crate) fn inode_sectors(&self, inode: &Inode) -> u64 {
        let lo = u64::from(inode.raw.i_blocks_lo.get());
        if !self.geo.ro_compat.contains(RoCompat::HUGE_FILE) {
            return lo;
        }
        let blocks = lo | (u64::from(inode.raw.l_i_blocks_high.get()) << 32);
        if inode.has(InodeFlags::HUGE_FILE) {
            blocks.wrapping_shl(self.geo.block_shift.saturating_sub(9))
        } else {
            blocks
        }
    }

    /// The device number of a device's inode.
    fn device_number(inode: &Inode) -> DeviceNumber {
        if !matches!(inode.kind, FileType::CharDevice | FileType::BlockDevice) {
            return DeviceNumber::default();
        }
        let word = |at| le32(&inode.raw.i_block, at).unwrap_or(0);
        let old = word(0);
        if old != 0 {
            return DeviceNumber {
                major: (old >> 8) & 0xff,
                minor: old & 0xff,
            };
        }
        let new = word(4);
        DeviceNumber {
            major: (new & 0xf_ff00) >> 8,
            minor: (new & 0xff) | ((new >> 12) & 0xf_ff00),
        }
    }

    /// What an inode says of its object.
    pub fn stat(&self, ino: Ino) -> Result<Stat> {
        // Of one that is kept nothing needs to be copied.
        if let Some(inode) = self.inodes.get(ino.0)
            && inode.raw.i_links_count.get() > 0
            && !inode.has(InodeFlags::EA_INODE)
        {
            return Ok(self.stat_of(inode));
        }
        let inode = self.inode_or_orphan(ino)?;
        Ok(self.stat_of(&inode))
    }

    /// An inode that users may know: one with names, or one that lost its
    /// last name while it was open.
    #[inline]
    pub(crate) fn inode_or_orphan(&self, ino: Ino) -> Result<Inode> {
        if !self.geo.is_valid_ino(ino.0) {
            return Err(Error::inode("inode number", ino.0));
        }
        let inode = self.load_inode_any(ino.0)?;
        if inode.has(InodeFlags::EA_INODE) {
            return Err(Error::inode("an attribute value is no file", ino.0));
        }
        if inode.raw.i_links_count.get() == 0 && !self.alloc.is_open_orphan(ino.0) {
            return Err(Error::inode("a deleted inode is referred to", ino.0));
        }
        Ok(inode)
    }

    #[inline]
    pub(crate) fn stat_of(&self, inode: &Inode) -> Stat {
        let r = &inode.raw;
        let crtime = inode.fits(inode_field!(i_crtime), 4).then(|| {
            inode.time(
                r.i_crtime.get(),
                r.i_crtime_extra.get(),
                inode_field!(i_crtime_extra),
            )
        });
        let projid = if self.geo.ro_compat.contains(RoCompat::PROJECT)
            && inode.fits(inode_field!(i_projid), 4)
        {
            r.i_projid.get()
        } else {
            0
        };
        Stat {
            ino: Ino(inode.ino),
            kind: inode.kind,
            mode: r.i_mode.get(),
            nlink: u32::from(r.i_links_count.get()),
            uid: inode.uid(),
            gid: inode.gid(),
            projid,
            size: inode.size(),
            blocks: self.inode_sectors(inode),
            rdev: Self::device_number(inode),
            atime: inode.atime(),
            mtime: inode.mtime(),
            ctime: inode.ctime(),
            crtime,
            generation: r.i_generation.get(),
            flags: inode.flags(),
        }
    }

    /// Stores the named fields of an inode with its checksum in the running
    /// transaction.
    pub(crate) fn put_inode(&mut self, inode: &mut Inode) -> Result<()> {
        let fields = inode.fields.min(RAW_INODE_SIZE);
        let bytes = inode.raw.as_bytes().get(..fields).unwrap_or(&[]);
        self.put_record(inode.ino, inode.block, inode.off, 0, bytes)?;
        self.touched
            .note(inode.ino, self.store.tid(), inode.data_changed);
        inode.data_changed = false;
        if inode.raw.i_mode.get() == 0 {
            self.inodes.remove(inode.ino);
        } else {
            self.inodes.set(inode);
        }
        Ok(())
    }

    /// Changes an inode's record, which stands at `off`, from its byte `from`
    /// on; its checksum follows at commit.
    pub(crate) fn put_record(
        &mut self,
        ino: u32,
        block: u64,
        off: usize,
        from: usize,
        bytes: &[u8],
    ) -> Result<()> {
        // Who has all of it in hand keeps it again.
        self.inodes.remove(ino);
        let at = off.saturating_add(from);
        if !self.geo.has_csum() {
            return self.store.put(block, at, bytes);
        }
        let index = self.index_in_block(off);
        let seal = Seal::Inodes(ino.saturating_sub(index), 1_u64.wrapping_shl(index));
        self.store.put_unsealed(block, at, bytes, seal)
    }

    /// Which inode of its block a record is.
    fn index_in_block(&self, off: usize) -> u32 {
        off.checked_div(usize::from(self.geo.inode_size))
            .unwrap_or(0) as u32
    }

    /// The checksums of changed inodes of a table's block.
    pub(crate) fn seal_inodes(&mut self, block: u64, first: u32, bits: u64) -> Result<()> {
        let size = usize::from(self.geo.inode_size);
        let fs_seed = self.geo.seed;
        // Both halves of the checksum.
        let end = inode_field!(i_checksum_hi).saturating_add(2);
        let sums = inode_field!(l_i_checksum_lo)..end.min(size);
        self.store.seal_with(block, |bytes| {
            let mut lines = 0;
            let mut left = bits;
            while left != 0 {
                let index = left.trailing_zeros();
                left &= left.wrapping_sub(1);
                let off = (index as usize).saturating_mul(size);
                let record = bytes
                    .get_mut(off..off.saturating_add(size))
                    .ok_or(Error::block("an inode past its block", block))?;
                let generation = le32(record, inode_field!(i_generation)).unwrap_or(0);
                let seed = inode_seed(fs_seed, first.saturating_add(index), generation);
                seal_record(seed, record);
                lines |= line_mask(off.saturating_add(sums.start), sums.len());
            }
            Ok(lines)
        })
    }
}
