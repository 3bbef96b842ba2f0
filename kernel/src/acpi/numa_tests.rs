//! Hand-made tables, and any bytes.

use super::*;
use proptest::prelude::*;
use std::vec;

fn with_header(signature: &[u8; 4], body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; HEADER_LEN];
    bytes[..4].copy_from_slice(signature);
    bytes[4..8].copy_from_slice(&((HEADER_LEN + body.len()) as u32).to_le_bytes());
    bytes.extend(body);
    bytes
}

/// Fields of a structure: offset and bytes.
fn structure(len: usize, fields: &[(usize, &[u8])]) -> Vec<u8> {
    let mut bytes = vec![0; len];
    for (at, field) in fields {
        bytes[*at..*at + field.len()].copy_from_slice(field);
    }
    bytes
}

fn affinity(domain: u32, base: u64, len: u64, flags: u32) -> Vec<u8> {
    structure(
        40,
        &[
            (0, &[1, 40]),
            (2, &domain.to_le_bytes()),
            (8, &base.to_le_bytes()),
            (16, &len.to_le_bytes()),
            (28, &flags.to_le_bytes()),
        ],
    )
}

fn apic(domain: u8, flags: u32) -> Vec<u8> {
    structure(16, &[(0, &[0, 16, domain]), (4, &flags.to_le_bytes())])
}

fn gicc(domain: u32) -> Vec<u8> {
    let domain = domain.to_le_bytes();
    structure(18, &[(0, &[3, 18]), (2, &domain), (10, &[1])])
}

fn x2apic(domain: u32) -> Vec<u8> {
    let domain = domain.to_le_bytes();
    structure(24, &[(0, &[2, 24]), (4, &domain), (12, &[1])])
}

fn srat(structures: &[Vec<u8>]) -> Vec<u8> {
    with_header(b"SRAT", &[vec![0; 12], structures.concat()].concat())
}

fn slit(count: u64, matrix: &[u8]) -> Vec<u8> {
    with_header(b"SLIT", &[&count.to_le_bytes()[..], matrix].concat())
}

fn near(memory: u32, initiator: u32) -> Vec<u8> {
    structure(
        40,
        &[
            (4, &[40]),
            (8, &[1]),
            (12, &initiator.to_le_bytes()),
            (16, &memory.to_le_bytes()),
        ],
    )
}

fn matrix(kind: u8, unit: u64, initiators: &[u32], targets: &[u32], values: &[u16]) -> Vec<u8> {
    let len = 32 + 4 * (initiators.len() + targets.len()) + 2 * values.len();
    let mut bytes = structure(
        32,
        &[
            (0, &[1]),
            (4, &(len as u32).to_le_bytes()),
            (9, &[kind]),
            (12, &(initiators.len() as u32).to_le_bytes()),
            (16, &(targets.len() as u32).to_le_bytes()),
            (24, &unit.to_le_bytes()),
        ],
    );
    bytes.extend(
        initiators
            .iter()
            .chain(targets)
            .flat_map(|n| n.to_le_bytes()),
    );
    bytes.extend(values.iter().flat_map(|n| n.to_le_bytes()));
    bytes
}

fn hmat(structures: &[Vec<u8>]) -> Vec<u8> {
    with_header(b"HMAT", &[vec![0; 4], structures.concat()].concat())
}

const GIB: u64 = 1 << 30;

#[test]
fn domains_and_distances() {
    let numa = Numa::parse(
        Some(&srat(&[
            apic(0, 1),
            apic(7, 0),
            x2apic(1),
            affinity(0, 0, GIB, 1),
            affinity(2, 4 * GIB, GIB, 7),
            affinity(9, 8 * GIB, GIB, 0),
            gicc(0x1_0002),
        ])),
        Some(&slit(3, &[10, 20, 30, 20, 10, 40, 30, 40, 10])),
        None,
    );
    assert_eq!(numa.faults, []);
    // What is not enabled doesn't count.
    assert_eq!(numa.initiators, [0, 1, 0x1_0002].into());
    let found = numa.memory_of(&(4 * GIB + 4096..5 * GIB)).unwrap();
    assert_eq!(
        (found.domain, found.hot_pluggable, found.non_volatile),
        (2, true, true)
    );
    assert_eq!(numa.memory_of(&(8 * GIB..9 * GIB)), None);
    assert_eq!(numa.distances(2), [(0, 30), (1, 40)]);
    assert_eq!(numa.distance(3, 0), None);
    assert_eq!(numa.performance(2), None);
}

