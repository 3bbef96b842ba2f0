//! What the firmware's own maps say of memory that isn't RAM for everybody:
//! the EFI memory map, and the device tree.
//!
//! Both lie in the loader's memory, which is given back, and are read before
//! anything can be allocated: so what matters is picked out, into a list of
//! fixed length.
//!
//! UEFI 2.10: 7.2.3 (memory types and attributes). Devicetree Specification
//! 0.4: 2.3 (properties), 5 (flattened format); binding `pmem-region` as Linux
//! documents it.
#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::as_conversions
    )
)]

use core::ops::Range;
use quire_arch::acpi::{bytes, read_u32, read_u64};

/// `EfiPersistentMemory`.
const PERSISTENT: u32 = 14;
/// `EFI_MEMORY_NV`: it keeps its content without power.
pub const NON_VOLATILE: u64 = 1 << 15;
/// `EFI_MEMORY_SP`: it is for special purposes, and not for everybody.
pub const SPECIAL_PURPOSE: u64 = 1 << 18;

/// Who said so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// The EFI memory map: type and attributes.
    Efi(u32, u64),
    /// A `pmem-region` node of the device tree.
    DeviceTree {
        /// It loses its content without power.
        volatile: bool,
        /// `numa-node-id`.
        node: Option<u32>,
    },
}

/// A range that is described.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Described {
    /// First physical address.
    pub start: u64,
    /// First address behind it.
    pub end: u64,
    /// Who said so.
    pub by: By,
    /// Where it is said: byte offset in the map or tree.
    pub offset: usize,
}

impl Described {
    /// Its addresses.
    pub fn range(&self) -> Range<u64> {
        self.start..self.end
    }

    /// Whether it is said to be persistent memory.
    pub fn is_persistent(&self) -> bool {
        match self.by {
            By::Efi(kind, _) => kind == PERSISTENT,
            By::DeviceTree { volatile, .. } => !volatile,
        }
    }

    /// Whether it is said to be for special purposes.
    pub fn is_special(&self) -> bool {
        matches!(self.by, By::Efi(_, attributes) if attributes & SPECIAL_PURPOSE != 0)
    }
}

const MOST: usize = 64;

/// A list of them.
#[derive(Clone, Debug)]
pub struct List {
    all: [Option<Described>; MOST],
    count: usize,
    /// How many had no place.
    pub left_out: usize,
    /// Where the device tree can't be read, if so.
    pub broken_tree: Option<usize>,
}

impl List {
    /// None.
    pub const fn empty() -> Self {
        Self {
            all: [None; MOST],
            count: 0,
            left_out: 0,
            broken_tree: None,
        }
    }

    /// All that were kept.
    pub fn iter(&self) -> impl Iterator<Item = &Described> {
        self.all.iter().flatten()
    }

    fn push(&mut self, new: Described) {
        match self.all.get_mut(self.count) {
            Some(slot) => {
                *slot = Some(new);
                self.count = self.count.saturating_add(1);
            }
            None => self.left_out = self.left_out.saturating_add(1),
        }
    }

    /// Takes from an EFI memory map, whose entries are `stride` bytes apart,
    /// what is persistent, non-volatile or for special purposes.
    pub fn add_efi(&mut self, map: &[u8], stride: usize) {
        // Smaller ones are no entries; the walk must get on.
        if stride < 40 {
            return;
        }
        for (nth, entry) in map.chunks(stride).enumerate() {
            let read = || {
                Some((
                    read_u32(entry, 0)?,
                    read_u64(entry, 8)?,
                    read_u64(entry, 24)?,
                    read_u64(entry, 32)?,
                ))
            };
            let Some((kind, start, pages, attributes)) = read() else {
                return;
            };
            if kind != PERSISTENT && attributes & (NON_VOLATILE | SPECIAL_PURPOSE) == 0 {
                continue;
            }
            // One that wraps is kept as it is said, to be refused by name.
            let end = pages
                .checked_mul(4096)
                .and_then(|len| start.checked_add(len))
                .unwrap_or(u64::MAX);
            // Firmware cuts what it describes into pieces; neighbours that are
            // said the same of are one.
            let by = By::Efi(kind, attributes);
            let last = self.count.checked_sub(1);
            let last = last.and_then(|last| self.all.get_mut(last)?.as_mut());
            match last {
                Some(last) if last.by == by && last.end == start => last.end = end,
                _ => self.push(Described {
                    start,
                    end,
                    by,
                    offset: nth.saturating_mul(stride),
                }),
            }
        }
    }

    /// Takes the `pmem-region` nodes of a flattened device tree.
    pub fn add_device_tree(&mut self, tree: &[u8]) {
        let mut walk = Walk {
            tree,
            list: self,
            at: 0,
        };
        if walk.run().is_none() {
            let at = walk.at;
            self.broken_tree = Some(at);
        }
    }
}

const MAGIC: u32 = 0xd00d_feed;
/// A larger tree is not believed.
const MAX_TREE: u32 = 4 << 20;

/// The size of a device tree by its first eight bytes; 0 when they make no
/// sense.
pub fn tree_size(header: &[u8; 8]) -> usize {
    match (be32(header, 0), be32(header, 4)) {
        (Some(MAGIC), Some(size)) if size <= MAX_TREE => usize::try_from(size).unwrap_or(0),
        _ => 0,
    }
}

const BEGIN_NODE: u32 = 1;
const END_NODE: u32 = 2;
const PROP: u32 = 3;
const NOP: u32 = 4;
const END: u32 = 9;
/// A deeper tree is not believed.
const DEPTH: usize = 32;

