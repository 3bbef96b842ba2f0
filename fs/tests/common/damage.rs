//! Where an image has structures, and one change to one of them.

use std::fmt;

use quire_fs::disk::group::{DESC_SIZE_64BIT, GroupDesc};
use quire_fs::disk::superblock::SuperBlock;
use zerocopy::FromBytes;

use super::Rng;

/// A structure on the media.
#[derive(Clone, Debug)]
pub struct Region {
    pub kind: &'static str,
    pub start: usize,
    pub len: usize,
    /// The inode that it belongs to.
    pub ino: u32,
}

fn le16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn le32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

struct Finder<'a> {
    image: &'a [u8],
    bs: usize,
    found: Vec<Region>,
}

/// Finds the structures of a sound image.
pub fn regions(image: &[u8]) -> Vec<Region> {
    let sb = SuperBlock::read_from_bytes(&image[1024..2048]).expect("a superblock");
    let bs = 1024 << sb.s_log_block_size.get();
    let mut finder = Finder {
        image,
        bs,
        found: Vec::new(),
    };
    finder.add("superblock", 0, 1024, 1024);
    let first = sb.s_first_data_block.get() as usize;
    let per_group = sb.s_blocks_per_group.get() as usize;
    let groups = (sb.blocks_count() as usize - first).div_ceil(per_group);
    let wide = sb.s_feature_incompat.get() & 0x80 != 0;
    let size = if wide {
        usize::from(sb.s_desc_size.get())
    } else {
        32
    };
    let meta_bg = sb.s_feature_incompat.get() & 0x10 != 0;
    let per_block = bs / size;
    for group in 0..groups {
        let block = if meta_bg {
            // The first copy, behind the superblock's where there is one.
            let lead = group / per_block * per_block;
            let behind = lead == 0 || sb.s_backup_bgs.iter().any(|b| b.get() as usize == lead);
            first + lead * per_group + usize::from(behind)
        } else {
            // The superblock stands in block 1 where blocks have 1 KiB.
            1024 / bs + 1 + group / per_block
        };
        let at = block * bs + group % per_block * size;
        finder.add("descriptor", 0, at, size);
        let mut raw = [0; DESC_SIZE_64BIT as usize];
        raw[..size.min(64)].copy_from_slice(&image[at..at + size.min(64)]);
        let desc = GroupDesc::read_from_bytes(&raw).expect("a descriptor");
        finder.add("block bitmap", 0, desc.block_bitmap() as usize * bs, bs);
        finder.add("inode bitmap", 0, desc.inode_bitmap() as usize * bs, bs);
        finder.inodes(&sb, group, &desc);
    }
    finder.found
}

