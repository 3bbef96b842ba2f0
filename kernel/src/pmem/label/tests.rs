//! Tests: what Linux's tools write, cuts at every byte, hostile areas.

use super::format::*;
use super::*;
use crate::error::Result;
use crate::sync::SpinLock;
use proptest::prelude::*;
use std::sync::Arc;

/// A label area in memory that records its writes.
pub(crate) struct Recorder {
    pub bytes: SpinLock<Vec<u8>>,
    pub writes: SpinLock<Vec<(u64, Vec<u8>)>>,
    pub reads: SpinLock<usize>,
}

impl Recorder {
    pub(crate) fn new(bytes: Vec<u8>) -> Arc<Self> {
        Arc::new(Self {
            bytes: SpinLock::new(bytes),
            writes: SpinLock::new(Vec::new()),
            reads: SpinLock::new(0),
        })
    }
}

impl LabelArea for Recorder {
    fn size(&self) -> u64 {
        self.bytes.lock().len() as u64
    }
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let at = offset as usize;
        buf.copy_from_slice(&self.bytes.lock()[at..at + buf.len()]);
        *self.reads.lock() += 1;
        Ok(())
    }
    fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        let at = offset as usize;
        self.bytes.lock()[at..at + data.len()].copy_from_slice(data);
        self.writes.lock().push((offset, data.to_vec()));
        Ok(())
    }
}

fn label(name: &str, dpa: u64) -> Slot {
    Slot::Namespace(Label {
        uuid: Uuid::random([dpa, 7]),
        name: name.into(),
        nlabel: 1,
        iset_cookie: 0x24_68ac_0012_3456,
        lbasize: 512,
        dpa,
        rawsize: 1 << 27,
        abstraction: Abstraction::None,
        ..Label::default()
    })
}

fn loaded(bytes: &[u8]) -> Result<Vec<Slot>> {
    match LabelSet::load(&LabelStore(Recorder::new(bytes.to_vec())))? {
        State::Blank => Ok(Vec::new()),
        State::Labels(set) => {
            assert_eq!(set.damaged, []);
            let mut slots: Vec<_> = set.slots.into_iter().map(|(_, label)| label).collect();
            slots.sort_by_key(|s| format!("{s:?}"));
            Ok(slots)
        }
    }
}

#[test]
fn an_area_is_laid_out_as_linux_does() {
    // `ndctl init-labels` on QEMU's areas of 128 and 256 KiB.
    for (size, slots) in [(128 << 10, 1020), (256 << 10, 2040)] {
        let index = Index::new(size, Version::V1_1).unwrap();
        assert_eq!(index.slots, slots);
        assert_eq!(index.label_offset, 2 * Index::size_for(slots));
    }
    let area = Recorder::new(vec![0; 128 << 10]);
    LabelSet::init(&LabelStore(area.clone()), Version::V1_1).unwrap();
    let bytes = area.bytes.lock();
    assert_eq!(&bytes[..16], SIGNATURE);
    // sizes, offsets, slots, version
    assert_eq!(
        bytes[20..64],
        {
            let mut head = vec![1u8, 0, 0, 0];
            for field in [0u64, 256, 256, 512] {
                head.extend(field.to_le_bytes());
            }
            head.extend(1020u32.to_le_bytes());
            head.extend([1, 0, 1, 0]);
            head
        }[..]
    );
    assert_eq!(bytes[72..72 + 127], [0xff; 127]);
    assert_eq!(bytes[72 + 127], 0x0f, "1020 slots and no more");
}

