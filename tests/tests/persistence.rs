//! Files are there after a restart, and e2fsck agrees.

use quire_tests::{Arch, Lab, tools};

/// What the README promises, on the default device.
fn default_device(first: Arch, second: Arch) {
    let lab = Lab::new("default");
    let image = lab.path("state/nvdimm0.img");
    lab.quire(first)
        .own_state()
        .exec("mkdir /pmem0/d; echo hello > /pmem0/d/f; cat /pmem0/d/f")
        .ok()
        .printed("hello\n");
    tools::assert_clean(&image);
    lab.quire(second)
        .own_state()
        .exec("cat /pmem0/d/f; echo again >> /pmem0/d/f; ls /pmem0/d")
        .ok()
        .printed("hello\nf\n");
    tools::assert_clean(&image);
    assert_eq!(tools::read_file(&image, "/d/f"), b"hello\nagain\n");
}

#[test]
fn x86_64_keeps_files() {
    default_device(Arch::X86_64, Arch::X86_64);
}

#[test]
fn aarch64_keeps_files() {
    default_device(Arch::Aarch64, Arch::Aarch64);
}

#[test]
fn one_architecture_reads_what_the_other_wrote() {
    default_device(Arch::X86_64, Arch::Aarch64);
}

#[test]
fn named_devices_are_neither_formatted_nor_mounted() {
    let lab = Lab::new("named");
    let image = lab.path("blank.img");
    lab.quire(Arch::X86_64)
        .arg("--nvdimm")
        .arg(format!("{},size=64M", image.display()))
        .exec("mount; ls /")
        .ok();
    let bytes = std::fs::read(&image).expect("the image");
    assert_eq!(bytes.len(), 64 << 20);
    assert!(bytes.iter().all(|b| *b == 0), "the device was written to");
}

#[test]
fn the_default_device_is_for_one_at_a_time() {
    let lab = Lab::new("lock");
    let image = lab.path("held.img");
    let file = std::fs::File::create(&image).expect("create");
    file.set_len(16 << 20).expect("size");
    file.lock().expect("lock");
    lab.quire(Arch::X86_64)
        .arg("--nvdimm")
        .arg(&image)
        .exec("echo")
        .status(67)
        .says("in use by another Quire");
}