impl Finder<'_> {
    fn add(&mut self, kind: &'static str, ino: u32, start: usize, len: usize) {
        if start + len <= self.image.len() {
            self.found.push(Region {
                kind,
                start,
                len,
                ino,
            });
        }
    }

    fn inodes(&mut self, sb: &SuperBlock, group: usize, desc: &GroupDesc) {
        let size = usize::from(sb.s_inode_size.get().max(128));
        let count = sb.s_inodes_per_group.get() as usize;
        let bitmap = desc.inode_bitmap() as usize * self.bs;
        for index in 0..count {
            if self.image[bitmap + index / 8] & 1 << (index % 8) == 0 {
                continue;
            }
            let ino = (group * count + index + 1) as u32;
            let at = desc.inode_table() as usize * self.bs + index * size;
            if le16(self.image, at) == 0 && ino != 7 {
                continue;
            }
            self.add("inode", ino, at, size);
            self.blocks(sb, ino, at);
        }
    }

    /// The blocks of an inode that are metadata.
    fn blocks(&mut self, sb: &SuperBlock, ino: u32, at: usize) {
        let mode = le16(self.image, at) & 0xf000;
        let flags = le32(self.image, at + 32);
        let acl = le32(self.image, at + 104) as usize;
        if acl != 0 {
            self.add("attribute block", ino, acl * self.bs, self.bs);
        }
        let nameless = [
            sb.s_orphan_file_inum.get(),
            sb.s_usr_quota_inum.get(),
            sb.s_grp_quota_inum.get(),
            sb.s_prj_quota_inum.get(),
        ];
        let data = match (mode, ino) {
            (_, 7) => return,
            (_, 8) => "journal",
            (0x4000, _) if flags & 0x1000 != 0 => "indexed directory",
            (0x4000, _) => "directory",
            (0xa000, _) => "long link",
            _ if ino == nameless[0] => "orphan file",
            _ if nameless.contains(&ino) => "quota file",
            (0x8000, _) => "",
            _ => return,
        };
        if flags & 0x1000_0000 != 0 || (mode == 0xa000 && le32(self.image, at + 4) < 60) {
            return;
        }
        if flags & 0x8_0000 != 0 {
            self.extents(ino, at + 40, data);
        } else {
            for slot in 0..15 {
                let block = le32(self.image, at + 40 + slot * 4) as usize;
                self.indirect(ino, block, slot.saturating_sub(11), data);
            }
        }
    }

    fn data(&mut self, ino: u32, block: usize, data: &'static str) {
        // Of the journal, its superblock.
        let again = data == "journal" && self.found.iter().any(|r| r.kind == data);
        if !data.is_empty() && !again {
            self.add(data, ino, block * self.bs, self.bs);
        }
    }

    fn extents(&mut self, ino: u32, at: usize, data: &'static str) {
        let (entries, depth) = (le16(self.image, at + 2), le16(self.image, at + 6));
        for entry in 1..=usize::from(entries) {
            let at = at + entry * 12;
            if depth > 0 {
                let child = le32(self.image, at + 4) as usize * self.bs;
                self.add("extent block", ino, child, self.bs);
                self.extents(ino, child, data);
                continue;
            }
            let (len, start) = (le16(self.image, at + 4), le32(self.image, at + 8));
            for n in 0..usize::from(len & 0x7fff) {
                self.data(ino, start as usize + n, data);
            }
        }
    }

    fn indirect(&mut self, ino: u32, block: usize, level: usize, data: &'static str) {
        if block == 0 {
            return;
        }
        if level == 0 {
            return self.data(ino, block, data);
        }
        self.add("indirect block", ino, block * self.bs, self.bs);
        for slot in 0..self.bs / 4 {
            let next = le32(self.image, block * self.bs + slot * 4) as usize;
            self.indirect(ino, next, level - 1, data);
        }
    }
}

/// One change to one field.
pub struct Damage {
    region: Region,
    at: usize,
    old: Vec<u8>,
    new: Vec<u8>,
}

impl Damage {
    /// Every kind of structure is as likely as any other, and in it places
    /// where something stands or stood are likelier than empty ones.
    pub fn new(regions: &[Region], image: &[u8], rng: &mut Rng) -> Self {
        let mut kinds: Vec<&str> = regions.iter().map(|region| region.kind).collect();
        kinds.sort_unstable();
        kinds.dedup();
        let kind = kinds[rng.below(kinds.len() as u64) as usize];
        let all: Vec<&Region> = regions.iter().filter(|r| r.kind == kind).collect();
        loop {
            let region = all[rng.below(all.len() as u64) as usize].clone();
            let width = [1, 2, 4, 4][rng.below(4) as usize];
            // The ends of bitmaps are as interesting as their starts.
            let at = match rng.below(3) {
                0 => rng.below(region.len.min(64) as u64),
                _ => rng.below(region.len as u64),
            } as usize;
            let at = at / width * width;
            let old = image[region.start + at..][..width].to_vec();
            if old.iter().all(|b| *b == 0) && rng.below(4) > 0 {
                continue;
            }
            let new = change(&old, image, &all, rng);
            if new != old {
                return Self {
                    region,
                    at,
                    old,
                    new,
                };
            }
        }
    }

    pub fn apply(&self, image: &mut [u8]) {
        image[self.region.start + self.at..][..self.new.len()].copy_from_slice(&self.new);
    }
}

fn change(old: &[u8], image: &[u8], all: &[&Region], rng: &mut Rng) -> Vec<u8> {
    let mut new = old.to_vec();
    let width = old.len() as u64;
    match rng.below(7) {
        0 | 1 => new[rng.below(width) as usize] ^= 1 << rng.below(8),
        2 => new.fill(0),
        3 => new.fill(0xff),
        4 => new[0] = new[0].wrapping_add(1),
        5 => new[0] = new[0].wrapping_sub(1),
        _ => {
            // From another of its kind.
            let other = all[rng.below(all.len() as u64) as usize];
            let at = rng.below(other.len as u64 / width) * width;
            new.copy_from_slice(&image[other.start + at as usize..][..width as usize]);
        }
    }
    new
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} of inode {} at {:#x}+{:#x}: {:02x?} -> {:02x?}",
            self.region.kind, self.region.ino, self.region.start, self.at, self.old, self.new
        )
    }
}
