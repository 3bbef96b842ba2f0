//! CXL on QEMU's command line: interleave sets, host bridges, windows.
//!
//! Consecutive devices with the same `ways` are a set. A set has a fixed memory
//! window of its own. One device alone hangs below a host bridge of its own; a
//! larger set is spread over two host bridges (three when its ways have a
//! factor of three, because only windows and devices can divide by three), so
//! that both the window and the bridges interleave. Each device has its own
//! root port.

use crate::cli::Arch;
use crate::error::{Failure, Result};
use crate::machine::{CxlDevice, path, round_up};
use crate::size::MIB;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

/// What QEMU's devices are multiples of.
pub const ALIGN: u64 = 256 * MIB;
/// The first host bridge's bus. Those below are for the first root's bridges.
const FIRST_BUS: usize = 32;

/// The devices' sets, in order.
pub fn sets(devices: &[CxlDevice]) -> Vec<&[CxlDevice]> {
    let mut sets = Vec::new();
    let mut rest = devices;
    while let Some(first) = rest.first() {
        let same = rest.iter().take_while(|d| d.ways == first.ways).count();
        let take = same.min(first.ways.max(1) as usize);
        let (set, after) = rest.split_at(take);
        sets.push(set);
        rest = after;
    }
    sets
}

/// How many host bridges a set of so many ways is spread over.
fn bridges(ways: usize) -> usize {
    match ways {
        0 | 1 => 1,
        ways if ways.is_multiple_of(3) => 3,
        _ => 2,
    }
}

/// Whether the sets can be built; the text says why not.
pub fn check(devices: &[CxlDevice]) -> Result<()> {
    for device in devices {
        let backing = &device.backing;
        if !backing.len.is_multiple_of(ALIGN) {
            return Err(Failure::setup(format!(
                "--cxl {}: {} bytes: QEMU's CXL devices are multiples of 256M",
                backing.path.display(),
                backing.len
            )));
        }
    }
    let mut buses = FIRST_BUS;
    for set in sets(devices) {
        let ways = set.first().map_or(1, |device| device.ways as usize);
        if set.len() != ways {
            return Err(Failure::setup(format!(
                "--cxl: ways={ways} needs {ways} devices in a row with this word; there are {}",
                set.len()
            )));
        }
        buses += set.len() + bridges(ways);
    }
    match buses <= 256 {
        true => Ok(()),
        false => Err(Failure::setup(
            "--cxl: too many devices for one PCI segment",
        )),
    }
}

/// The machine options: the windows.
pub fn machine_options(devices: &[CxlDevice]) -> String {
    let mut out = String::new();
    if devices.is_empty() {
        return out;
    }
    out.push_str(",cxl=on");
    let mut bridge = 0;
    for (window, set) in sets(devices).iter().enumerate() {
        let count = bridges(set.len());
        for target in 0..count {
            let bridge = bridge + target;
            out.push_str(&format!(
                ",cxl-fmw.{window}.targets.{target}=cxl-bridge{bridge}"
            ));
        }
        bridge += count;
        let len: u64 = set.iter().map(|d| d.backing.len).sum();
        let size = round_up(len, ALIGN * count as u64);
        out.push_str(&format!(",cxl-fmw.{window}.size={size}"));
    }
    out
}

/// The devices' options, each with its value.
pub fn device_options(devices: &[CxlDevice]) -> Vec<(&'static str, String)> {
    let mut out = Vec::new();
    let (mut first, mut id, mut bus) = (0, 0, FIRST_BUS);
    for set in sets(devices) {
        let count = bridges(set.len());
        for bridge in first..first + count {
            out.push((
                "-device",
                format!("pxb-cxl,id=cxl-bridge{bridge},bus=pcie.0,bus_nr={bus}"),
            ));
            // A bus for itself, one for each root port.
            bus += 1 + set.len() / count;
        }
        for (nth, device) in set.iter().enumerate() {
            // The window gives chunks to the bridges in turn.
            let (bridge, port) = (first + nth % count, nth / count);
            out.push((
                "-device",
                format!(
                    "cxl-rp,id=cxl-port{id},bus=cxl-bridge{bridge},port={port},chassis={bridge},slot={id}"
                ),
            ));
            for (kind, file) in [("mem", &device.backing), ("lsa", &device.lsa)] {
                out.push((
                    "-object",
                    format!(
                        "memory-backend-file,id=cxl-{kind}{id},share=on,mem-path={},size={}",
                        path(&file.path),
                        file.len
                    ),
                ));
            }
            out.push((
                "-device",
                format!(
                    "cxl-type3,id=cxl{id},bus=cxl-port{id},persistent-memdev=cxl-mem{id},lsa=cxl-lsa{id},sn={}",
                    id + 1
                ),
            ));
            id += 1;
        }
        first += count;
    }
    out
}

/// The word that makes the kernel create the sets' regions where none is yet:
/// devices by their serial numbers. `None` without devices.
pub fn create_word(ways: &[u32]) -> Option<String> {
    let mut sets: Vec<String> = Vec::new();
    let mut rest = ways;
    let mut serial = 1;
    while let Some(first) = rest.first() {
        let same = rest.iter().take_while(|ways| *ways == first).count();
        let take = same.min((*first).max(1) as usize);
        let members: Vec<String> = (serial..serial + take).map(|n| n.to_string()).collect();
        sets.push(members.join("+"));
        serial += take;
        rest = rest.split_at(take).1;
    }
    (!sets.is_empty()).then(|| format!("cxl=create:{}", sets.join(",")))
}

