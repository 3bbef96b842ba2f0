//! Memory that remembers what was done to it, and the states in which a
//! power cut could leave it.
//!
//! [`RecordingPmem`] passes every access on and keeps each store, write-back,
//! fence and drain, in order. [`CrashModel`] plays such a log again and knows,
//! for every cache line, what is surely on the media and what may be. The
//! model is that of x86 and Arm with a persistence domain behind the memory
//! controller:
//!
//! - A store to a line may reach the media at any moment after it was made.
//! - Stores to *one* line reach it in the order in which they were made, in
//!   units of eight aligned bytes; stores to different lines in any order.
//! - Cache-bypassing stores are not ordered even within a line.
//! - A line is surely on the media when a fence follows its write-back (or
//!   its cache-bypassing store).
//!
//! So a cut leaves each line with what is sure, plus some prefix of the
//! cached stores that are not (or any subset of the others). [`CrashModel::states`]
//! gives all combinations while they are few, and a seeded sample of them,
//! with the extremes, when they are many.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::panic::Location;
use std::sync::{Mutex, PoisonError};

use crate::pmem::{MediaError, Pmem};

/// Bytes of a cache line.
pub const LINE: u64 = 64;
/// Bytes that reach the media as one.
pub const UNIT: u64 = 8;

/// One thing that was done to the memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A store through the caches.
    Store {
        /// First byte.
        offset: u64,
        /// What was stored.
        data: Vec<u8>,
    },
    /// A store past the caches.
    StoreNt {
        /// First byte.
        offset: u64,
        /// What was stored.
        data: Vec<u8>,
    },
    /// Cache lines were told to write back.
    WriteBack {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// What was written back before is on the media after.
    Fence,
    /// The platform's own buffers were emptied.
    Drain,
    /// A note of the program that ran: which call began or returned.
    Note(String),
}

/// An event, and the line of source that made it.
pub type Located = (Event, &'static Location<'static>);

/// Memory that keeps a log of what is done to it.
pub struct RecordingPmem<P> {
    inner: P,
    events: Mutex<Vec<Located>>,
}

impl<P: Pmem> RecordingPmem<P> {
    /// Starts recording.
    pub fn new(inner: P) -> Self {
        Self {
            inner,
            events: Mutex::new(Vec::new()),
        }
    }

    /// Takes the log so far, and begins a new one.
    pub fn take(&self) -> Vec<Event> {
        self.take_located()
            .into_iter()
            .map(|(event, _)| event)
            .collect()
    }

