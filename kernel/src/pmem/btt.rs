//! Block translation tables: sectors that are written whole or not at all
//! (UEFI 2.10, chapter 6).
//!
//! An arena has blocks, a map from sectors to blocks, and a log. A sector is
//! written to a free block; then the log says so in one store of eight bytes;
//! then the map follows, and the sector's old block is the free one. Opening
//! looks at the log: where the map did not follow, it is made to. A read-only
//! open keeps that in memory and writes nothing.
//!
//! One sector is written at a time ([`Btt`] is a lock around the lanes), which
//! is all that the users here need.

use super::info::{BLOCK, BttInfo};
use super::label::Uuid;
use super::label::format::Bytes;
use crate::error::{Error, Result};
use crate::sync::Mutex;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::vec;
use alloc::vec::Vec;
use quire_fs::{MediaError, Pmem};

/// Arenas are no larger.
const ARENA_MAX: u64 = 512 << 30;
/// And no smaller.
const ARENA_MIN: u64 = 16 << 20;
/// Free blocks that are made.
const NFREE: u32 = 256;
/// Bytes of a lane's log: four places of 16 bytes, of which two are used.
const LOG_GROUP: u64 = 64;
/// Both bits set: the rest is a block. None set: never written.
const NORMAL: u32 = 3 << 30;
const ERROR: u32 = 1 << 30;
const ZERO: u32 = 2 << 30;
const LBA: u32 = ERROR - 1;

/// Sizes that sectors may have; what lies beyond 512 or 4096 is for others'
/// use.
const SECTORS: [u32; 7] = [512, 520, 528, 4096, 4104, 4160, 4224];

/// A lane: a free block, and where its next log entry goes.
#[derive(Clone, Copy, Debug)]
struct Lane {
    block: u32,
    /// Which of the two places is written next, and with what number.
    place: usize,
    seq: u32,
}

struct Arena {
    /// Where its info block stands.
    base: u64,
    info: BttInfo,
    /// Its first sector.
    first: u64,
    lanes: Vec<Lane>,
    next_lane: usize,
    /// Which of four places in a lane's log are in use.
    places: [u64; 2],
    /// What the log says and the map doesn't yet: of a read-only open.
    overlay: BTreeMap<u32, u32>,
}

/// A namespace's sectors.
pub struct Btt<P> {
    media: P,
    /// Bytes of a sector that users see.
    sector: u64,
    sectors: u64,
    writable: bool,
    arenas: Mutex<Vec<Arena>>,
}

/// What a table is, without opening it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Its identity.
    pub uuid: Uuid,
    /// The label's that it belongs to.
    pub parent_uuid: Uuid,
    /// Bytes of a sector, its extra bytes included.
    pub lbasize: u32,
    /// Bytes that users see.
    pub size: u64,
}

/// Bytes of a sector that users see.
fn payload(lbasize: u32) -> u64 {
    if lbasize < 4096 { 512 } else { 4096 }
}

fn corrupt(what: &str, at: u64) -> Error {
    Error::Corrupt {
        what: format!("block translation table: {what}").into(),
        at,
    }
}

fn block_at(media: &impl Pmem, at: u64) -> Result<Option<BttInfo>> {
    let mut block = vec![0; BLOCK as usize];
    if at.checked_add(BLOCK).is_none_or(|end| end > media.len()) {
        return Ok(None);
    }
    media.read(at, &mut block)?;
    Ok(BttInfo::decode(&block))
}

/// The info blocks of all arenas, with where they stand.
fn arenas_of(media: &impl Pmem) -> Result<Vec<(u64, BttInfo)>> {
    let mut found = Vec::new();
    // Version 1.1 leaves the first 4 KiB alone.
    let mut at = match block_at(media, BLOCK)? {
        Some(_) => BLOCK,
        None => 0,
    };
    while at < media.len() {
        let room = (media.len() - at).min(ARENA_MAX);
        let info = match block_at(media, at)? {
            Some(info) => Some(info),
            // Its copy is the arena's last page.
            None => match (room / BLOCK * BLOCK).checked_sub(BLOCK) {
                Some(last) if !found.is_empty() => block_at(media, at + last)?,
                _ => None,
            },
        };
        let Some(info) = info else {
            if found.is_empty() {
                return Ok(found);
            }
            return Err(corrupt("an arena's info blocks are broken", at));
        };
        check(&info, room, at)?;
        found.push((at, info));
        match info.nextoff {
            0 => break,
            next => at += next,
        }
    }
    Ok(found)
}

