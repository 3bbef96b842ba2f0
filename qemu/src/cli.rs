//! The command line of `quire`. It is a contract with scripts: it may grow,
//! it may not change silently.

use crate::device::{Cxl, Nvdimm, NvmeCmb, Plain};
use crate::size;
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::ffi::OsString;
use std::path::PathBuf;

/// A CPU architecture that Quire boots on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Arch {
    /// 64-bit x86.
    #[value(name = "x86_64", alias = "x86-64", alias = "amd64")]
    X86_64,
    /// 64-bit Arm.
    #[value(name = "aarch64", alias = "arm64")]
    Aarch64,
}

impl Arch {
    /// Both, in the order in which listings show them.
    pub const ALL: [Self; 2] = [Self::X86_64, Self::Aarch64];

    /// As in Rust's target names.
    pub fn name(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "aarch64",
        }
    }

    /// As Limine's `${ARCH}` macro spells it.
    pub fn limine_name(self) -> &'static str {
        match self {
            Self::X86_64 => "x86-64",
            Self::Aarch64 => "aarch64",
        }
    }

    /// The kernel's target.
    pub fn kernel_target(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64-unknown-none",
            Self::Aarch64 => "aarch64-unknown-none",
        }
    }

    /// The loader's target.
    pub fn loader_target(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64-unknown-uefi",
            Self::Aarch64 => "aarch64-unknown-uefi",
        }
    }

    /// The loader's name where firmware looks for it on a removable medium.
    pub fn loader_file(self) -> &'static str {
        match self {
            Self::X86_64 => "BOOTX64.EFI",
            Self::Aarch64 => "BOOTAA64.EFI",
        }
    }

    /// The kernel's name on the boot volume.
    pub fn kernel_file(self) -> String {
        format!("quire-{}.elf", self.limine_name())
    }
}

/// The whole command line.
#[derive(Debug, Parser)]
#[command(
    name = "quire",
    version,
    about = "Starts Quire, a unikernel for persistent memory, in QEMU",
    long_about = "Starts Quire, a unikernel for persistent memory, in QEMU.\n\n\
        Without a subcommand: finds or installs what is missing, builds the kernel and the \
        loader, makes the boot volume, starts QEMU with a 1 GiB NVDIMM kept in \
        target/quire/nvdimm0.img, and gives a shell on this terminal. Ctrl-A X or `poweroff` \
        leaves.",
    after_help = "Exit status of --exec: 0 all commands succeeded, 1 to 63 that of the failing \
        command, 64 kernel panic, 65 timeout, 66 QEMU failed to start, 67 build or set-up failed.\n\
        QUIRE_STATE=DIR keeps the default NVDIMM and scratch files in DIR; \
        QUIRE_TOOLCHAIN=rustup|debian chooses how bare targets are built.",
    args_conflicts_with_subcommands = true
)]
pub struct Cli {
    /// What to do instead of starting Quire.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// How to start it.
    #[command(flatten)]
    pub run: RunArgs,
}

/// Subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Say what this machine has and lacks, without changing anything
    Doctor(DoctorArgs),
    /// Install what is missing for everything: running, testing, checking
    Provision(ProvisionArgs),
    /// Write a raw disk image that boots from a USB stick or a virtual disk
    Image(ImageArgs),
    /// The file system on image files, on this machine, without QEMU
    #[command(subcommand)]
    Fs(FsCommand),
    /// Measure what operations cost in instructions, and compare with Linux
    Bench(BenchArgs),
    /// Draw a flame graph of what a command does in the guest
    Prof(ProfArgs),
    /// Check formatting, and lint the tree for the host and all bare targets
    Lint(ProvisionArgs),
}

/// `quire fs`: commands on image files.
#[derive(Debug, Subcommand)]
pub enum FsCommand {
    /// Print one line for every object of an image
    Manifest {
        /// The image file
        image: PathBuf,
        /// Mount for writing (replaying the journal) and unmount cleanly
        #[arg(long)]
        rw: bool,
    },
    /// Make an ext4 file system
    Mkfs {
        /// The image file
        image: PathBuf,
        /// Create the image sparse with this size
        #[arg(long, value_name = "SIZE", value_parser = size::parse_nonzero)]
        size: Option<u64>,
        /// Options of the shell's mkfs.ext4
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<String>,
    },
    /// Let a file system grow to its image's size
    Grow {
        /// The image file
        image: PathBuf,
        /// Make the image this long first, if it is shorter
        #[arg(long, value_name = "SIZE", value_parser = size::parse_nonzero)]
        size: Option<u64>,
    },
    /// Check without repairing
    Fsck {
        /// The image file
        image: PathBuf,
    },
    /// List directories
    Ls(FileArgs),
    /// Print files
    Cat(FileArgs),
    /// Show what is known of files
    Stat(FileArgs),
    /// Remove files
    Rm(FileArgs),
    /// Make directories
    Mkdir(FileArgs),
    /// Copy a file of the image to the host
    Get {
        /// The image file
        image: PathBuf,
        /// Path in the image
        path: String,
        /// Where to; standard output when left out
        file: Option<PathBuf>,
    },
    /// Copy a file of the host into the image
    Put {
        /// The image file
        image: PathBuf,
        /// The host's file
        file: PathBuf,
        /// Path in the image
        path: String,
    },
    /// Run shell file commands from a file
    Run {
        /// The image file
        image: PathBuf,
        /// The file with the commands; `-` is standard input
        script: PathBuf,
    },
    /// The same, and keep a log of every store, write-back and fence
    Trace {
        /// The image file
        image: PathBuf,
        /// The file with the commands; `-` is standard input
        script: PathBuf,
        /// Where the log goes
        #[arg(short = 'o', long = "output", value_name = "LOG")]
        log: PathBuf,
    },
}

