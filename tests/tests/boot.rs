//! Starting: both architectures, CPUs, exit statuses.

use quire_tests::{Arch, Lab};

fn hello(arch: Arch) {
    Lab::new("hello")
        .quire(arch)
        .arg("--no-pmem")
        .exec("echo hello; echo two  words")
        .ok()
        .printed("hello\ntwo words\n");
}

#[test]
fn x86_64_prints_what_the_commands_print() {
    hello(Arch::X86_64);
}

#[test]
fn aarch64_prints_what_the_commands_print() {
    hello(Arch::Aarch64);
}

fn four_cpus(arch: Arch) {
    let output = Lab::new("cpus")
        .quire(arch)
        .args(["--no-pmem", "--smp", "4"])
        .exec("cpu --json")
        .ok();
    let document: serde_json::Value =
        serde_json::from_slice(&output.stdout).expect("one JSON document");
    assert_eq!(document["count"], 4, "{document}");
}

#[test]
fn x86_64_starts_four_cpus() {
    four_cpus(Arch::X86_64);
}

#[test]
fn aarch64_starts_four_cpus() {
    four_cpus(Arch::Aarch64);
}

/// In 64 MiB, all of which the kernel's image and page tables are a part. The
/// machine has more, because its firmware alone takes that much on aarch64.
fn selftest(arch: Arch) {
    let output = Lab::new("selftest")
        .quire(arch)
        .args(["--no-pmem", "--append", "mem=64M"])
        .exec("mem --json; selftest; mem --json")
        .ok();
    let text = output.text();
    let memory = |line: Option<&str>| -> serde_json::Value {
        serde_json::from_str(line.unwrap_or_default()).expect("what `mem` says")
    };
    for line in [text.lines().next(), text.lines().last()] {
        let memory = memory(line);
        let all = memory["total"].as_u64().unwrap_or(0) + memory["fixed"].as_u64().unwrap_or(0);
        assert!(all > 0 && all <= 64 << 20, "{memory}");
    }
    let text = text.trim_end();
    let text = text.rsplit_once('\n').expect("lines").0;
    let last = text.lines().last().unwrap_or_default();
    assert!(last.ends_with(" passed, 0 failed"), "{text}");
    assert!(!last.starts_with("0 passed"), "{text}");
}

#[test]
fn x86_64_passes_its_own_tests() {
    selftest(Arch::X86_64);
}

#[test]
fn aarch64_passes_its_own_tests() {
    selftest(Arch::Aarch64);
}

/// With a file system mounted, and nothing to do.
fn idle_memory(arch: Arch) {
    let output = Lab::new("idle")
        .quire(arch)
        .own_state()
        .exec("ls /pmem0; mem --json")
        .ok();
    let text = output.text();
    let memory: serde_json::Value =
        serde_json::from_str(text.lines().last().unwrap_or_default()).expect("what `mem` says");
    let used = memory["used"].as_u64().expect("a number");
    assert!(used > 1 << 20 && used < 8 << 20, "{memory}");
}

#[test]
fn x86_64_uses_little_memory_when_idle() {
    idle_memory(Arch::X86_64);
}

#[test]
fn aarch64_uses_little_memory_when_idle() {
    idle_memory(Arch::Aarch64);
}

/// Threads on several CPUs, one of them with more threads than it has CPUs to
/// run them: what spins for a preempted thread would never end here.
fn stands_stress(arch: Arch, cpus: &str) {
    let output = Lab::new("stress")
        .quire(arch)
        .args(["--no-pmem", "--smp", cpus])
        .exec("selftest stress")
        .ok();
    let text = output.text();
    assert!(text.ends_with("\n2 passed, 0 failed\n"), "{text}");
}

#[test]
fn x86_64_stands_stress() {
    stands_stress(Arch::X86_64, "2");
}

#[test]
fn aarch64_stands_stress() {
    stands_stress(Arch::Aarch64, "4");
}

fn panics(arch: Arch) {
    Lab::new("panic")
        .quire(arch)
        .arg("--no-pmem")
        .exec("echo before; panic; echo after")
        .status(64)
        .printed("before\n")
        .says("panic: ")
        // A frame by its name: the path from the command to the panic.
        .says("quire_shell::");
}

#[test]
fn x86_64_panic_has_a_backtrace_and_a_status() {
    panics(Arch::X86_64);
}

#[test]
fn aarch64_panic_has_a_backtrace_and_a_status() {
    panics(Arch::Aarch64);
}

#[test]
fn a_failing_command_gives_its_status() {
    let lab = Lab::new("status");
    let output = lab
        .quire(Arch::X86_64)
        .arg("--no-pmem")
        .exec("echo one; cat /not/there; echo two")
        .says("error: cat:");
    let status = output.status.expect("an exit status");
    assert!((1..64).contains(&status), "{status}");
    output.printed("one\ntwo\n");
}

#[test]
fn time_runs_out_with_its_status() {
    // One second is not even enough for the firmware under translation, and
    // the commands would print for ever anyway.
    Lab::new("timeout")
        .quire(Arch::X86_64)
        .args(["--no-pmem", "--timeout", "1", "--exec", "selftest"])
        .run()
        .status(65);
}

#[test]
fn set_up_that_fails_has_its_status() {
    let lab = Lab::new("setup");
    lab.quire(Arch::X86_64)
        .args(["--no-pmem", "--qemu", "/bin/false"])
        .exec("echo")
        .status(66);
    lab.quire(Arch::X86_64)
        .args(["--nvdimm", "missing.img"])
        .exec("echo")
        .status(67)
        .says("missing.img,size=1G");
    lab.quire(Arch::X86_64)
        .args(["--no-pmem", "--app", "nothing-of-this-name"])
        .exec("echo")
        .status(67);
    lab.quire(Arch::X86_64)
        .args(["--no-such-option"])
        .run()
        .status(67);
}

#[test]
fn quotes_reach_the_shell_unchanged() {
    Lab::new("quotes")
        .quire(Arch::Aarch64)
        .arg("--no-pmem")
        .exec("echo \"it's\"; echo 'a\\b'\necho '${ARCH}'")
        .ok()
        .printed("it's\na\\b\n${ARCH}\n");
}
