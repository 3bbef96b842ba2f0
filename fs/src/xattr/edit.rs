//! Setting and removing extended attributes.
//!
//! An attribute block may be shared by inodes with equal attributes. A block
//! that is changed gets its own copy first; Quire itself never shares one.

use alloc::vec;
use alloc::vec::Vec;

use zerocopy::IntoBytes;

use crate::disk::features::Incompat;
use crate::disk::inode::GOOD_OLD_SIZE;
use crate::disk::xattr::{
    ENTRY_HEAD, HEADER_SIZE, IBODY_HEADER_SIZE, INDEX_ACL_ACCESS, INDEX_ACL_DEFAULT, INDEX_SYSTEM,
    XATTR_MAGIC, XattrEntry, XattrHeader, block_checksum, block_hash, entry_hash, entry_hash_inode,
    entry_size, split_name, value_size,
};
use crate::error::{Error, Result};
use crate::inode::Inode;
use crate::mount::{Ext4, parse};
use crate::pmem::Pmem;
use crate::store::Checked;
use crate::types::Ino;

use super::{Area, acl};

/// An attribute with its value.
#[derive(Clone)]
struct Full {
    index: u8,
    name: Vec<u8>,
    value: Vec<u8>,
    value_ino: u32,
    value_len: u32,
    hash: u32,
}

impl Full {
    /// Bytes that it takes in an area.
    fn room(&self) -> usize {
        entry_size(self.name.len()).saturating_add(value_size(self.value.len()))
    }
}

fn room_of(all: &[Full]) -> usize {
    // A zero word ends the entries.
    all.iter().fold(4, |sum, a| sum.saturating_add(a.room()))
}

fn put_at(bytes: &mut [u8], off: usize, data: &[u8]) {
    if let Some(to) = bytes.get_mut(off..off.saturating_add(data.len())) {
        to.copy_from_slice(data);
    }
}

/// Lays attributes out: entries from `first` on, values from the end down.
fn lay_out(all: &[Full], first: usize, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let mut at = first;
    let mut end = len;
    for a in all {
        let offs = if a.value.is_empty() {
            0
        } else {
            end = end.saturating_sub(value_size(a.value.len()));
            put_at(&mut bytes, end, &a.value);
            end
        };
        let entry = XattrEntry {
            e_name_len: a.name.len() as u8,
            e_name_index: a.index,
            e_value_offs: (offs as u16).into(),
            e_value_inum: a.value_ino.into(),
            e_value_size: a.value_len.into(),
            e_hash: a.hash.into(),
        };
        put_at(&mut bytes, at, entry.as_bytes());
        put_at(&mut bytes, at.saturating_add(ENTRY_HEAD), &a.name);
        at = at.saturating_add(entry_size(a.name.len()));
    }
    bytes
}

impl<P: Pmem> Ext4<P> {
    fn full(&self, inode: &Inode, area: Option<Area>) -> Result<Vec<Full>> {
        let Some(area) = area else {
            return Ok(Vec::new());
        };
        let mut all = Vec::new();
        for attr in &area.attrs {
            let value = if attr.value_ino == 0 {
                self.attr_value(inode, &area, attr)?
            } else {
                Vec::new()
            };
            all.push(Full {
                index: attr.index,
                name: attr.name.clone(),
                value,
                value_ino: attr.value_ino,
                value_len: attr.value_len,
                hash: attr.hash,
            });
        }
        Ok(all)
    }

    /// Bytes for attributes inside the inode, behind the magic number.
    fn ibody_room(&self, inode: &Inode) -> usize {
        if inode.fields == GOOD_OLD_SIZE {
            return 0;
        }
        usize::from(self.geo.inode_size)
            .saturating_sub(inode.fields)
            .saturating_sub(IBODY_HEADER_SIZE)
    }