    /// The same, with the line of source that made each event.
    pub fn take_located(&self) -> Vec<Located> {
        std::mem::take(&mut *self.events.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Writes a note into the log.
    #[track_caller]
    pub fn note(&self, text: impl Into<String>) {
        self.push(Event::Note(text.into()));
    }

    /// The memory below.
    pub fn inner(&self) -> &P {
        &self.inner
    }

    #[track_caller]
    fn push(&self, event: Event) {
        self.events
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push((event, Location::caller()));
    }
}

impl<P: Pmem> Pmem for RecordingPmem<P> {
    fn len(&self) -> u64 {
        self.inner.len()
    }

    fn is_writable(&self) -> bool {
        self.inner.is_writable()
    }

    fn read(&self, off: u64, buf: &mut [u8]) -> Result<(), MediaError> {
        self.inner.read(off, buf)
    }

    #[track_caller]
    fn write(&self, off: u64, data: &[u8]) -> Result<(), MediaError> {
        self.inner.write(off, data)?;
        self.push(Event::Store {
            offset: off,
            data: data.to_vec(),
        });
        Ok(())
    }

    #[track_caller]
    fn write_nt(&self, off: u64, data: &[u8]) -> Result<(), MediaError> {
        self.inner.write_nt(off, data)?;
        self.push(Event::StoreNt {
            offset: off,
            data: data.to_vec(),
        });
        Ok(())
    }

    #[track_caller]
    fn zero(&self, off: u64, len: u64) -> Result<(), MediaError> {
        self.inner.zero(off, len)?;
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        self.push(Event::StoreNt {
            offset: off,
            data: vec![0; len],
        });
        Ok(())
    }

    #[track_caller]
    fn write_back(&self, off: u64, len: u64) {
        self.inner.write_back(off, len);
        self.push(Event::WriteBack { offset: off, len });
    }

    #[track_caller]
    fn fence(&self) {
        self.inner.fence();
        self.push(Event::Fence);
    }

    #[track_caller]
    fn drain(&self) -> Result<(), MediaError> {
        self.inner.drain()?;
        self.push(Event::Drain);
        Ok(())
    }

    fn needs_drain(&self) -> bool {
        self.inner.needs_drain()
    }
}

/// Writes a log as text, one event a line, in the order in which they came:
///
/// ```text
/// S OFFSET HEXBYTES    store through the caches
/// N OFFSET HEXBYTES    store past the caches
/// W OFFSET LENGTH      write-back of the lines of this range
/// F                    fence
/// D                    drain
/// # TEXT               a note: `begin COMMAND`, `end STATUS`
/// ```
///
/// Numbers are decimal bytes from the start of the media.
///
/// # Errors
/// Those of the writer.
pub fn write_log(events: &[Event], out: &mut dyn Write) -> io::Result<()> {
    fn hex(out: &mut dyn Write, data: &[u8]) -> io::Result<()> {
        for byte in data {
            write!(out, "{byte:02x}")?;
        }
        writeln!(out)
    }
    for event in events {
        match event {
            Event::Store { offset, data } => {
                write!(out, "S {offset} ")?;
                hex(out, data)?;
            }
            Event::StoreNt { offset, data } => {
                write!(out, "N {offset} ")?;
                hex(out, data)?;
            }
            Event::WriteBack { offset, len } => writeln!(out, "W {offset} {len}")?,
            Event::Fence => writeln!(out, "F")?,
            Event::Drain => writeln!(out, "D")?,
            Event::Note(text) => writeln!(out, "# {}", text.replace('\n', " "))?,
        }
    }
    Ok(())
}

/// Up to eight bytes that reach the media as one.
#[derive(Debug, Clone)]
struct Unit {
    offset: u64,
    data: Vec<u8>,
    /// Not ordered with the line's other stores.
    free: bool,
    /// On its way: the next fence makes it sure.
    in_flight: bool,
    /// The line of source that stored it, where that is known.
    at: Option<&'static Location<'static>>,
}

/// A log being played, up to some event.
pub struct CrashModel {
    sure: Vec<u8>,
    /// Fences that made something sure.
    version: u64,
    /// By line: stores that may be on the media, in order.
    pending: BTreeMap<u64, Vec<Unit>>,
}

impl CrashModel {
    /// Starts from media that hold `image`, all of it durable.
    pub fn new(image: Vec<u8>) -> Self {
        Self {
            sure: image,
            version: 0,
            pending: BTreeMap::new(),
        }
    }

    /// Plays the next event.
    pub fn play(&mut self, event: &Event) {
        self.play_at(event, None);
    }

    /// The same, and remembers the line of source, for [`lack`](Self::lack).
    pub fn play_at(&mut self, event: &Event, at: Option<&'static Location<'static>>) {
        match event {
            Event::Store { offset, data } => self.store(*offset, data, false, at),
            Event::StoreNt { offset, data } => self.store(*offset, data, true, at),
            Event::WriteBack { offset, len } => {
                let end = offset.saturating_add(*len);
                for (_, units) in self.pending.range_mut(offset / LINE..end.div_ceil(LINE)) {
                    for unit in units {
                        unit.in_flight = true;
                    }
                }
            }
            Event::Fence => self.fence(),
            Event::Drain | Event::Note(_) => {}
        }
    }

    fn store(
        &mut self,
        offset: u64,
        data: &[u8],
        free: bool,
        source: Option<&'static Location<'static>>,
    ) {
        let mut at = offset;
        let mut rest = data;
        while !rest.is_empty() {
            let room = (UNIT - at % UNIT) as usize;
            let (now, later) = rest.split_at(room.min(rest.len()));
            let unit = Unit {
                offset: at,
                data: now.to_vec(),
                free,
                in_flight: free,
                at: source,
            };
            self.pending.entry(at / LINE).or_default().push(unit);
            at += now.len() as u64;
            rest = later;
        }
    }

    fn fence(&mut self) {
        let sure = &mut self.sure;
        self.version += 1;
        self.pending.retain(|_, units| {
            // In order: what is in flight, and every ordered store of the
            // line before it, since a line is written back whole.
            let last = units.iter().rposition(|unit| unit.in_flight && !unit.free);
            let mut kept = Vec::new();
            for (index, unit) in units.drain(..).enumerate() {
                if unit.in_flight || last.is_some_and(|last| index <= last) {
                    apply(sure, &unit);
                } else {
                    kept.push(unit);
                }
            }
            *units = kept;
            !units.is_empty()
        });
    }

    /// Lines that hold something that is not surely on the media.
    pub fn unsure_lines(&self) -> usize {
        self.pending.len()
    }

    /// The states that a cut now could leave: all of them while they are no
    /// more than `limit`, else `limit` of them, chosen by `seed`, the extremes
    /// always among them. The first is what is sure; the last has everything.
    pub fn states(&self, limit: usize, seed: u64) -> Vec<Crashed<'_>> {
        let choices: Vec<(&Vec<Unit>, usize)> = self
            .pending
            .values()
            .map(|units| (units, states(units)))
            .collect();
        let all = choices
            .iter()
            .try_fold(1usize, |product, (_, states)| product.checked_mul(*states))
            .filter(|&all| all <= limit);
        let mut found = Vec::new();
        if let Some(all) = all {
            for number in 0..all {
                let mut rest = number;
                found.push(self.state(choices.iter().map(|(units, states)| {
                    let choice = rest % states;
                    rest /= states;
                    (*units, choice)
                })));
            }
            return found;
        }
        let mut random = Random(seed);
        found.push(self.state(core::iter::empty()));
        while found.len() + 1 < limit.max(2) {
            // Two kinds of sample: each line on its own, and most lines alike
            // with a few exceptions, which is where order bugs show.
            let bias = random.next() % 3;
            found.push(self.state(choices.iter().map(|(units, states)| {
                let lone = random.next().is_multiple_of(8);
                let choice = match (bias, lone) {
                    (0, false) => 0,
                    (1, false) => states - 1,
                    _ => (random.next() % *states as u64) as usize,
                };
                (*units, choice)
            })));
        }
        found.push(self.state(choices.iter().map(|(units, states)| (*units, states - 1))));
        found
    }

    fn state<'a>(&self, choices: impl Iterator<Item = (&'a Vec<Unit>, usize)>) -> Crashed<'_> {
        let mut crashed = Crashed {
            base: &self.sure,
            version: self.version,
            lines: Mutex::new(BTreeMap::new()),
            choices: vec![0; self.pending.len()],
        };
        for (line, (units, choice)) in choices.enumerate() {
            if let Some(slot) = crashed.choices.get_mut(line) {
                *slot = choice;
            }
            for (unit, there) in chosen(units, choice) {
                if there {
                    crashed.store(unit.offset, &unit.data);
                }
            }
        }
        crashed
    }

    /// Why a state fails: which stores had to be on the media and were not, by
    /// the lines of source that made them. What need not be lacking for the
    /// failure is brought back first, and of what is there only that is told
    /// without which it would not fail.
    #[allow(
        clippy::indexing_slicing,
        reason = "every list has an entry for each line"
    )]
    pub fn lack(&self, state: &Crashed<'_>, fails: &mut dyn FnMut(&Crashed<'_>) -> bool) -> String {
        let lines: Vec<&Vec<Unit>> = self.pending.values().collect();
        let whole: Vec<usize> = lines.iter().map(|units| states(units) - 1).collect();
        let mut choices = state.choices.clone();
        let mut attempt = |choices: &mut Vec<usize>, line: usize, to: usize| {
            let old = std::mem::replace(&mut choices[line], to);
            let pairs = lines.iter().copied().zip(choices.iter().copied());
            if old != to && !fails(&self.state(pairs)) {
                choices[line] = old;
            }
        };
        for (line, &all) in whole.iter().enumerate() {
            attempt(&mut choices, line, all);
        }
        let lacking: Vec<usize> = (0..lines.len())
            .filter(|&n| choices[n] != whole[n])
            .collect();
        if lacking.is_empty() {
            return "it fails with every store on the media: no fence would help".into();
        }
        for line in (0..lines.len()).filter(|n| !lacking.contains(n)) {
            attempt(&mut choices, line, 0);
        }
        let mut text = String::new();
        for (line, units) in lines.iter().enumerate() {
            let lacks = lacking.contains(&line);
            let unit = chosen(units, choices[line])
                .find(|(_, there)| *there != lacks)
                .filter(|_| lacks || choices[line] != 0);
            if let Some((unit, _)) = unit {
                let source = unit.at.map_or("an unknown line".into(), |at| {
                    format!("{}:{}", at.file(), at.line())
                });
                let state = match (lacks, unit.in_flight) {
                    (false, _) => "was on the media already",
                    (true, true) => "was written back, but no fence followed",
                    (true, false) => "was not written back",
                };
                text += &format!("what {source} stored at {:#x} {state}; ", unit.offset);
            }
        }
        text
    }
}

