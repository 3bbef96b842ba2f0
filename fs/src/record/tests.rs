//! What the model lets a cut leave.

use super::*;
use crate::pmem::MemPmem;

fn played(program: impl Fn(&RecordingPmem<MemPmem>)) -> CrashModel {
    let pmem = RecordingPmem::new(MemPmem::zeroed(256));
    program(&pmem);
    let mut model = CrashModel::new(vec![0; 256]);
    for event in pmem.take() {
        model.play(&event);
    }
    model
}

fn bytes(model: &CrashModel, limit: usize, seed: u64) -> Vec<Vec<u8>> {
    model
        .states(limit, seed)
        .iter()
        .map(Crashed::to_vec)
        .collect()
}

#[test]
fn only_a_fence_after_a_write_back_makes_a_store_sure() {
    let store = |p: &RecordingPmem<MemPmem>| p.write(0, &[1]).expect("inside");
    assert_eq!(played(store).states(9, 0).len(), 2);
    let model = played(|p| {
        store(p);
        p.fence();
    });
    assert_eq!(model.states(9, 0).len(), 2, "a fence alone does nothing");
    let model = played(|p| {
        store(p);
        p.write_back(0, 1);
    });
    assert_eq!(model.states(9, 0).len(), 2, "nor does a write-back alone");
    let model = played(|p| {
        store(p);
        p.write_back(0, 1);
        p.fence();
    });
    let images = bytes(&model, 9, 0);
    assert_eq!((images.len(), images[0][0]), (1, 1));
}

#[test]
fn a_line_keeps_the_order_of_its_stores() {
    let model = played(|p| {
        p.write(0, &[1]).expect("inside");
        p.write(8, &[2]).expect("inside");
    });
    let states: Vec<_> = bytes(&model, 9, 0).iter().map(|i| (i[0], i[8])).collect();
    assert_eq!(states, [(0, 0), (1, 0), (1, 2)]);
}

#[test]
fn lines_have_no_order_and_bypassing_stores_neither() {
    let cached = played(|p| {
        p.write(0, &[1]).expect("inside");
        p.write(64, &[2]).expect("inside");
    });
    assert_eq!(cached.states(9, 0).len(), 4);
    let bypassing = played(|p| {
        p.write_nt(0, &[1; 8]).expect("inside");
        p.write_nt(8, &[2; 8]).expect("inside");
    });
    let states: Vec<_> = bytes(&bypassing, 9, 0)
        .iter()
        .map(|i| (i[0], i[8]))
        .collect();
    assert_eq!(states, [(0, 0), (1, 0), (0, 2), (1, 2)]);
}

#[test]
fn long_stores_tear_at_eight_bytes() {
    let model = played(|p| p.write(4, &[7; 12]).expect("inside"));
    let lengths: Vec<usize> = bytes(&model, 9, 0)
        .iter()
        .map(|i| i.iter().filter(|&&b| b == 7).count())
        .collect();
    assert_eq!(lengths, [0, 4, 12]);
}

#[test]
fn samples_have_the_extremes_and_repeat() {
    let model = played(|p| {
        for line in 0..4 {
            for unit in 0..8u64 {
                p.write(line * 64 + unit * 8, &[1]).expect("inside");
            }
        }
    });
    let images = bytes(&model, 50, 3);
    assert_eq!(images.len(), 50);
    assert_eq!(images.first().map(|i| i.contains(&1)), Some(false));
    assert_eq!(
        images.last().map(|i| i.iter().filter(|&&b| b == 1).count()),
        Some(32)
    );
    assert_eq!(images, bytes(&model, 50, 3));
}

#[test]
fn a_log_is_text() {
    let pmem = RecordingPmem::new(MemPmem::zeroed(256));
    pmem.note("begin touch f");
    pmem.write(3, &[0xab, 1]).expect("inside");
    pmem.write_back(3, 2);
    pmem.fence();
    let mut text = Vec::new();
    write_log(&pmem.take(), &mut text).expect("to memory");
    assert_eq!(text, b"# begin touch f\nS 3 ab01\nW 3 2\nF\n");
}
