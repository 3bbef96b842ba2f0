//! Tests: namespaces of interleave sets, and cuts between the DIMMs' changes.

use super::super::fixture::host_region;
use super::super::label::format::UPDATING;
use super::super::label::{LabelArea, LabelStore};
use super::super::nfit::StateFlags;
use super::super::region::Mapping;
use super::*;
use crate::sync::SpinLock;
use alloc::sync::Arc;
use proptest::prelude::*;

type Writes = Arc<SpinLock<Vec<(usize, u64, Vec<u8>)>>>;

/// One DIMM's area; all areas write to one log.
struct Area {
    nth: usize,
    bytes: SpinLock<Vec<u8>>,
    log: Writes,
}

impl LabelArea for Area {
    fn size(&self) -> u64 {
        self.bytes.lock().len() as u64
    }
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let at = offset as usize;
        buf.copy_from_slice(&self.bytes.lock()[at..at + buf.len()]);
        Ok(())
    }
    fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        let at = offset as usize;
        self.bytes.lock()[at..at + data.len()].copy_from_slice(data);
        self.log.lock().push((self.nth, offset, data.to_vec()));
        Ok(())
    }
}

struct Machine {
    areas: Vec<Arc<Area>>,
    log: Writes,
    region: Region,
}

impl Machine {
    fn new(ways: usize, version: Version) -> Self {
        let log = Writes::default();
        let areas: Vec<_> = (0..ways)
            .map(|nth| {
                Arc::new(Area {
                    nth,
                    bytes: SpinLock::new(vec![0; 4096]),
                    log: log.clone(),
                })
            })
            .collect();
        let mut region = host_region(4 << 30, (ways as u64) << 30);
        region.iset_id = Some(0x1212);
        region.compat_iset_id = Some(0x1111);
        region.mappings = (0..ways)
            .map(|nth| Mapping {
                dimm: format!("nmem{nth}"),
                offset: 0x1000_0000,
                length: 1 << 30,
                position: nth,
            })
            .collect();
        let machine = Self { areas, log, region };
        for dimm in machine.dimms() {
            LabelSet::init(&dimm.labels.unwrap(), version).unwrap();
        }
        machine
    }

    fn dimms(&self) -> Vec<Dimm> {
        let dimm = |(nth, area): (usize, &Arc<Area>)| Dimm {
            dev: format!("nmem{nth}"),
            id: None,
            handle: nth as u32,
            phys_id: 0,
            flags: StateFlags::default(),
            flush_hints: Vec::new(),
            labels: Some(LabelStore(area.clone())),
        };
        self.areas.iter().enumerate().map(dimm).collect()
    }

    fn layout(&self) -> Layout {
        Layout::read(&self.region, &self.dimms())
    }

    fn images(&self) -> Vec<Vec<u8>> {
        self.areas
            .iter()
            .map(|area| area.bytes.lock().clone())
            .collect()
    }

    fn restore(&self, images: &[Vec<u8>]) {
        for (area, image) in self.areas.iter().zip(images) {
            *area.bytes.lock() = image.clone();
        }
    }
}

fn like(name: &str, nth: u8) -> Label {
    Label {
        uuid: Uuid([nth; 16]),
        name: name.into(),
        lbasize: 512,
        ..Label::default()
    }
}

/// Linux takes a label of version 1.2 only where it has its region's type: nil on
/// CXL. What changes, a name for one, keeps it so.
#[test]
fn labels_have_the_type_of_their_region() {
    use crate::pmem::label::format::TYPE_PERSISTENT;
    use crate::pmem::nfit::Guid;
    for (version, kind, expected) in [
        (Version::V1_2, TYPE_PERSISTENT, TYPE_PERSISTENT),
        (Version::V1_2, Guid::default(), Guid::default()),
        (Version::V1_1, TYPE_PERSISTENT, Guid::default()),
    ] {
        let mut machine = Machine::new(2, version);
        machine.region.type_guid = kind;
        let mut layout = machine.layout();
        let range = layout.place(Some(64 << 20)).unwrap();
        layout.replace(None, Some((&range, &like("a", 1)))).unwrap();
        let mut renamed = layout.label_of(Uuid([1; 16]), 1).unwrap().clone();
        renamed.name = "b".into();
        layout
            .replace(Some(renamed.uuid), Some((&range, &renamed)))
            .unwrap();
        let again = machine.layout();
        for nth in 0..2 {
            let label = again.label_of(Uuid([1; 16]), nth).unwrap();
            assert_eq!((&*label.name, label.type_guid), ("b", expected));
        }
    }
}

#[test]
fn space_is_given_in_order_and_found_again() {
    for (ways, step) in [(1, 16u64), (2, 16), (3, 48), (4, 16)] {
        let machine = Machine::new(ways, Version::V1_2);
        let mut layout = machine.layout();
        assert_eq!((layout.step(), layout.cookie()), (step << 20, 0x1212));
        for nth in 0..3u8 {
            let range = layout.place(Some(100 << 20)).unwrap();
            assert_eq!((range.end - range.start) % layout.step(), 0);
            layout
                .replace(None, Some((&range, &like("n", nth + 1))))
                .unwrap();
            assert_eq!(
                layout.label_of(Uuid([nth + 1; 16]), 0).unwrap().dpa % 4096,
                0
            );
        }
        let again = machine.layout();
        assert_eq!(again.problems, Vec::<String>::new());
        let ids: Vec<_> = again.namespaces.iter().map(|n| (n.id, n.uuid)).collect();
        assert_eq!(
            ids,
            [(0, Uuid([1; 16])), (1, Uuid([2; 16])), (2, Uuid([3; 16]))]
        );
        let taken: u64 = again
            .namespaces
            .iter()
            .map(|n| n.range.end - n.range.start)
            .sum();
        let free: u64 = again.free().iter().map(|f| f.end - f.start).sum();
        assert_eq!(taken + free, machine.region.size());
        assert!(again.place(Some(1 << 40)).is_err());
        // The middle goes, and is given again.
        layout.replace(Some(Uuid([2; 16])), None).unwrap();
        let hole = machine.layout().place(Some(16 << 20)).unwrap();
        assert_eq!(hole.start, again.namespaces[1].range.start);
    }
}

