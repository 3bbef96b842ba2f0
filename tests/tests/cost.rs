//! What operations cost: none needs over 3 % more instructions than recorded
//! in `docs/bench/quire.json`. `cargo run -- bench --record` keeps new figures.

use quire_tests::{Arch, Lab};

/// From each path: reading, overwriting, appending, syncing, faults of both
/// sizes, unmapping, names; and the start.
const OPERATIONS: &[&str] = &[
    "pread_4k_seq",
    "pwrite_4k_fdatasync",
    "append_4k_fsync",
    "mmap_wfault_pte_written",
    "mmap_wfault_pmd_written",
    "mmap_store_msync_4k",
    "open_close",
    "stat",
    "create_unlink",
    "rename",
    "boot_to_mount_1g",
    "boot_to_mount_1t",
];

#[test]
fn no_operation_needs_more_than_recorded() {
    let lab = Lab::new("cost");
    let mut command = lab.launcher();
    command.args(["bench", "--check", "--arch", Arch::X86_64.name()]);
    let output = command
        .args(OPERATIONS)
        .output()
        .expect("the launcher starts");
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{told}");
    let table = String::from_utf8_lossy(&output.stdout);
    for op in OPERATIONS {
        let row = table
            .lines()
            .find(|line| line.split_whitespace().next() == Some(op));
        assert!(row.is_some(), "{op} was not measured:\n{table}\n{told}");
    }
}
