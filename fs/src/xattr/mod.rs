//! Extended attributes: in the rest of the inode, in a block, and values in
//! inodes of their own.

mod acl;
mod edit;
mod value;

use alloc::vec;
use alloc::vec::Vec;

use crate::disk::checksum::crc32c;
use crate::disk::features::Incompat;
use crate::disk::inode::{GOOD_OLD_SIZE, InodeFlags};
use crate::disk::xattr::{
    ENTRY_HEAD, HEADER_SIZE, IBODY_HEADER_SIZE, INDEX_ACL_ACCESS, INDEX_ACL_DEFAULT, XATTR_MAGIC,
    XattrEntry, XattrHeader, block_checksum, entry_hash_inode, entry_size, prefix, split_name,
};
use crate::error::{Error, Result};
use crate::inode::Inode;
use crate::mount::{Ext4, le32, parse};
use crate::pmem::Pmem;
use crate::store::Checked;
use crate::types::Ino;

/// Largest value, as Linux has it.
pub(crate) const VALUE_MAX: u32 = 65536;

/// An attribute: where its parts are in the area that holds it.
#[derive(Clone, Debug)]
pub(crate) struct Attr {
    pub index: u8,
    pub name: Vec<u8>,
    /// Offset of the value from the area's value base; unused for a value in
    /// an inode.
    pub value_off: usize,
    pub value_len: u32,
    /// Inode of the value, or 0.
    pub value_ino: u32,
    pub hash: u32,
}

/// The attributes of one area and its bytes, from the value base on.
pub(crate) struct Area {
    pub attrs: Vec<Attr>,
    pub bytes: Vec<u8>,
}

impl Area {
    fn find(&self, index: u8, name: &[u8]) -> Option<&Attr> {
        self.attrs
            .iter()
            .find(|a| a.index == index && a.name == name)
    }

    /// The same in a block, whose attributes are sorted: one that stands
    /// behind a greater one is not found, as Linux does not find it.
    fn find_sorted(&self, index: u8, name: &[u8]) -> Option<&Attr> {
        let wanted = (index, name.len(), name);
        let key = |a: &&Attr| (a.index, a.name.len(), a.name.as_slice()) < wanted;
        self.attrs
            .iter()
            .find(|a| !key(a))
            .filter(|a| a.index == index && a.name == name)
    }
}

