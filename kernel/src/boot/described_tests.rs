//! Hand-made maps and trees, and any bytes.

use super::*;
use proptest::prelude::*;
use std::vec;
use std::vec::Vec;

const STRIDE: usize = 48;

fn entry(kind: u32, start: u64, pages: u64, attributes: u64) -> Vec<u8> {
    let mut bytes = vec![0; STRIDE];
    bytes[..4].copy_from_slice(&kind.to_le_bytes());
    bytes[8..16].copy_from_slice(&start.to_le_bytes());
    bytes[24..32].copy_from_slice(&pages.to_le_bytes());
    bytes[32..40].copy_from_slice(&attributes.to_le_bytes());
    bytes
}

fn efi(entries: &[Vec<u8>]) -> List {
    let mut list = List::empty();
    list.add_efi(&entries.concat(), STRIDE);
    list
}

#[test]
fn persistent_and_special_memory_is_picked_out() {
    let list = efi(&[
        entry(7, 0, 256, 0xf),
        entry(14, 0x1_0000_0000, 16, 0x800f),
        entry(14, 0x1_0001_0000, 16, 0x800f),
        entry(14, 0x2_0000_0000, 16, 0x4_800f),
        entry(7, 0x3_0000_0000, 16, SPECIAL_PURPOSE | 0xf),
    ]);
    let all: Vec<_> = list.iter().collect();
    assert_eq!(all.len(), 3, "neighbours are one");
    assert_eq!(all[0].range(), 0x1_0000_0000..0x1_0002_0000);
    assert_eq!(all[0].offset, STRIDE);
    assert!(all[0].is_persistent() && !all[0].is_special());
    assert!(all[1].is_persistent() && all[1].is_special());
    assert!(!all[2].is_persistent() && all[2].is_special());
}

#[test]
fn absurd_maps_end() {
    let wraps = efi(&[entry(14, u64::MAX - 4095, 2, 0), entry(14, 0, u64::MAX, 0)]);
    assert!(wraps.iter().all(|d| d.end == u64::MAX));
    let mut list = List::empty();
    for stride in [0, 1, 39, usize::MAX] {
        list.add_efi(&[0xff; 100], stride);
    }
    assert!(list.iter().next().is_none_or(|d| d.end == u64::MAX));
    let many: Vec<_> = (0..200).map(|n| entry(14, n << 20, 1, 0)).collect();
    let list = efi(&many);
    assert_eq!((list.iter().count(), list.left_out), (MOST, 200 - MOST));
}

/// Builds a tree.
#[derive(Default)]
struct Tree {
    structure: Vec<u8>,
    strings: Vec<u8>,
}

impl Tree {
    fn word(&mut self, word: u32) {
        self.structure.extend(word.to_be_bytes());
    }
    fn pad(&mut self) {
        while !self.structure.len().is_multiple_of(4) {
            self.structure.push(0);
        }
    }
    fn begin(mut self, name: &str) -> Self {
        self.word(BEGIN_NODE);
        self.structure.extend(name.as_bytes());
        self.structure.push(0);
        self.pad();
        self
    }
    fn end(mut self) -> Self {
        self.word(END_NODE);
        self
    }
    fn prop(mut self, name: &str, value: &[u8]) -> Self {
        self.word(PROP);
        self.word(value.len() as u32);
        self.word(self.strings.len() as u32);
        self.strings.extend(name.as_bytes());
        self.strings.push(0);
        self.structure.extend(value);
        self.pad();
        self
    }
    fn cells(self, address: u32, size: u32) -> Self {
        self.prop("#address-cells", &address.to_be_bytes())
            .prop("#size-cells", &size.to_be_bytes())
    }
    fn pmem(self, name: &str, reg: &[u32]) -> Self {
        let reg: Vec<u8> = reg.iter().flat_map(|n| n.to_be_bytes()).collect();
        self.begin(name)
            .prop("compatible", b"vendor,x\0pmem-region\0")
            .prop("reg", &reg)
    }
    fn build(mut self) -> Vec<u8> {
        self.word(END);
        let mut out = Vec::new();
        let strings = 40 + self.structure.len();
        let total = strings + self.strings.len();
        for word in [MAGIC, total as u32, 40, strings as u32, 0, 17, 16, 0, 0, 0] {
            out.extend(word.to_be_bytes());
        }
        out.extend(self.structure);
        out.extend(self.strings);
        out
    }
}

