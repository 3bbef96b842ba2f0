//! The on-disk layout: what ext4 keeps where, byte by byte.
//!
//! Field names are those of the format (`Documentation/filesystems/ext4` in
//! Linux, `ext2_fs.h` in e2fsprogs), so that they can be searched for there.
//! All numbers are little-endian. Nothing in here reads media or decides
//! policy: structures, feature bits, checksums and hashes only.

pub mod checksum;
pub mod dir;
pub mod extent;
pub mod features;
pub mod group;
pub mod hash;
pub mod inode;
pub mod superblock;
pub mod time;
pub mod xattr;
