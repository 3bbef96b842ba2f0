//! Directory trees with known content, the same on every run.

use std::fs;
use std::path::{Path, PathBuf};

/// A small generator of numbers (xorshift): content must repeat exactly.
#[derive(Debug)]
pub struct Numbers(u64);

impl Numbers {
    /// Starts a sequence.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.number() % end.max(1)
    }

    /// Bytes.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len + 8);
        while bytes.len() < len {
            bytes.extend(self.number().to_le_bytes());
        }
        bytes.truncate(len);
        bytes
    }
}

/// Makes `count` files of many sizes below `root`, in nested directories,
/// one of them large enough to be indexed; the paths relative to `root`.
pub fn make(root: &Path, count: u64) -> Vec<PathBuf> {
    let mut numbers = Numbers::new(count);
    let mut paths = Vec::new();
    for n in 0..count {
        let dir = if n % 2 == 0 {
            PathBuf::from("many")
        } else {
            PathBuf::from(format!("d{}/e{}", n % 7, n % 11))
        };
        fs::create_dir_all(root.join(&dir)).expect("a directory");
        let path = dir.join(format!("file-{n:05}-with-a-name-of-some-length.txt"));
        // Mostly small, some of several blocks, a few large ones.
        let len = match n % 50 {
            0 => 0,
            1 => 200_000 + numbers.below(100_000),
            2..6 => numbers.below(20_000),
            _ => numbers.below(3_000),
        };
        let bytes = numbers.bytes(usize::try_from(len).unwrap_or(0));
        fs::write(root.join(&path), bytes).expect("a file");
        paths.push(path);
    }
    paths
}
