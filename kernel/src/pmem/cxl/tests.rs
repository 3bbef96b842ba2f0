//! Tests over the model: discovery, regions of every shape, and what happens
//! when hardware refuses.

use super::command::Opcode;
use super::interleave::Granularity;
use super::memdev::{Memdev, MemdevId};
use super::model::{Below, Model, UNIT, WINDOW, WindowModel, device, lost, switch};
use super::model::{component_fault as fault, device_fault};
use super::plan::{Plan, Request};
use super::region::Origin;
use super::regs::Platform;
use super::topology::{PortKind, Topology};
use proptest::prelude::*;
use std::collections::BTreeSet;

fn discover(model: &Model) -> Topology {
    let mut topology = Topology::discover(model.parsed(), model);
    topology.adopt();
    topology
}

fn clean(model: &Model) -> Topology {
    let topology = discover(model);
    assert_eq!(topology.faults, Vec::<String>::new());
    topology
}

fn request(members: impl IntoIterator<Item = usize>) -> Request {
    Request {
        members: members.into_iter().map(MemdevId).collect(),
        ..Request::default()
    }
}

fn create(topology: &mut Topology, request: &Request) -> crate::error::Result<usize> {
    let plan = Plan::new(topology, request)?;
    topology.create(&plan, Origin::Command, None)
}

/// Every chunk of the first and last stripes, and some between: the model, the
/// driver and the way back agree, and no two addresses meet.
fn check_region(model: &Model, topology: &Topology, nth: usize) {
    let region = &topology.regions[nth];
    let (ways, step) = (region.ways.count(), region.granularity.bytes());
    let chunks = region.size / step;
    let some = (0..2 * ways).chain(chunks - ways..chunks);
    let some = some.chain((0..40).map(|nth| nth * 0x9e37_79b9 % chunks));
    let mut seen = BTreeSet::new();
    for chunk in some.collect::<BTreeSet<_>>() {
        for within in [0, step - 64] {
            let hpa = region.base + chunk * step + within;
            let routed = topology.route(hpa).expect("it leads somewhere");
            let real = model.access(hpa).expect("it leads somewhere");
            assert_eq!((routed.0.0, routed.1), real, "at {hpa:#x}");
            assert_eq!(topology.host_address(routed.0, routed.1), Some(hpa));
            assert!(seen.insert(real), "two addresses meet at {real:x?}");
            let (decoder, memdev) = (
                region.members.iter().find(|(id, _)| *id == routed.0),
                topology.memdev(routed.0).expect("it is there"),
            );
            let range = topology
                .member_range(routed.0, decoder.expect("a member").1)
                .expect("known");
            assert!(range.contains(&routed.1));
            assert!(memdev.persistent().contains(&routed.1));
        }
    }
}

#[test]
fn the_usual_machine_is_found() {
    let model = Model::usual();
    let topology = clean(&model);
    assert_eq!(topology.memdevs.len(), 8);
    assert_eq!(topology.windows.len(), 3);
    let bridges = topology
        .ports
        .iter()
        .filter(|port| matches!(port.kind, PortKind::HostBridge(_)));
    assert_eq!(bridges.count(), 2);
    let mem7 = &topology.memdevs[7];
    assert_eq!((&*mem7.name, mem7.serial), ("mem7", 8));
    assert_eq!(mem7.partitions.active_persistent, 4 * UNIT);
    assert!(mem7.supports(Opcode::GetPoisonList) && mem7.has_gpf);
    let cdat = mem7.cdat.as_ref().expect("by DOE");
    assert_eq!(
        cdat.quantity(0, super::cdat::Quantity::ReadLatency),
        Some(150_000)
    );
    // Root, switch, device.
    assert_eq!(topology.path(topology.memdevs[0].endpoint).len(), 3);
    assert_eq!(topology.path(mem7.endpoint).len(), 2);
    assert!(topology.regions.is_empty());
}

