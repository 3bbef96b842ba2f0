//! QEMU's command line for a described machine. Nothing here touches the
//! system: a [`Machine`] goes in, arguments come out.
//!
//! Choices that matter for the boot time: no network card (the firmware would
//! try to boot from it), no display unless asked for, and on aarch64 a boot
//! menu without a waiting time (the firmware otherwise idles five seconds for
//! a key). The boot volume hangs on AHCI (x86_64) or virtio-mmio (aarch64),
//! away from the PCI devices that the guest is to find.

use crate::cli::Arch;
use crate::cxl;
use crate::device::{Backing, NvmeCmb};
use crate::size::{GIB, MIB, TIB};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// How the guest's instructions are executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accel {
    /// The host's own virtualisation, proven by a probe run.
    Kvm,
    /// Translation in software.
    Tcg,
    /// Translation with time counted in instructions; the same on every run.
    Counted,
}

/// The firmware as files of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Firmware {
    /// Two flash banks: code, and (a throw-away copy of) the variables.
    Flash {
        /// The code bank.
        code: PathBuf,
        /// The variable store.
        vars: Option<PathBuf>,
    },
    /// One image given to `-bios`.
    Rom(PathBuf),
}

/// An NVDIMM.
#[derive(Debug)]
pub struct NvdimmDevice {
    /// What holds the data.
    pub backing: Backing,
    /// Size of the label area, when there is one.
    pub label: Option<u64>,
    /// NUMA node.
    pub node: Option<u32>,
    /// Reports itself as not armed.
    pub unarmed: bool,
}

/// A CXL type 3 device with persistent memory.
#[derive(Debug)]
pub struct CxlDevice {
    /// What holds the data.
    pub backing: Backing,
    /// What holds the labels.
    pub lsa: Backing,
    /// Devices in its interleave set.
    pub ways: u32,
}

/// How the boot volume or a disk image is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attach {
    /// Where the kernel's PCI scan does not meet it.
    Hidden,
    /// A USB stick.
    Usb,
    /// A virtio disk on PCI.
    Virtio,
}

/// Everything that shapes the command line.
#[derive(Debug)]
pub struct Machine {
    /// CPU architecture.
    pub arch: Arch,
    /// How instructions are executed.
    pub accel: Accel,
    /// The firmware.
    pub firmware: Firmware,
    /// The disk to boot from.
    pub boot: PathBuf,
    /// How it is attached.
    pub attach: Attach,
    /// Number of CPUs.
    pub cpus: u32,
    /// Bytes of RAM.
    pub memory: u64,
    /// NVDIMMs.
    pub nvdimms: Vec<NvdimmDevice>,
    /// CXL devices.
    pub cxl: Vec<CxlDevice>,
    /// virtio-pmem devices.
    pub virtio_pmem: Vec<Backing>,
    /// NVMe controllers with a persistent memory region.
    pub nvme_pmr: Vec<Backing>,
    /// NVMe controllers with a memory buffer.
    pub nvme_cmb: Vec<NvmeCmb>,
    /// Block devices.
    pub virtio_blk: Vec<PathBuf>,
    /// Leave QEMU when the guest reboots.
    pub no_reboot: bool,
    /// Stop at the first instruction and listen for a debugger on this port.
    pub gdb: Option<u16>,
    /// Passed on as they are.
    pub extra: Vec<OsString>,
}

/// The arguments under construction.
struct Args(Vec<OsString>);

impl Args {
    fn opt(&mut self, option: &str, value: impl Into<OsString>) {
        self.0.push(option.into());
        self.0.push(value.into());
    }
}

/// A path inside a QEMU option list, where a comma is written twice.
pub(crate) fn path(path: &Path) -> String {
    path.to_string_lossy().replace(',', ",,")
}

pub(crate) fn round_up(value: u64, to: u64) -> u64 {
    value.div_ceil(to).saturating_mul(to)
}

impl Machine {
    /// A machine with two CPUs, 1 GiB of RAM and nothing else.
    pub fn plain(arch: Arch, firmware: Firmware) -> Self {
        Self {
            arch,
            accel: Accel::Tcg,
            firmware,
            boot: PathBuf::new(),
            attach: Attach::Hidden,
            cpus: 2,
            memory: GIB,
            nvdimms: Vec::new(),
            cxl: Vec::new(),
            virtio_pmem: Vec::new(),
            nvme_pmr: Vec::new(),
            nvme_cmb: Vec::new(),
            virtio_blk: Vec::new(),
            no_reboot: false,
            gdb: None,
            extra: Vec::new(),
        }
    }

