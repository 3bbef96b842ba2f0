//! Labels and namespaces on both architectures.

use quire_tests::{Arch, Lab};

/// A namespace of each mode is made, and is there after a restart as it was.
fn namespaces_are_there_after_a_restart(arch: Arch) {
    let lab = Lab::new("namespaces");
    let media = lab.path("media.img");
    let start = |commands: &str| {
        let device = format!("{},size=384M,label=128K", media.display());
        let output = lab.quire(arch).arg("--nvdimm").arg(device).exec(commands);
        output.ok().text()
    };
    let list = "echo LIST; pmem list --json";
    let made = start(&format!(
        "pmem label init nmem0; pmem create -s 64M -n files; pmem create -s 64M -m devdax; \
         pmem create -s 32M -m sector; pmem create -s 32M -m raw; pmem label check; \
         mkfs.ext4 pmem0; mount -o rw pmem0 /d; echo kept > /d/f; umount /d; {list}"
    ));
    let again = start(&format!("mount pmem0 /d; cat /d/f; umount /d; {list}"));
    let listed = |text: &str| -> String {
        let (_, list) = text.split_once("LIST\n").expect("the list");
        list.into()
    };
    assert_eq!(listed(&made), listed(&again));
    assert!(again.contains("kept\n"), "{again}");
    for mode in ["fsdax", "devdax", "sector", "raw"] {
        let part = format!("\"mode\":\"{mode}\"");
        assert!(again.contains(&part), "{part} missing in {again}");
    }
    // What is renamed and deleted stays so.
    start("pmem destroy dax0.1 --force; pmem rename pmem0 other");
    let last = start(list);
    assert!(
        last.contains("\"name\":\"other\"") && !last.contains("devdax"),
        "{last}"
    );
}

#[test]
fn x86_64_namespaces_are_there_after_a_restart() {
    namespaces_are_there_after_a_restart(Arch::X86_64);
}

#[test]
fn aarch64_namespaces_are_there_after_a_restart() {
    namespaces_are_there_after_a_restart(Arch::Aarch64);
}
