//! Devices that read and write persistent memory themselves, on both
//! architectures: a disk and a file's own pages, two disks by way of an NVMe
//! controller's memory, and files that are cut and punched meanwhile.

use quire_tests::{Arch, Lab, tools};

const MIB: usize = 1 << 20;

/// What no two blocks have in common.
fn pattern(seed: u32, len: usize) -> Vec<u8> {
    let words = (0..len as u32 / 4).map(|n| n.wrapping_mul(0x9e37_79b9) ^ seed);
    words.flat_map(u32::to_le_bytes).collect()
}

/// `dd` between a disk and a file, and on the disk by peer-to-peer memory: the
/// host compares every byte.
fn transfers(arch: Arch) {
    let lab = Lab::new("dma");
    let (image, disk) = (lab.path("pmem.img"), lab.path("disk.img"));
    let mut expected = pattern(7, 16 * MIB);
    std::fs::write(&disk, &expected).expect("a disk");
    let commands = "mkfs.ext4 pmem0; mkdir /m; mount -o rw pmem0 /m; \
                    dd if=vda of=/m/f bs=1M count=6 conv=fsync; \
                    dd if=/m/f of=vda bs=4096 skip=512 seek=2048 count=700 conv=fsync; \
                    dd if=vda of=vda bs=4096 skip=100 seek=3000 count=900 via=nvme0-cmb; \
                    dd if=vda of=vda bs=4096 skip=0 seek=4000 count=1 via=nvme0-cmb conv=fsync; \
                    memmap; pins; umount /m";
    let output = lab
        .quire(arch)
        .args(["--nvdimm", &format!("{},size=64M", image.display())])
        .arg("--virtio-blk")
        .arg(&disk)
        .args(["--nvme-cmb", "64M"])
        .exec(commands)
        .ok();
    let text = output.text();
    assert!(text.contains("nvme0-cmb"), "{text}");
    assert!(text.contains("nobody holds any page"), "{text}");
    let file = tools::read_file(&image, "/f");
    assert!(
        file == expected[..6 * MIB],
        "the file is not what the disk has"
    );
    let block = |n: usize| n * 4096;
    expected.copy_within(block(512)..block(512 + 700), block(2048));
    expected.copy_within(block(100)..block(1000), block(3000));
    expected.copy_within(0..block(1), block(4000));
    let found = std::fs::read(&disk).expect("the disk");
    let wrong = (0..found.len() / 4096)
        .find(|n| found[block(*n)..block(n + 1)] != expected[block(*n)..block(n + 1)]);
    assert_eq!(wrong, None, "a block of the disk is another's");
    tools::assert_clean(&image);
}

#[test]
fn x86_64_moves_data_by_devices() {
    transfers(Arch::X86_64);
}

#[test]
fn aarch64_moves_data_by_devices() {
    transfers(Arch::Aarch64);
}

/// Four threads on four CPUs use files by calls, mappings and transfers while
/// others truncate and punch them, each compared with a model.
fn stress(arch: Arch) {
    let lab = Lab::new("dma-stress");
    let (image, disk) = (lab.path("pmem.img"), lab.path("disk.img"));
    std::fs::write(&disk, vec![0; 64 * MIB]).expect("a disk");
    let output = lab
        .quire(arch)
        .args(["--smp", "4"])
        .args(["--nvdimm", &format!("{},size=128M", image.display())])
        .arg("--virtio-blk")
        .arg(&disk)
        .exec(
            "mkfs.ext4 pmem0; mkdir /m; mount -o rw pmem0 /m; \
             stress -d /m -t 4 -s 7 --disk --json dax 12; umount /m",
        )
        .ok();
    let text = output.text();
    let line = text.lines().find(|line| line.starts_with('{'));
    let report: serde_json::Value =
        serde_json::from_str(line.expect("a report")).expect("a JSON document");
    let count = |name: &str| report[name].as_u64().expect("a counter");
    assert!(count("transfers") > 0, "{text}");
    tools::assert_clean(&image);
}

#[test]
fn x86_64_uses_files_at_random_by_threads_and_a_disk() {
    stress(Arch::X86_64);
}

#[test]
fn aarch64_uses_files_at_random_by_threads_and_a_disk() {
    stress(Arch::Aarch64);
}