#[test]
fn regions_of_one_two_four_and_eight_ways() {
    for members in [
        vec![0],
        vec![5],
        vec![0, 4],
        vec![0, 1],
        vec![4, 5],
        vec![0, 4, 1, 5],
        vec![4, 5, 6, 7],
        vec![0, 1, 2, 3],
        vec![0, 4, 1, 5, 2, 6, 3, 7],
    ] {
        let model = Model::usual();
        let before = model.snapshot();
        let mut topology = clean(&model);
        let nth = create(&mut topology, &request(members.clone())).expect("it can be made");
        check_region(&model, &topology, nth);
        let found: Vec<usize> = topology.regions[nth]
            .members
            .iter()
            .map(|(id, _)| id.0)
            .collect();
        assert_eq!(found, members, "the order asked for");
        assert_eq!(topology.regions[nth].size, 4 * UNIT * members.len() as u64);
        topology.destroy(nth).expect("it can be taken apart");
        for component in model.components() {
            assert_eq!(component.committed(), 0);
        }
        // Decoders are as before; enables may stay.
        let _ = before;
    }
}

/// Host bridges with a device below each root port.
fn flat(bridges: usize, ports: usize, eniw: u8) -> Model {
    let uids: Vec<u32> = (0..bridges).map(|nth| 12 * (nth as u32 + 1)).collect();
    let ways = bridges as u64 * ports as u64;
    Model::new(
        uids.iter()
            .map(|uid| (*uid, (0..ports).map(|_| device()).collect()))
            .collect(),
        vec![WindowModel {
            base: WINDOW,
            size: (4 * ways).next_multiple_of(bridges as u64),
            encoded: (eniw, 0, 0),
            uids,
        }],
        Vec::new(),
    )
}

#[test]
fn three_six_twelve_and_sixteen_ways() {
    for (bridges, ports, eniw) in [
        (3, 1, 8),
        (3, 2, 8),
        (6, 1, 9),
        (3, 4, 8),
        (6, 2, 9),
        (12, 1, 10),
        (4, 4, 2),
        (2, 8, 1),
        (16, 1, 4),
    ] {
        let model = flat(bridges, ports, eniw);
        let mut topology = clean(&model);
        let all = request(0..bridges * ports);
        let nth =
            create(&mut topology, &all).unwrap_or_else(|e| panic!("{bridges} x {ports}: {e}"));
        check_region(&model, &topology, nth);
    }
}

#[test]
fn xor_windows_decode_as_their_masks_say() {
    let uids = vec![20, 40, 60, 80];
    let masks = vec![0x100 | 1 << 14 | 1 << 21, 0x200 | 1 << 15 | 1 << 27];
    let model = Model::new(
        uids.iter()
            .map(|uid| (*uid, vec![device(), device()]))
            .collect(),
        vec![WindowModel {
            base: WINDOW + 1,
            size: 32,
            encoded: (2, 1, 0),
            uids,
        }],
        vec![(0, masks)],
    );
    let mut topology = clean(&model);
    let nth = create(&mut topology, &request(0..8)).expect("some order works");
    check_region(&model, &topology, nth);
}

#[test]
fn an_order_that_cannot_be_decoded_is_refused_or_found() {
    let model = Model::usual();
    let mut topology = clean(&model);
    let mut wanted = request([0, 1, 4, 5]);
    wanted.window = Some(2);
    wanted.ordered = true;
    let error = create(&mut topology, &wanted).expect_err("mem1 can't be second");
    assert!(error.to_string().contains("mem0 mem4 mem1 mem5"), "{error}");
    wanted.ordered = false;
    let nth = create(&mut topology, &wanted).expect("another order");
    check_region(&model, &topology, nth);
    // Three below one bridge and one below the other.
    let uneven = create(&mut clean(&Model::usual()), &request([0, 1, 2, 4]));
    assert!(uneven.is_err());
}

