//! Free space: bitmaps, group counts, and where to put what.

pub(crate) mod bitmap;
pub(crate) mod blocks;
pub(crate) mod hints;
pub(crate) mod inodes;
pub(crate) mod place;
