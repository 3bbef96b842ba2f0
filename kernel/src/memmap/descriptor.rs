//! The page descriptor: 32 bytes that say everything about one folio.
//!
//! # Rules
//!
//! - **All zero is FREE.** A descriptor that has never been written is a valid
//!   free page, and a descriptor that has returned to rest is all zero again,
//!   so that its page of the memmap can be given back.
//! - **One record a leaf.** A folio of 2 MiB or 1 GiB is one record, in the
//!   array of its size. A larger record says whether the span is free, one
//!   whole folio, or split into smaller ones ([`State`]); when split, it
//!   counts the folios below it.
//! - **A named field for each fact**: no unions, no word with two meanings
//!   (Linux overlays `index` with the share count, and the compound state with
//!   the first tail's pgmap pointer; both have caused oopses). References and
//!   mapcount are two 32-bit fields that are read and changed by one atomic
//!   access, because *idle* compares them: two loads could each be true and
//!   their comparison never have been.
//! - **References.** `refs` = leaves + pins + transient holders. `refs` leaves
//!   0 only by [`Descriptor::first_map`] and [`Descriptor::init_ref`], whose
//!   caller holds the entry (or owns the page); everyone else uses
//!   [`Descriptor::try_get`], which fails on 0. Hence at 0, with the entry
//!   held, nothing else can change the record: that is what split, merge and
//!   disassociate rest on.
//! - **A held folio may be split** once no leaf maps it. Its references stay on
//!   the larger record, which then says "split"; a smaller folio is idle only
//!   when the larger records above it have no reference either, and is not
//!   disassociated or merged before. At 0 such a record is an ordinary one.
//!
//! # Memory ordering
//!
//! Fields that identify a folio (owner, index, share) are written only at
//! `refs` 0 by the entry's holder (a split of a held folio clears them: they are
//! the parts' from then on), before the `Release` addition that raises
//! `refs`; a pinner reads them only after an `Acquire` `try_get` on that same
//! word. Dropping a reference is `Release` (what the holder did to the page
//! happens before the drop), and whoever acts on having seen *idle* or 0 reads
//! with `Acquire`.

use crate::sync::atomic::model::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

/// References and leaves of a folio, as one atomic word holds them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// All references: one a leaf, one a pin, one a transient holder.
    pub refs: u32,
    /// Leaves that map the folio.
    pub maps: u32,
}

impl Counts {
    const REF: u64 = 1;
    const MAP: u64 = 1 << 32;
    /// No count goes beyond this: the upper half is head room for additions
    /// that race with the check.
    const MAX: u32 = u32::MAX / 2;

    fn unpack(word: u64) -> Self {
        Self {
            refs: word as u32,
            maps: (word >> 32) as u32,
        }
    }

    /// Nobody but leaves holds the folio: nothing reads or writes it except
    /// through mappings, which can be taken away.
    pub fn is_idle(self) -> bool {
        self.refs == self.maps
    }
}

/// What a record says about its span.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// No folio in it.
    #[default]
    Free,
    /// One folio.
    Whole,
    /// Folios of smaller sizes.
    Split {
        /// How many folios lie below, of all sizes.
        folios: u32,
    },
}

impl State {
    const WHOLE: u32 = 1 << 30;
    const SPLIT: u32 = 1 << 31;
    const COUNT: u32 = Self::WHOLE - 1;

    fn pack(self) -> u32 {
        match self {
            Self::Free | Self::Split { folios: 0 } => 0,
            Self::Whole => Self::WHOLE,
            Self::Split { folios } => Self::SPLIT | folios,
        }
    }

    fn unpack(word: u32) -> Self {
        if word & Self::SPLIT != 0 {
            Self::Split {
                folios: word & Self::COUNT,
            }
        } else if word & Self::WHOLE != 0 {
            Self::Whole
        } else {
            Self::Free
        }
    }
}

/// Why a record can't become what was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conflict(pub State);

