//! Tests of labels, of what is up after a start, and of listings.

use super::label;
use super::list::Select;
use super::memdev::MemdevId;
use super::model::{Model, UNIT};
use super::plan::{Plan, Request};
use super::region::{CxlRegion, Origin};
use super::service;
use super::topology::Topology;
use crate::error::Result;
use crate::pmem::describe::Object;

fn request(members: &[usize]) -> Request {
    Request {
        members: members.iter().map(|nth| MemdevId(*nth)).collect(),
        size: Some(UNIT * members.len() as u64),
        ..Request::default()
    }
}

/// A start of the machine, with decoders as after a reset.
fn start(model: &Model, word: Option<&str>) -> Topology {
    model.reset();
    service::start(&model.cedt, word, model)
}

fn labelled(topology: &mut Topology, members: &[usize]) -> Result<usize> {
    let plan = Plan::new(topology, &request(members))?;
    label::check(topology, &plan.members)?;
    let nth = topology.create(&plan, Origin::Command, None)?;
    label::write(topology, nth)?;
    Ok(nth)
}

fn shape(region: &CxlRegion) -> (u64, u64, Vec<usize>, Option<crate::pmem::label::Uuid>) {
    let members = region.members.iter().map(|(id, _)| id.0).collect();
    (region.base, region.size, members, region.uuid)
}

#[test]
fn labelled_regions_are_there_after_a_restart() {
    let model = Model::usual();
    let mut topology = start(&model, None);
    // In order of addresses: the windows of one bridge, then that of both.
    for members in [&[6][..], &[7, 6], &[0, 4, 1, 5]] {
        labelled(&mut topology, members).expect("made");
    }
    let before: Vec<_> = topology.regions.iter().map(shape).collect();
    for word in [None, Some("create:1+5")] {
        let again = start(&model, word);
        assert_eq!(again.faults, Vec::<String>::new());
        let mut after: Vec<_> = again.regions.iter().map(shape).collect();
        after.sort();
        let mut expected = before.clone();
        expected.sort();
        assert_eq!(after, expected);
        assert!(again.regions.iter().all(|r| r.origin == Origin::Labels));
    }
    // Firmware that commits them first finds its regions named.
    let again = service::start(&model.cedt, None, &model);
    assert_eq!(again.regions.len(), 3);
    assert!(again.regions.iter().all(|r| r.uuid.is_some()));
    // Gone is gone.
    let mut again = start(&model, None);
    while let Some(nth) = again.regions.len().checked_sub(1) {
        label::erase(&mut again, nth).expect("erased");
        again.destroy(nth).expect("destroyed");
    }
    assert_eq!(start(&model, None).regions, []);
}

#[test]
fn a_set_that_lacks_a_device_is_kept_and_told() {
    let model = Model::usual();
    let mut topology = start(&model, None);
    labelled(&mut topology, &[4, 5]).expect("made");
    // Device 5 comes back with an empty area.
    model.devices[5].state.lock().unwrap().lsa.fill(0);
    let mut topology = start(&model, Some("create"));
    assert!(topology.faults[0].contains("1 of 2 devices are here"));
    let of_four = |r: &CxlRegion| r.members.iter().any(|(id, _)| id.0 == 4);
    assert!(
        !topology.regions.iter().any(of_four),
        "it is somebody's data"
    );
    let error = labelled(&mut topology, &[4]).expect_err("kept").to_string();
    assert!(error.contains("zero-labels mem4"), "{error}");
    label::zero(&topology, MemdevId(4)).expect("given up");
    labelled(&mut topology, &[4]).expect("free again");
    assert!(label::zero(&topology, MemdevId(4)).is_err(), "in use");
}

/// A power cut at each write of labels, on any of the devices: afterwards the
/// region is there or it isn't, and what was never finished is no obstacle.
#[test]
fn a_cut_while_a_set_is_labelled() {
    for writes in 0..14 {
        for device in [4, 5] {
            let model = Model::usual();
            let mut topology = start(&model, None);
            let limit = |left| model.devices[device].state.lock().unwrap().lsa_writes = left;
            limit(Some(writes));
            let made = labelled(&mut topology, &[4, 5]).is_ok();
            limit(None);
            let mut again = start(&model, None);
            match again.regions.len() {
                0 => {
                    assert!(!made);
                    labelled(&mut again, &[4, 5]).expect("nothing is in the way");
                    assert_eq!(start(&model, None).regions.len(), 1);
                }
                1 => assert_eq!(shape(&again.regions[0]).2, [4, 5]),
                more => panic!("{more} regions"),
            }
        }
    }
}

#[test]
fn a_cut_while_labels_go() {
    for writes in 0..6 {
        let model = Model::usual();
        let mut topology = start(&model, None);
        labelled(&mut topology, &[4, 5]).expect("made");
        let limit = |left| model.devices[5].state.lock().unwrap().lsa_writes = left;
        limit(Some(writes));
        let gone = label::erase(&mut topology, 0).is_ok();
        limit(None);
        let mut again = start(&model, None);
        match again.regions.len() {
            0 => {
                labelled(&mut again, &[4, 5]).expect("nothing is in the way");
            }
            _ => assert!(!gone && shape(&again.regions[0]).2 == [4, 5]),
        }
    }
}

