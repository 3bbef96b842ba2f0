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

/// Sixteen NVDIMMs of 1 TiB, and two CXL host bridges where QEMU has them: all
/// of it is found and listed within a second. Instructions are counted, one a
/// nanosecond, so this machine's load does not matter; it is the whole life of
/// the kernel that is measured, from its first instruction to the power-off.
fn a_large_machine_is_listed_within_a_second(arch: Arch) {
    let lab = Lab::new("large");
    let mut start = lab.quire(arch).arg("--icount");
    for nth in 0..16 {
        let media = lab.path(&format!("nvdimm{nth}.img"));
        start = start
            .arg("--nvdimm")
            .arg(format!("{},size=1T,label=128K", media.display()));
    }
    let (bridges, commands) = match arch {
        Arch::X86_64 => (2, "pmem list; cxl list"),
        Arch::Aarch64 => (0, "pmem list"),
    };
    for nth in 0..bridges {
        let media = lab.path(&format!("cxl{nth}.img"));
        start = start
            .arg("--cxl")
            .arg(format!("{},size=256M", media.display()));
    }
    // The firmware maps 64 TiB first; that takes a while, of its own time.
    let output = start
        .args(["--timeout", "1800", "--exec", commands])
        .run()
        .ok();
    let text = output.text();
    let names: Vec<&str> = text.lines().filter_map(|l| l.split(' ').next()).collect();
    for nth in 0..16 + bridges {
        let name = format!("pmem{nth}");
        assert!(names.contains(&&*name), "{name} missing in\n{text}");
    }
    let count = 16 + bridges;
    let output = output.says(&format!(
        "pmem: dimms={count} regions={count} namespaces={count} ns="
    ));
    let (before, _) = output.stderr.split_once("] power: off").expect("the end");
    let (_, stamp) = before.rsplit_once('[').expect("a time");
    let seconds: f64 = stamp.trim().parse().expect("seconds");
    eprintln!("{arch:?}: {count} devices listed, {seconds} s of kernel time");
    assert!(seconds > 0.0 && seconds < 1.0, "{seconds} s");
}

#[test]
fn x86_64_large_machine_is_listed_within_a_second() {
    a_large_machine_is_listed_within_a_second(Arch::X86_64);
}

#[test]
fn aarch64_large_machine_is_listed_within_a_second() {
    a_large_machine_is_listed_within_a_second(Arch::Aarch64);
}
