//! Whether the host's virtualisation can be trusted.
//!
//! A machine can offer `/dev/kvm` and still be unable to run a guest: QEMU
//! aborts, or the guest stops at its first instruction. So KVM is used only
//! after the firmware alone has been started with it and has written to the
//! serial line. The answer is kept until the host restarts or QEMU changes.

use crate::cli::Arch;
use crate::machine::{Accel, Firmware, Machine};
use crate::session::guest::{Event, Guest};
use crate::workspace::Workspace;
use std::fs;
use std::path::Path;
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant, UNIX_EPOCH};

const PROBE_TIME: Duration = Duration::from_secs(10);

/// Whether this host has the device for `arch` at all.
pub fn present(arch: Arch) -> bool {
    std::env::consts::ARCH == arch.name()
        && fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/kvm")
            .is_ok()
}

/// The best way to run `arch` on this host.
pub fn accelerator(workspace: &Workspace, arch: Arch, qemu: &Path, firmware: &Firmware) -> Accel {
    if !present(arch) {
        return Accel::Tcg;
    }
    let key = key(qemu);
    let cache = workspace.state.join(format!("kvm-{}", arch.name()));
    let cached = fs::read_to_string(&cache).ok();
    let works = match cached.as_deref().and_then(|t| t.strip_prefix(&key)) {
        Some(answer) => answer.trim() == "works",
        None => {
            eprintln!("quire: trying whether KVM can run a guest here");
            let works = probe(arch, qemu, firmware);
            eprintln!(
                "quire: {}",
                if works {
                    "it can"
                } else {
                    "it cannot; running in QEMU's translator"
                }
            );
            // A lost answer only costs another probe.
            let _ = fs::create_dir_all(&workspace.state);
            let _ = fs::write(
                &cache,
                format!("{key} {}\n", if works { "works" } else { "fails" }),
            );
            works
        }
    };
    if works { Accel::Kvm } else { Accel::Tcg }
}

/// What the answer depends on.
fn key(qemu: &Path) -> String {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let changed = qemu
        .metadata()
        .and_then(|m| m.modified())
        .ok()
        .and_then(|t| t.duration_since(UNIX_EPOCH).ok())
        .map_or(0, |d| d.as_secs());
    format!("{} {} {changed}", boot.trim(), qemu.display())
}

/// Runs the firmware until it says something.
fn probe(arch: Arch, qemu: &Path, firmware: &Firmware) -> bool {
    let machine = Machine {
        accel: Accel::Kvm,
        no_reboot: true,
        ..Machine::plain(arch, firmware.clone())
    };
    let Ok(mut guest) = Guest::start_quietly(qemu, &machine.arguments()) else {
        return false;
    };
    let (_sender, events) = guest.events();
    let deadline = Instant::now() + PROBE_TIME;
    let mut seen = 0;
    loop {
        match events.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(Event::Serial(bytes)) => {
                seen += bytes.len();
                if seen > 16 {
                    return true;
                }
            }
            Ok(Event::SerialEnd)
            | Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return false,
            Ok(Event::Leave | Event::Signal(_)) => {}
        }
    }
}