#[test]
fn the_command_line_makes_regions_without_writing() {
    let model = Model::usual();
    let topology = start(&model, Some("create:1+5,6"));
    let shapes: Vec<_> = topology.regions.iter().map(|r| shape(r).2).collect();
    assert_eq!(shapes, [vec![5], vec![0, 4]]);
    assert!(
        topology
            .regions
            .iter()
            .all(|r| r.origin == Origin::CommandLine)
    );
    assert!(
        model
            .devices
            .iter()
            .all(|d| d.state.lock().unwrap().lsa.iter().all(|b| *b == 0))
    );
    assert_eq!(start(&model, Some("create")).regions.len(), 8, "one each");
    for bad in ["make", "create:1+99", "create:x", "createx", "create:"] {
        assert_eq!(start(&model, Some(bad)).regions, [], "{bad}");
    }
}

fn keys(object: &Object) -> Vec<&str> {
    object.0.iter().map(|(key, _)| &**key).collect()
}

#[test]
fn listings_have_linuxs_keys_and_nesting() {
    let model = Model::usual();
    let mut topology = start(&model, None);
    labelled(&mut topology, &[0, 4, 1, 5]).expect("made");
    let memdevs = topology.list(Select::default().or_memdevs());
    assert_eq!(memdevs.len(), 8);
    assert_eq!(
        keys(&memdevs[0]),
        ["memdev", "pmem_size", "serial", "host", "firmware_version"]
    );
    let regions = Select {
        regions: true,
        targets: true,
        ..Select::default()
    };
    let regions = topology.list(regions.or_memdevs());
    assert_eq!(
        keys(&regions[0]),
        [
            "region",
            "resource",
            "size",
            "type",
            "interleave_ways",
            "interleave_granularity",
            "decode_state",
            "uuid",
            "origin",
            "mappings"
        ]
    );
    let all = topology.list(Select::default().everything());
    let text = all[0].to_string();
    for part in [
        "{\"bus\":\"root0\",\"provider\":\"ACPI.CXL\",\"nr_dports\":2,\"dports\":[",
        "\"ports:root0\":[{\"port\":\"port1\",\"host\":\"pci0000:0c\",\"depth\":1,",
        "\"ports:port1\":[{\"port\":\"port2\",",
        "\"endpoints:port2\":[{\"endpoint\":\"endpoint3\",\"host\":\"mem0\",\"parent_dport\":",
        "\"decoders:endpoint3\":[{\"decoder\":\"decoder3.0\",\"resource\":",
        "\"dpa_resource\":\"0x0\",\"dpa_size\":268435456,\"mode\":\"pmem\"}",
        "\"decoders:root0\":[{\"decoder\":\"decoder0.0\",",
        // It has one way down and no registers for it.
        "\"decoders:port1\":[{\"decoder\":\"decoder1.0\",\"resource\":\"0x",
        "\"interleave_ways\":1,\"region\":\"region0\",\"nr_targets\":1,\"targets\":[{",
        "\"regions:decoder0.2\":[{\"region\":\"region0\",",
        "\"mappings\":[{\"position\":0,\"memdev\":\"mem0\",\"decoder\":\"decoder3.0\"}",
        "\"health\":{\"maintenance_needed\":false,",
    ] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    let several = Select {
        memdevs: true,
        regions: true,
        ..Select::default()
    };
    let several = topology.list(several.or_memdevs());
    assert_eq!(
        (keys(&several[0]), keys(&several[1])),
        (vec!["memdevs"], vec!["regions"])
    );
    let human = Select {
        human: true,
        ..Select::default()
    };
    let text = topology.list(human.or_memdevs())[0].to_string();
    assert!(
        text.contains("\"pmem_size\":\"1.00 GiB (1.07 GB)\",\"serial\":\"0x1\""),
        "{text}"
    );
}

#[test]
fn what_devices_lose_is_listed_by_host_address() {
    let model = Model::usual();
    let mut topology = start(&model, None);
    labelled(&mut topology, &[4, 5]).expect("made");
    topology.inject_poison(MemdevId(5), 0x1000).expect("a line");
    let errors = Select {
        media_errors: true,
        ..Select::default()
    };
    let text = topology.list(errors.or_memdevs())[5].to_string();
    let hpa = topology
        .host_address(MemdevId(5), 0x1000)
        .expect("in a region");
    assert_eq!(model.access(hpa), Some((5, 0x1000)));
    let expected = format!(
        "[{{\"dpa\":\"0x1000\",\"hpa\":\"{hpa:#x}\",\"length\":64,\"source\":\"Injected\"}}]"
    );
    assert!(text.contains(&expected), "{text}");
    topology.clear_poison(MemdevId(5), 0x1000).expect("a line");
    assert!(
        topology.list(errors.or_memdevs())[5]
            .to_string()
            .contains("\"media_errors\":[]")
    );
}
