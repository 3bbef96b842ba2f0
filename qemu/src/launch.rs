//! A start from options to exit status.

use crate::build::{Built, build};
use crate::cli::{Arch, DiskBus, RunArgs};
use crate::cmdline::CommandLine;
use crate::cxl;
use crate::device::Backing;
use crate::error::{Context, Failure, Result};
use crate::host::provision::{Consent, ensure};
use crate::host::toolchain::Toolchain;
use crate::host::{self, Item, find_program, firmware, kvm};
use crate::machine::{Accel, Attach, CxlDevice, Firmware, Machine, NvdimmDevice, shell_line};
use crate::session::framed::Outputs;
use crate::session::guest::{Guest, watch_signals};
use crate::session::{framed, interactive};
use crate::size::{GIB, MIB};
use crate::volume::{self, Entry};
use crate::workspace::{Scratch, Workspace};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Time for `--exec` when none is given.
const DEFAULT_TIMEOUT: u64 = 120;

/// Size of a label storage area that is made here.
const LSA_SIZE: u64 = MIB;

/// A machine that can be started.
#[derive(Debug)]
pub struct Prepared {
    /// QEMU.
    pub qemu: PathBuf,
    /// Its command line.
    pub machine: Machine,
    /// The kernel with debug information; none when a disk image is booted.
    pub kernel: Option<PathBuf>,
}

/// Starts Quire as the options say; the exit status.
pub fn run(workspace: &Workspace, args: &RunArgs) -> Result<u8> {
    let scratch = workspace.scratch()?;
    // What `--print` shows must still be there when it is typed.
    let dir = if args.print {
        let dir = workspace.state.join("print");
        std::fs::create_dir_all(&dir).context(|| format!("cannot create {}", dir.display()))?;
        dir
    } else {
        scratch.path().to_path_buf()
    };
    let prepared = prepare(workspace, args, &dir)?;
    if args.print {
        let words = prepared.machine.arguments();
        let line = shell_line(
            std::iter::once(prepared.qemu.as_os_str()).chain(words.iter().map(|w| w.as_os_str())),
        );
        println!("{line}");
        return Ok(0);
    }
    start(&prepared, args, scratch)
}

/// Provisions, builds, and describes the machine. The boot volume goes to
/// `dir`.
pub fn prepare(workspace: &Workspace, args: &RunArgs, dir: &Path) -> Result<Prepared> {
    if let Some(bad) = args.virtio_blk.iter().find(|f| !f.exists()) {
        return Err(Failure::setup(format!("{} does not exist", bad.display())));
    }
    // Options that cannot work are reported before anything long begins.
    let command_line = command_line(args)?;
    let items: Vec<Item> = host::for_run(args.arch)
        .into_iter()
        .filter(|item| match item {
            Item::Qemu(_) => args.qemu.is_none(),
            Item::Firmware(_) => args.firmware.is_none(),
            Item::BareTargets => args.disk.is_none(),
            Item::E2fsprogs | Item::Lints => true,
        })
        .collect();
    ensure(&items, Consent::new(args.yes))?;
    let qemu = qemu(args)?;
    let firmware = match &args.firmware {
        Some(path) => firmware::chosen(args.arch, path)?,
        None => {
            firmware::find(args.arch).ok_or_else(|| Failure::setup("no UEFI firmware was found"))?
        }
    };
    let (boot, attach, kernel) = match &args.disk {
        Some(disk) => {
            let attach = match args.disk_bus {
                DiskBus::Virtio => Attach::Virtio,
                DiskBus::Usb => Attach::Usb,
            };
            if !disk.exists() {
                return Err(Failure::setup(format!("{} does not exist", disk.display())));
            }
            (disk.clone(), attach, None)
        }
        None => {
            let toolchain = Toolchain::find()
                .ok_or_else(|| Failure::setup("no compiler for the bare targets was found"))?;
            let built = build(
                workspace,
                &toolchain,
                args.arch,
                &args.app,
                args.bootloader.as_deref(),
            )?;
            let kernel = built.kernel.clone();
            let boot = dir.join(format!("boot-{}.img", args.arch.name()));
            write_boot(&boot, args, built, &command_line)?;
            (boot, Attach::Hidden, Some(kernel))
        }
    };
    let machine = machine(workspace, args, firmware, boot, attach, &qemu)?;
    Ok(Prepared {
        qemu,
        machine,
        kernel,
    })
}

