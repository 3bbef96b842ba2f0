//! Device-dax namespaces on both architectures: leaves of just the alignment,
//! up to a gigabyte.

use quire_tests::{Arch, Lab};

fn leaves(arch: Arch) {
    let lab = Lab::new("devdax");
    let image = lab.path("pmem.img");
    // Three namespaces, one of each alignment; only what is touched takes room.
    let output = lab
        .quire(arch)
        .args([
            "--nvdimm",
            &format!("{},size=6G,label=128K", image.display()),
        ])
        .exec(
            "pmem label init nmem0; pmem create -s 3G -m devdax -a 1G; \
             pmem create -s 64M -m devdax -a 2M; pmem create -s 64M -m devdax -a 4K; daxctl; \
             map -p dax0.0 0 1G; map -p dax0.1 0 8M; map -p dax0.2 0 8M; dax stat --json; unmap",
        )
        .ok();
    let text = output.text();
    for part in [" 1 leaves\n", " 4 leaves\n", " 2048 leaves\n"] {
        assert!(text.contains(part), "{part} missing in\n{text}");
    }
    let line = text.lines().rfind(|line| line.starts_with("{\"faults"));
    let stat: serde_json::Value =
        serde_json::from_str(line.expect("counters")).expect("a JSON document");
    assert_eq!(stat["faults_1g"], 1, "{text}");
    assert_eq!(stat["faults_2m"], 4, "{text}");
}

#[test]
fn x86_64_maps_devices_by_their_alignment() {
    leaves(Arch::X86_64);
}

#[test]
fn aarch64_maps_devices_by_their_alignment() {
    leaves(Arch::Aarch64);
}