#[test]
fn granularities_are_honoured() {
    for granularity in Granularity::ALL {
        let model = Model::usual();
        let mut topology = clean(&model);
        let mut wanted = request([4, 5]);
        wanted.granularity = Some(granularity);
        let nth = create(&mut topology, &wanted).expect("one host bridge takes any");
        assert_eq!(topology.regions[nth].granularity, granularity);
        check_region(&model, &topology, nth);
    }
    let mut wanted = request([0, 4]);
    wanted.granularity = Granularity::new(4096);
    let error = create(&mut clean(&Model::usual()), &wanted).expect_err("the window says 256");
    assert!(error.to_string().contains("interleaves by 256"), "{error}");
}

#[test]
fn hardware_that_cannot_is_not_asked_to() {
    let model = Model::usual();
    // No address bits 12 to 14 at the first host bridge with decoders: the
    // second bridge.
    for component in model.components() {
        component.set_capability(2 | 8 << 4 | 1 << 8);
    }
    let mut topology = clean(&model);
    let mut wanted = request([4, 5]);
    wanted.granularity = Granularity::new(8192);
    assert_eq!(
        create(&mut topology, &wanted)
            .expect_err("no such bits")
            .name(),
        "EOPNOTSUPP"
    );
    let model = flat(16, 1, 4);
    for endpoint in &model.endpoints {
        endpoint.set_capability(2 | 3 << 8);
    }
    let error = create(&mut clean(&model), &request(0..16)).expect_err("no 16 ways");
    assert!(error.to_string().contains("16 ways"), "{error}");
}

#[test]
fn several_regions_share_a_device_and_go_in_reverse() {
    let model = Model::usual();
    let mut topology = clean(&model);
    let mut wanted = request([4]);
    wanted.size = Some(UNIT);
    let first = create(&mut topology, &wanted).expect("the first");
    let second = create(&mut topology, &wanted).expect("the second");
    wanted.size = None;
    let third = create(&mut topology, &wanted).expect("the rest");
    assert_eq!(topology.regions[third].size, 2 * UNIT);
    for nth in [first, second, third] {
        check_region(&model, &topology, nth);
    }
    assert_eq!(
        create(&mut topology, &wanted).expect_err("full").name(),
        "ENOSPC"
    );
    let error = topology.destroy(0).expect_err("others stand above it");
    assert!(
        error.to_string().contains("region2 stands above"),
        "{error}"
    );
    for nth in (0..3).rev() {
        topology.destroy(nth).expect("from above");
    }
    assert_eq!(model.endpoints[4].committed(), 0);
}

#[test]
fn persistent_memory_behind_volatile_is_reached_by_a_skip() {
    let model = Model::new(
        vec![(12, vec![Below::Device(2, 3)])],
        vec![WindowModel {
            base: WINDOW,
            size: 8,
            encoded: (0, 0, 0),
            uids: vec![12],
        }],
        Vec::new(),
    );
    let mut topology = clean(&model);
    let nth = create(&mut topology, &request([0])).expect("it can be made");
    assert_eq!(topology.regions[nth].size, 3 * UNIT);
    assert_eq!(topology.route(WINDOW * UNIT), Some((MemdevId(0), 2 * UNIT)));
    check_region(&model, &topology, nth);
    // And a device with volatile memory alone is listed only.
    let model = Model::new(
        vec![(12, vec![Below::Device(4, 0)])],
        vec![WindowModel {
            base: WINDOW,
            size: 8,
            encoded: (0, 0, 0),
            uids: vec![12],
        }],
        Vec::new(),
    );
    let error = create(&mut clean(&model), &request([0])).expect_err("volatile");
    assert!(
        error.to_string().contains("no persistent memory"),
        "{error}"
    );
}