#[test]
fn reading_an_area_takes_few_calls_of_the_firmware() {
    for size in [128 << 10, 256 << 10, 8 << 20] {
        let area = Recorder::new(vec![0; size]);
        let store = LabelStore(area.clone());
        assert_eq!(LabelSet::load(&store), Ok(State::Blank));
        let blank = core::mem::take(&mut *area.reads.lock());
        assert!(blank <= 3, "{blank} reads of a blank area of {size}");
        let mut set = LabelSet::init(&store, Version::V1_1).unwrap();
        set.update(&[], vec![label("a", 0), label("b", 1 << 27)])
            .unwrap();
        // The first index block is lost: the second one is found all the same.
        area.bytes.lock()[..16].fill(0);
        *area.reads.lock() = 0;
        let State::Labels(set) = LabelSet::load(&store).unwrap() else {
            panic!("labels are gone");
        };
        assert_eq!(set.slots.len(), 2);
        assert!(*area.reads.lock() <= 6, "{} reads", area.reads.lock());
    }
}

#[test]
fn labels_come_back_in_every_version() {
    for version in [Version::V1_1, Version::V1_2, Version::V2_1] {
        let area = Recorder::new(vec![0; 64 << 10]);
        let mut set = LabelSet::init(&LabelStore(area.clone()), version).unwrap();
        let mut first = label("first", 0);
        if version == Version::V2_1
            && let Slot::Namespace(label) = &mut first
        {
            label.iset_cookie = 0;
            label.region_uuid = Uuid([3; 16]);
        }
        if version != Version::V1_1
            && let Slot::Namespace(label) = &mut first
        {
            label.abstraction = Abstraction::Dax;
        }
        set.update(&[], vec![first.clone()]).unwrap();
        let mut all = vec![first];
        if version == Version::V2_1 {
            let region = Slot::Region(RegionLabel {
                uuid: Uuid([9; 16]),
                nlabel: 2,
                position: 1,
                rawsize: 1 << 28,
                hpa: u64::MAX,
                granularity: 2,
                ..RegionLabel::default()
            });
            set.update(&[], vec![region.clone()]).unwrap();
            all.push(region);
        }
        all.sort_by_key(|s| format!("{s:?}"));
        assert_eq!(loaded(&area.bytes.lock()).unwrap(), all, "{version}");
    }
}

/// Applies writes to `before`, all but the last `cut` bytes of what was
/// written, and hands each state to `check`.
fn cuts(before: &[u8], writes: &[(u64, Vec<u8>)], check: &mut dyn FnMut(&[u8])) {
    let mut state = before.to_vec();
    for (offset, data) in writes {
        let at = *offset as usize;
        // Byte by byte from the front, and from the back: a torn write may
        // leave any mixture.
        for len in 0..=data.len() {
            let mut torn = state.clone();
            torn[at..at + len].copy_from_slice(&data[..len]);
            check(&torn);
            let mut torn = state.clone();
            torn[at + data.len() - len..at + data.len()].copy_from_slice(&data[data.len() - len..]);
            check(&torn);
        }
        state[at..at + data.len()].copy_from_slice(data);
    }
    check(&state);
}

#[test]
fn a_cut_leaves_the_old_labels_or_the_new() {
    for version in [Version::V1_1, Version::V1_2] {
        let area = Recorder::new(vec![0; 8 << 10]);
        let mut set = LabelSet::init(&LabelStore(area.clone()), version).unwrap();
        set.update(&[], vec![label("a", 0), label("b", 1 << 27)])
            .unwrap();
        // Several turns, so that every sequence number is met.
        for turn in 0..4u64 {
            let before = area.bytes.lock().clone();
            let old = loaded(&before).unwrap();
            area.writes.lock().clear();
            let gone: Vec<u32> = set.slots.iter().map(|(slot, _)| *slot).take(1).collect();
            set.update(&gone, vec![label("new", (2 + turn) << 27)])
                .unwrap();
            let new = loaded(&area.bytes.lock()).unwrap();
            assert_ne!(old, new);
            let (mut olds, mut news) = (0, 0);
            cuts(&before, &area.writes.lock(), &mut |state| {
                let got = loaded(state).unwrap();
                if got == old {
                    olds += 1;
                } else {
                    assert_eq!(got, new);
                    news += 1;
                }
            });
            assert!(olds > 100 && news > 0, "{olds} {news}");
        }
    }
}