    /// Sets an extended attribute; `name` is the full name with its prefix.
    /// With `create` it must not exist, with `replace` it must.
    pub fn setxattr(
        &mut self,
        ino: Ino,
        name: &[u8],
        value: &[u8],
        create: bool,
        replace: bool,
    ) -> Result<()> {
        let unknown = Error::Unsupported {
            feature: "this kind of attribute name",
        };
        let (index, rest) = split_name(name).ok_or(unknown)?;
        if rest.len() > 255 {
            return Err(Error::NameTooLong);
        }
        let value = if matches!(index, INDEX_ACL_ACCESS | INDEX_ACL_DEFAULT) {
            acl::to_disk(value).ok_or(Error::Invalid)?
        } else {
            value.to_vec()
        };
        self.run(|fs| fs.change_attr(ino, index, rest, Some(value.clone()), create, replace))
    }

    /// Removes an extended attribute.
    pub fn removexattr(&mut self, ino: Ino, name: &[u8]) -> Result<()> {
        let (index, rest) = split_name(name).ok_or(Error::NotFound)?;
        self.run(|fs| fs.change_attr(ino, index, rest, None, false, true))
    }

    fn change_attr(
        &mut self,
        ino: Ino,
        index: u8,
        name: &[u8],
        value: Option<Vec<u8>>,
        create: bool,
        replace: bool,
    ) -> Result<()> {
        let mut inode = self.inode_or_orphan(ino)?;
        let mut inside = self.full(&inode, self.ibody_area(&inode)?)?;
        let mut outside = self.full(&inode, self.block_area(&inode)?)?;
        let is_it = |a: &Full| a.index == index && a.name == name;
        let old = inside.iter().chain(&outside).find(|a| is_it(a));
        match old {
            Some(_) if create => return Err(Error::Exists),
            None if replace => return Err(Error::NotFound),
            _ => {}
        }
        let (old_holder, old_len) = old.map_or((0, 0), |a| (a.value_ino, a.value_len));
        let block_changes = outside.iter().any(is_it);
        inside.retain(|a| !is_it(a));
        outside.retain(|a| !is_it(a));
        let mut block_changes = block_changes;
        if let Some(value) = value {
            let mut new = Full {
                index,
                name: name.to_vec(),
                hash: entry_hash(name, &value, false),
                value_len: value.len() as u32,
                value,
                value_ino: 0,
            };
            let ibody = self.ibody_room(&inode);
            let room = self.geo.bs().saturating_sub(HEADER_SIZE);
            let fits = |all: &[Full], room: usize| room_of(all).saturating_add(new.room()) <= room;
            if !fits(&inside, ibody)
                && !fits(&outside, room)
                && self.geo.incompat.contains(Incompat::EA_INODE)
            {
                // The value has an inode of its own; the entry remains.
                let value = core::mem::take(&mut new.value);
                let (holder, crc) = self.new_value_inode(&mut inode, &value)?;
                new.value_ino = holder;
                new.hash = entry_hash_inode(name, crc, false);
            }
            if room_of(&inside).saturating_add(new.room()) <= ibody {
                inside.push(new);
            } else {
                outside.push(new);
                block_changes = true;
                if room_of(&outside) > room {
                    return Err(Error::NoSpace);
                }
            }
        }
        self.put_ibody(&inode, &inside)?;
        if block_changes {
            self.put_attr_block(&mut inode, outside)?;
        }
        if old_holder != 0 {
            self.drop_value_inode(old_holder)?;
            // Every user of a value pays for it.
            let blocks = u64::from(old_len).div_ceil(u64::from(self.geo.block_size));
            self.sub_blocks(&mut inode, blocks)?;
        }
        inode.set_ctime(self.now());
        self.put_inode(&mut inode)
    }

    /// Removes the attribute that holds inline data.
    pub(crate) fn drop_inline_value(&mut self, inode: &Inode) -> Result<()> {
        let mut inside = self.full(inode, self.ibody_area(inode)?)?;
        inside.retain(|a| !(a.index == INDEX_SYSTEM && a.name == b"data"));
        self.put_ibody(inode, &inside)
    }

