//! Persistent memory that the firmware's own maps alone tell of: the EFI memory
//! map, and a device tree.
//!
//! QEMU's firmware has neither, so the loader is told to add to what it hands on
//! (`efi_memory`, `dtb_path`). The memory is there: a DIMM that QEMU's firmware
//! does not count as RAM, backed by a file.

use quire_tests::{Arch, Lab, Start};
use std::path::Path;

const LEN: u64 = 64 << 20;

/// Where QEMU puts DIMMs when the machine has 1 GiB of RAM.
fn dimms(arch: Arch) -> u64 {
    match arch {
        Arch::X86_64 => 0x1_0000_0000,
        Arch::Aarch64 => 0x8000_0000,
    }
}

/// A machine with a file's memory at [`dimms`], of which no table tells.
fn with_dimm<'l>(lab: &'l Lab, arch: Arch, media: &Path) -> Start<'l> {
    if !media.exists() {
        let file = std::fs::File::create(media).expect("the media");
        file.set_len(LEN).expect("its size");
    }
    let memory = format!(
        "memory-backend-file,id=m0,share=on,size={LEN},mem-path={}",
        media.display()
    );
    let dimm = format!("pc-dimm,id=d0,memdev=m0,addr={:#x}", dimms(arch));
    let mut start = lab.quire(arch).arg("--no-pmem");
    for word in [
        "-m",
        "1024M,slots=2,maxmem=4G",
        "-object",
        &memory,
        "-device",
        &dimm,
    ] {
        start = start.args(["--qemu-arg", word]);
    }
    start
}

/// What is written is in the file, and there after a restart.
fn keeps_files(source: &str, media: &Path, start: &dyn Fn() -> Start<'static>) {
    let made = start()
        .exec(
            "pmem list --json; pmem doctor; mkfs.ext4 pmem0; mount -o rw pmem0 /d; \
             echo told by a map > /d/f; umount /d",
        )
        .ok();
    let text = made.text();
    for part in [
        format!("\"source\":\"{source}\""),
        format!("\"size\":{LEN}"),
    ] {
        assert!(
            text.contains(&part),
            "{part} missing in\n{text}\n{}",
            made.stderr
        );
    }
    let kept = b"told by a map\n";
    let bytes = std::fs::read(media).expect("the media");
    assert!(bytes.windows(kept.len()).any(|part| part == kept));
    let again = start().exec("mount pmem0 /d; cat /d/f; umount /d; fsck pmem0");
    assert!(again.ok().text().starts_with("told by a map\n"));
}

/// A directory that lives as long as the tests.
fn lab(name: &str) -> &'static Lab {
    Box::leak(Box::new(Lab::new(name)))
}

fn efi_persistent_memory(arch: Arch) {
    let lab = lab("efi-type-14");
    let media = lab.path("media.img");
    let line = format!("efi_memory: 14 0x8008 {:#x} {LEN}", dimms(arch));
    keeps_files("EFI memory map", &media.clone(), &|| {
        with_dimm(lab, arch, &media).args(["--loader-line", &line])
    });
}

#[test]
fn x86_64_efi_persistent_memory() {
    efi_persistent_memory(Arch::X86_64);
}

#[test]
fn aarch64_efi_persistent_memory() {
    efi_persistent_memory(Arch::Aarch64);
}

/// A flattened device tree with one `pmem-region` below the root.
fn tree(start: u64, len: u64) -> Vec<u8> {
    const STRINGS: &[u8] = b"#address-cells\0#size-cells\0compatible\0reg\0";
    let mut body: Vec<u8> = Vec::new();
    let word = |body: &mut Vec<u8>, value: u32| body.extend(value.to_be_bytes());
    let padded = |body: &mut Vec<u8>, bytes: &[u8]| {
        body.extend(bytes);
        body.resize(body.len().next_multiple_of(4), 0);
    };
    let property = |body: &mut Vec<u8>, name: &str, value: &[u8]| {
        let at = STRINGS
            .windows(name.len() + 1)
            .position(|part| part == [name.as_bytes(), b"\0"].concat())
            .expect("a known name");
        word(body, 3);
        word(body, value.len() as u32);
        word(body, at as u32);
        padded(body, value);
    };
    word(&mut body, 1);
    padded(&mut body, b"\0");
    property(&mut body, "#address-cells", &2u32.to_be_bytes());
    property(&mut body, "#size-cells", &2u32.to_be_bytes());
    word(&mut body, 1);
    padded(&mut body, b"pmem@0\0");
    property(&mut body, "compatible", b"pmem-region\0");
    let reg = [start.to_be_bytes(), len.to_be_bytes()].concat();
    property(&mut body, "reg", &reg);
    for token in [2, 2, 9] {
        word(&mut body, token);
    }
    let strings_at = 56 + body.len();
    let total = strings_at + STRINGS.len();
    let mut out: Vec<u8> = Vec::new();
    for value in [
        0xd00d_feed,
        total as u32,
        56,
        strings_at as u32,
        40,
        17,
        16,
        0,
        STRINGS.len() as u32,
        body.len() as u32,
    ] {
        word(&mut out, value);
    }
    // No memory is reserved.
    out.resize(56, 0);
    out.extend(body);
    out.extend(STRINGS);
    out
}

#[test]
fn a_device_trees_pmem_region() {
    let lab = lab("pmem-region");
    let media = lab.path("media.img");
    let file = lab.path("board.dtb");
    std::fs::write(&file, tree(dimms(Arch::Aarch64), LEN)).expect("the tree");
    keeps_files("device tree", &media.clone(), &|| {
        with_dimm(lab, Arch::Aarch64, &media)
            .args(["--loader-line", "dtb_path: boot():/board.dtb"])
            .arg("--boot-file")
            .arg(&file)
    });
}

/// RAM that the firmware keeps for special purposes is nobody's heap, and not
/// persistent either; `pmem doctor` says where it is.
fn special_purpose_memory(arch: Arch) {
    let (start, len) = match arch {
        Arch::X86_64 => (0x1000_0000, LEN),
        Arch::Aarch64 => (0x5000_0000, LEN),
    };
    let line = format!("efi_memory: 7 0x4000f {start:#x} {len}");
    let lab = Lab::new("special-purpose");
    let free = |output: &quire_tests::Output| -> u64 {
        let (_, rest) = output.stderr.split_once("mm: ram=").expect("a log line");
        let digits = rest.split_whitespace().next().expect("a number");
        digits.parse().expect("a number")
    };
    let quire = || lab.quire(arch).arg("--no-pmem");
    // It finds no persistent memory, and says so by its status.
    let plain = quire().exec("pmem doctor").status(4);
    let output = quire()
        .args(["--loader-line", &line])
        .exec("pmem doctor")
        .status(4)
        .says(&format!("boot: set-apart={len}"));
    // Page tables of a divided map take a little more.
    let gone = free(&plain) - free(&output);
    assert!((len..len + (1 << 20)).contains(&gone), "{gone}");
    let text = output.text();
    let answer = format!(
        "firmware calls {start:#x}..{:#x} for special purposes: kept out of RAM",
        start + len
    );
    assert!(text.contains(&answer), "{text}");
    assert!(!plain.text().contains("special purposes"));
}

#[test]
fn x86_64_special_purpose_memory() {
    special_purpose_memory(Arch::X86_64);
}

#[test]
fn aarch64_special_purpose_memory() {
    special_purpose_memory(Arch::Aarch64);
}