#[test]
fn latency_and_bandwidth_are_of_the_nearest_processors() {
    let tables = |near: Vec<u8>| {
        hmat(&[
            near,
            matrix(1, 1000, &[0, 1], &[2, 3], &[300, 100, 90, u16::MAX]),
            matrix(3, 100, &[0, 1], &[2, 3], &[50, 80, 60, 0]),
        ])
    };
    let numa = Numa::parse(None, None, Some(&tables(near(9, 0))));
    assert_eq!(numa.faults, []);
    let fastest = numa.performance(2).unwrap();
    assert_eq!((fastest.initiator, fastest.read_latency), (1, 90_000));
    assert_eq!(
        (fastest.read_bandwidth, fastest.write_bandwidth),
        (6000, 6000)
    );
    assert_eq!((fastest.write_latency, fastest.offset), (0, 80));
    let told = [
        ("read_latency", 90),
        ("read_bandwidth", 6000),
        ("write_bandwidth", 6000),
    ];
    assert_eq!(fastest.told(), told);
    let only = numa.performance(3).unwrap();
    assert_eq!((only.initiator, only.read_latency), (0, 100_000));
    assert_eq!(numa.performance(4), None);
    // What the firmware says is nearest is, whatever the numbers are.
    let named = Numa::parse(None, None, Some(&tables(near(2, 0))));
    assert_eq!(named.performance(2).unwrap().read_latency, 300_000);
    // Unless there is nothing to tell of it.
    let unknown = Numa::parse(None, None, Some(&tables(near(2, 5))));
    assert_eq!(unknown.performance(2).unwrap().initiator, 1);
}

#[test]
fn what_makes_no_sense_is_left_out_with_its_place() {
    let reasons = |numa: &Numa| -> Vec<String> {
        numa.faults.iter().map(|fault| fault.to_string()).collect()
    };
    let numa = Numa::parse(
        Some(&srat(&[
            affinity(0, u64::MAX - 5, 100, 1),
            affinity(1, GIB, 0, 1),
            affinity(1, GIB, GIB, 1),
            affinity(2, GIB + 4096, 4096, 1),
            vec![1, 8, 0, 0, 0, 0, 0, 0],
            affinity(1, 2 * GIB, GIB, 1),
            vec![0, 1],
        ])),
        Some(&slit(u64::MAX, &[10])),
        Some(&hmat(&[
            matrix(9, 1, &[0], &[1], &[5]),
            matrix(1, u64::MAX, &[0], &[1], &[5]),
            {
                let mut bytes = matrix(1, 1, &[0], &[1], &[5]);
                bytes[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
                bytes
            },
            matrix(1, 1, &[0], &[1], &[5]),
        ])),
    );
    let found = reasons(&numa);
    for (nth, part) in [
        "SRAT offset=0x30: memory at 0xfffffffffffffffa has 0x64 bytes",
        "SRAT offset=0x58: memory at 0x40000000 has 0x0 bytes",
        "SRAT offset=0xa8: memory 0x40001000..0x40002000 of domain 2 is of domain 1 by the structure at 0x80",
        "SRAT offset=0xd0: structure of type 1 has 8 bytes, not 40",
        "SRAT offset=0x100: entry length 1 is less than its header",
        "SLIT offset=0x24: 18446744073709551615 domains have no room in 1 bytes",
        "HMAT offset=0x28: data type 9",
        "is too large",
        "4294967295 initiators and 1 targets have no room",
    ]
    .into_iter()
    .enumerate()
    {
        assert!(found[nth].contains(part), "{part}: {}", found[nth]);
    }
    assert_eq!(found.len(), 9);
    // The rest counts.
    assert_eq!(numa.memory.len(), 2);
    assert_eq!(numa.performance(1).unwrap().read_latency, 5);
}

#[test]
fn a_matrix_of_distances_must_be_one() {
    for (matrix, at) in [
        ([10, 20, 20, 11], 3),
        ([10, 9, 20, 10], 1),
        ([10, 10, 20, 10], 1),
    ] {
        let numa = Numa::parse(None, Some(&slit(2, &matrix)), None);
        assert_eq!(numa.faults[0].offset, HEADER_LEN + 8 + at);
        assert_eq!(numa.distance(0, 1), None);
    }
    // Unreachable is a distance.
    let numa = Numa::parse(None, Some(&slit(2, &[10, 255, 255, 10])), None);
    assert_eq!(numa.distance(0, 1), Some(255));
}

proptest! {
    #[test]
    fn any_bytes_are_read(
        kind in 0usize..3,
        body in proptest::collection::vec(any::<u8>(), 0..400),
        cut in 0u32..500,
    ) {
        let mut table = with_header([b"SRAT", b"SLIT", b"HMAT"][kind], &body);
        table[4..8].copy_from_slice(&cut.to_le_bytes());
        let numa = Numa::parse(Some(&table), Some(&table), Some(&table));
        prop_assert!(numa.faults.len() >= 2);
        for memory in &numa.memory {
            prop_assert!(memory.range.start < memory.range.end);
        }
        let _ = (numa.performance(0), numa.distances(0));
    }

    #[test]
    fn mutated_tables_are_read(edits in proptest::collection::vec((44usize..200, any::<u8>()), 1..10)) {
        let mut tables = [
            srat(&[apic(0, 1), affinity(2, 4 * GIB, GIB, 7), gicc(1), x2apic(4)]),
            slit(3, &[10, 20, 30, 20, 10, 40, 30, 40, 10]),
            hmat(&[near(2, 0), matrix(1, 1000, &[0, 1], &[2, 3], &[300, 100, 90, 1])]),
        ];
        for (at, value) in edits {
            for table in &mut tables {
                if let Some(byte) = table.get_mut(at) {
                    *byte = value;
                }
            }
        }
        let [srat, slit, hmat] = tables;
        let numa = Numa::parse(Some(&srat), Some(&slit), Some(&hmat));
        for domain in 0..5 {
            let _ = (numa.performance(domain), numa.distances(domain));
        }
    }
}