fn tree(bytes: &[u8]) -> List {
    let mut list = List::empty();
    list.add_device_tree(bytes);
    list
}

fn sample() -> Vec<u8> {
    Tree::default()
        .begin("")
        .cells(2, 2)
        .pmem("pmem@100000000", &[1, 0, 0, 0x4000_0000, 2, 0, 0, 0x1000])
        .prop("numa-node-id", &1u32.to_be_bytes())
        .end()
        .pmem("pmem@300000000", &[3, 0, 0, 0x1000])
        .prop("volatile", b"")
        .end()
        .pmem("pmem@400000000", &[4, 0, 0, 0x1000])
        .prop("status", b"disabled\0")
        .end()
        .begin("bus")
        .cells(1, 1)
        .prop("ranges", b"")
        .pmem("pmem@80000000", &[0x8000_0000, 0x1000])
        .end()
        .end()
        .begin("translated")
        .cells(1, 1)
        .prop("ranges", &[0; 12])
        .pmem("pmem@90000000", &[0x9000_0000, 0x1000])
        .end()
        .end()
        .begin("memory@0")
        .prop("reg", &[0; 16])
        .end()
        .end()
        .build()
}

#[test]
fn nodes_of_persistent_memory_are_picked_out() {
    let list = tree(&sample());
    assert_eq!(list.broken_tree, None);
    let header: [u8; 8] = sample()[..8].try_into().unwrap();
    assert_eq!(tree_size(&header), sample().len());
    assert_eq!(tree_size(&[0; 8]) + tree_size(&[0xff; 8]), 0);
    let all: Vec<_> = list.iter().copied().collect();
    let ranges: Vec<_> = all.iter().map(Described::range).collect();
    assert_eq!(
        ranges,
        [
            0x1_0000_0000..0x1_4000_0000,
            0x2_0000_0000..0x2_0000_1000,
            0x3_0000_0000..0x3_0000_1000,
            0x8000_0000..0x8000_1000,
        ]
    );
    assert!(all[0].is_persistent() && !all[2].is_persistent());
    let node = |nth: usize| match all[nth].by {
        By::DeviceTree { node, .. } => node,
        By::Efi(..) => None,
    };
    assert_eq!([node(0), node(1), node(2)], [Some(1), Some(1), None]);
}

#[test]
fn a_broken_tree_is_told_with_its_place() {
    let good = sample();
    let mut token = good.clone();
    token[40..44].copy_from_slice(&7u32.to_be_bytes());
    assert_eq!(tree(&token).broken_tree, Some(40));
    assert_eq!(tree(&[]).broken_tree, Some(0));
    assert_eq!(tree(&good[..good.len() - 1]).broken_tree, Some(0));
    let mut deep = Tree::default();
    for _ in 0..DEPTH + 1 {
        deep = deep.begin("n");
    }
    assert!(tree(&deep.build()).broken_tree.is_some());
    // What was read before counts.
    let mut late = good.clone();
    let end = u32::from_be_bytes(good[12..16].try_into().unwrap()) as usize - 4;
    late[end..end + 4].copy_from_slice(&BEGIN_NODE.to_be_bytes());
    assert_eq!(tree(&late).iter().count(), 4);
}

proptest! {
    #[test]
    fn any_bytes_are_read(bytes in proptest::collection::vec(any::<u8>(), 0..400), stride in 0usize..80) {
        let mut list = List::empty();
        list.add_efi(&bytes, stride);
        list.add_device_tree(&bytes);
        prop_assert!(list.iter().all(|d| d.start <= d.end));
    }

    #[test]
    fn mutated_trees_are_read(edits in proptest::collection::vec((0usize..900, any::<u8>()), 1..8)) {
        let mut bytes = sample();
        for (at, value) in edits {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
        }
        prop_assert!(tree(&bytes).iter().all(|d| d.start <= d.end));
    }
}