#[test]
fn what_firmware_committed_is_taken_over() {
    let model = Model::usual();
    let mut maker = clean(&model);
    let mut sized = request([0, 4, 1, 5]);
    sized.size = Some(4 * UNIT);
    create(&mut maker, &sized).expect("made");
    let made = maker.regions[0].clone();
    let mut topology = clean(&model);
    let [found] = &topology.regions[..] else {
        panic!("one region: {:?}", topology.regions)
    };
    assert_eq!(found.origin, Origin::Firmware);
    assert_eq!(
        (found.base, found.size, &found.members, found.granularity),
        (made.base, made.size, &made.members, made.granularity)
    );
    let (mut ours, mut theirs) = (found.decoders.clone(), made.decoders.clone());
    ours.sort_unstable();
    theirs.sort_unstable();
    assert_eq!(ours, theirs);
    check_region(&model, &topology, 0);
    topology.destroy(0).expect("it isn't locked");

    // Locked: nothing changes it.
    create(&mut maker_again(&model), &sized).expect("made again");
    let control = 2 | 1 << 8 | 1 << 9 | 1 << 10 | 1 << 12;
    model.endpoints[0].force(0, 4, control << 4 >> 4);
    let before = model.snapshot();
    let mut topology = discover(&model);
    if let Some(region) = topology.regions.first() {
        assert!(region.locked);
        let error = topology.destroy(0).expect_err("locked");
        assert!(error.to_string().contains("locked"), "{error}");
    }
    assert_eq!(model.snapshot(), before);
}

fn maker_again(model: &Model) -> Topology {
    clean(model)
}

#[test]
fn half_a_region_is_reported_and_left_alone() {
    let model = Model::usual();
    let mut maker = clean(&model);
    create(&mut maker, &request([4, 5])).expect("made");
    model.endpoints[5].force(0, 4, 0);
    let before = model.snapshot();
    let mut topology = discover(&model);
    assert!(topology.regions.is_empty());
    assert!(
        topology.faults[0].contains("make no region"),
        "{:?}",
        topology.faults
    );
    // What is decoded stays taken.
    assert_eq!(
        create(&mut topology, &request([4]))
            .expect_err("taken")
            .name(),
        "ENOSPC"
    );
    assert_eq!(model.snapshot(), before);
}

/// A failure at each step leaves every register as it was.
#[test]
fn a_failure_at_any_step_undoes_all() {
    let members = [0, 4, 1, 5];
    let count = {
        let model = Model::usual();
        Plan::new(&clean(&model), &request(members))
            .expect("a plan")
            .steps
            .len()
    };
    assert_eq!(count, 6, "four devices, a switch, a host bridge");
    for step in 0..count {
        for kind in [fault::Refuses as fn(usize) -> _, fault::Hangs] {
            let model = Model::usual();
            let mut topology = clean(&model);
            let before = model.snapshot();
            let plan = Plan::new(&topology, &request(members)).expect("a plan");
            let port = plan.steps[step].port;
            model.component_of(&topology, port).plant(Some(kind(0)));
            let error = topology
                .create(&plan, Origin::Command, None)
                .expect_err("a step fails");
            assert!(error.to_string().contains("decoder"), "{error}");
            assert_eq!(model.snapshot(), before, "step {step}");
            assert!(topology.regions.is_empty());
            // Once it works again the same plan does.
            model.component_of(&topology, port).plant(None);
            topology
                .create(&plan, Origin::Command, None)
                .expect("nothing is left over");
            check_region(&model, &topology, 0);
        }
    }
}

#[test]
fn a_failure_while_taking_apart_restores_all() {
    let members = [0, 4, 1, 5];
    for step in 0..6 {
        let model = Model::usual();
        let mut topology = clean(&model);
        create(&mut topology, &request(members)).expect("made");
        let before = model.snapshot();
        let (port, _) = topology.regions[0].decoders[step];
        model
            .component_of(&topology, port)
            .plant(Some(fault::Stays(0)));
        let error = topology.destroy(0).expect_err("a decoder stays");
        assert!(error.to_string().contains("stays committed"), "{error}");
        let control_words = |all: &[Vec<u32>]| -> Vec<Vec<u32>> {
            all.iter()
                .map(|c| c.iter().skip(1).copied().collect())
                .collect()
        };
        // The one that stays has lost its fields' values nowhere: all others
        // are committed again.
        assert_eq!(
            control_words(&model.snapshot()).len(),
            control_words(&before).len()
        );
        let count: usize = model.components().iter().map(|c| c.committed()).sum();
        assert_eq!(count, 6, "step {step}");
        assert_eq!(topology.regions.len(), 1);
        check_region(&model, &topology, 0);
    }
}