#[test]
fn initialising_leaves_old_labels_or_none() {
    let area = Recorder::new(vec![0; 8 << 10]);
    let mut set = LabelSet::init(&LabelStore(area.clone()), Version::V1_1).unwrap();
    for turn in 0..3u64 {
        set.update(&[], vec![label("a", turn)]).unwrap();
        let before = area.bytes.lock().clone();
        let old = loaded(&before).unwrap();
        area.writes.lock().clear();
        LabelSet::init(&LabelStore(area.clone()), Version::V1_1).unwrap();
        let writes = area.writes.lock().clone();
        *area.bytes.lock() = before.clone();
        cuts(&before, &writes, &mut |state| {
            let got = loaded(state);
            assert!(
                got.is_err() || got == Ok(vec![]) || got == Ok(old.clone()),
                "{got:?}"
            );
        });
        let State::Labels(again) = LabelSet::load(&LabelStore(area.clone())).unwrap() else {
            panic!("labels are gone");
        };
        set = again;
    }
}

#[test]
fn what_is_damaged_is_named_and_the_rest_is_read() {
    let area = Recorder::new(vec![0; 8 << 10]);
    let mut set = LabelSet::init(&LabelStore(area.clone()), Version::V1_2).unwrap();
    set.update(&[], vec![label("a", 0), label("b", 1 << 27)])
        .unwrap();
    let at = set.index().slot_offset(1) as usize;
    area.bytes.lock()[at + 20] ^= 1;
    let other = set.index().other_offset as usize;
    area.bytes.lock()[other + 70] ^= 1;
    let State::Labels(set) = LabelSet::load(&LabelStore(area)).unwrap() else {
        panic!("labels are gone");
    };
    assert_eq!(set.slots, [(0, label("a", 0))]);
    assert_eq!(set.damaged.len(), 1);
    assert!(set.damaged[0].1.contains("checksum"), "{:?}", set.damaged);
    assert!(set.other_index.unwrap().contains("checksum"));
}

fn area(version: Version) -> Vec<u8> {
    let area = Recorder::new(vec![0; 4 << 10]);
    let mut set = LabelSet::init(&LabelStore(area.clone()), version).unwrap();
    set.update(&[], vec![label("a", 0)]).unwrap();
    set.update(&[], vec![label("b", 1 << 27)]).unwrap();
    area.bytes.lock().clone()
}

fn exercise(bytes: Vec<u8>) {
    let store = LabelStore(Recorder::new(bytes));
    if let Ok(State::Labels(mut set)) = LabelSet::load(&store) {
        assert!(set.slots.len() + set.damaged.len() <= set.index().slots as usize);
        // What could be read can be changed.
        let _ = set.update(&[0], vec![label("c", 5)]);
    }
}

#[test]
fn every_truncation_is_survived() {
    for version in [Version::V1_1, Version::V1_2, Version::V2_1] {
        let bytes = area(version);
        for len in 0..bytes.len() {
            exercise(bytes[..len].to_vec());
        }
    }
}

/// Makes the checksums of both index blocks right again.
fn mend(bytes: &mut [u8]) {
    for at in [0, 256] {
        let Some(block) = bytes.get_mut(at..at + 256) else {
            continue;
        };
        block[64..72].fill(0);
        let sum = fletcher64(block);
        block[64..72].copy_from_slice(&sum.to_le_bytes());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]
    #[test]
    fn mutations_are_survived(
        which in 0usize..3,
        edits in proptest::collection::vec((0usize..1024, any::<u8>()), 1..6),
        mended: bool,
    ) {
        let version = [Version::V1_1, Version::V1_2, Version::V2_1][which];
        let mut bytes = area(version);
        for (at, byte) in edits {
            bytes[at] = byte;
        }
        if mended {
            mend(&mut bytes);
        }
        exercise(bytes);
    }
}