/// Reads the entries in `bytes` from `first` on; value offsets count from
/// the start of `bytes`.
pub(crate) fn parse_area(
    bytes: Vec<u8>,
    first: usize,
    wrong: impl Fn(&'static str) -> Error,
) -> Result<Area> {
    let mut attrs: Vec<Attr> = Vec::new();
    let mut at = first;
    let end;
    loop {
        match le32(&bytes, at) {
            Some(0) => {
                end = at.saturating_add(4);
                break;
            }
            Some(_) => {}
            None => return Err(wrong("attributes have no end")),
        }
        let entry: XattrEntry = parse(&bytes, at).ok_or(wrong("attribute entry"))?;
        let name_at = at.saturating_add(ENTRY_HEAD);
        let name_end = name_at.saturating_add(usize::from(entry.e_name_len));
        let name = bytes
            .get(name_at..name_end)
            .ok_or(wrong("attribute name"))?;
        if name.contains(&0) {
            return Err(wrong("attribute name"));
        }
        attrs.push(Attr {
            index: entry.e_name_index,
            name: name.to_vec(),
            value_off: usize::from(entry.e_value_offs.get()),
            value_len: entry.e_value_size.get(),
            value_ino: entry.e_value_inum.get(),
            hash: entry.e_hash.get(),
        });
        at = at.saturating_add(entry_size(usize::from(entry.e_name_len)));
    }
    for attr in &attrs {
        if attr.value_ino != 0 {
            if attr.value_len > VALUE_MAX {
                return Err(wrong("size of an attribute value"));
            }
        } else if attr.value_len != 0 {
            let value_end = attr.value_off.saturating_add(attr.value_len as usize);
            if attr.value_off < end || value_end > bytes.len() {
                return Err(wrong("place of an attribute value"));
            }
        }
    }
    Ok(Area { attrs, bytes })
}

impl<P: Pmem> Ext4<P> {
    /// Reads an area in a file system with these features.
    fn sound_area(
        &self,
        bytes: Vec<u8>,
        first: usize,
        wrong: impl Fn(&'static str) -> Error,
    ) -> Result<Option<Area>> {
        let area = parse_area(bytes, first, &wrong)?;
        let inodes = area.attrs.iter().any(|attr| attr.value_ino != 0);
        if inodes && !self.geo.incompat.contains(Incompat::EA_INODE) {
            return Err(wrong("an attribute inode without the feature"));
        }
        Ok(Some(area))
    }

    /// The attributes inside the inode.
    pub(crate) fn ibody_area(&self, inode: &Inode) -> Result<Option<Area>> {
        let size = usize::from(self.geo.inode_size);
        let start = inode.fields.saturating_add(IBODY_HEADER_SIZE);
        if size <= GOOD_OLD_SIZE || start > size || inode.fields == GOOD_OLD_SIZE {
            return Ok(None);
        }
        let magic_at = inode.off.saturating_add(inode.fields);
        if self.store.get_u32(inode.block, magic_at)? != XATTR_MAGIC {
            return Ok(None);
        }
        let mut bytes = vec![0; size.saturating_sub(start)];
        self.store
            .read(inode.block, inode.off.saturating_add(start), &mut bytes)?;
        self.sound_area(bytes, 0, |what| Error::inode(what, inode.ino))
    }

    /// The attributes in the inode's attribute block.
    pub(crate) fn block_area(&self, inode: &Inode) -> Result<Option<Area>> {
        let block = inode.file_acl();
        if block == 0 {
            return Ok(None);
        }
        let bytes = self.store.read_block(block)?;
        let wrong = |what| Error::block(what, block);
        let header: XattrHeader = parse(&bytes, 0).ok_or(wrong("attribute header"))?;
        if header.h_magic.get() != XATTR_MAGIC || header.h_blocks.get() != 1 {
            return Err(wrong("attribute header"));
        }
        if self.geo.has_csum() && !self.store.is_verified(Checked::Xattr, block) {
            if header.h_checksum.get() != block_checksum(self.geo.seed, block, &bytes) {
                return Err(wrong("checksum of an attribute block"));
            }
            self.store.set_verified(Checked::Xattr, block);
        }
        self.sound_area(bytes, HEADER_SIZE, wrong)
    }

    /// A value inside the inode, under a raw index and name.
    pub(crate) fn ibody_value(
        &self,
        inode: &Inode,
        index: u8,
        name: &[u8],
    ) -> Result<Option<Vec<u8>>> {
        let Some(area) = self.ibody_area(inode)? else {
            return Ok(None);
        };
        let Some(attr) = area.find(index, name) else {
            return Ok(None);
        };
        self.attr_value(inode, &area, attr).map(Some)
    }

    /// The value of an attribute that was found in `area`.
    pub(crate) fn attr_value(&self, inode: &Inode, area: &Area, attr: &Attr) -> Result<Vec<u8>> {
        if attr.value_ino != 0 {
            return self.ea_inode_value(inode, attr);
        }
        let end = attr.value_off.saturating_add(attr.value_len as usize);
        let value = if attr.value_len == 0 {
            Some(&[][..])
        } else {
            area.bytes.get(attr.value_off..end)
        };
        value
            .map(<[u8]>::to_vec)
            .ok_or(Error::inode("place of an attribute value", inode.ino))
    }

    /// The value that an inode of its own holds.
    fn ea_inode_value(&self, inode: &Inode, attr: &Attr) -> Result<Vec<u8>> {
        let wrong = |what| Error::inode(what, attr.value_ino);
        if attr.value_ino == inode.ino || !self.geo.is_valid_ino(attr.value_ino) {
            return Err(Error::inode("number of an attribute inode", inode.ino));
        }
        let holder = self.load_inode(attr.value_ino)?;
        if !holder.has(InodeFlags::EA_INODE) || !holder.has_block_map() {
            return Err(wrong("not an attribute inode"));
        }
        if holder.size() != u64::from(attr.value_len) || attr.value_len > VALUE_MAX {
            return Err(wrong("size of an attribute value"));
        }
        let mut value = vec![0; attr.value_len as usize];
        self.read_inode_data(&holder, 0, &mut value)?;
        // Lustre's inodes name their parent instead of carrying a hash.
        let lustre = holder.raw.i_mtime.get() == inode.ino
            && holder.raw.i_generation.get() == inode.raw.i_generation.get();
        let crc = crc32c(self.geo.seed, &value);
        if crc != holder.raw.i_atime.get() && !lustre {
            return Err(wrong("hash of an attribute value"));
        }
        if crc == holder.raw.i_atime.get() {
            let right = [false, true]
                .iter()
                .any(|signed| entry_hash_inode(&attr.name, crc, *signed) == attr.hash);
            if !right {
                return Err(wrong("hash of an attribute"));
            }
        }
        Ok(value)
    }

    /// The value of an extended attribute; `name` is the full name with its
    /// prefix. ACLs come in the form that Linux gives to programs.
    pub fn getxattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>> {
        let inode = self.inode_or_orphan(ino)?;
        let (index, rest) = split_name(name).ok_or(Error::NotFound)?;
        let inside = self.ibody_area(&inode)?;
        let mut found = inside
            .as_ref()
            .and_then(|area| Some((area, area.find(index, rest)?)));
        let outside = match found {
            Some(_) => None,
            None => self.block_area(&inode)?,
        };
        if let Some(area) = &outside {
            found = area.find_sorted(index, rest).map(|attr| (area, attr));
        }
        let (area, attr) = found.ok_or(Error::NotFound)?;
        let value = self.attr_value(&inode, area, attr)?;
        if matches!(index, INDEX_ACL_ACCESS | INDEX_ACL_DEFAULT) {
            acl::from_disk(&value).ok_or(Error::inode("access control list", ino.0))
        } else {
            Ok(value)
        }
    }

    /// Calls `f` with the full name of every extended attribute.
    pub fn listxattr(&self, ino: Ino, f: &mut dyn FnMut(&[u8])) -> Result<()> {
        let inode = self.inode_or_orphan(ino)?;
        let mut full = Vec::new();
        for area in [self.ibody_area(&inode)?, self.block_area(&inode)?]
            .into_iter()
            .flatten()
        {
            for attr in &area.attrs {
                if let Some(prefix) = prefix(attr.index) {
                    full.clear();
                    full.extend_from_slice(prefix.as_bytes());
                    full.extend_from_slice(&attr.name);
                    f(&full);
                }
            }
        }
        Ok(())
    }
}
