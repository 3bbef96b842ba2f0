//! Power cuts, over the whole stack: what of an ext4, DAX's stores and a
//! device's would be left of the media, mounted again. On the host, where the
//! cache is a model ([`quire_arch::power_cut`]).

use super::*;
use quire_arch::power_cut::Watch;

/// 32 MiB.
const ORDER: u32 = 13;

impl Rig {
    fn watch(&self) -> Watch {
        let start = frame::direct(self.namespace().phys());
        // SAFETY: the namespace's memory, which outlives the test's watch.
        unsafe { Watch::new(start.as_ptr(), self.namespace().len() as usize) }
    }
}

/// The file system as the power cut leaves it, recovered.
fn after_cut(watch: &Watch) -> Rig {
    let bytes = watch.after_cut();
    Rig::made(ORDER, |pmem| {
        pmem.write_nt(0, &bytes).map_err(|e| e.to_string())?;
        pmem.fence();
        Ok(())
    })
    .unwrap()
}

fn store(mapping: &crate::app::fs::Mapping, block: u64, value: u8) {
    let va = mapping.addr() + (block << 12);
    dax::serve(va, true).unwrap();
    let leaf = space::translate(va).expect("a leaf");
    assert!(leaf.attrs.write);
    let at = frame::direct(leaf.pa + va.offset_in(leaf.size.bytes()));
    // SAFETY: the page of the mapping, which this test alone stores to.
    unsafe { at.as_mut_ptr::<u8>().write_volatile(value) };
}

fn byte(file: &File, block: u64) -> u8 {
    let mut byte = [0];
    assert_eq!(file.read_at(&mut byte, block << 12).unwrap(), 1);
    byte[0]
}

fn large(rig: &Rig) -> (File, crate::app::fs::Mapping) {
    let file = rig.open("/m/f").unwrap();
    file.allocate(Allocate::Extend, 0, 8 << 20).unwrap();
    let mapping = file.map(0..8 << 20, Perms::ReadWrite).unwrap();
    for block in 0..2048 {
        mapping.write_at(block << 12, &[0x5a; 4096]).unwrap();
    }
    file.sync_all().unwrap();
    (file, mapping)
}

#[test]
fn gap_01_a_hole_elsewhere_forgets_no_store() {
    let rig = Rig::new(ORDER).unwrap();
    let (file, mapping) = large(&rig);
    let watch = rig.watch();
    // Through leaves of any size, in entries that the hole splits and others.
    let stored = [0, 77, 511, 512, 700, 1023, 1100, 2047];
    for block in stored {
        store(&mapping, block, 0x11);
    }
    {
        let cut = after_cut(&watch);
        let there = cut.open("/m/f").unwrap();
        let kept = stored.iter().filter(|block| byte(&there, **block) == 0x11);
        assert_eq!(kept.count(), 0, "the model loses nothing");
        drop(there);
        cut.finish().unwrap();
    }
    file.allocate(Allocate::Punch, 600 << 12, 64 << 12).unwrap();
    file.allocate(Allocate::Punch, 78 << 12, 4096).unwrap();
    file.set_len(2048 << 12).unwrap();
    file.set_len((2047 << 12) + 1).unwrap();
    file.sync_all().unwrap();
    let cut = after_cut(&watch);
    let there = cut.open("/m/f").unwrap();
    for block in stored {
        assert_eq!(byte(&there, block), 0x11, "block {block}");
    }
    for (block, expected) in [(78, 0), (600, 0), (663, 0), (599, 0x5a), (664, 0x5a)] {
        assert_eq!(byte(&there, block), expected, "block {block}");
    }
    drop(there);
    cut.finish().unwrap();
    drop((mapping, file, watch));
    rig.finish().unwrap();
}

/// I4: whatever ran before it, an fsync that has returned has made durable what
/// was stored until then.
#[test]
fn i4_a_store_before_fsync_survives_whatever_ran_between() {
    let rig = Rig::new(ORDER).unwrap();
    let (file, mapping) = large(&rig);
    let watch = rig.watch();
    let owner = PinOwner::new("disk");
    let mut pins: Vec<Pinned> = Vec::new();
    let mut model = vec![0x5au8; 2048];
    let mut seed = 0x2545_f491_4f6c_dd1du64;
    let mut random = move |n: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed % n
    };
    for round in 0..12u8 {
        for _ in 0..60 {
            let block = random(2048);
            let value = 1 + random(200) as u8;
            match random(9) {
                0..=3 => {
                    store(&mapping, block, value);
                    model[block as usize] = value;
                }
                4 => {
                    mapping.write_at(block << 12, &[value]).unwrap();
                    model[block as usize] = value;
                }
                5 => {
                    file.write_at(&[value], block << 12).unwrap();
                    model[block as usize] = value;
                }
                6 => {
                    let end = (block + 1 + random(90)).min(2048);
                    let len = (end - block) << 12;
                    file.allocate(Allocate::Punch, block << 12, len).unwrap();
                    model[block as usize..end as usize].fill(0);
                }
                7 => {
                    let block = block.max(1024);
                    file.set_len(block << 12).unwrap();
                    file.set_len(8 << 20).unwrap();
                    model[block as usize..].fill(0);
                }
                _ if pins.len() < 4 => {
                    let range = block << 12..(block + 1) << 12;
                    pins.push(file.pin(range, &owner, &Term::Short, true).unwrap());
                }
                _ => drop(pins.remove(0)),
            }
        }
        file.sync_all().unwrap();
        let cut = after_cut(&watch);
        let there = cut.open("/m/f").unwrap();
        for (block, expected) in model.iter().enumerate() {
            let found = byte(&there, block as u64);
            assert_eq!(found, *expected, "round {round}, block {block}");
        }
        drop(there);
        assert!(cut.vfs.parked().is_empty());
        cut.finish().unwrap();
    }
    pins.clear();
    rig.settled().unwrap();
    drop((mapping, file, watch));
    rig.finish().unwrap();
}

/// Gap 13: what is parked stays allocated as long as the pin, and a power cut
/// frees it: by the orphan list, whole.
#[test]
fn gap_13_parked_blocks_are_free_after_a_power_cut() {
    let rig = Rig::new(ORDER).unwrap();
    let empty = rig.free().unwrap();
    let (file, mapping) = large(&rig);
    let watch = rig.watch();
    let owner = PinOwner::new("disk");
    let pins = pin(&file, 512..1024, &owner).unwrap();
    assert_eq!(pins.folios(), 1);
    file.allocate(Allocate::Punch, 600 << 12, 100 << 12)
        .unwrap();
    file.sync_all().unwrap();
    let held = rig.free().unwrap();
    let cut = after_cut(&watch);
    assert_eq!(
        cut.free().unwrap(),
        held + 100,
        "parked blocks are not free"
    );
    let there = cut.open("/m/f").unwrap();
    assert_eq!(
        (byte(&there, 599), byte(&there, 600), byte(&there, 700)),
        (0x5a, 0, 0x5a)
    );
    drop(there);
    cut.finish().unwrap();
    // All of it removed: the pin keeps the file, and after a cut nothing does.
    drop((mapping, file));
    rig.vfs.remove_file(b"/m/f").unwrap();
    rig.vfs.sync().unwrap();
    let cut = after_cut(&watch);
    assert_eq!(cut.free().unwrap(), empty);
    cut.finish().unwrap();
    drop(pins);
    rig.settled().unwrap();
    assert_eq!(rig.free().unwrap(), empty);
    drop(watch);
    rig.finish().unwrap();
}
