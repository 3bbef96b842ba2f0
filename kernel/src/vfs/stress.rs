//! Random use of files by several threads at once, against a model: reading
//! and writing by calls and through mappings, truncating, punching, allocating,
//! removing, and devices' transfers that go on while the file changes.
//!
//! Each thread has a file of its own on the common file system and knows what
//! every block of it holds. Blocks that one thread's file loses are another's a
//! moment later, so whatever touches a block that is no longer its file's is
//! seen by somebody.
//!
//! A transfer is begun (its blocks are pinned), other calls happen, and then it
//! ends: the device's value is in all of the memory that was pinned. Blocks that
//! left the file meanwhile were parked, and the file knows nothing of the value.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;
use core::sync::atomic::{AtomicBool, Ordering};

use crate::app::block::{self, BlockDevice, Direction};
use crate::app::dma::{PinOwner, Pinned, Term};
use crate::check;
use crate::dax::{Mapping, Perms};
use crate::error::{Error, Result as KernelResult};
use crate::sched;

use super::{Allocate, File, OpenOptions, Vfs};

/// Blocks of a file at most: two of its pieces can be 2 MiB leaves.
const BLOCKS: u64 = 1280;
const BLOCK: u64 = 4096;
/// Transfers under way in a thread at most.
const TRANSFERS: usize = 3;
/// Bytes of the disk for each thread.
const LANE: u64 = 1 << 20;

/// What is to be done.
#[derive(Clone)]
pub struct Plan {
    /// Directory for the files.
    pub dir: Vec<u8>,
    /// Where the random numbers begin.
    pub seed: u64,
    /// When to stop, by the clock; whatever comes first.
    pub until_ns: u64,
    /// When to stop, by calls.
    pub steps: u64,
    /// A disk, from its beginning on, for transfers. What is on it is lost.
    pub disk: Option<Arc<dyn BlockDevice>>,
    /// Set when a thread has found something wrong: the others stop.
    pub stop: Arc<AtomicBool>,
}

impl Plan {
    /// For so long.
    pub fn lasting(mut self, time: core::time::Duration) -> Self {
        let ns = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.until_ns = sched::now_ns().saturating_add(ns);
        self
    }
}

/// What was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Calls.
    pub steps: u64,
    /// Blocks compared with the model.
    pub compared: u64,
    /// Transfers that have ended.
    pub transfers: u64,
    /// Transfers of which blocks had left the file by then.
    pub parked: u64,
    /// Transfers by the disk.
    pub disk: u64,
}

impl Report {
    /// Both together.
    pub fn and(self, other: Self) -> Self {
        Self {
            steps: self.steps + other.steps,
            compared: self.compared + other.compared,
            transfers: self.transfers + other.transfers,
            parked: self.parked + other.parked,
            disk: self.disk + other.disk,
        }
    }
}

struct Random(u64);

impl Random {
    /// A number below `end`.
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % end.max(1)
    }
}

struct Transfer {
    pins: Pinned,
    blocks: Range<u64>,
    /// Those that have left the file since.
    gone: Vec<bool>,
}

/// One thread's file and what it should hold.
struct Worker<'a> {
    vfs: &'a Vfs,
    plan: &'a Plan,
    number: u64,
    path: Vec<u8>,
    file: File,
    mapping: Option<Mapping>,
    /// What each block holds, over and over; as long as the file.
    model: Vec<u64>,
    transfers: Vec<Transfer>,
    owner: PinOwner,
    random: Random,
    next: u64,
    report: Report,
}

/// Runs one thread's part.
pub fn worker(vfs: &Vfs, plan: &Plan, number: usize) -> Result<Report, String> {
    let mut worker = Worker::new(vfs, plan, number as u64)?;
    let result = worker.run();
    if result.is_err() {
        plan.stop.store(true, Ordering::Relaxed);
    }
    let report = worker.report;
    result.map(|()| report).map_err(|error| {
        format!(
            "seed {:#x}, thread {number}, step {}: {error}",
            plan.seed, report.steps
        )
    })
}

fn open(vfs: &Vfs, path: &[u8]) -> KernelResult<File> {
    let mut options = OpenOptions::new();
    vfs.open(path, options.read(true).write(true).create(true))
}

