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

/// Boots with this code as an SSDT beside QEMU's own, and an NVDIMM, for which
/// the firmware's code is run.
fn boots_with_code(name: &str, code: &[u8]) -> quire_tests::Output {
    let lab = Lab::new(name);
    let file = lab.path("ssdt");
    std::fs::write(&file, code).expect("the table");
    lab.quire(Arch::X86_64)
        .own_state()
        .args(["--qemu-arg", "-acpitable", "--qemu-arg"])
        .arg(format!("sig=SSDT,rev=2,data={}", file.display()))
        .exec("pmem list; echo alive")
        .ok()
}

/// Code that nests without end is stopped before the stack is: expressions,
/// a method that calls itself, and both.
#[test]
fn firmware_code_that_nests_is_an_error() {
    // Store (Add (Add (… One …, One), One), Debug)
    let depth = 3000;
    let mut sum = vec![0x72; depth];
    sum.push(1);
    sum.extend([1, 0].repeat(depth));
    let mut code = vec![0x70];
    code.extend(&sum);
    code.extend([0x5b, 0x31]);
    // Method (RECU) { Return (Add (RECU (), One)) }, and a call.
    code.extend([0x14, 0x0e]);
    code.extend(b"RECU\0");
    code.extend([0xa4, 0x72]);
    code.extend(b"RECU");
    code.extend([1, 0]);
    code.extend(b"RECU");
    let output = boots_with_code("ssdt-nested", &code)
        .says("nested too deep")
        .says("stack-left=");
    let text = output.text();
    assert!(text.contains("region0") && text.contains("alive"), "{text}");
}

#[test]
fn firmware_code_of_random_bytes_does_no_harm() {
    boots_with_code("ssdt-random", &Numbers::new(7).bytes(2000));
}