/// Whether an arena's parts lie in it, one behind the other.
fn check(info: &BttInfo, room: u64, at: u64) -> Result<()> {
    if !matches!((info.major, info.minor), (1, 1) | (2, 0)) {
        return Err(Error::unsupported(format!(
            "block translation table of version {}.{}",
            info.major, info.minor
        )));
    }
    let (lba, blocks) = (
        u64::from(info.internal_lbasize),
        u64::from(info.internal_nlba),
    );
    let behind =
        |start: u64, len: u64, next: u64| start.checked_add(len).is_some_and(|e| e <= next);
    let good = SECTORS.contains(&info.external_lbasize)
        && lba >= info.external_lbasize.into()
        && lba <= 8192
        && (1..=4096).contains(&info.nfree)
        && info.internal_nlba <= LBA
        && u64::from(info.external_nlba) + u64::from(info.nfree) <= blocks
        && info.external_nlba > 0
        && behind(0, BLOCK, info.dataoff)
        && behind(info.dataoff, blocks * lba, info.mapoff)
        && behind(info.mapoff, u64::from(info.external_nlba) * 4, info.logoff)
        && behind(
            info.logoff,
            u64::from(info.nfree) * LOG_GROUP,
            info.info2off,
        )
        && behind(info.info2off, BLOCK, room)
        && (info.nextoff == 0 || info.nextoff >= info.info2off + BLOCK && info.nextoff <= room)
        && info.mapoff.is_multiple_of(4)
        && info.logoff.is_multiple_of(16);
    if good {
        Ok(())
    } else {
        Err(corrupt("an arena's parts do not fit into it", at))
    }
}

/// Looks for a table. `Ok(None)`: there is none.
pub fn probe(media: &impl Pmem) -> Result<Option<Summary>> {
    let arenas = arenas_of(media)?;
    let Some((_, first)) = arenas.first() else {
        return Ok(None);
    };
    let sectors: u64 = arenas.iter().map(|(_, a)| u64::from(a.external_nlba)).sum();
    Ok(Some(Summary {
        uuid: first.uuid,
        parent_uuid: first.parent_uuid,
        lbasize: first.external_lbasize,
        size: sectors * payload(first.external_lbasize),
    }))
}

/// How an arena of `size` bytes is divided, as Linux divides it.
fn divide(size: u64, lbasize: u32, uuids: (Uuid, Uuid), version: (u16, u16)) -> Option<BttInfo> {
    let log = (u64::from(NFREE) * LOG_GROUP).next_multiple_of(BLOCK);
    let internal = u64::from(lbasize).next_multiple_of(64);
    let available = (size / BLOCK * BLOCK).checked_sub(2 * BLOCK + log)?;
    let blocks = available.checked_sub(BLOCK)? / (internal + 4);
    let external = blocks.checked_sub(NFREE.into())?;
    let map = (external * 4).next_multiple_of(BLOCK);
    let mapoff = BLOCK + available.checked_sub(map)?;
    Some(BttInfo {
        uuid: uuids.0,
        parent_uuid: uuids.1,
        flags: 0,
        major: version.0,
        minor: version.1,
        external_lbasize: lbasize,
        external_nlba: u32::try_from(external).ok()?,
        internal_lbasize: internal as u32,
        internal_nlba: u32::try_from(blocks).ok()?,
        nfree: NFREE,
        infosize: BLOCK as u32,
        nextoff: 0,
        dataoff: BLOCK,
        mapoff,
        logoff: mapoff + map,
        info2off: mapoff + map + log,
    })
}