impl<'a> Worker<'a> {
    fn new(vfs: &'a Vfs, plan: &'a Plan, number: u64) -> Result<Self, String> {
        let mut path = plan.dir.clone();
        path.extend_from_slice(format!("/stress{number}").as_bytes());
        let _ = vfs.remove_file(&path);
        let file = open(vfs, &path).map_err(|e| e.to_string())?;
        let seed = plan.seed ^ (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Ok(Self {
            vfs,
            plan,
            number,
            path,
            file,
            mapping: None,
            model: Vec::new(),
            transfers: Vec::new(),
            owner: PinOwner::new(format!("stress {number}")),
            random: Random(seed | 1),
            next: 1,
            report: Report::default(),
        })
    }

    fn run(&mut self) -> Result<(), String> {
        while self.report.steps < self.plan.steps
            && sched::now_ns() < self.plan.until_ns
            && !self.plan.stop.load(Ordering::Relaxed)
        {
            self.report.steps += 1;
            let op = self.random.below(100);
            let result = self.step(op);
            match result {
                Ok(()) => {}
                // Full for the moment: what is parked, or another's.
                Err(Error::NoSpace) => self.truncate(0).map_err(|e| e.to_string())?,
                Err(error) => return Err(format!("operation {op}: {error}")),
            }
        }
        while let Some(transfer) = self.transfers.pop() {
            self.end(transfer).map_err(|e| e.to_string())?;
        }
        self.compare(0..self.size()).map_err(|e| e.to_string())?;
        self.mapping = None;
        self.vfs.remove_file(&self.path).map_err(|e| e.to_string())
    }

    fn step(&mut self, op: u64) -> KernelResult<()> {
        match op {
            0..20 => self.write(),
            20..40 => {
                let blocks = self.blocks(64);
                self.compare(blocks)
            }
            40..52 => self.store(),
            52..64 => self.load(),
            64..70 => {
                let to = self.random.below(BLOCKS);
                self.truncate(to)
            }
            70..76 => self.punch(),
            76..80 => self.allocate(),
            80..83 => self.file.sync_all(),
            83..91 => self.begin(),
            91..96 => match self.transfers.is_empty() {
                true => Ok(()),
                false => {
                    let nth = self.random.below(self.transfers.len() as u64) as usize;
                    let transfer = self.transfers.swap_remove(nth);
                    self.end(transfer)
                }
            },
            96..98 => self.disk(),
            98 => {
                self.mapping = None;
                Ok(())
            }
            _ => self.replace(),
        }
    }

    fn size(&self) -> u64 {
        self.model.len() as u64
    }

    /// Some blocks of the file.
    fn blocks(&mut self, most: u64) -> Range<u64> {
        let size = self.size();
        let first = self.random.below(size);
        let len = 1 + self.random.below(most);
        first..(first + len).min(size)
    }

    fn value(&mut self) -> u64 {
        self.next += 1;
        (self.number + 1) << 48 | self.next
    }

    fn filled(value: u64, blocks: u64) -> Vec<u8> {
        let mut bytes = vec![0; (blocks * BLOCK) as usize];
        for word in bytes.chunks_exact_mut(8) {
            word.copy_from_slice(&value.to_le_bytes());
        }
        bytes
    }

    fn expect(&mut self, how: &str, first: u64, bytes: &[u8]) -> KernelResult<()> {
        for (nth, block) in bytes.chunks_exact(BLOCK as usize).enumerate() {
            let at = first + nth as u64;
            let value = self.model.get(at as usize).copied().unwrap_or(0);
            let wrong = block
                .chunks_exact(8)
                .position(|word| word != value.to_le_bytes());
            if let Some(word) = wrong {
                let mut found = [0; 8];
                found.copy_from_slice(&block[word * 8..word * 8 + 8]);
                return Err(Error::Corrupt {
                    what: format!(
                        "{how}: block holds {:#x} at byte {} instead of {value:#x}",
                        u64::from_le_bytes(found),
                        word * 8
                    )
                    .into(),
                    at,
                });
            }
            self.report.compared += 1;
        }
        Ok(())
    }

    fn write(&mut self) -> KernelResult<()> {
        let first = self.random.below((self.size() + 16).min(BLOCKS));
        let len = (1 + self.random.below(32)).min(BLOCKS - first);
        let value = self.value();
        let bytes = Self::filled(value, len);
        let mut done = 0;
        while done < bytes.len() {
            let written = self
                .file
                .write_at(&bytes[done..], first * BLOCK + done as u64);
            match written {
                Ok(count) => done += count,
                Err(error) => {
                    // What is there now is not known: start anew.
                    self.replace()?;
                    return Err(error);
                }
            }
        }
        let end = (first + len) as usize;
        if self.model.len() < end {
            self.model.resize(end, 0);
        }
        self.model[first as usize..end].fill(value);
        Ok(())
    }

    fn compare(&mut self, blocks: Range<u64>) -> KernelResult<()> {
        let mut bytes = vec![0; 64 * BLOCK as usize];
        let mut at = blocks.start;
        while at < blocks.end {
            let len = (blocks.end - at).min(64);
            let part = &mut bytes[..(len * BLOCK) as usize];
            let mut done = 0;
            while done < part.len() {
                match self
                    .file
                    .read_at(&mut part[done..], at * BLOCK + done as u64)?
                {
                    0 => {
                        return Err(Error::Corrupt {
                            what: "the file is too short".into(),
                            at,
                        });
                    }
                    count => done += count,
                }
            }
            let part = part.to_vec();
            self.expect("read", at, &part)?;
            at += len;
        }
        Ok(())
    }

    fn mapping(&mut self) -> KernelResult<&Mapping> {
        if self.mapping.is_none() {
            self.mapping = Some(self.file.map(0..BLOCKS * BLOCK, Perms::ReadWrite)?);
        }
        match &self.mapping {
            Some(mapping) => Ok(mapping),
            None => Err(Error::NoMemory),
        }
    }

    fn store(&mut self) -> KernelResult<()> {
        let blocks = self.blocks(16);
        if blocks.is_empty() {
            return Ok(());
        }
        let value = self.value();
        let bytes = Self::filled(value, blocks.end - blocks.start);
        let mapping = self.mapping()?;
        let at = blocks.start * BLOCK;
        let result = if cfg!(target_os = "none") {
            crate::app::map::store(mapping, at, &bytes)
        } else {
            mapping.write_at(at, &bytes)
        };
        if let Err(error) = result {
            self.replace()?;
            return Err(error);
        }
        if value.is_multiple_of(3) {
            self.mapping()?.persist(at..at + bytes.len() as u64)?;
        }
        self.model[blocks.start as usize..blocks.end as usize].fill(value);
        Ok(())
    }

    fn load(&mut self) -> KernelResult<()> {
        let blocks = self.blocks(16);
        if blocks.is_empty() {
            return Ok(());
        }
        let mut bytes = vec![0; ((blocks.end - blocks.start) * BLOCK) as usize];
        let mapping = self.mapping()?;
        if cfg!(target_os = "none") {
            crate::app::map::load(mapping, blocks.start * BLOCK, &mut bytes)?;
        } else {
            mapping.read_at(blocks.start * BLOCK, &mut bytes)?;
        }
        self.expect("load", blocks.start, &bytes)
    }

    /// Blocks are no longer the file's, for the transfers under way.
    fn leave(&mut self, blocks: Range<u64>) {
        for transfer in &mut self.transfers {
            for (nth, gone) in transfer.gone.iter_mut().enumerate() {
                *gone |= blocks.contains(&(transfer.blocks.start + nth as u64));
            }
        }
    }

    fn truncate(&mut self, to: u64) -> KernelResult<()> {
        self.settle_edge(to);
        self.file.set_len(to * BLOCK)?;
        self.leave(to..u64::MAX);
        self.model.resize(to as usize, 0);
        Ok(())
    }

    fn punch(&mut self) -> KernelResult<()> {
        let blocks = self.blocks(200);
        if blocks.is_empty() {
            return Ok(());
        }
        self.settle_edge(blocks.start);
        self.settle_edge(blocks.end);
        let len = (blocks.end - blocks.start) * BLOCK;
        self.file
            .allocate(Allocate::Punch, blocks.start * BLOCK, len)?;
        self.leave(blocks.clone());
        self.model[blocks.start as usize..blocks.end as usize].fill(0);
        Ok(())
    }

    /// A folio of 2 MiB that is pinned and sticks out of what is taken away is
    /// waited for; this thread's own pins it would wait for without end.
    fn settle_edge(&mut self, edge: u64) {
        let piece = edge / 512;
        if edge.is_multiple_of(512) {
            return;
        }
        let near =
            |t: &Transfer| t.blocks.start / 512 <= piece && (t.blocks.end - 1) / 512 >= piece;
        while let Some(nth) = self.transfers.iter().position(near) {
            let transfer = self.transfers.swap_remove(nth);
            // Whatever it finds is found again by the next comparison.
            let _ = self.end(transfer);
        }
    }

    fn allocate(&mut self) -> KernelResult<()> {
        let first = self.random.below(BLOCKS);
        let len = (1 + self.random.below(600)).min(BLOCKS - first);
        let (how, end) = match self.random.below(2) {
            0 => (Allocate::KeepSize, self.size()),
            _ => (Allocate::Extend, self.size().max(first + len)),
        };
        self.file.allocate(how, first * BLOCK, len * BLOCK)?;
        self.model.resize(end as usize, 0);
        Ok(())
    }

    /// Begins a transfer to some blocks; checks one from them on the way.
    fn begin(&mut self) -> KernelResult<()> {
        let blocks = self.blocks(24);
        if blocks.is_empty() || self.transfers.len() >= TRANSFERS {
            return Ok(());
        }
        let bytes = blocks.start * BLOCK..blocks.end * BLOCK;
        if self.random.below(3) == 0 {
            let pins = self.file.pin(bytes, &self.owner, &Term::Short, false)?;
            let found = pins.read()?;
            return self.expect("device", blocks.start, &found);
        }
        let pins = self.file.pin(bytes, &self.owner, &Term::Short, true)?;
        let gone = vec![false; (blocks.end - blocks.start) as usize];
        self.transfers.push(Transfer { pins, blocks, gone });
        Ok(())
    }

    /// The device stores, and is done.
    fn end(&mut self, transfer: Transfer) -> KernelResult<()> {
        let value = self.value();
        let len = transfer.blocks.end - transfer.blocks.start;
        transfer.pins.write(&Self::filled(value, len))?;
        let found = transfer.pins.read()?;
        if found
            .chunks_exact(8)
            .any(|word| word != value.to_le_bytes())
        {
            return Err(Error::Corrupt {
                what: "somebody stored to memory that is pinned".into(),
                at: transfer.blocks.start,
            });
        }
        for (block, gone) in transfer.blocks.clone().zip(&transfer.gone) {
            if !gone && let Some(held) = self.model.get_mut(block as usize) {
                *held = value;
            }
        }
        self.report.transfers += 1;
        self.report.parked += u64::from(transfer.gone.contains(&true));
        Ok(())
    }

    /// To the disk and back to another place.
    fn disk(&mut self) -> KernelResult<()> {
        let Some(disk) = self.plan.disk.clone() else {
            return Ok(());
        };
        let from = self.blocks(LANE / BLOCK);
        let len = from.end - from.start;
        if len == 0 {
            return Ok(());
        }
        let lane = self.number * LANE;
        let (at, bytes) = (from.start * BLOCK, len * BLOCK);
        block::transfer(&*disk, Direction::ToDevice, lane, &self.file, at, bytes)?;
        let to = self.random.below(self.size() - len + 1);
        block::transfer(
            &*disk,
            Direction::FromDevice,
            lane,
            &self.file,
            to * BLOCK,
            bytes,
        )?;
        self.model
            .copy_within(from.start as usize..from.end as usize, to as usize);
        self.report.disk += 2;
        Ok(())
    }

    /// Removes the file, with transfers under way or not, and makes a new one.
    fn replace(&mut self) -> KernelResult<()> {
        self.mapping = None;
        self.vfs.remove_file(&self.path)?;
        self.file = open(self.vfs, &self.path)?;
        self.leave(0..u64::MAX);
        self.model.clear();
        Ok(())
    }
}

/// As many threads as told, each with its file; all of them must agree.
pub fn run<V>(vfs: &Arc<V>, plan: &Plan, threads: usize) -> Result<Report, String>
where
    V: core::ops::Deref<Target = Vfs> + Send + Sync + 'static,
{
    let mut handles = Vec::new();
    for number in 0..threads {
        let (vfs, plan) = (vfs.clone(), plan.clone());
        let thread = sched::spawn("stress", move || worker(&vfs, &plan, number));
        handles.push(thread.map_err(|e| e.to_string())?);
    }
    let results: Vec<_> = handles.into_iter().map(|handle| handle.join()).collect();
    let mut total = Report::default();
    for result in results {
        total = total.and(result?);
    }
    check!(total.compared > 0, "nothing was compared");
    Ok(total)
}