/// Whether this QEMU has CXL on its machine for `arch`.
pub fn supported(arch: Arch, qemu: &Path) -> Result<()> {
    let machine = match arch {
        Arch::X86_64 => "q35",
        Arch::Aarch64 => "virt",
    };
    // The machine's help doesn't list the property: make such a machine and
    // leave it at once.
    let start = || -> std::io::Result<bool> {
        let mut child = Command::new(qemu)
            .args(["-machine", &format!("{machine},cxl=on"), "-nodefaults"])
            .args(["-display", "none", "-S", "-monitor", "stdio"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        if let Some(mut input) = child.stdin.take() {
            // A QEMU that is gone already has answered.
            let _ = input.write_all(b"quit\n");
        }
        Ok(child.wait()?.success())
    };
    let works =
        start().map_err(|e| Failure::qemu(format!("cannot run {}: {e}", qemu.display())))?;
    match works {
        true => Ok(()),
        false => Err(Failure::setup(format!(
            "--cxl: {} has no CXL on its {machine} machine{}",
            qemu.display(),
            match arch {
                Arch::X86_64 => "; use QEMU 7.1 or later",
                Arch::Aarch64 => "; QEMU 11 or later has: name one with --qemu, or use x86_64",
            }
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Backing;

    fn devices(ways: &[u32]) -> Vec<CxlDevice> {
        ways.iter()
            .enumerate()
            .map(|(n, ways)| CxlDevice {
                backing: Backing::described(format!("/c{n}"), ALIGN),
                lsa: Backing::described(format!("/l{n}"), MIB),
                ways: *ways,
            })
            .collect()
    }

    fn line(devices: &[CxlDevice]) -> String {
        let options = device_options(devices).into_iter();
        let options: Vec<String> = options.map(|(o, v)| format!("{o} {v}")).collect();
        options.join(" ")
    }

    #[test]
    fn a_device_alone_has_its_own_bridge() {
        let all = devices(&[1, 1]);
        assert_eq!(
            machine_options(&all),
            ",cxl=on,cxl-fmw.0.targets.0=cxl-bridge0,cxl-fmw.0.size=268435456,\
             cxl-fmw.1.targets.0=cxl-bridge1,cxl-fmw.1.size=268435456"
        );
        let line = line(&all);
        for part in [
            "pxb-cxl,id=cxl-bridge1,bus=pcie.0,bus_nr=34",
            "cxl-rp,id=cxl-port1,bus=cxl-bridge1,port=0,chassis=1,slot=1",
            "cxl-type3,id=cxl1,bus=cxl-port1,persistent-memdev=cxl-mem1,lsa=cxl-lsa1,sn=2",
            "memory-backend-file,id=cxl-lsa1,share=on,mem-path=/l1,size=1048576",
        ] {
            assert!(line.contains(part), "{part} missing in {line}");
        }
        assert_eq!(create_word(&[1, 1]), Some("cxl=create:1,2".into()));
    }

    #[test]
    fn a_set_is_spread_over_two_bridges() {
        let all = devices(&[4, 4, 4, 4, 1]);
        assert_eq!(
            machine_options(&all),
            ",cxl=on,cxl-fmw.0.targets.0=cxl-bridge0,cxl-fmw.0.targets.1=cxl-bridge1,\
             cxl-fmw.0.size=1073741824,cxl-fmw.1.targets.0=cxl-bridge2,cxl-fmw.1.size=268435456"
        );
        let line = line(&all);
        for part in [
            "pxb-cxl,id=cxl-bridge0,bus=pcie.0,bus_nr=32",
            "pxb-cxl,id=cxl-bridge1,bus=pcie.0,bus_nr=35",
            "pxb-cxl,id=cxl-bridge2,bus=pcie.0,bus_nr=38",
            "cxl-rp,id=cxl-port1,bus=cxl-bridge1,port=0,",
            "cxl-rp,id=cxl-port2,bus=cxl-bridge0,port=1,",
            "cxl-rp,id=cxl-port4,bus=cxl-bridge2,port=0,",
        ] {
            assert!(line.contains(part), "{part} missing in {line}");
        }
        assert_eq!(
            create_word(&[4, 4, 4, 4, 1]),
            Some("cxl=create:1+2+3+4,5".into())
        );
        assert_eq!(create_word(&[]), None);
    }

    #[test]
    fn three_ways_take_three_bridges() {
        let all = devices(&[3, 3, 3]);
        assert!(machine_options(&all).contains("cxl-fmw.0.targets.2=cxl-bridge2"));
        assert!(check(&all).is_ok());
    }

    #[test]
    fn sets_that_cannot_be_are_refused() {
        let refused = |devices: &[CxlDevice], part: &str| {
            let error = check(devices).unwrap_err();
            assert!(error.message.contains(part), "{error}");
            assert_eq!(error.status, 67);
        };
        refused(&devices(&[2]), "ways=2 needs 2 devices");
        refused(&devices(&[2, 2, 2]), "there are 1");
        let mut odd = devices(&[1]);
        odd[0].backing = Backing::described("/c", 100 * MIB);
        refused(&odd, "multiples of 256M");
        refused(&devices(&[1; 120]), "too many devices");
    }
}
