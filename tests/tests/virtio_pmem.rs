//! Memory of virtio-pmem devices. QEMU has the device on x86_64 only.

use quire_tests::{Arch, Lab};

#[test]
fn a_virtio_pmem_device_keeps_files_and_is_asked_to_flush() {
    let lab = Lab::new("virtio-pmem");
    let media = lab.path("media.img");
    let start = |commands: &str| {
        let device = format!("{},size=64M", media.display());
        let quire = lab.quire(Arch::X86_64).arg("--virtio-pmem").arg(device);
        quire.exec(commands).ok()
    };
    let made = start(
        "mkfs.ext4 pmem0; mkdir /m; mount -o rw pmem0 /m; echo kept by the host > /m/f; sync; \
         pmem doctor; pmem list --json",
    );
    let text = made.text();
    for part in [
        "a device is asked to make stores durable",
        "flush requests of virtio-pmem0 at 0000:00:",
        "\"source\":\"virtio-pmem\"",
    ] {
        assert!(text.contains(part), "{part} missing in\n{text}");
    }
    made.says("virtio-pmem: virtio-pmem0 at=0000:00:");
    // No umount before: the sync was enough, and the journal is replayed.
    start("mount -o rw pmem0 /m; cat /m/f; umount /m; fsck pmem0")
        .text()
        .lines()
        .find(|line| *line == "kept by the host")
        .expect("the file");
    let kept = b"kept by the host\n";
    let media = std::fs::read(&media).expect("the media");
    assert!(media.windows(kept.len()).any(|part| part == kept));
}

/// Every sync is an exchange with the device: the machine counts them.
#[test]
fn a_sync_waits_for_the_device() {
    let lab = Lab::new("virtio-pmem-trace");
    let trace = lab.path("trace");
    let output = lab
        .quire(Arch::X86_64)
        .arg("--virtio-pmem")
        .arg(format!("{},size=64M", lab.path("media.img").display()))
        .args(["--qemu-arg", "-trace", "--qemu-arg"])
        .arg(format!("enable=virtio_pmem_*,file={}", trace.display()))
        .exec("mkfs.ext4 pmem0; mount -o rw pmem0 /m; echo a > /m/a; sync; echo b > /m/b; sync; umount /m")
        .ok();
    let text = std::fs::read_to_string(&trace).unwrap_or_default();
    let count = |what: &str| text.matches(what).count();
    let requests = count("virtio_pmem_flush_request");
    assert!(requests >= 3, "{requests} requests\n{}", output.stderr);
    assert_eq!(count("virtio_pmem_response"), requests);
    assert_eq!(count("fsync return=0"), requests, "flushes failed: {text}");
}

/// The host can't make it durable: QEMU has nothing to sync behind anonymous
/// memory, so every flush is answered with a failure. No command claims that
/// anything was kept, and nobody writes there any more.
#[test]
fn a_flush_that_fails_is_an_error_and_stays_known() {
    let lab = Lab::new("virtio-pmem-fails");
    let mut start = lab.quire(Arch::X86_64).arg("--no-pmem");
    for word in [
        "-m",
        "1024M,slots=1,maxmem=4G",
        "-object",
        "memory-backend-ram,id=vp0,size=64M",
        "-device",
        "virtio-pmem-pci,id=vp,memdev=vp0",
    ] {
        start = start.args(["--qemu-arg", word]);
    }
    let output = start
        .exec("pmem list; mkfs.ext4 pmem0; pmem list --json; pmem doctor; mkfs.ext4 pmem0 --force; echo on")
        .says("error: mkfs.ext4:")
        .says("failed to flush");
    let text = output.text();
    assert!(
        (1..64).contains(&output.status.expect("a status")),
        "{text}"
    );
    for part in [
        "\"readonly\":true",
        "\"readonly_reason\":\"a flush has failed, and what was stored before it may be lost",
        "region0    broken",
        "\non\n",
    ] {
        assert!(
            text.contains(part),
            "{part} missing in\n{text}\n{}",
            output.stderr
        );
    }
    let errors = output.stderr.matches("error: mkfs.ext4:").count();
    assert_eq!(errors, 2, "{}", output.stderr);
}
