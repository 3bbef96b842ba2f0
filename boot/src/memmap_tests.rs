extern crate std;

use alloc::vec;
use alloc::vec::Vec;
use proptest::prelude::*;

use super::*;

fn efi(kind: u32, base: u64, pages: u64) -> Descriptor {
    Descriptor {
        kind,
        base,
        pages,
        attributes: 0xf,
    }
}

fn build(entries: &[Descriptor]) -> Vec<(u64, u64, Kind)> {
    let mut room = vec![Region::default(); capacity(entries.len())];
    let mut map = Map::new(&mut room);
    map.add_firmware(entries.iter().copied()).unwrap();
    map.finish();
    map.regions()
        .iter()
        .map(|region| (region.base, region.end, region.kind))
        .collect()
}

#[test]
fn types_follow_the_specification() {
    let kinds = [
        (0, Kind::Reserved),
        (1, Kind::Reclaimable),
        (2, Kind::Reclaimable),
        (3, Kind::Reclaimable),
        (4, Kind::Reclaimable),
        (5, Kind::Reserved),
        (6, Kind::Reserved),
        (7, Kind::Usable),
        (8, Kind::Bad),
        (9, Kind::AcpiReclaimable),
        (10, Kind::AcpiNvs),
        (11, Kind::Reserved),
        (12, Kind::Reserved),
        (13, Kind::Reserved),
        (14, Kind::Reserved),
        (15, Kind::Reserved),
        (0x8000_0000, Kind::Reserved),
    ];
    for (efi_type, kind) in kinds {
        assert_eq!(efi(efi_type, 0, 1).limine_kind(), kind, "type {efi_type}");
    }
}

#[test]
fn types_count_and_attributes_do_not() {
    // Non-volatile, and for special purposes.
    let mut odd = efi(7, 0x1_0000_0000, 16);
    odd.attributes |= 0x4_8000;
    assert_eq!(
        build(&[efi(7, 0, 4), odd, efi(14, 0x2_0000_0000, 16)]),
        [
            (0, 0x4000, Kind::Usable),
            (0x1_0000_0000, 0x1_0001_0000, Kind::Usable),
            (0x2_0000_0000, 0x2_0001_0000, Kind::Reserved)
        ]
    );
}

#[test]
fn neighbours_join_and_order_is_made() {
    assert_eq!(
        build(&[efi(7, 0x3000, 1), efi(3, 0x1000, 1), efi(4, 0x2000, 1)]),
        [
            (0x1000, 0x3000, Kind::Reclaimable),
            (0x3000, 0x4000, Kind::Usable)
        ]
    );
}

#[test]
fn the_stricter_entry_wins() {
    assert_eq!(
        build(&[efi(0, 0x2000, 1), efi(7, 0x1000, 8)]),
        [
            (0x1000, 0x2000, Kind::Usable),
            (0x2000, 0x3000, Kind::Reserved),
            (0x3000, 0x9000, Kind::Usable)
        ]
    );
}

#[test]
fn unaligned_ranges_lose_their_edges_to_the_stricter_side() {
    let mut room = vec![Region::default(); 8];
    let mut map = Map::new(&mut room);
    map.lay(0x800, 0x10_0800, Kind::Usable).unwrap();
    map.lay(0x5800, 0x6001, Kind::Framebuffer).unwrap();
    let bounds: Vec<_> = map.regions().iter().map(|r| (r.base, r.end)).collect();
    assert_eq!(
        bounds,
        [(0x1000, 0x5000), (0x5000, 0x7000), (0x7000, 0x10_0000)]
    );
}

#[test]
fn a_full_map_says_so() {
    let mut room = vec![Region::default(); 2];
    let mut map = Map::new(&mut room);
    map.lay(0, 0x10000, Kind::Usable).unwrap();
    assert_eq!(map.lay(0x1000, 0x2000, Kind::Bad), Err(Full));
}

#[test]
fn the_direct_map_joins_and_filters() {
    let mut room = vec![Region::default(); 16];
    let mut map = Map::new(&mut room);
    map.lay(0x1000, 0x3000, Kind::Usable).unwrap();
    map.lay(0x3000, 0x4000, Kind::Reclaimable).unwrap();
    map.lay(0x4000, 0x5000, Kind::Reserved).unwrap();
    map.lay(0x5000, 0x6000, Kind::AcpiNvs).unwrap();
    map.lay(0x6000, 0x7000, Kind::Executable).unwrap();
    map.lay(0x7000, 0x8000, Kind::Framebuffer).unwrap();
    map.lay(5 << 30, 6 << 30, Kind::AcpiReclaimable).unwrap();
    let of = |revision| map.direct_map(revision).collect::<Vec<_>>();
    assert_eq!(
        of(3),
        [
            (0x1000, 0x4000, false),
            (0x6000, 0x7000, false),
            (0x7000, 0x8000, true)
        ]
    );
    assert_eq!(of(2), [(0, 4 << 30, false), (5 << 30, 6 << 30, false)]);
}

proptest! {
    #[test]
    fn maps_are_sorted_aligned_and_strict(
        entries in proptest::collection::vec((0u32..16, 0u64..64, 0u64..12, 0u64..2), 0..24),
        wild in any::<[u64; 2]>(),
    ) {
        let mut list: Vec<_> = entries
            .iter()
            .map(|&(kind, page, pages, odd)| efi(kind, page * PAGE + odd * 0x10, pages))
            .collect();
        list.push(efi(0, wild[0], wild[1]));
        let map = build(&list);
        for pair in map.windows(2) {
            prop_assert!(pair[0].1 <= pair[1].0);
            prop_assert!(pair[0].1 < pair[1].0 || pair[0].2 != pair[1].2);
        }
        for &(base, end, kind) in &map {
            prop_assert!(base < end);
            prop_assert!(base % PAGE == 0 && end % PAGE == 0);
            if kind == Kind::Usable {
                for other in &list {
                    let (from, to) = other.range();
                    if other.limine_kind() != Kind::Usable && from < to {
                        let (from, to) = match other.limine_kind() {
                            Kind::Reclaimable => (page_up(from), page_down(to)),
                            _ => (page_down(from), page_up(to)),
                        };
                        prop_assert!(to <= base || from >= end || from >= to);
                    }
                }
            }
        }
    }
}