/// The stores of a line, each with whether it is there in one of its states.
fn chosen(units: &[Unit], choice: usize) -> impl Iterator<Item = (&Unit, bool)> {
    let free = units.iter().filter(|unit| unit.free).count().min(FREE_BITS);
    let subset = choice % (1 << free);
    let prefix = choice >> free;
    let (mut ordered, mut loose) = (0, 0);
    units.iter().map(move |unit| {
        let there = if unit.free {
            let bit = loose.min(FREE_BITS - 1);
            loose += 1;
            subset & (1 << bit) != 0
        } else {
            ordered += 1;
            ordered <= prefix
        };
        (unit, there)
    })
}

/// The media after a power cut. What is stored now stays in memory beside it.
pub struct Crashed<'a> {
    base: &'a [u8],
    /// Of the bytes that were sure.
    version: u64,
    lines: Mutex<BTreeMap<u64, [u8; LINE as usize]>>,
    /// What each unsure line was chosen to hold.
    choices: Vec<usize>,
}

impl Crashed<'_> {
    /// All bytes.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.base.len()];
        self.load(0, &mut bytes);
        bytes
    }

    /// A number that tells states of one run apart, whatever became sure in
    /// between: what was stored since the cut counts too.
    pub fn digest(&self) -> u64 {
        use std::hash::{DefaultHasher, Hash, Hasher};
        let mut hasher = DefaultHasher::new();
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let same = |line: &u64, bytes: &[u8; LINE as usize]| {
            let start = (*line * LINE) as usize;
            self.base.get(start..start + LINE as usize) == Some(bytes.as_slice())
        };
        for (line, bytes) in lines.iter().filter(|(line, bytes)| !same(line, bytes)) {
            (line, bytes).hash(&mut hasher);
        }
        self.version.hash(&mut hasher);
        hasher.finish()
    }

    fn inside(&self, offset: u64, len: u64) -> Result<(), MediaError> {
        match offset.checked_add(len) {
            Some(end) if end <= self.base.len() as u64 => Ok(()),
            _ => Err(MediaError::OutOfRange { offset, len }),
        }
    }

    fn load(&self, offset: u64, buf: &mut [u8]) {
        let start = offset as usize;
        if let Some(bytes) = self.base.get(start..start + buf.len()) {
            buf.copy_from_slice(bytes);
        }
        let end = offset + buf.len() as u64;
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        for (line, bytes) in lines.range(offset / LINE..end.div_ceil(LINE)) {
            let at = line * LINE;
            let (from, to) = (at.max(offset), (at + LINE).min(end));
            let source = bytes.get((from - at) as usize..(to - at) as usize);
            let target = buf.get_mut((from - offset) as usize..(to - offset) as usize);
            if let (Some(target), Some(source)) = (target, source) {
                target.copy_from_slice(source);
            }
        }
    }

    fn store(&self, offset: u64, data: &[u8]) {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let end = offset + data.len() as u64;
        for line in offset / LINE..end.div_ceil(LINE) {
            let at = line * LINE;
            let bytes = lines.entry(line).or_insert_with(|| {
                let mut fresh = [0; LINE as usize];
                for (to, from) in fresh.iter_mut().zip(self.base.iter().skip(at as usize)) {
                    *to = *from;
                }
                fresh
            });
            let (from, to) = (at.max(offset), (at + LINE).min(end));
            let source = data.get((from - offset) as usize..(to - offset) as usize);
            let target = bytes.get_mut((from - at) as usize..(to - at) as usize);
            if let (Some(target), Some(source)) = (target, source) {
                target.copy_from_slice(source);
            }
        }
    }
}