/// An image and the arguments of a shell command.
#[derive(Debug, Args)]
pub struct FileArgs {
    /// The image file
    pub image: PathBuf,
    /// Arguments of the shell's command of this name
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub arguments: Vec<String>,
}

/// Options of `quire doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// One JSON document
    #[arg(long)]
    pub json: bool,
}

/// Options of what may install packages.
#[derive(Debug, Args)]
pub struct ProvisionArgs {
    /// Install what is missing without asking
    #[arg(long)]
    pub yes: bool,
}

/// Which loaders and kernels go on an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ImageArch {
    /// 64-bit x86.
    #[value(name = "x86_64", alias = "x86-64", alias = "amd64")]
    X86_64,
    /// 64-bit Arm.
    #[value(name = "aarch64", alias = "arm64")]
    Aarch64,
    /// Both on one image.
    All,
}

impl ImageArch {
    /// The architectures meant.
    pub fn list(self) -> Vec<Arch> {
        match self {
            Self::X86_64 => vec![Arch::X86_64],
            Self::Aarch64 => vec![Arch::Aarch64],
            Self::All => Arch::ALL.to_vec(),
        }
    }
}

/// Options of `quire bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// Only operations of these names, or whose names contain these words
    #[arg(value_name = "FILTER")]
    pub filters: Vec<String>,
    /// On which CPUs
    #[arg(long, value_enum, default_value = "all")]
    pub arch: ImageArch,
    /// Compare with this Linux
    #[arg(long, value_name = "VERSION", default_value = "7.2")]
    pub linux: String,
    /// Measure how costs grow with CPUs, device and directory, as curves
    #[arg(long, conflicts_with_all = ["filters", "check"])]
    pub scale: bool,
    /// Take the figures from what --json has kept, and measure nothing
    #[arg(long, value_name = "FILE", conflicts_with_all = ["filters", "json"])]
    pub from: Option<PathBuf>,
    /// Draw the table as one self-contained page
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Keep the figures
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Keep the figures in docs/bench, and make the book's page
    #[arg(long)]
    pub record: bool,
    /// Fail, with status 1, when an operation needs over 3 % more than recorded
    #[arg(long, conflicts_with = "record")]
    pub check: bool,
    /// Install what is missing without asking
    #[arg(long)]
    pub yes: bool,
}

/// Options of `quire prof`.
#[derive(Debug, Args)]
pub struct ProfArgs {
    /// Commands of the shell, as one word
    pub command: String,
    /// On which CPU
    #[arg(long, value_enum, default_value = "x86_64")]
    pub arch: Arch,
    /// Where the picture goes
    #[arg(short, long, value_name = "FILE", default_value = "flame.svg")]
    pub output: PathBuf,
    /// Keep the folded stacks, too
    #[arg(long, value_name = "FILE")]
    pub folded: Option<PathBuf>,
    /// Nanoseconds (instructions) between samples
    #[arg(long, value_name = "NS", default_value_t = 20_000, value_parser = clap::value_parser!(u64).range(1_000..))]
    pub period: u64,
    /// By the clock, on all CPUs; otherwise instructions are counted, on one
    #[arg(long)]
    pub real_time: bool,
    /// Give up after this time
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    pub timeout: u64,
    /// More options of a start, such as `--nvdimm FILE`, after `--`
    #[arg(last = true)]
    pub options: Vec<OsString>,
}

/// Options of `quire image`.
#[derive(Debug, Args)]
pub struct ImageArgs {
    /// For which CPU the image boots
    #[arg(long, value_enum, default_value = "all")]
    pub arch: ImageArch,
    /// The file to write
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
    /// Size of the image
    #[arg(long, value_name = "SIZE", default_value = "64M", value_parser = size::parse_nonzero)]
    pub size: u64,
    /// Kernel command line on the image
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub append: Vec<String>,
    /// The application in the image
    #[arg(long, value_name = "NAME", default_value = "shell")]
    pub app: String,
    /// Use this Limine EFI binary instead of Quire's loader (one architecture)
    #[arg(long, value_name = "PATH")]
    pub bootloader: Option<PathBuf>,
    /// Install what is missing without asking
    #[arg(long)]
    pub yes: bool,
}