fn write_boot(path: &Path, args: &RunArgs, built: Built, line: &CommandLine) -> Result<()> {
    let mut entries = volume::entries(&[(args.arch, built)], line, &args.loader_line)?;
    for file in &args.boot_file {
        let name = file.file_name().and_then(|name| name.to_str());
        let shown = file.display();
        entries.push(Entry {
            path: name
                .ok_or_else(|| Failure::setup(format!("--boot-file {shown}: no file's name")))?
                .into(),
            bytes: fs::read(file).context(|| format!("cannot read {shown}"))?,
        });
    }
    volume::write_file(path, &entries)
}

fn qemu(args: &RunArgs) -> Result<PathBuf> {
    let name = Machine::program(args.arch);
    match &args.qemu {
        Some(path) => Ok(path.clone()),
        None => find_program(name).ok_or_else(|| Failure::qemu(format!("{name} was not found"))),
    }
}

/// Whether the machine has the NVDIMM that nobody asked for.
fn has_default_nvdimm(args: &RunArgs) -> bool {
    !args.no_pmem
        && args.nvdimm.is_empty()
        && args.cxl.is_empty()
        && args.virtio_pmem.is_empty()
        && args.nvme_pmr.is_empty()
}

/// What the kernel is told.
fn command_line(args: &RunArgs) -> Result<CommandLine> {
    let mut line = CommandLine::default();
    if has_default_nvdimm(args) {
        line.word("mount=pmem0:/pmem0:rw:format");
    }
    // Regions of CXL devices appear by themselves; a set that has labels, or
    // that firmware has made, stays as it is.
    let ways: Vec<u32> = args.cxl.iter().map(|d| d.ways.unwrap_or(1)).collect();
    if let Some(word) = cxl::create_word(&ways) {
        line.word(&word);
    }
    if let Some(commands) = &args.exec {
        line.value("exec", commands);
    }
    for text in &args.append {
        line.append(text)?;
    }
    Ok(line)
}

