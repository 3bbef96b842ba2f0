//! Mistakes of kernel and applications that are caught at once: stray stores to
//! persistent memory, and mappings touched where nothing may wait.

use quire_tests::{Arch, Lab, tools};

const MOUNTED: &str = "mkfs.ext4 pmem0; mkdir /m; mount -o rw pmem0 /m; echo kept > /m/f; sync; ";

fn mistakes(arch: Arch) {
    let lab = Lab::new("guard");
    let image = lab.path("pmem.img");
    let nvdimm = format!("{},size=64M", image.display());
    let start = || lab.quire(arch).args(["--nvdimm", &nvdimm]);
    // Mounted for writing: the direct map is read-only all the same.
    start()
        .exec(&format!("{MOUNTED}panic -s pmem0; echo after"))
        .status(64)
        .says("stray store to pmem0, offset 0x0")
        .says("panic: ")
        .says("provoke::stray_store");
    assert_eq!(tools::read_file(&image, "/f"), b"kept\n");
    start()
        .exec("mount -o rw pmem0 /m; panic -l /m/f; echo after")
        .status(64)
        .says("touching a mapping that may fault while holding 1 spin lock(s)")
        .says("quire_shell::");
    // The option turns the guard off; the store is of what is there already.
    start()
        .args(["--append", "pmem_guard=off"])
        .exec("mount -o rw pmem0 /m; panic -s pmem0; cat /m/f; umount /m")
        .ok()
        .printed("nobody caught it\nkept\n");
    tools::assert_clean(&image);
}

#[test]
fn x86_64_catches_mistakes() {
    mistakes(Arch::X86_64);
}

#[test]
fn aarch64_catches_mistakes() {
    mistakes(Arch::Aarch64);
}