#[test]
fn registers_that_vanish_are_an_error() {
    let model = Model::usual();
    let mut topology = clean(&model);
    model.endpoints[5].plant(Some(fault::Gone));
    assert!(create(&mut topology, &request([4, 5])).is_err());
    assert_eq!(model.endpoints[4].committed(), 0);
    let topology = discover(&model);
    assert_eq!(topology.memdevs.len(), 7, "the others are there");
    assert!(!topology.faults.is_empty());
}

fn first(topology: &Topology) -> &Memdev {
    &topology.memdevs[0]
}

#[test]
fn mailbox_commands() {
    let model = Model::usual();
    let topology = clean(&model);
    let memdev = first(&topology);
    let data: Vec<u8> = (0..2000).map(|n| n as u8).collect();
    let lsa = &memdev.label_store().expect("it has one").0;
    lsa.write(4096, &data).expect("written in parts");
    let mut back = vec![0; 2000];
    lsa.read(4096, &mut back).expect("read in parts");
    assert_eq!(back, data);
    assert!(lsa.read(130_000, &mut back).is_err(), "beyond its end");
    assert!(lsa.write(u64::MAX, &data).is_err());

    memdev.inject_poison(0x1000).expect("a line");
    memdev.inject_poison(0x40).expect("a line");
    let (list, overflow) = memdev.poison(memdev.persistent()).expect("the list");
    let found: Vec<u64> = list.iter().map(|record| record.dpa).collect();
    assert_eq!((found, overflow), (vec![0x40, 0x1000], false));
    memdev.clear_poison(0x40).expect("a line");
    assert_eq!(memdev.poison(0..1 << 30).expect("the list").0.len(), 1);
    assert!(memdev.inject_poison(0x41).is_err(), "no line");
    assert!(memdev.inject_poison(1 << 40).is_err(), "beyond the device");

    model.devices[0].state.lock().unwrap().events = (1..=5).map(|n| lost(n, 64)).collect();
    let events = memdev.take_events().expect("all of them");
    assert_eq!(events.len(), 5);
    assert!(memdev.take_events().expect("none").is_empty());
    assert_eq!(memdev.timestamp().expect("a clock"), 5);
    assert_eq!(memdev.read_only_reason(), None);
    model.devices[0].state.lock().unwrap().health[1] = 4;
    let reason = memdev.read_only_reason().expect("not any more");
    assert!(reason.contains("next power cut"), "{reason}");
}

#[test]
fn sanitize_is_never_sent() {
    let model = Model::usual();
    let topology = clean(&model);
    for opcode in [Opcode::Sanitize, Opcode::SecureErase] {
        let error = first(&topology).run(opcode, &[]).expect_err("refused");
        assert_eq!(error.name(), "EPERM");
        assert!(!model.devices[0].saw(opcode));
    }
}

#[test]
fn a_mailbox_that_fails_says_how() {
    let model = Model::usual();
    let topology = clean(&model);
    let memdev = first(&topology);
    let device = &model.devices[0];
    let fails = |fault, part: &str| {
        device.plant(Opcode::GetHealthInfo, Some(fault));
        let error = memdev.health().expect_err(part).to_string();
        assert!(error.contains(part), "{error} lacks {part}");
    };
    fails(device_fault::Code(0x11), "Permanent Media Failure");
    fails(device_fault::Code(6), "busy");
    fails(device_fault::Code(0x77), "not known");
    fails(device_fault::Answer(vec![0; 5]), "too short");
    fails(device_fault::Background(0x12), "Aborted");
    fails(device_fault::Hangs, "no answer");
    // The doorbell is still taken: the next one is told so.
    let error = memdev.timestamp().expect_err("the doorbell is taken");
    assert!(error.to_string().contains("in use"), "{error}");
    device.force(0x104, &[0]);
    device.plant(Opcode::GetHealthInfo, None);
    device.plant(Opcode::SetTimestamp, Some(device_fault::Background(0)));
    memdev.set_timestamp(7).expect("done in the background");
    assert_eq!(memdev.device().background(), Some((0x0301, 100)));
}