/// The descriptor of one leaf-sized span of device memory.
#[repr(C)]
pub struct Descriptor {
    /// [`Counts`]: references in the lower half, leaves in the upper.
    counts: AtomicU64,
    /// Page offset in the owner at which the folio starts.
    index: AtomicU64,
    /// The owner's identity ([`super::OwnerId`]); 0: none, or shared.
    owner: AtomicU32,
    /// [`State`].
    state: AtomicU32,
    /// Pins, exact for every size.
    pins: AtomicU32,
    /// Owners of a shared (reflinked) folio; 0: not shared.
    share: AtomicU16,
    /// [`Poison`] bits.
    poison: AtomicU8,
    /// Reserved for memory types' own use; 0 at rest.
    private: AtomicU8,
}

#[cfg(not(loom))]
const _: () = assert!(size_of::<Descriptor>() == 32);
#[cfg(not(loom))]
const _: () = assert!(align_of::<Descriptor>() == 8);

/// This 4 KiB page is poisoned.
pub const POISON_HERE: u8 = 1;
/// Some page below this larger record is poisoned.
pub const POISON_BELOW: u8 = 2;

impl Descriptor {
    /// A descriptor at rest. (In the kernel, zeroed memory is one.)
    pub fn new() -> Self {
        Self {
            counts: AtomicU64::new(0),
            index: AtomicU64::new(0),
            owner: AtomicU32::new(0),
            state: AtomicU32::new(0),
            pins: AtomicU32::new(0),
            share: AtomicU16::new(0),
            poison: AtomicU8::new(0),
            private: AtomicU8::new(0),
        }
    }

    // ---- counts ---------------------------------------------------------

    /// References and leaves, as they were at one moment.
    pub fn counts(&self) -> Counts {
        // Acquire: whoever concludes "idle" goes on to reuse the memory; the
        // droppers' accesses to it must have happened.
        Counts::unpack(self.counts.load(Ordering::Acquire))
    }

    /// One more reference, unless there is none.
    #[must_use]
    pub fn try_get(&self) -> bool {
        self.try_get_many(1)
    }

    /// `n` more references, unless there is none.
    #[must_use]
    pub fn try_get_many(&self, n: u32) -> bool {
        let mut word = self.counts.load(Ordering::Relaxed);
        loop {
            let counts = Counts::unpack(word);
            if counts.refs == 0 || counts.refs > Counts::MAX - n.min(Counts::MAX) {
                return false;
            }
            // Acquire pairs with the Release of the addition that made refs
            // positive: owner and index are visible after this. The value read
            // by a failed exchange is only compared: Relaxed.
            match self.counts.compare_exchange_weak(
                word,
                word + Counts::REF * u64::from(n),
                Ordering::Acquire,
                Ordering::Relaxed,
            ) {
                Ok(_) => return true,
                Err(now) => word = now,
            }
        }
    }

    /// A new leaf: one reference and one mapcount, from any count including 0.
    /// Returns the counts before.
    ///
    /// The caller holds the entry that this folio belongs to, so nobody
    /// disassociates it meanwhile. The two fields change together: no moment
    /// exists at which the folio looks busy because of a leaf, nor at which a
    /// leaf is there without its reference.
    pub fn first_map(&self, leaves: u32) -> Counts {
        // Release: owner and index, written before, are visible to whoever
        // sees the count. Acquire: what the last holder did to the page is
        // visible to the new leaf's users.
        Counts::unpack(self.counts.fetch_add(
            (Counts::REF + Counts::MAP) * u64::from(leaves),
            Ordering::AcqRel,
        ))
    }