/// Makes a table on a namespace. The first arena's info block comes last, so
/// that a cut leaves no table or a whole one.
pub fn format(
    media: &impl Pmem,
    lbasize: u32,
    uuids: (Uuid, Uuid),
    version: (u16, u16),
) -> Result<()> {
    if !SECTORS.contains(&lbasize) {
        return Err(Error::invalid(format!(
            "sectors of {lbasize} bytes: {SECTORS:?} are possible"
        )));
    }
    let mut at = if version.0 == 1 { BLOCK } else { 0 };
    let mut arenas = Vec::new();
    while media.len().saturating_sub(at) >= ARENA_MIN {
        let size = (media.len() - at).min(ARENA_MAX);
        let mut info = divide(size, lbasize, uuids, version).ok_or(Error::NoSpace)?;
        if media.len() - at - size >= ARENA_MIN {
            info.nextoff = size;
        }
        arenas.push((at, info));
        at += size;
    }
    if arenas.is_empty() {
        let least = ARENA_MIN >> 20;
        return Err(Error::invalid(format!(
            "a sector namespace has {least} MiB at least"
        )));
    }
    for (base, info) in &arenas {
        media.zero(base + info.mapoff, info.info2off - info.mapoff)?;
        for lane in 0..info.nfree {
            let block = info.external_nlba + lane;
            let mut entry = lane.to_le_bytes().to_vec();
            entry.extend(block.to_le_bytes());
            entry.extend(block.to_le_bytes());
            entry.extend(1u32.to_le_bytes());
            media.write_nt(base + info.logoff + u64::from(lane) * LOG_GROUP, &entry)?;
        }
        media.write_nt(base + info.info2off, &info.encode())?;
    }
    media.barrier()?;
    for (base, info) in arenas.iter().rev() {
        media.write_nt(*base, &info.encode())?;
        media.barrier()?;
    }
    media.drain()?;
    Ok(())
}

/// A lane's log entry.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Entry {
    lba: u32,
    old: u32,
    new: u32,
    seq: u32,
}

impl Arena {
    fn log_at(&self, lane: usize, place: usize) -> u64 {
        let places = self.places.get(place).copied().unwrap_or(0);
        self.base + self.info.logoff + lane as u64 * LOG_GROUP + places * 16
    }

    fn map_at(&self, premap: u32) -> u64 {
        self.base + self.info.mapoff + u64::from(premap) * 4
    }

    fn data_at(&self, block: u32) -> u64 {
        self.base + self.info.dataoff + u64::from(block) * u64::from(self.info.internal_lbasize)
    }

    fn map(&self, media: &impl Pmem, premap: u32) -> Result<u32, MediaError> {
        if let Some(entry) = self.overlay.get(&premap) {
            return Ok(*entry);
        }
        let mut entry = [0; 4];
        media.read(self.map_at(premap), &mut entry)?;
        Ok(u32::from_le_bytes(entry))
    }

    fn open(
        media: &impl Pmem,
        base: u64,
        info: BttInfo,
        first: u64,
        writable: bool,
    ) -> Result<Self> {
        let mut arena = Self {
            base,
            info,
            first,
            lanes: Vec::new(),
            next_lane: 0,
            places: [0, 1],
            overlay: BTreeMap::new(),
        };
        let mut log = vec![0; (u64::from(info.nfree) * LOG_GROUP) as usize];
        media.read(base + info.logoff, &mut log)?;
        let entry = |lane: usize, place: u64| {
            let f = Bytes(log.get(lane * 64 + place as usize * 16..).unwrap_or(&[]));
            Entry {
                lba: f.u32(0),
                old: f.u32(4),
                new: f.u32(8),
                seq: f.u32(12),
            }
        };
        // Old kernels used the first and the third place.
        let lanes = info.nfree as usize;
        if (0..lanes).any(|lane| entry(lane, 2).seq != 0) {
            arena.places = [0, 2];
        }
        let mut used = BTreeMap::new();
        for lane in 0..lanes {
            let at = arena.log_at(lane, 0);
            let [a, b] = arena.places.map(|place| entry(lane, place));
            let newer = match (a.seq, b.seq) {
                (1..=3, 0) => 0,
                (1, 2) | (2, 3) | (3, 1) => 1,
                (2, 1) | (3, 2) | (1, 3) => 0,
                (a, b) => {
                    return Err(corrupt(
                        &format!("lane {lane}: log numbers {a} and {b}"),
                        at,
                    ));
                }
            };
            let now = [a, b][newer];
            let inside = |block: u32| block & LBA < info.internal_nlba;
            if !inside(now.old) || !inside(now.new) || now.lba >= info.external_nlba {
                return Err(corrupt(
                    &format!("lane {lane}: log names what is not there"),
                    at,
                ));
            }
            let (old, new) = (now.old & LBA, now.new & LBA);
            let fresh = Lane {
                block: old,
                place: 1 - newer,
                seq: now.seq % 3 + 1,
            };
            if let Some(other) = used.insert(old, lane) {
                return Err(corrupt(
                    &format!("lanes {other} and {lane} share block {old}"),
                    at,
                ));
            }
            arena.lanes.push(fresh);
            if old == new {
                continue;
            }
            // Did the map follow?
            let entry = arena.map(media, now.lba)?;
            let maps_to = if entry & NORMAL == 0 {
                now.lba
            } else {
                entry & LBA
            };
            if maps_to == old && maps_to != new {
                let entry = now.new & LBA | NORMAL;
                if writable {
                    media.write_nt(arena.map_at(now.lba), &entry.to_le_bytes())?;
                    media.barrier()?;
                } else {
                    arena.overlay.insert(now.lba, entry);
                }
            }
        }
        Ok(arena)
    }
}