    /// The program to run, without a directory.
    pub fn program(arch: Arch) -> &'static str {
        match arch {
            Arch::X86_64 => "qemu-system-x86_64",
            Arch::Aarch64 => "qemu-system-aarch64",
        }
    }

    /// QEMU's arguments.
    pub fn arguments(&self) -> Vec<OsString> {
        let mut args = Args(Vec::new());
        args.opt("-name", "quire");
        self.base(&mut args);
        self.memory(&mut args);
        self.firmware(&mut args);
        self.boot_disk(&mut args);
        self.nvdimms(&mut args);
        for (option, value) in cxl::device_options(&self.cxl) {
            args.opt(option, value);
        }
        self.others(&mut args);
        args.opt("-chardev", "stdio,id=console,signal=off");
        args.opt("-serial", "chardev:console");
        args.opt("-monitor", "none");
        args.opt("-display", "none");
        args.opt("-vga", "none");
        args.opt("-nic", "none");
        args.opt("-boot", "menu=on,splash-time=0");
        if self.no_reboot {
            args.0.push("-no-reboot".into());
        }
        if let Some(port) = self.gdb {
            args.opt("-gdb", format!("tcp:127.0.0.1:{port}"));
            args.0.push("-S".into());
        }
        args.0.extend(self.extra.iter().cloned());
        args.0
    }

    fn base(&self, args: &mut Args) {
        let mut machine = match self.arch {
            Arch::X86_64 => String::from("q35"),
            Arch::Aarch64 => String::from("virt,acpi=on,gic-version=3"),
        };
        if !self.nvdimms.is_empty() {
            machine.push_str(",nvdimm=on");
        }
        machine.push_str(&cxl::machine_options(&self.cxl));
        args.opt("-machine", machine);
        let (accel, cpu) = match (self.accel, self.arch) {
            (Accel::Kvm, _) => ("kvm", "host"),
            (Accel::Counted, Arch::X86_64) => ("tcg", "max,erms=off,fsrm=off,fzrm=off,fsrs=off"),
            (_, Arch::X86_64) => ("tcg", "max"),
            // The architected pointer authentication cipher is very slow when
            // translated; the implementation-defined one is as good here.
            (_, Arch::Aarch64) => ("tcg", "max,pauth-impdef=on"),
        };
        args.opt("-accel", accel);
        let mut cpu = String::from(cpu);
        if self.accel != Accel::Kvm && self.arch == Arch::X86_64 && self.max_memory() > TIB / 4 {
            // QEMU's own CPU addresses 1 TiB. A device lies at a multiple of
            // its size, and PCI's windows in the last eighth. No more, because
            // the firmware maps all of it, which takes its time.
            let largest = self.nvdimms.iter().map(|d| d.backing.len).max();
            let end = self.max_memory().saturating_add(largest.unwrap_or(0));
            let bits = (end / 7 * 8).next_power_of_two().ilog2();
            cpu.push_str(&format!(",phys-bits={bits}"));
        }
        args.opt("-cpu", cpu);
        if self.accel == Accel::Counted {
            args.opt("-icount", "shift=0,sleep=off");
        }
        args.opt("-smp", self.cpus.to_string());
    }

    /// RAM and room for every device that is in an address slot.
    fn max_memory(&self) -> u64 {
        let devices = self
            .nvdimms
            .iter()
            .map(|d| d.backing.len)
            .chain(self.virtio_pmem.iter().map(|d| d.len))
            .map(|len| round_up(len, GIB).saturating_add(GIB))
            .fold(0u64, u64::saturating_add);
        round_up(self.memory, GIB).saturating_add(devices)
    }

    fn memory(&self, args: &mut Args) {
        let slots = self.nvdimms.len() + self.virtio_pmem.len();
        let mut value = format!("{}", self.memory.div_ceil(MIB));
        value.push('M');
        if slots > 0 {
            let max = self.max_memory();
            value.push_str(&format!(",slots={slots},maxmem={}M", max / MIB));
        }
        args.opt("-m", value);
        // Nodes exist only when a device names one. RAM and CPUs are node 0.
        if let Some(last) = self.nvdimms.iter().filter_map(|d| d.node).max() {
            args.opt(
                "-object",
                format!(
                    "memory-backend-ram,id=ram0,size={}M",
                    self.memory.div_ceil(MIB)
                ),
            );
            let cpus = match self.cpus {
                0 | 1 => "0".to_string(),
                n => format!("0-{}", n - 1),
            };
            args.opt("-numa", format!("node,nodeid=0,memdev=ram0,cpus={cpus}"));
            for node in 1..=last {
                args.opt("-numa", format!("node,nodeid={node}"));
            }
        }
    }

    fn firmware(&self, args: &mut Args) {
        match &self.firmware {
            Firmware::Flash { code, vars } => {
                args.opt(
                    "-drive",
                    format!(
                        "if=pflash,unit=0,format=raw,readonly=on,file={}",
                        path(code)
                    ),
                );
                if let Some(vars) = vars {
                    // The snapshot keeps what the firmware stores for this
                    // run and then drops it.
                    args.opt(
                        "-drive",
                        format!(
                            "if=pflash,unit=1,format=raw,snapshot=on,file={}",
                            path(vars)
                        ),
                    );
                }
            }
            Firmware::Rom(image) => args.opt("-bios", image.as_os_str()),
        }
    }

    fn boot_disk(&self, args: &mut Args) {
        if self.boot.as_os_str().is_empty() {
            return;
        }
        args.opt(
            "-drive",
            format!(
                "if=none,id=boot,format=raw,snapshot=on,file={}",
                path(&self.boot)
            ),
        );
        match (self.attach, self.arch) {
            (Attach::Hidden, Arch::X86_64) => {
                args.opt("-device", "ide-hd,drive=boot,bus=ide.0,bootindex=0");
            }
            (Attach::Hidden, Arch::Aarch64) => {
                args.opt("-device", "virtio-blk-device,drive=boot,bootindex=0");
            }
            (Attach::Usb, _) => {
                args.opt("-device", "qemu-xhci,id=usb");
                args.opt("-device", "usb-storage,bus=usb.0,drive=boot,bootindex=0");
            }
            (Attach::Virtio, _) => {
                args.opt("-device", "virtio-blk-pci,drive=boot,bootindex=0");
            }
        }
    }

    fn nvdimms(&self, args: &mut Args) {
        for (n, device) in self.nvdimms.iter().enumerate() {
            args.opt(
                "-object",
                format!(
                    "memory-backend-file,id=nvmem{n},share=on,mem-path={},size={}",
                    path(&device.backing.path),
                    device.backing.len
                ),
            );
            let mut value = format!("nvdimm,id=nvdimm{n},memdev=nvmem{n}");
            if let Some(label) = device.label {
                value.push_str(&format!(",label-size={label}"));
            }
            if let Some(node) = device.node {
                value.push_str(&format!(",node={node}"));
            }
            if device.unarmed {
                value.push_str(",unarmed=on");
            }
            args.opt("-device", value);
        }
    }

    fn others(&self, args: &mut Args) {
        for (n, device) in self.virtio_pmem.iter().enumerate() {
            args.opt(
                "-object",
                format!(
                    "memory-backend-file,id=vpmem{n},share=on,mem-path={},size={}",
                    path(&device.path),
                    device.len
                ),
            );
            args.opt(
                "-device",
                format!("virtio-pmem-pci,id=vpmem-dev{n},memdev=vpmem{n}"),
            );
        }
        for (n, device) in self.nvme_pmr.iter().enumerate() {
            args.opt(
                "-object",
                format!(
                    "memory-backend-file,id=pmr{n},share=on,mem-path={},size={}",
                    path(&device.path),
                    device.len
                ),
            );
            args.opt(
                "-device",
                format!("nvme,id=nvme{n},serial=quire{n},pmrdev=pmr{n}"),
            );
        }
        for (n, device) in self.nvme_cmb.iter().enumerate() {
            let mut drive = String::new();
            if let Some(file) = &device.file {
                args.opt(
                    "-drive",
                    format!("if=none,id=nvmeblk{n},format=raw,file={}", path(file)),
                );
                drive = format!(",drive=nvmeblk{n}");
            }
            args.opt(
                "-device",
                format!(
                    "nvme,id=nvmecmb{n},serial=quirecmb{n},cmb_size_mb={}{drive}",
                    device.size / MIB
                ),
            );
        }
        for (n, file) in self.virtio_blk.iter().enumerate() {
            args.opt(
                "-drive",
                format!("if=none,id=blk{n},format=raw,file={}", path(file)),
            );
            args.opt(
                "-device",
                format!("virtio-blk-pci,id=blk-dev{n},drive=blk{n}"),
            );
        }
    }
}

