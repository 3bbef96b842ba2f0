//! A DIMM's labels: reading the newer of the two index blocks, and changing
//! labels so that a cut at any moment leaves the old ones or the new ones.
//!
//! A change writes new labels to free slots, then the index block that is not
//! in force, with the next sequence number. That block's checksum is wrong
//! until all of it is there, so it comes into force at one moment, and what the
//! old one points at is untouched until then.

use super::area::{LabelArea, LabelStore};
use super::format::{INDEX_ALIGN, Index, SIGNATURE, Slot, Version, corrupt};
use crate::error::{Error, Result};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;

/// The labels of a DIMM, as they are on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelSet {
    area: LabelStore,
    index: Index,
    /// What the slots in use hold.
    pub slots: Vec<(u32, Slot)>,
    /// Slots that are in use and can't be read, with the reason.
    pub damaged: Vec<(u32, String)>,
    /// What is wrong with the index block that isn't in force.
    pub other_index: Option<String>,
}

/// What an area holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// No labels: neither index block was ever written.
    Blank,
    /// Labels.
    Labels(LabelSet),
}

/// Bytes at the start of an area that are read at once: each transfer costs a
/// call of the firmware, and most areas have all that counts there.
const HEAD: u64 = 3584;

/// An area that is being read.
struct Reader<'a> {
    area: &'a dyn LabelArea,
    head: Vec<u8>,
}

impl<'a> Reader<'a> {
    fn new(area: &'a dyn LabelArea) -> Result<Self> {
        let mut head = vec![0; area.size().min(HEAD) as usize];
        area.read(0, &mut head)?;
        Ok(Self { area, head })
    }

    fn read(&self, offset: u64, len: u64) -> Result<Vec<u8>> {
        if let Some(bytes) = self.head.get(offset as usize..(offset + len) as usize) {
            return Ok(bytes.to_vec());
        }
        let mut bytes = vec![0; len as usize];
        self.area.read(offset, &mut bytes)?;
        Ok(bytes)
    }
}

impl LabelSet {
    /// Reads a DIMM's labels. An error: there are index blocks, and neither
    /// holds together.
    pub fn load(area: &LabelStore) -> Result<State> {
        let size = area.0.size();
        let reader = Reader::new(&*area.0)?;
        let mut fetch = |offset, len| reader.read(offset, len);
        let first = Index::decode(0, size, &mut fetch);
        // The second one follows the first. Where that can't say how long it
        // is, it is looked for at each place where it may be.
        let second = match &first {
            Ok(index) => Index::decode(index.other_offset, size, &mut fetch),
            Err(_) => Self::find_second(size, &mut fetch),
        };
        let (index, other) = match (first, second) {
            (Ok(a), Ok(b)) if b.is_newer(&a) => (b, None),
            (Ok(a), Ok(_)) => (a, None),
            (Ok(a), Err(error)) => (a, Some(error.to_string())),
            (Err(error), Ok(b)) => (b, Some(error.to_string())),
            (Err(a), Err(_)) => {
                let head = reader.read(0, size.min(16))?;
                return if head.as_slice() == SIGNATURE {
                    Err(a)
                } else {
                    Ok(State::Blank)
                };
            }
        };
        let mut set = Self {
            area: area.clone(),
            index,
            slots: Vec::new(),
            damaged: Vec::new(),
            other_index: other,
        };
        set.read_slots(&reader)?;
        Ok(State::Labels(set))
    }

    fn find_second(size: u64, fetch: &mut dyn FnMut(u64, u64) -> Result<Vec<u8>>) -> Result<Index> {
        // In what has been read already, and where the area's size puts it: each
        // other place would cost a call of the firmware, on every blank area.
        let near = (1..HEAD / INDEX_ALIGN).map(|nth| nth * INDEX_ALIGN);
        let far = [Version::V1_1, Version::V1_2]
            .into_iter()
            .filter_map(|version| Index::new(size, version))
            .map(|index| index.other_offset)
            .filter(|offset| *offset >= HEAD);
        for offset in near.chain(far) {
            if offset + INDEX_ALIGN > size {
                continue;
            }
            if fetch(offset, 16)? == SIGNATURE {
                return Index::decode(offset, size, fetch);
            }
        }
        Err(corrupt("no index block", 0))
    }

    fn read_slots(&mut self, reader: &Reader<'_>) -> Result<()> {
        let version = self.index.version;
        let used: Vec<u32> = self.index.used().collect();
        for slot in used {
            let offset = self.index.slot_offset(slot);
            let bytes = reader.read(offset, version.label_size())?;
            match Slot::decode(&bytes, version, slot, offset) {
                Ok(label) => self.slots.push((slot, label)),
                Err(error) => self.damaged.push((slot, error.to_string())),
            }
        }
        Ok(())
    }

    /// Makes an area hold no labels, of this version. Whatever was there is
    /// gone.
    pub fn init(area: &LabelStore, version: Version) -> Result<Self> {
        let first = Index::new(area.0.size(), version).ok_or_else(|| {
            Error::invalid(format!(
                "label area of {} bytes is too small",
                area.0.size()
            ))
        })?;
        // Old labels go in one change, and again from the block before it, so
        // that no cut can bring back what was older still.
        if let Ok(State::Labels(mut old)) = Self::load(area) {
            let slots: Vec<u32> = old.index.used().collect();
            old.update(&slots, Vec::new())?;
            old.update(&[], Vec::new())?;
        }
        let mut second = first.next();
        second.seq = 3;
        area.0.write(0, &vec![0; first.my_size as usize])?;
        area.0.write(second.my_offset, &second.encode())?;
        area.0.write(0, &first.encode())?;
        Ok(Self {
            area: area.clone(),
            index: first,
            slots: Vec::new(),
            damaged: Vec::new(),
            other_index: None,
        })
    }

    /// Makes an area blank.
    pub fn zero(area: &LabelStore) -> Result<()> {
        let size = area.0.size();
        let zeros = vec![0; 4096];
        let mut at = 0;
        while at < size {
            let len = (size - at).min(4096);
            area.0.write(at, &zeros[..len as usize])?;
            at += len;
        }
        Ok(())
    }

    /// The layout.
    pub fn version(&self) -> Version {
        self.index.version
    }

    /// The index block in force.
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// Replaces the labels in the slots `remove` by the labels `add`, at once.
    pub fn update(&mut self, remove: &[u32], add: Vec<Slot>) -> Result<()> {
        let mut index = self.index.next();
        // New labels go where neither index block points.
        let free: Vec<u32> = (0..index.slots)
            .filter(|slot| index.is_free(*slot))
            .take(add.len())
            .collect();
        if free.len() < add.len() {
            return Err(Error::NoSpace);
        }
        for (slot, label) in free.iter().zip(&add) {
            let bytes = label.encode(index.version, *slot);
            self.area.0.write(index.slot_offset(*slot), &bytes)?;
            index.set_free(*slot, false);
        }
        for slot in remove {
            index.set_free(*slot, true);
        }
        self.area.0.write(index.my_offset, &index.encode())?;
        self.index = index;
        self.other_index = None;
        self.slots.retain(|(slot, _)| !remove.contains(slot));
        self.damaged.retain(|(slot, _)| !remove.contains(slot));
        self.slots.extend(free.into_iter().zip(add));
        Ok(())
    }
}