/// A big-endian number of four bytes.
fn be32(tree: &[u8], at: usize) -> Option<u32> {
    bytes(tree, at).map(u32::from_be_bytes)
}

/// What is known of a node while its properties are read.
#[derive(Clone, Copy)]
struct Node<'a> {
    /// Cells of an address and of a size in its children's `reg`.
    cells: (u32, u32),
    /// Children's addresses are physical ones.
    identity: bool,
    compatible: bool,
    volatile: bool,
    disabled: bool,
    numa: Option<u32>,
    reg: Option<&'a [u8]>,
    offset: usize,
}

impl Node<'_> {
    fn new(offset: usize) -> Self {
        Self {
            // What the specification says where nothing is said (2.3.5).
            cells: (2, 1),
            identity: false,
            compatible: false,
            volatile: false,
            disabled: false,
            numa: None,
            reg: None,
            offset,
        }
    }
}

struct Walk<'a, 'l> {
    tree: &'a [u8],
    list: &'l mut List,
    at: usize,
}

impl<'a> Walk<'a, '_> {
    /// The bytes up to the next zero, at `at`.
    fn text(&self, at: usize) -> Option<&'a [u8]> {
        let rest = self.tree.get(at..)?;
        rest.get(..rest.iter().position(|byte| *byte == 0)?)
    }

    /// `None`: the tree makes no sense at `self.at`.
    fn run(&mut self) -> Option<()> {
        let total = usize::try_from(be32(self.tree, 4)?).ok()?;
        if be32(self.tree, 0)? != MAGIC {
            return None;
        }
        self.tree = self.tree.get(..total)?;
        let structure = usize::try_from(be32(self.tree, 8)?).ok()?;
        let strings = usize::try_from(be32(self.tree, 12)?).ok()?;
        let mut nodes = [None::<Node<'a>>; DEPTH];
        let mut depth = 0usize;
        self.at = structure;
        // Every turn moves on by four bytes or more, so the size bounds it.
        loop {
            let token = be32(self.tree, self.at)?;
            let body = self.at.checked_add(4)?;
            match token {
                BEGIN_NODE => {
                    let name = self.text(body)?;
                    *nodes.get_mut(depth)? = Some(Node::new(self.at));
                    depth = depth.checked_add(1)?;
                    self.at = body.checked_add(name.len())?.checked_add(4)? & !3;
                }
                END_NODE => {
                    depth = depth.checked_sub(1)?;
                    let node = nodes.get_mut(depth)?.take()?;
                    let parent = depth.checked_sub(1).and_then(|up| nodes.get(up).copied());
                    if let Some(Some(parent)) = parent {
                        // The root's children have physical addresses, and so
                        // have those of a bus that says so by empty `ranges`.
                        let physical = nodes
                            .get(1..depth)?
                            .iter()
                            .flatten()
                            .all(|bus| bus.identity);
                        self.region(&node, parent.cells, physical);
                    }
                    self.at = body;
                }
                PROP => {
                    let len = usize::try_from(be32(self.tree, body)?).ok()?;
                    let name = usize::try_from(be32(self.tree, body.checked_add(4)?)?).ok()?;
                    let name = self.text(strings.checked_add(name)?)?;
                    let from = body.checked_add(8)?;
                    let to = from.checked_add(len)?;
                    let value = self.tree.get(from..to)?;
                    let node = depth.checked_sub(1)?;
                    property(nodes.get_mut(node)?.as_mut()?, name, value);
                    self.at = to.checked_add(3)? & !3;
                }
                NOP => self.at = body,
                END => return (depth == 0).then_some(()),
                _ => return None,
            }
        }
    }

    /// Keeps what a node's `reg` names, if it is of persistent memory.
    fn region(&mut self, node: &Node<'a>, (address, size): (u32, u32), physical: bool) {
        let (true, false, true) = (node.compatible, node.disabled, physical) else {
            return;
        };
        let cell = |count: u32| usize::try_from(count).ok().filter(|n| (1..=2).contains(n));
        let (Some(address), Some(size)) = (cell(address), cell(size)) else {
            return;
        };
        let width = address.saturating_add(size).saturating_mul(4);
        for entry in node.reg.unwrap_or(&[]).chunks_exact(width) {
            let number = |from: usize, count: usize| {
                (from..from.saturating_add(count)).fold(0u64, |sum, nth| {
                    let word = be32(entry, nth.saturating_mul(4)).unwrap_or(0);
                    sum.wrapping_shl(32) | u64::from(word)
                })
            };
            let start = number(0, address);
            self.list.push(Described {
                start,
                end: start.saturating_add(number(address, size)),
                by: By::DeviceTree {
                    volatile: node.volatile,
                    node: node.numa,
                },
                offset: node.offset,
            });
        }
    }
}

fn property<'a>(node: &mut Node<'a>, name: &[u8], value: &'a [u8]) {
    match name {
        b"compatible" => {
            node.compatible = value.split(|byte| *byte == 0).any(|n| n == b"pmem-region");
        }
        b"reg" => node.reg = Some(value),
        b"volatile" => node.volatile = true,
        b"ranges" => node.identity = value.is_empty(),
        b"status" => node.disabled = !matches!(value, b"okay\0" | b"ok\0"),
        b"numa-node-id" => node.numa = be32(value, 0),
        b"#address-cells" => node.cells.0 = be32(value, 0).unwrap_or(0),
        b"#size-cells" => node.cells.1 = be32(value, 0).unwrap_or(0),
        _ => {}
    }
}

#[cfg(test)]
#[path = "described_tests.rs"]
mod tests;