/// A command line that a POSIX shell reads back as the same words.
pub fn shell_line<'a>(words: impl IntoIterator<Item = &'a std::ffi::OsStr>) -> String {
    let mut out = String::new();
    for word in words {
        let word = word.to_string_lossy();
        if !out.is_empty() {
            out.push(' ');
        }
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_./,=:+@%".contains(c);
        if !word.is_empty() && word.chars().all(plain) {
            out.push_str(&word);
        } else {
            out.push('\'');
            out.push_str(&word.replace('\'', "'\\''"));
            out.push('\'');
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(arch: Arch) -> Machine {
        Machine {
            boot: "/run/boot.img".into(),
            ..Machine::plain(
                arch,
                Firmware::Flash {
                    code: "/fw/CODE.fd".into(),
                    vars: Some("/fw/VARS.fd".into()),
                },
            )
        }
    }

    fn line(machine: &Machine) -> String {
        let args = machine.arguments();
        shell_line(args.iter().map(OsString::as_os_str))
    }

    #[test]
    fn plain_machines() {
        assert_eq!(
            line(&machine(Arch::X86_64)),
            "-name quire -machine q35 -accel tcg -cpu max -smp 2 -m 1024M \
             -drive if=pflash,unit=0,format=raw,readonly=on,file=/fw/CODE.fd \
             -drive if=pflash,unit=1,format=raw,snapshot=on,file=/fw/VARS.fd \
             -drive if=none,id=boot,format=raw,snapshot=on,file=/run/boot.img \
             -device ide-hd,drive=boot,bus=ide.0,bootindex=0 \
             -chardev stdio,id=console,signal=off -serial chardev:console \
             -monitor none -display none -vga none -nic none -boot menu=on,splash-time=0"
        );
        let arm = line(&machine(Arch::Aarch64));
        assert!(
            arm.contains("-machine virt,acpi=on,gic-version=3 "),
            "{arm}"
        );
        assert!(arm.contains("virtio-blk-device,drive=boot"), "{arm}");
    }

    #[test]
    fn nvdimms_get_slots_room_and_nodes() {
        let mut m = machine(Arch::X86_64);
        m.nvdimms.push(NvdimmDevice {
            backing: Backing::described("/d,1.img", GIB),
            label: Some(128 << 10),
            node: Some(1),
            unarmed: true,
        });
        let line = line(&m);
        for part in [
            "-machine q35,nvdimm=on ",
            "-m 1024M,slots=1,maxmem=3072M ",
            "-object memory-backend-ram,id=ram0,size=1024M -numa node,nodeid=0,memdev=ram0,cpus=0-1 -numa node,nodeid=1",
            "mem-path=/d,,1.img,size=1073741824 ",
            "-device nvdimm,id=nvdimm0,memdev=nvmem0,label-size=131072,node=1,unarmed=on ",
        ] {
            assert!(line.contains(part), "{part} missing in {line}");
        }
    }

    #[test]
    fn cxl_devices_stand_behind_the_windows_of_the_machine() {
        let mut m = machine(Arch::X86_64);
        m.cxl.push(CxlDevice {
            backing: Backing::described("/c", 256 * MIB),
            lsa: Backing::described("/l", MIB),
            ways: 1,
        });
        let line = line(&m);
        for part in [
            "-machine q35,cxl=on,cxl-fmw.0.targets.0=cxl-bridge0,cxl-fmw.0.size=268435456 ",
            "-device pxb-cxl,id=cxl-bridge0,",
            "-device cxl-type3,id=cxl0,",
        ] {
            assert!(line.contains(part), "{part} missing in {line}");
        }
    }

    #[test]
    fn counted_time_is_exactly_as_documented() {
        let mut m = machine(Arch::X86_64);
        m.accel = Accel::Counted;
        m.cpus = 1;
        let line = line(&m);
        assert!(
            line.contains(
                "-accel tcg -cpu max,erms=off,fsrm=off,fzrm=off,fsrs=off -icount shift=0,sleep=off -smp 1 "
            ),
            "{line}"
        );
    }

    #[test]
    fn shell_line_quotes_what_a_shell_would_split() {
        let words = ["a b", "it's", "plain=1,x", ""].map(std::ffi::OsStr::new);
        assert_eq!(shell_line(words), "'a b' 'it'\\''s' plain=1,x ''");
    }
}
