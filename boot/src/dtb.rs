//! Takes the memory nodes out of a flattened device tree.
//!
//! The protocol hands the tree to the kernel without them: the memory map is the
//! one place that says what memory may be used.
//!
//! Specification: Devicetree Specification 0.4, chapter 5.

use crate::bytes::be32;

const MAGIC: u32 = 0xd00d_feed;
const BEGIN_NODE: u32 = 1;
const END_NODE: u32 = 2;
const PROP: u32 = 3;
const NOP: u32 = 4;
const END: u32 = 9;

/// The largest tree accepted.
pub const MAX_SIZE: u32 = 4 << 20;

/// The total size that a tree's header gives, when it is a sane header.
pub fn total_size(header: &[u8]) -> Option<u32> {
    (be32(header, 0)? == MAGIC)
        .then(|| be32(header, 4))
        .flatten()
        .filter(|size| (40..=MAX_SIZE).contains(size))
}

/// Overwrites every `/memory` and `/memory@...` node with no-operations.
///
/// Returns how many there were, nothing when the tree is malformed: nodes found
/// until then are gone.
pub fn strip_memory(tree: &mut [u8]) -> Option<usize> {
    let size = usize::try_from(total_size(tree)?).ok()?;
    let tree = tree.get_mut(..size)?;
    let start = usize::try_from(be32(tree, 8)?).ok()?;
    let mut at = start;
    let mut depth = 0usize;
    let mut memory_from = None;
    let mut stripped = 0usize;
    // Every turn moves on by four bytes or more, so the tree's size bounds it.
    loop {
        let token_at = at;
        let token = be32(tree, at)?;
        at = at.checked_add(4)?;
        match token {
            BEGIN_NODE => {
                let name = tree.get(at..)?;
                let len = name.iter().position(|&byte| byte == 0)?;
                let name = name.get(..len)?;
                depth = depth.checked_add(1)?;
                if depth == 2 && (name == b"memory" || name.starts_with(b"memory@")) {
                    memory_from = Some(token_at);
                }
                at = at.checked_add(len)?.checked_add(4)? & !3;
            }
            END_NODE => {
                if depth == 2
                    && let Some(from) = memory_from.take()
                {
                    for word in tree.get_mut(from..at)?.chunks_exact_mut(4) {
                        word.copy_from_slice(&NOP.to_be_bytes());
                    }
                    stripped = stripped.checked_add(1)?;
                }
                depth = depth.checked_sub(1)?;
            }
            PROP => {
                let len = usize::try_from(be32(tree, at)?).ok()?;
                at = at.checked_add(8)?.checked_add(len)?.checked_add(3)? & !3;
            }
            NOP => {}
            END => return (depth == 0).then_some(stripped),
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use alloc::vec::Vec;
    use proptest::prelude::*;

    use super::*;

    fn tree(words: &[&[u8]]) -> Vec<u8> {
        let body: Vec<u8> = words.concat();
        let mut out = Vec::new();
        for word in [MAGIC, 40 + body.len() as u32, 40, 0, 0, 17, 16, 0, 0, 0] {
            out.extend_from_slice(&word.to_be_bytes());
        }
        out.extend_from_slice(&body);
        out
    }

    const NODE: &[u8] = &[0, 0, 0, 1];
    const LAST: &[u8] = &[0, 0, 0, 2];
    const STOP: &[u8] = &[0, 0, 0, 9];
    const PROPERTY: &[u8] = &[0, 0, 0, 3, 0, 0, 0, 5, 0, 0, 0, 0, 1, 2, 3, 4, 5, 0, 0, 0];

    fn sample() -> Vec<u8> {
        tree(&[
            NODE,
            &[0; 4],
            PROPERTY,
            NODE,
            b"memory@40000000\0",
            PROPERTY,
            LAST,
            NODE,
            b"cpus\0\0\0\0",
            NODE,
            b"memory\0\0",
            LAST,
            LAST,
            NODE,
            b"memory\0\0",
            LAST,
            LAST,
            STOP,
        ])
    }

    #[test]
    fn memory_nodes_go_and_others_stay() {
        let mut bytes = sample();
        let before = bytes.clone();
        assert_eq!(strip_memory(&mut bytes), Some(2));
        let text =
            |bytes: &[u8], what: &[u8]| bytes.windows(what.len()).filter(|w| *w == what).count();
        assert_eq!(text(&before, b"memory@"), 1);
        assert_eq!(text(&bytes, b"memory@"), 0);
        // The one below /cpus is not the tree's memory.
        assert_eq!(text(&bytes, b"memory\0"), 1);
        assert_eq!(text(&bytes, b"cpus\0"), 1);
        assert_eq!(strip_memory(&mut bytes), Some(0));
    }

    #[test]
    fn cut_trees_are_refused() {
        for len in 0..sample().len() {
            assert_eq!(strip_memory(&mut sample()[..len]), None, "length {len}");
        }
    }

    proptest! {
        #[test]
        fn flipped_trees_are_answered(flips in proptest::collection::vec((0usize..160, any::<u8>()), 1..8)) {
            let mut bytes = sample();
            for (at, value) in flips {
                let at = at % bytes.len();
                bytes[at] = value;
            }
            let _ = strip_memory(&mut bytes);
        }
    }
}
