//! What a namespace is: from its labels, and from the info block on it.

use super::btt::{self, Summary};
use super::info::{self, PfnInfo};
use super::label::Uuid;
use super::layout::Planned;
use super::region::Region;
use crate::error::Result;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use core::ops::Range;
use quire_fs::Pmem;

/// How a namespace is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// All of it is data.
    Raw,
    /// For a file system with direct access: data behind an info block.
    FsDax(PfnInfo),
    /// A character device: data behind an info block.
    DevDax(PfnInfo),
    /// Sectors, each written whole or not at all.
    Sector(Summary),
}

impl Mode {
    /// The name that `ndctl` uses.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::FsDax(_) => "fsdax",
            Self::DevDax(_) => "devdax",
            Self::Sector(_) => "sector",
        }
    }
}

/// What a namespace is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Number of its region.
    pub region: usize,
    /// What labels say of it.
    pub planned: Planned,
    /// What its info block says.
    pub mode: Mode,
    /// Why its info block is not believed.
    pub problem: Option<String>,
}

impl Identity {
    /// A region without labels, all of it data.
    pub fn whole(region: usize, of: &Region) -> Self {
        Self {
            region,
            planned: Planned {
                id: 0,
                uuid: Uuid::default(),
                name: String::new(),
                lbasize: 0,
                range: of.range.clone(),
                read_only: false,
                version: None,
            },
            mode: Mode::Raw,
            problem: None,
        }
    }

    /// The device's name, as Linux names it: `pmem0`, `pmem0.1`, `pmem0.2s`,
    /// `dax0.3`.
    pub fn device(&self) -> String {
        let (region, id) = (self.region, self.planned.id);
        let number = match id {
            0 => format!("{region}"),
            id => format!("{region}.{id}"),
        };
        match self.mode {
            Mode::DevDax(_) => format!("dax{region}.{id}"),
            Mode::Sector(_) => format!("pmem{number}s"),
            Mode::Raw | Mode::FsDax(_) => format!("pmem{number}"),
        }
    }

    /// The namespace's name: `namespace0.1`.
    pub fn namespace(&self) -> String {
        format!("namespace{}.{}", self.region, self.planned.id)
    }

    /// The identity that `ndctl` shows: the info block's, else the labels'.
    pub fn uuid(&self) -> Option<Uuid> {
        let uuid = match &self.mode {
            Mode::FsDax(info) | Mode::DevDax(info) => info.uuid,
            Mode::Sector(table) => table.uuid,
            Mode::Raw => self.planned.uuid,
        };
        (!uuid.is_nil()).then_some(uuid)
    }

    /// The labels' identity, where the info block has another.
    pub fn raw_uuid(&self) -> Option<Uuid> {
        let uuid = self.planned.uuid;
        (self.mode != Mode::Raw && !uuid.is_nil()).then_some(uuid)
    }

    /// Bytes of a sector.
    pub fn sector_size(&self) -> u64 {
        match &self.mode {
            Mode::Sector(table) => table.lbasize.into(),
            _ => 512,
        }
    }

    /// Where the memory that users see lies. A table's sectors lie anywhere in
    /// all of it.
    pub fn data(&self) -> Range<u64> {
        let range = &self.planned.range;
        match &self.mode {
            Mode::FsDax(info) | Mode::DevDax(info) => {
                let data = info.data(range.end - range.start);
                range.start + data.start..range.start + data.end
            }
            Mode::Raw | Mode::Sector(_) => range.clone(),
        }
    }

    /// What its info block reserves for page descriptors, if it does.
    pub fn reserved(&self) -> Option<Range<u64>> {
        match &self.mode {
            Mode::FsDax(info) | Mode::DevDax(info) if info.map == info::Map::Dev => {
                // Behind the superblock's place and the info block.
                let start = self.planned.range.start + 2 * info::BLOCK;
                let range = start.next_multiple_of(4096)..self.data().start & !4095;
                (range.start < range.end).then_some(range)
            }
            _ => None,
        }
    }

    /// Bytes that users see.
    pub fn size(&self) -> u64 {
        match &self.mode {
            Mode::Sector(table) => table.size,
            _ => self.data().end - self.data().start,
        }
    }

    /// Looks at what stands on the namespace, whose memory `media` is.
    pub fn look(mut self, media: &impl Pmem) -> Self {
        match self.mode_of(media) {
            Ok(mode) => self.mode = mode,
            Err(error) => self.problem = Some(error.to_string()),
        }
        self
    }

    fn mode_of(&self, media: &impl Pmem) -> Result<Mode> {
        let size = media.len();
        if size < 4 * info::BLOCK {
            return Ok(Mode::Raw);
        }
        let mut block = vec![0; info::BLOCK as usize];
        media.read(info::OFFSET, &mut block)?;
        // A block that an earlier namespace here left behind names another
        // parent.
        let ours = |parent: Uuid| parent == self.planned.uuid;
        if let Some(pfn) = PfnInfo::decode(&block, size)?.filter(|pfn| ours(pfn.parent_uuid)) {
            return Ok(match pfn.is_dax {
                true => Mode::DevDax(pfn),
                false => Mode::FsDax(pfn),
            });
        }
        Ok(
            match btt::probe(media)?.filter(|table| ours(table.parent_uuid)) {
                Some(table) => Mode::Sector(table),
                None => Mode::Raw,
            },
        )
    }
}