impl<P: Pmem> Btt<P> {
    /// Opens the table on a namespace.
    pub fn open(media: P) -> Result<Self> {
        let writable = media.is_writable();
        let mut arenas = Vec::new();
        let mut first = 0u64;
        let mut sector = 512;
        for (base, info) in arenas_of(&media)? {
            if first > 0 && payload(info.external_lbasize) != sector {
                return Err(corrupt("arenas have sectors of different sizes", base));
            }
            sector = payload(info.external_lbasize);
            if info.flags & 1 != 0 && writable {
                return Err(Error::NotPermitted {
                    why: "the block translation table met an error: mount it read-only, save the \
                          data, make it anew"
                        .into(),
                });
            }
            arenas.push(Arena::open(&media, base, info, first, writable)?);
            first += u64::from(info.external_nlba);
        }
        if arenas.is_empty() {
            return Err(Error::not_found("block translation table"));
        }
        Ok(Self {
            media,
            sector,
            sectors: first,
            writable,
            arenas: Mutex::new(arenas),
        })
    }

    /// Bytes of a sector.
    pub fn sector_size(&self) -> u64 {
        self.sector
    }

    fn range(&self, off: u64, len: u64) -> Result<(), MediaError> {
        match off.checked_add(len) {
            Some(end) if end <= self.len() => Ok(()),
            _ => Err(MediaError::OutOfRange { offset: off, len }),
        }
    }

    /// The arena that has a sector, and its number there.
    fn locate(arenas: &mut [Arena], sector: u64) -> Option<(&mut Arena, u32)> {
        let arena = arenas.iter_mut().rfind(|arena| arena.first <= sector)?;
        let premap = u32::try_from(sector - arena.first).ok()?;
        (premap < arena.info.external_nlba).then_some((arena, premap))
    }

    fn read_sector(
        &self,
        arenas: &mut [Arena],
        sector: u64,
        buf: &mut [u8],
    ) -> Result<(), MediaError> {
        let poisoned = MediaError::Poisoned {
            offset: sector * self.sector,
            len: self.sector,
        };
        let (arena, premap) = Self::locate(arenas, sector).ok_or(MediaError::Host)?;
        let entry = arena.map(&self.media, premap)?;
        let block = match entry & NORMAL {
            0 => premap,
            NORMAL => entry & LBA,
            ZERO => {
                buf.fill(0);
                return Ok(());
            }
            _ => return Err(poisoned),
        };
        if block >= arena.info.internal_nlba {
            log::error!("btt: sector {sector} is mapped to block {block}, which is not there");
            return Err(poisoned);
        }
        self.media.read(arena.data_at(block), buf)
    }