    /// The first reference, set by whoever owns the page (a pool that hands it
    /// out). False when there is one already.
    #[must_use]
    pub fn init_ref(&self) -> bool {
        self.counts
            .compare_exchange(0, Counts::REF, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
    }

    /// `leaves` leaves are cleared. Their references stay until the addresses
    /// have been shot down in every CPU ([`put_many`](Self::put_many)).
    /// Returns the counts after.
    pub fn unmap(&self, leaves: u32) -> Counts {
        // Relaxed would do: the reference that the leaf still holds orders
        // everything. AcqRel keeps the word's changes in one chain for those
        // who read it with Acquire.
        let before = Counts::unpack(
            self.counts
                .fetch_sub(Counts::MAP * u64::from(leaves), Ordering::AcqRel),
        );
        assert!(
            before.maps >= leaves,
            "folio unmapped more often than it was mapped: {before:?}, {leaves} leaves"
        );
        Counts {
            refs: before.refs,
            maps: before.maps - leaves,
        }
    }

    /// `leaves` leaves are cleared **and** shot down in every CPU: mapcounts and
    /// references go in one step, so that the folio never looks busy by its own
    /// leaves. Returns the counts after.
    pub fn drop_leaves(&self, leaves: u32) -> Counts {
        self.drop_leaves_unless_last(leaves).unwrap_or_default()
    }

    /// As [`drop_leaves`](Self::drop_leaves); `None` when these leaves were all
    /// that the folio had, as is mostly so: then both counts are 0.
    #[inline]
    pub fn drop_leaves_unless_last(&self, leaves: u32) -> Option<Counts> {
        // As in `put_many`.
        let gone = (Counts::REF + Counts::MAP) * u64::from(leaves);
        let before = self.counts.fetch_sub(gone, Ordering::AcqRel);
        if before == gone {
            return None;
        }
        Some(Self::left_of(before, leaves))
    }

    /// What is left of counts when leaves have been taken away.
    #[cold]
    fn left_of(before: u64, leaves: u32) -> Counts {
        let before = Counts::unpack(before);
        assert!(
            before.maps >= leaves && before.refs >= before.maps,
            "folio unmapped more often than it was mapped: {before:?}, {leaves} leaves"
        );
        Counts {
            refs: before.refs - leaves,
            maps: before.maps - leaves,
        }
    }

    /// Drops `n` references. Returns the counts after; when `refs` has become
    /// 0 the record may belong to somebody else already.
    pub fn put_many(&self, n: u32) -> Counts {
        // Release: what this holder did to the page happens before the drop.
        // Acquire: when this was the last reference, the caller goes on to
        // recycle or to wake, and must see what all others did.
        let before = Counts::unpack(
            self.counts
                .fetch_sub(Counts::REF * u64::from(n), Ordering::AcqRel),
        );
        assert!(
            before.refs >= n && before.refs - n >= before.maps,
            "folio put more often than it was got: {before:?}, {n} dropped"
        );
        Counts {
            refs: before.refs - n,
            maps: before.maps,
        }
    }

    // ---- pins -----------------------------------------------------------

    /// Pins.
    pub fn pins(&self) -> u32 {
        self.pins.load(Ordering::Acquire)
    }

    /// `n` pins: as many references, unless there is none, and `n` in the pin
    /// count, in this order, so that pins ≤ refs always.
    #[must_use]
    pub fn try_pin(&self, n: u32) -> bool {
        if !self.try_get_many(n) {
            return false;
        }
        // Release, so that who sees the pin sees its reference too.
        self.pins.fetch_add(n, Ordering::Release);
        true
    }

    /// Undoes `n` pins and drops all their references but one, which the
    /// caller's handle drops.
    pub fn unpin_keeping_one(&self, n: u32) {
        let before = self.pins.fetch_sub(n, Ordering::Release);
        assert!(before >= n, "folio unpinned more often than pinned");
        if n > 1 {
            self.put_many(n - 1);
        }
    }

    /// Undoes `n` pins; the counts after.
    pub fn unpin(&self, n: u32) -> Counts {
        let before = self.pins.fetch_sub(n, Ordering::Release);
        assert!(before >= n, "folio unpinned more often than pinned");
        self.put_many(n)
    }

    // ---- identity (written at refs 0 by the entry's holder) --------------

    /// The owner; 0: none, or shared.
    pub fn owner(&self) -> u32 {
        self.owner.load(Ordering::Relaxed)
    }

    /// Page offset in the owner.
    pub fn index(&self) -> u64 {
        self.index.load(Ordering::Relaxed)
    }

    /// Number of owners of a shared folio; 0: not shared.
    pub fn share(&self) -> u16 {
        self.share.load(Ordering::Relaxed)
    }

    /// Free, whole or split.
    pub fn state(&self) -> State {
        // Acquire: "split" is followed by reading the smaller records.
        State::unpack(self.state.load(Ordering::Acquire))
    }

    /// FREE → a folio that belongs to `owner`.
    pub fn associate(&self, owner: u32, index: u64) -> Result<(), Conflict> {
        self.claim_whole()?;
        debug_assert_eq!(
            self.counts(),
            Counts::default(),
            "a free page is referenced"
        );
        self.set_identity(owner, index, 0);
        Ok(())
    }

    /// FREE → whole.
    pub fn claim_whole(&self) -> Result<(), Conflict> {
        self.state
            .compare_exchange(
                State::Free.pack(),
                State::Whole.pack(),
                Ordering::AcqRel,
                Ordering::Acquire,
            )
            .map(drop)
            .map_err(|found| Conflict(State::unpack(found)))
    }

    fn set_identity(&self, owner: u32, index: u64, share: u16) {
        // Relaxed: published by the Release that raises refs.
        self.owner.store(owner, Ordering::Relaxed);
        self.index.store(index, Ordering::Relaxed);
        self.share.store(share, Ordering::Relaxed);
    }

    /// One more owner of a folio that has one (a reflink). From the second on
    /// it has no single owner: owner is cleared and the share count set.
    /// `None` when the count is full or the folio isn't whole.
    pub fn share_once_more(&self) -> Option<u16> {
        if self.state() != State::Whole {
            return None;
        }
        let share = match self.share() {
            0 => 2,
            n => n.checked_add(1)?,
        };
        self.set_identity(0, 0, share);
        Some(share)
    }

    /// One owner fewer of a shared folio: how many remain; `None` when the
    /// folio isn't shared.
    pub fn unshare(&self) -> Option<u16> {
        match self.share() {
            0 => None,
            n => {
                self.share.store(n - 1, Ordering::Relaxed);
                Some(n - 1)
            }
        }
    }

    /// Whole → FREE: all fields at rest (except poison, which belongs to the
    /// memory and not to the folio).
    pub fn disassociate(&self) {
        debug_assert_eq!(
            self.counts(),
            Counts::default(),
            "a referenced folio is freed"
        );
        debug_assert_eq!(self.pins(), 0);
        self.set_identity(0, 0, 0);
        self.private.store(0, Ordering::Relaxed);
        // Release: the cleared fields happen before the record can be claimed
        // again.
        self.state.store(State::Free.pack(), Ordering::Release);
    }

    /// The owner no longer matters (memory types that clear it before their
    /// callback).
    pub fn clear_owner(&self) {
        self.set_identity(0, 0, 0);
    }

    // ---- larger records ---------------------------------------------------

    /// `n` more folios below this larger record. Fails when it is a folio
    /// itself.
    pub fn add_below(&self, n: u32) -> Result<(), Conflict> {
        self.change_below(|folios| folios + n)
    }

    /// `n` folios fewer below this larger record.
    pub fn sub_below(&self, n: u32) {
        let result = self.change_below(|folios| {
            assert!(folios >= n, "fewer folios below than are taken away");
            folios - n
        });
        debug_assert!(result.is_ok(), "a whole folio has folios below it");
    }

    fn change_below(&self, f: impl Fn(u32) -> u32) -> Result<(), Conflict> {
        let mut word = self.state.load(Ordering::Relaxed);
        loop {
            let folios = match State::unpack(word) {
                State::Whole => return Err(Conflict(State::Whole)),
                State::Free => 0,
                State::Split { folios } => folios,
            };
            let next = State::Split { folios: f(folios) }.pack();
            // AcqRel: claims and releases of neighbours below form one chain
            // with the claim of the whole.
            match self
                .state
                .compare_exchange_weak(word, next, Ordering::AcqRel, Ordering::Relaxed)
            {
                Ok(_) => return Ok(()),
                Err(now) => word = now,
            }
        }
    }

    /// Splits this whole folio, which no leaf maps, into `parts` (its size's
    /// worth of the next smaller one, `pages_each` pages long), carrying owner,
    /// index and share down. The caller holds the entry.
    ///
    /// References stay here: they are of those who hold the folio as it was,
    /// and each of them keeps *all* parts. No new one can come, but from who
    /// has found this record before and looks at the leaf again afterwards.
    pub fn split_into<'a>(
        &self,
        parts: impl ExactSizeIterator<Item = &'a Descriptor> + Clone,
        pages_each: u64,
    ) -> Result<(), Conflict> {
        if self.state() != State::Whole {
            return Err(Conflict(self.state()));
        }
        debug_assert_eq!(self.counts().maps, 0, "a mapped folio is split");
        let count = parts.len() as u32;
        let (owner, share) = (self.owner(), self.share());
        let mut index = self.index();
        for part in parts {
            // Nobody can find the parts yet: this record says "whole".
            part.set_identity(owner, index, share);
            part.state.store(State::Whole.pack(), Ordering::Release);
            index += if share == 0 { pages_each } else { 0 };
        }
        self.set_identity(0, 0, 0);
        // Release: the parts are complete before they can be found.
        self.state
            .store(State::Split { folios: count }.pack(), Ordering::Release);
        Ok(())
    }