impl Pmem for Crashed<'_> {
    fn len(&self) -> u64 {
        self.base.len() as u64
    }

    fn is_writable(&self) -> bool {
        true
    }

    fn read(&self, off: u64, buf: &mut [u8]) -> Result<(), MediaError> {
        self.inside(off, buf.len() as u64)?;
        self.load(off, buf);
        Ok(())
    }

    fn write(&self, off: u64, data: &[u8]) -> Result<(), MediaError> {
        self.inside(off, data.len() as u64)?;
        self.store(off, data);
        Ok(())
    }

    fn zero(&self, off: u64, len: u64) -> Result<(), MediaError> {
        self.inside(off, len)?;
        self.store(off, &vec![0; len as usize]);
        Ok(())
    }

    fn write_back(&self, _off: u64, _len: u64) {}
    fn fence(&self) {}
    fn drain(&self) -> Result<(), MediaError> {
        Ok(())
    }
}

/// Cache-bypassing stores of one line whose presence is chosen one by one;
/// those past it go with the last.
const FREE_BITS: usize = 8;

/// States that a line's unsure stores can be in.
fn states(units: &[Unit]) -> usize {
    let free = units.iter().filter(|unit| unit.free).count();
    let ordered = units.len() - free;
    (ordered + 1) << free.min(FREE_BITS)
}

fn apply(image: &mut [u8], unit: &Unit) {
    let start = unit.offset as usize;
    if let Some(place) = image.get_mut(start..start + unit.data.len()) {
        place.copy_from_slice(&unit.data);
    }
}

/// Splitmix64: the same sequence for the same seed, everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests;