    fn write_sector(
        &self,
        arenas: &mut [Arena],
        sector: u64,
        data: &[u8],
    ) -> Result<(), MediaError> {
        let (arena, premap) = Self::locate(arenas, sector).ok_or(MediaError::Host)?;
        let entry = arena.map(&self.media, premap)?;
        let old = if entry & NORMAL == 0 {
            premap
        } else {
            entry & LBA
        };
        if old >= arena.info.internal_nlba {
            return Err(MediaError::Host);
        }
        let nth = arena.next_lane % arena.lanes.len();
        arena.next_lane = nth + 1;
        let lane = arena.lanes[nth];
        self.media.write_nt(arena.data_at(lane.block), data)?;
        self.media.barrier()?;
        // The log: which sector and what it was; then, in one store, what it
        // is and that this counts.
        let at = arena.log_at(nth, lane.place);
        let pair = |a: u32, b: u32| (u64::from(b) << 32 | u64::from(a)).to_le_bytes();
        self.media.write_nt(at, &pair(premap, old))?;
        self.media.barrier()?;
        self.media.write_nt(at + 8, &pair(lane.block, lane.seq))?;
        self.media.barrier()?;
        let entry = lane.block | NORMAL;
        self.media
            .write_nt(arena.map_at(premap), &entry.to_le_bytes())?;
        self.media.barrier()?;
        arena.lanes[nth] = Lane {
            block: old,
            place: 1 - lane.place,
            seq: lane.seq % 3 + 1,
        };
        Ok(())
    }

    /// Writes bytes, whole sectors of which at once; `data` gives them by
    /// offset, or zeros.
    fn write_range(&self, off: u64, len: u64, data: Option<&[u8]>) -> Result<(), MediaError> {
        self.range(off, len)?;
        if !self.writable {
            return Err(MediaError::ReadOnly);
        }
        let mut arenas = self.arenas.lock();
        let mut buf = vec![0; self.sector as usize];
        let mut done = 0u64;
        while done < len {
            let at = off + done;
            let (sector, skip) = (at / self.sector, (at % self.sector) as usize);
            let part = (self.sector as usize - skip).min((len - done) as usize);
            if part < buf.len() {
                self.read_sector(&mut arenas, sector, &mut buf)?;
            }
            match data {
                Some(data) => {
                    let from = done as usize;
                    buf[skip..skip + part].copy_from_slice(&data[from..from + part]);
                }
                None => buf[skip..skip + part].fill(0),
            }
            self.write_sector(&mut arenas, sector, &buf)?;
            done += part as u64;
        }
        Ok(())
    }
}

impl<P: Pmem> Pmem for Btt<P> {
    fn len(&self) -> u64 {
        self.sectors * self.sector
    }

    fn is_writable(&self) -> bool {
        self.writable
    }

    fn read(&self, off: u64, buf: &mut [u8]) -> Result<(), MediaError> {
        self.range(off, buf.len() as u64)?;
        let mut arenas = self.arenas.lock();
        let mut whole = vec![0; self.sector as usize];
        let mut done = 0usize;
        while done < buf.len() {
            let at = off + done as u64;
            let (sector, skip) = (at / self.sector, (at % self.sector) as usize);
            let part = (self.sector as usize - skip).min(buf.len() - done);
            let to = &mut buf[done..done + part];
            if part == whole.len() {
                self.read_sector(&mut arenas, sector, to)?;
            } else {
                self.read_sector(&mut arenas, sector, &mut whole)?;
                to.copy_from_slice(&whole[skip..skip + part]);
            }
            done += part;
        }
        Ok(())
    }

    fn write(&self, off: u64, data: &[u8]) -> Result<(), MediaError> {
        self.write_range(off, data.len() as u64, Some(data))
    }

    fn zero(&self, off: u64, len: u64) -> Result<(), MediaError> {
        self.write_range(off, len, None)
    }

    // What is written is durable at once.
    fn write_back(&self, _: u64, _: u64) {}

    fn fence(&self) {
        self.media.fence();
    }

    fn drain(&self) -> Result<(), MediaError> {
        self.media.drain()
    }

    fn needs_drain(&self) -> bool {
        self.media.needs_drain()
    }
}

#[cfg(test)]
#[path = "btt_tests.rs"]
mod tests;