/// Options of a start.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// CPU architecture
    #[arg(long, value_enum, default_value = "x86_64")]
    pub arch: Arch,
    /// Number of CPUs
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=512))]
    pub smp: u32,
    /// RAM
    #[arg(long, value_name = "SIZE", default_value = "1G", value_parser = size::parse_nonzero)]
    pub memory: u64,
    /// An NVDIMM backed by FILE, created sparse when missing; repeatable; replaces the default one
    #[arg(long, value_name = "FILE[,size=S][,label=S][,node=N][,unarmed]")]
    pub nvdimm: Vec<Nvdimm>,
    /// A CXL type 3 device with persistent memory; repeatable; x86_64 only before QEMU 11
    #[arg(long, value_name = "FILE[,size=S][,lsa=FILE][,ways=N]")]
    pub cxl: Vec<Cxl>,
    /// A virtio-pmem device; repeatable; x86_64 only
    #[arg(long, value_name = "FILE[,size=S]")]
    pub virtio_pmem: Vec<Plain>,
    /// An NVMe controller with a persistent memory region; repeatable
    #[arg(long, value_name = "FILE[,size=S]")]
    pub nvme_pmr: Vec<Plain>,
    /// An NVMe controller with a memory buffer, for peer-to-peer transfers; repeatable
    #[arg(long, value_name = "SIZE[,file=FILE]")]
    pub nvme_cmb: Vec<NvmeCmb>,
    /// A virtio block device; repeatable
    #[arg(long, value_name = "FILE")]
    pub virtio_blk: Vec<PathBuf>,
    /// No default NVDIMM
    #[arg(long)]
    pub no_pmem: bool,
    /// Kernel command line; `init='CMD; CMD'` runs commands before the shell
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub append: Vec<String>,
    /// The application in the image
    #[arg(long, value_name = "NAME", default_value = "shell")]
    pub app: String,
    /// Run these commands, print what they print, power off
    #[arg(long, value_name = "CMD; CMD", allow_hyphen_values = true)]
    pub exec: Option<String>,
    /// Give up after this time [default with --exec: 120]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=604_800))]
    pub timeout: Option<u64>,
    /// Deterministic time that counts instructions; one CPU
    #[arg(long)]
    pub icount: bool,
    /// Wait for a debugger; print the command to attach
    #[arg(long)]
    pub gdb: bool,
    /// Use this QEMU
    #[arg(long, value_name = "PATH")]
    pub qemu: Option<PathBuf>,
    /// Use this firmware image
    #[arg(long, value_name = "PATH")]
    pub firmware: Option<PathBuf>,
    /// Use this Limine EFI binary instead of Quire's loader
    #[arg(long, value_name = "PATH")]
    pub bootloader: Option<PathBuf>,
    /// A line of the entry in the boot volume's limine.conf; repeatable
    #[arg(long, value_name = "KEY: VALUE", value_parser = loader_line)]
    pub loader_line: Vec<String>,
    /// Put this file into the boot volume's root; repeatable
    #[arg(long, value_name = "FILE")]
    pub boot_file: Vec<PathBuf>,
    /// Boot this disk image (see `quire image`) instead of building a boot volume
    #[arg(long, value_name = "FILE", conflicts_with_all = ["bootloader", "append", "exec", "app", "loader_line", "boot_file"])]
    pub disk: Option<PathBuf>,
    /// How --disk is attached
    #[arg(long, value_enum, default_value = "virtio", requires = "disk")]
    pub disk_bus: DiskBus,
    /// Passed on to QEMU as it is; repeatable
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    pub qemu_arg: Vec<OsString>,
    /// Print the QEMU command line and stop
    #[arg(long)]
    pub print: bool,
    /// The whole serial output also goes here
    #[arg(long, value_name = "FILE")]
    pub log: Option<PathBuf>,
    /// Install what is missing without asking
    #[arg(long)]
    pub yes: bool,
}

fn loader_line(text: &str) -> Result<String, String> {
    match text.split_once(':') {
        Some((key, _)) if !key.is_empty() && !text.contains(['\n', '\r']) => Ok(text.into()),
        _ => Err("one line, KEY: VALUE".into()),
    }
}

/// How a disk image is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DiskBus {
    /// A virtio disk.
    Virtio,
    /// A USB stick.
    Usb,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn contract_parses() {
        let cli = Cli::try_parse_from([
            "quire",
            "--arch",
            "aarch64",
            "--smp",
            "4",
            "--memory",
            "2G",
            "--nvdimm",
            "a.img,size=1G",
            "--nvdimm",
            "b.img,unarmed",
            "--append",
            "log=debug",
            "--exec",
            "ls; cat f",
            "--timeout",
            "30",
            "--qemu-arg",
            "-acpitable",
            "--qemu-arg",
            "sig=NFIT,rev=1,data=f",
        ])
        .expect("parses");
        assert_eq!(cli.run.arch, Arch::Aarch64);
        assert_eq!(cli.run.nvdimm.len(), 2);
        assert_eq!(cli.run.qemu_arg, ["-acpitable", "sig=NFIT,rev=1,data=f"]);
        assert!(cli.command.is_none());
    }
}