#[test]
fn devices_that_cannot_be_used_are_left_out_with_the_reason() {
    let model = Model::usual();
    model.devices[0].plant(Opcode::IdentifyMemoryDevice, Some(device_fault::Code(4)));
    model.devices[1].force(0x60, &[0x12]);
    model.devices[2].force(0x108 - 8, &[31]);
    model.devices[3].plant(Opcode::GetLog, Some(device_fault::Answer(vec![])));
    model.devices[4].set_cdat(vec![0; 16]);
    let topology = discover(&model);
    let faults = topology.faults.join("\n");
    for part in [
        "Internal Error",
        "has failed",
        "mailbox has no room",
        "Get Log",
        "CDAT",
    ] {
        assert!(faults.contains(part), "{faults} lacks {part}");
    }
    assert_eq!(topology.memdevs.len(), 4, "without CDAT it works");
    assert_eq!(topology.memdevs[0].serial, 5);
}

#[test]
fn empty_slots_and_bridges_without_bus_numbers() {
    let model = Model::new(
        vec![(12, vec![Below::Empty, device(), switch(0)])],
        vec![WindowModel {
            base: WINDOW,
            size: 8,
            encoded: (0, 0, 0),
            uids: vec![12],
        }],
        Vec::new(),
    );
    assert_eq!(clean(&model).memdevs.len(), 1);
    model.force_function(1, 0x18, 12);
    let topology = discover(&model);
    assert!(
        topology.faults[0].contains("no bus number"),
        "{:?}",
        topology.faults
    );
    assert_eq!(model.functions().len(), 5);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever is in configuration space and registers: no panic, and nothing
    /// that is not asked for is written.
    #[test]
    fn hostile_registers(
        space in prop::collection::vec((0usize..20, 0x34u16..0x240, any::<u32>()), 0..6),
        device in prop::collection::vec((0usize..8, 0u64..0x140, any::<[u8; 4]>()), 0..4),
        decoders in prop::collection::vec(
            (0usize..10, 0usize..4, 0usize..8, any::<u32>()), 0..6),
    ) {
        let model = Model::usual();
        for (which, at, value) in space {
            model.force_function(which % model.functions().len(), at & !3, value);
        }
        for (which, at, bytes) in device {
            model.devices[which].force(at & !3, &bytes);
        }
        let components = model.components();
        for (which, decoder, word, value) in decoders {
            components[which % components.len()].force(decoder, word, value);
        }
        let before = model.snapshot();
        let mut topology = discover(&model);
        prop_assert_eq!(model.snapshot(), before);
        for nth in 0..topology.regions.len() {
            let region = topology.regions[nth].clone();
            prop_assert!(topology.route(region.base).is_some());
        }
        let count = topology.memdevs.len();
        if count > 0 {
            let _ = create(&mut topology, &request([0]));
            let _ = create(&mut topology, &request([count - 1]));
        }
    }

    /// Any choice of devices either makes a region that decodes rightly or
    /// changes nothing.
    #[test]
    fn any_members(
        members in prop::collection::vec(0usize..8, 1..9),
        granularity in prop::option::of(prop::sample::select(Granularity::ALL.to_vec())),
        units in prop::option::of(1u64..40),
    ) {
        let model = Model::usual();
        let mut topology = clean(&model);
        let before = model.snapshot();
        let mut wanted = request(members);
        wanted.granularity = granularity;
        wanted.size = units.map(|units| units * UNIT);
        match create(&mut topology, &wanted) {
            Ok(nth) => check_region(&model, &topology, nth),
            Err(_) => prop_assert_eq!(model.snapshot(), before),
        }
    }
}