    fn put_ibody(&mut self, inode: &Inode, all: &[Full]) -> Result<()> {
        let room = self.ibody_room(inode);
        if room == 0 {
            return Ok(());
        }
        let at = inode.off.saturating_add(inode.fields);
        let magic = if all.is_empty() { 0 } else { XATTR_MAGIC };
        self.store.put_u32(inode.block, at, magic)?;
        let bytes = lay_out(all, 0, room);
        self.store
            .put(inode.block, at.saturating_add(IBODY_HEADER_SIZE), &bytes)
    }

    /// Gives the inode a block with these attributes and no other.
    fn put_attr_block(&mut self, inode: &mut Inode, mut all: Vec<Full>) -> Result<()> {
        let old = inode.file_acl();
        let shared = old != 0 && self.attr_refcount(old)? > 1;
        if all.is_empty() {
            return self.drop_attr_block(inode);
        }
        let block = if old == 0 || shared {
            if shared {
                self.drop_attr_block(inode)?;
            }
            let block = self.alloc_meta(inode, 0)?;
            inode.set_file_acl(block);
            block
        } else {
            old
        };
        all.sort_by(|a, b| (a.index, a.name.len(), &a.name).cmp(&(b.index, b.name.len(), &b.name)));
        let mut bytes = lay_out(&all, HEADER_SIZE, self.geo.bs());
        let header = XattrHeader {
            h_magic: XATTR_MAGIC.into(),
            h_refcount: 1.into(),
            h_blocks: 1.into(),
            h_hash: block_hash(all.iter().map(|a| a.hash)).into(),
            h_checksum: 0.into(),
            h_reserved: [0.into(); 3],
        };
        put_at(&mut bytes, 0, header.as_bytes());
        if self.geo.has_csum() {
            let crc = block_checksum(self.geo.seed, block, &bytes);
            put_at(&mut bytes, 16, &crc.to_le_bytes());
        }
        self.store.put(block, 0, &bytes)?;
        self.store.set_verified(Checked::Xattr, block);
        Ok(())
    }

    fn attr_refcount(&self, block: u64) -> Result<u32> {
        let raw: [u8; HEADER_SIZE] = self.store.get(block, 0)?;
        let wrong = Error::block("attribute header", block);
        let header: XattrHeader = parse(&raw, 0).ok_or(wrong)?;
        if header.h_magic.get() != XATTR_MAGIC {
            return Err(wrong);
        }
        Ok(header.h_refcount.get())
    }

    /// Takes the attribute block from an inode; the last one frees it.
    fn drop_attr_block(&mut self, inode: &mut Inode) -> Result<()> {
        let block = inode.file_acl();
        if block == 0 {
            return Ok(());
        }
        inode.set_file_acl(0);
        let count = self.attr_refcount(block)?;
        if count <= 1 {
            self.store.clear_verified(Checked::Xattr, block);
            return self.free_meta(inode, block);
        }
        self.sub_blocks(inode, 1)?;
        self.store.put_u32(block, 4, count.saturating_sub(1))?;
        if self.geo.has_csum() {
            let bytes = self.store.read_block(block)?;
            let crc = block_checksum(self.geo.seed, block, &bytes);
            self.store.put_u32(block, 16, crc)?;
        }
        Ok(())
    }

    /// Before an inode goes: its attributes.
    pub(crate) fn drop_attributes(&mut self, inode: &mut Inode) -> Result<()> {
        let mut holders = Vec::new();
        let shared = inode.file_acl() != 0 && self.attr_refcount(inode.file_acl())? > 1;
        let areas = [
            self.ibody_area(inode)?,
            // Others go on using a shared block's values.
            if shared {
                None
            } else {
                self.block_area(inode)?
            },
        ];
        for area in areas.iter().flatten() {
            holders.extend(area.attrs.iter().map(|a| a.value_ino).filter(|i| *i != 0));
        }
        for holder in holders {
            if holder == inode.ino {
                return Err(Error::inode("number of an attribute inode", inode.ino));
            }
            self.drop_value_inode(holder)?;
        }
        self.drop_attr_block(inode)
    }
}