fn machine(
    workspace: &Workspace,
    args: &RunArgs,
    firmware: Firmware,
    boot: PathBuf,
    attach: Attach,
    qemu: &Path,
) -> Result<Machine> {
    if args.arch != Arch::X86_64 && !args.virtio_pmem.is_empty() {
        return Err(Failure::setup(
            "--virtio-pmem: QEMU's aarch64 machine has no such device; use --nvdimm",
        ));
    }
    if !args.cxl.is_empty() {
        cxl::supported(args.arch, qemu)?;
    }
    let mut machine = Machine::plain(args.arch, firmware);
    machine.boot = boot;
    machine.attach = attach;
    machine.cpus = args.smp;
    machine.memory = args.memory;
    machine.virtio_blk = args.virtio_blk.clone();
    machine.nvme_cmb = args.nvme_cmb.clone();
    machine.no_reboot = args.exec.is_some();
    machine.extra = args.qemu_arg.clone();
    for device in &args.nvdimm {
        machine.nvdimms.push(NvdimmDevice {
            backing: Backing::open(&device.file, device.size)?,
            label: device.label,
            node: device.node,
            unarmed: device.unarmed,
        });
    }
    if has_default_nvdimm(args) {
        let file = workspace.default_nvdimm();
        // Its size counts when it is made; later starts take it as it is.
        let size = (!file.exists()).then_some(GIB);
        machine.nvdimms.push(NvdimmDevice {
            backing: Backing::open(&file, size)?,
            label: None,
            node: None,
            unarmed: false,
        });
    }
    for device in &args.cxl {
        let (lsa, size) = match &device.lsa {
            Some(file) => (file.clone(), (!file.exists()).then_some(LSA_SIZE)),
            None => {
                let mut name = device.file.clone().into_os_string();
                name.push(".lsa");
                let file = PathBuf::from(name);
                let size = (!file.exists()).then_some(LSA_SIZE);
                (file, size)
            }
        };
        machine.cxl.push(CxlDevice {
            backing: Backing::open(&device.file, device.size)?,
            lsa: Backing::open(&lsa, size)?,
            ways: device.ways.unwrap_or(1),
        });
    }
    cxl::check(&machine.cxl)?;
    for device in &args.virtio_pmem {
        let backing = Backing::open(&device.file, device.size)?;
        machine.virtio_pmem.push(backing);
    }
    for device in &args.nvme_pmr {
        let backing = Backing::open(&device.file, device.size)?;
        if !backing.len.is_power_of_two() {
            return Err(Failure::setup(format!(
                "--nvme-pmr {}: its size must be a power of two",
                backing.path.display()
            )));
        }
        machine.nvme_pmr.push(backing);
    }
    if args.icount {
        if args.smp > 2 {
            eprintln!(
                "quire: --icount counts one CPU; --smp {} is left out",
                args.smp
            );
        }
        machine.cpus = 1;
        machine.accel = Accel::Counted;
    } else if !args.print {
        machine.accel = kvm::accelerator(workspace, args.arch, qemu, &machine.firmware);
    }
    if args.gdb {
        machine.gdb = Some(free_port()?);
    }
    Ok(machine)
}

/// 1234, where debuggers look first, or any port when that one is taken.
fn free_port() -> Result<u16> {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 1234))
        .or_else(|_| std::net::TcpListener::bind(("127.0.0.1", 0)))
        .context(|| "no port for the debugger")?;
    let address = listener
        .local_addr()
        .context(|| "no port for the debugger")?;
    Ok(address.port())
}

fn start(prepared: &Prepared, args: &RunArgs, scratch: Scratch) -> Result<u8> {
    let log = match &args.log {
        Some(path) => {
            Some(File::create(path).context(|| format!("cannot create {}", path.display()))?)
        }
        None => None,
    };
    if let Some(port) = prepared.machine.gdb {
        let kernel = prepared.kernel.as_deref();
        let shown = shell_line([kernel.map_or(OsStr::new("KERNEL"), Path::as_os_str)]);
        let gdb = match args.arch.name() == std::env::consts::ARCH {
            true => "gdb",
            false => "gdb-multiarch",
        };
        eprintln!(
            "quire: waiting for a debugger; in another terminal:\n\
             quire:   {gdb} {shown} -ex 'target remote :{port}' -ex 'hbreak _start' -ex continue"
        );
    }
    let mut guest = Guest::start(&prepared.qemu, &prepared.machine.arguments())?;
    let (sender, events) = guest.events();
    watch_signals(sender.clone())?;
    let timeout = args.timeout.map(Duration::from_secs);
    let outcome = if args.exec.is_some() {
        // Input would be taken by nobody; the pipe stays open and empty.
        let _input = guest.take_input();
        let (mut stdout, mut stderr) = (std::io::stdout(), std::io::stderr());
        let mut log = log;
        framed::run(
            &mut guest,
            &events,
            timeout.unwrap_or(Duration::from_secs(DEFAULT_TIMEOUT)),
            Outputs {
                stdout: &mut stdout,
                stderr: &mut stderr,
                log: log.as_mut().map(|file| file as &mut dyn Write),
            },
        )?
    } else {
        eprintln!("quire: Ctrl-A X leaves");
        interactive::run(&mut guest, &sender, &events, timeout, log)?
    };
    drop(guest);
    drop(scratch);
    if let Some(reason) = outcome.reason {
        eprintln!("quire: {reason}");
    }
    Ok(outcome.status)
}