    /// Merges idle `parts` with one owner and adjacent indexes into this
    /// record. The caller holds the entries of all parts. Nothing changes when
    /// they don't fit together.
    pub fn merge_from<'a>(
        &self,
        parts: impl ExactSizeIterator<Item = &'a Descriptor> + Clone,
        pages_each: u64,
    ) -> bool {
        let count = parts.len() as u32;
        // Held as it was before a split: the parts are not free to go.
        if self.state() != (State::Split { folios: count }) || self.counts().refs != 0 {
            return false;
        }
        let Some(first) = parts.clone().next() else {
            return false;
        };
        let (owner, index) = (first.owner(), first.index());
        let fits = (0u64..).zip(parts.clone()).all(|(nth, part)| {
            part.state() == State::Whole
                && part.counts() == Counts::default()
                && part.share() == 0
                && part.owner() == owner
                && part.index() == index + nth * pages_each
        });
        if !fits || owner == 0 {
            return false;
        }
        self.set_identity(owner, index, 0);
        for part in parts {
            part.disassociate();
        }
        self.state.store(State::Whole.pack(), Ordering::Release);
        true
    }

    // ---- poison -----------------------------------------------------------

    /// The poison bits.
    pub fn poison(&self) -> u8 {
        self.poison.load(Ordering::Acquire)
    }

    /// Sets poison bits.
    pub fn set_poison(&self, bits: u8) {
        self.poison.fetch_or(bits, Ordering::AcqRel);
    }

    /// Clears poison bits.
    pub fn clear_poison(&self, bits: u8) {
        self.poison.fetch_and(!bits, Ordering::AcqRel);
    }

    /// Whether every field is 0, so that the memory can be given back. Only
    /// meaningful while nobody can raise a count (the pgmap's gate is shut).
    pub fn is_zero(&self) -> bool {
        self.counts.load(Ordering::Acquire) == 0
            && self.index.load(Ordering::Relaxed) == 0
            && self.owner.load(Ordering::Relaxed) == 0
            && self.state.load(Ordering::Relaxed) == 0
            && self.pins.load(Ordering::Relaxed) == 0
            && self.share.load(Ordering::Relaxed) == 0
            && self.poison.load(Ordering::Relaxed) == 0
            && self.private.load(Ordering::Relaxed) == 0
    }
}

impl Default for Descriptor {
    fn default() -> Self {
        Self::new()
    }
}
