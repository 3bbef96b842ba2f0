//! Firmware tables that lie, and devices that warn.

use quire_tests::{Arch, Lab, tree::Numbers};

/// A SPA range structure (type 0) of the NFIT that describes nothing.
fn spa_range() -> Vec<u8> {
    let mut bytes = vec![0; 56];
    bytes[2] = 56;
    bytes[4] = 1;
    bytes
}

/// Boots with this body as the NFIT: reserved bytes, then structures.
fn boots_with(name: &str, body: &[u8]) {
    let lab = Lab::new(name);
    let file = lab.path("nfit");
    std::fs::write(&file, body).expect("the table");
    lab.quire(Arch::X86_64)
        .args(["--no-pmem", "--qemu-arg", "-acpitable", "--qemu-arg"])
        .arg(format!("sig=NFIT,rev=1,data={}", file.display()))
        .exec("pmem list; echo alive")
        .ok();
}

#[test]
fn an_nfit_of_random_bytes_does_no_harm() {
    boots_with("nfit-random", &Numbers::new(1).bytes(300));
}

#[test]
fn an_nfit_with_a_structure_without_length_ends() {
    let mut body = vec![0; 4];
    body.extend(spa_range());
    // Type 1, length 0: a reader that adds it up never gets on.
    body.extend([1, 0, 0, 0]);
    boots_with("nfit-zero", &body);
}

#[test]
fn a_truncated_nfit_is_survived() {
    let mut body = vec![0; 4];
    body.extend(spa_range());
    body.truncate(30);
    boots_with("nfit-short", &body);
}

#[test]
fn an_nfit_range_over_ram_is_not_taken() {
    let mut body = vec![0; 4];
    let mut spa = spa_range();
    // The GUID of persistent memory, and a range where the kernel itself is.
    spa[16..32].copy_from_slice(&[
        0x79, 0xd3, 0xf0, 0x66, 0xf3, 0xb4, 0x74, 0x40, 0xac, 0x43, 0x0d, 0x33, 0x18, 0xb7, 0x8c,
        0xdb,
    ]);
    spa[32..40].copy_from_slice(&0x10_0000u64.to_le_bytes());
    spa[40..48].copy_from_slice(&0x1000_0000u64.to_le_bytes());
    body.extend(spa);
    boots_with("nfit-ram", &body);
}

#[test]
fn an_unarmed_nvdimm_is_not_written() {
    let lab = Lab::new("unarmed");
    let image = lab.path("fs.img");
    quire_tests::tools::mkfs(&image, 32 << 20, ["-L", "unarmed"]);
    let before = std::fs::read(&image).expect("the image");
    lab.quire(Arch::X86_64)
        .arg("--nvdimm")
        .arg(format!("{},unarmed", image.display()))
        .exec("mount -o rw pmem0 /m")
        .says("error: mount:");
    let after = std::fs::read(&image).expect("the image");
    assert!(before == after, "an unarmed device was written to");
}
