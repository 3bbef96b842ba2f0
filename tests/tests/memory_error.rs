//! Memory that fails under a running machine: real machine checks, which QEMU
//! raises on demand, and real external aborts.

use quire_tests::qmp::Qmp;
use quire_tests::{Arch, Lab, Output, tools};
use std::path::{Path, PathBuf};

/// Where QEMU's PC puts its first NVDIMM with 1 GiB of RAM.
const BASE: u64 = 0x1_0000_0000;

const VALID: u64 = 1 << 63;
const UNCORRECTED: u64 = 1 << 61;
const ENABLED: u64 = 1 << 60;
const ADDR_VALID: u64 = 1 << 58;
const SIGNALED: u64 = 1 << 56;
const ACTION_REQUIRED: u64 = 1 << 55;

/// A data load (0x134, with action) or patrol scrub (0xc0, without).
fn status(action: bool) -> u64 {
    let kind = if action {
        ACTION_REQUIRED | 0x134
    } else {
        0xc0
    };
    VALID | UNCORRECTED | ENABLED | ADDR_VALID | SIGNALED | kind
}

/// A file system with two equal files, and where in it the third page of one is.
fn victim(lab: &Lab) -> (PathBuf, u64, String) {
    let image = lab.path("disk.img");
    let source = lab.path("body");
    std::fs::write(&source, vec![b'q'; 32 << 20]).expect("the body");
    tools::mkfs(&image, 128 << 20, ["-b", "4096"]);
    tools::debugfs(&image, &format!("write {} victim", source.display()));
    tools::debugfs(&image, &format!("write {} other", source.display()));
    let block = tools::block_of(&image, "victim", 3);
    (image, block * 4096, tools::sha256(&source))
}

/// Reads a file over and over while one of its pages is reported as lost, until
/// reading fails; looks at what is left, and makes the page good. The status is
/// the guest's.
fn lose_a_page(lab: &Lab, image: &Path, page: u64, status: u64) -> Output {
    let socket = lab.path("qmp");
    let connect = socket.clone();
    let mut qmp = Some(std::thread::spawn(move || Qmp::connect(&connect)));
    lab.quire(Arch::X86_64)
        .arg("--nvdimm")
        .arg(image)
        .args(["--append", "mount=pmem0:/pmem0:rw", "--smp", "1"])
        .args(["--qemu-arg", "-qmp", "--qemu-arg"])
        .arg(format!("unix:{},server=on,wait=on", socket.display()))
        .watch(
            "mkdir /tmp; echo ready; \
             repeat 1000000 'dd if=/pmem0/victim of=/tmp/x bs=1M 2> /tmp/y'; \
             cat /pmem0/victim | wc -c; sha256sum /pmem0/other; poison --json; \
             dd if=/pmem0/other of=/pmem0/victim bs=4096 count=1 skip=3 seek=3 conv=notrunc && \
             sha256sum /pmem0/victim && poison --json",
            |line| {
                if line != "ready" {
                    return;
                }
                let mut qmp = qmp.take().expect("once").join().expect("connected");
                // CPU 0, bank 3; restart and instruction pointer valid.
                let addr = BASE + page + 256;
                qmp.execute(
                    "human-monitor-command",
                    &format!("{{\"command-line\":\"mce 0 3 {status:#x} 0x7 {addr:#x} 0x8c\"}}"),
                );
            },
        )
}

fn assert_survived(output: Output, page: u64, digest: &str) {
    // The reads of the lost page have failed.
    output.status(1).printed(&format!(
        "ready\n12288\n{digest}  /pmem0/other\n\
         [{{\"dev\":\"pmem0\",\"offset\":{page},\"length\":4096}}]\n\
         {digest}  /pmem0/victim\n[]\n"
    ));
}

#[test]
fn a_loss_that_nobody_needs_yet_is_noted() {
    let lab = Lab::new("mce-noted");
    let (image, page, digest) = victim(&lab);
    let output = lose_a_page(&lab, &image, page, status(false));
    assert_survived(output, page, &digest);
    tools::assert_clean(&image);
}

/// QEMU raises it wherever the CPU is, which is nearly always in the copy, or in
/// a thread that can wait. With interrupts off it is fatal, with a report: then
/// once more.
#[test]
fn a_loss_that_the_instruction_needs_is_survived() {
    let lab = Lab::new("mce-needed");
    let (image, page, digest) = victim(&lab);
    for _ in 0..5 {
        let output = lose_a_page(&lab, &image, page, status(true));
        if output.status == Some(64) {
            assert!(
                output.stderr.contains("machine check: bank 3"),
                "{}",
                output.stderr
            );
            continue;
        }
        assert_survived(output, page, &digest);
        tools::assert_clean(&image);
        return;
    }
    panic!("five machine checks, and all were fatal");
}

/// No memory answers there: the CPU takes a synchronous external abort in the
/// middle of each copy.
#[test]
fn an_external_abort_ends_the_copy() {
    let output = Lab::new("sea")
        .quire(Arch::Aarch64)
        .args(["--no-pmem"])
        .exec("selftest lost.")
        .ok();
    assert!(
        output.text().ends_with("\n1 passed, 0 failed\n"),
        "{}",
        output.text()
    );
    let ends = output.stderr.matches("answer=error").count();
    assert_eq!(ends, 5, "{}", output.stderr);
}
