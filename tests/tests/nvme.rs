//! NVMe controllers' memory on both architectures: the memory buffer as
//! peer-to-peer pages that the real (emulated) controller accesses, and the
//! persistent memory region as a namespace; and detaching at run time.

use quire_tests::{Arch, Lab};

fn memory_on_a_controller(arch: Arch) {
    let lab = Lab::new("nvme");
    let (blocks, region) = (lab.path("blocks.img"), lab.path("region.img"));
    let content: Vec<u8> = (0..1u32 << 18).flat_map(u32::to_le_bytes).collect();
    std::fs::write(&blocks, &content).unwrap();
    let commands = "nvme check nvme1; nvme list; mkfs.ext4 pmem0; mkdir /m; mount -o rw pmem0 /m; \
                    echo kept by the controller > /m/f; umount /m; pmem detach pmem0; \
                    pmem attach pmem0; mount pmem0 /m; cat /m/f; memmap";
    let output = lab
        .quire(arch)
        .arg("--nvme-cmb")
        .arg(format!("64M,file={}", blocks.display()))
        .arg("--nvme-pmr")
        .arg(format!("{},size=64M", region.display()))
        .exec(commands)
        .ok();
    let text = output.text();
    for part in [
        "nvme1: 4.1M stored and loaded\n",
        "nvme1: 256K moved peer to peer from",
        "nvme1: 4.1M back in the pool\n",
        "memory buffer",
        "(64M free)",
        "persistent region",
        "kept by the controller\n",
        "pmem0      fsdax",
        "nvme1-cmb  p2pdma",
    ] {
        assert!(text.contains(part), "{part} missing in\n{text}");
    }
    assert_eq!(
        std::fs::read(&blocks).unwrap(),
        content,
        "the check wrote to the controller's blocks"
    );
    let region = std::fs::read(&region).unwrap();
    let kept = b"kept by the controller\n";
    assert!(
        region.windows(kept.len()).any(|part| part == kept),
        "the file is not on the media"
    );
}

#[test]
fn x86_64_uses_memory_on_a_controller() {
    memory_on_a_controller(Arch::X86_64);
}

#[test]
fn aarch64_uses_memory_on_a_controller() {
    memory_on_a_controller(Arch::Aarch64);
}