#[test]
fn labels_of_others_make_no_namespace() {
    let machine = Machine::new(2, Version::V1_1);
    let mut layout = machine.layout();
    let range = layout.place(Some(64 << 20)).unwrap();
    layout
        .replace(None, Some((&range, &like("whole", 1))))
        .unwrap();
    let whole = layout.label_of(Uuid([1; 16]), 0).unwrap().clone();
    // One DIMM has it only; a foreign set; beyond the DIMM; on top of another.
    type Wrong = (usize, fn(&mut Label), &'static str);
    let wrong: [Wrong; 4] = [
        (1, |_| (), "is missing"),
        (2, |l| l.iset_cookie = 7, "another interleave set"),
        (2, |l| l.dpa = 1 << 40, "beyond the region"),
        (2, |_| (), "overlaps another"),
    ];
    for (nth, (copies, change, _)) in wrong.iter().enumerate() {
        for at in 0..*copies {
            let mut label = Label {
                uuid: Uuid([nth as u8 + 2; 16]),
                position: at as u16,
                ..whole.clone()
            };
            change(&mut label);
            let labels = &mut layout.members[at].labels;
            labels.update(&[], vec![Slot::Namespace(label)]).unwrap();
        }
    }
    let layout = machine.layout();
    assert_eq!(layout.namespaces.len(), 1, "{:?}", layout.problems);
    for (_, _, told) in wrong {
        assert!(
            layout.problems.iter().any(|p| p.contains(told)),
            "{told}: {:?}",
            layout.problems
        );
    }
}

#[test]
fn a_cut_between_dimms_leaves_the_old_namespaces_or_the_new() {
    for ways in 1..=4 {
        for version in [Version::V1_1, Version::V1_2] {
            let machine = Machine::new(ways, version);
            let mut layout = machine.layout();
            let range = layout.place(Some(96 << 20)).unwrap();
            layout
                .replace(None, Some((&range, &like("other", 9))))
                .unwrap();
            let range = layout.place(Some(96 << 20)).unwrap();
            // Created, renamed, made smaller, deleted.
            let small = range.start..range.start + layout.step();
            type Change<'a> = (Option<Uuid>, Option<(&'a Range<u64>, Label)>);
            let changes: [Change<'_>; 4] = [
                (None, Some((&range, like("first", 1)))),
                (Some(Uuid([1; 16])), Some((&range, like("renamed", 1)))),
                (Some(Uuid([1; 16])), Some((&small, like("renamed", 1)))),
                (Some(Uuid([1; 16])), None),
            ];
            for (old, new) in changes {
                let before = machine.images();
                let was = machine.layout().namespaces;
                machine.log.lock().clear();
                let new = new.as_ref().map(|(range, label)| (*range, label));
                machine.layout().replace(old, new).unwrap();
                let writes = machine.log.lock().clone();
                let is = machine.layout().namespaces;
                assert_ne!(was, is);
                let after = machine.images();
                machine.restore(&before);
                let mut changed = false;
                for (nth, offset, data) in writes {
                    let area = machine.areas[nth].clone();
                    for len in [0, 1, data.len() / 2, data.len() - 1, data.len()] {
                        let at = offset as usize;
                        area.bytes.lock()[at..at + len].copy_from_slice(&data[..len]);
                        let now = machine.layout().namespaces;
                        assert!(now == was || now == is, "{ways}: {was:?} {is:?} {now:?}");
                        // Once new, it stays new.
                        assert!(!changed || now == is);
                        changed |= now == is;
                    }
                }
                assert!(changed);
                assert_eq!(machine.images(), after);
                for area in &machine.areas {
                    let labels = machine.layout();
                    let marked = labels
                        .labels_on(area.nth)
                        .any(|(_, l)| l.flags & UPDATING != 0);
                    assert!(!marked, "a mark is left");
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]
    #[test]
    fn mutated_labels_are_survived(
        ways in 1usize..4,
        edits in proptest::collection::vec((0usize..3, 512usize..1024, any::<u8>()), 1..8),
        iset: Option<u64>,
    ) {
        let mut machine = Machine::new(ways, Version::V1_1);
        let mut layout = machine.layout();
        for nth in 1..4 {
            let range = layout.place(Some(64 << 20)).unwrap();
            layout.replace(None, Some((&range, &like("n", nth)))).unwrap();
        }
        for (area, at, byte) in edits {
            machine.areas[area % ways].bytes.lock()[at] = byte;
        }
        machine.region.compat_iset_id = iset.or(machine.region.compat_iset_id);
        let layout = machine.layout();
        let mut end = machine.region.range.start;
        for namespace in &layout.namespaces {
            prop_assert!(namespace.range.start >= end && namespace.range.end <= machine.region.range.end);
            end = namespace.range.end;
        }
        for free in layout.free() {
            prop_assert!(free.start < free.end && free.end <= machine.region.range.end);
        }
        let _ = (layout.available(), layout.place(None));
    }
}
