//! CXL memory devices in QEMU: interleave sets, restarts, media that fail.

use quire_qemu::cxl::supported;
use quire_qemu::host::find_program;
use quire_tests::qmp::Qmp;
use quire_tests::{Arch, Lab, Start, tools};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

const UNIT: u64 = 256 << 20;

/// These files as CXL devices in one set, as the launcher builds it.
fn set<'l>(lab: &'l Lab, files: &[&str]) -> Start<'l> {
    let ways = files.len();
    files.iter().fold(lab.quire(Arch::X86_64), |start, file| {
        let file = lab.path(file);
        start
            .arg("--cxl")
            .arg(format!("{},size=256M,ways={ways}", file.display()))
    })
}

/// What the host makes of the devices' files: a chunk of each in turn.
fn joined(lab: &Lab, files: &[&str]) -> PathBuf {
    const CHUNK: usize = 256;
    const PIECE: usize = 1 << 20;
    let path = lab.path("joined.img");
    let mut out = File::create(&path).expect("the joined image");
    out.set_len(UNIT * files.len() as u64).expect("its size");
    let mut parts: Vec<File> = files
        .iter()
        .map(|file| File::open(lab.path(file)).expect("a device's file"))
        .collect();
    let ways = parts.len() as u64;
    let mut piece = vec![0; PIECE];
    for at in (0..UNIT).step_by(PIECE) {
        for (nth, part) in (0u64..).zip(&mut parts) {
            part.read_exact(&mut piece).expect("a device's file");
            for (chunk, bytes) in (at / CHUNK as u64..).zip(piece.chunks(CHUNK)) {
                // Holes stay holes.
                if bytes.iter().any(|byte| *byte != 0) {
                    let to = (chunk * ways + nth) * CHUNK as u64;
                    out.seek(SeekFrom::Start(to)).expect("inside");
                    out.write_all(bytes).expect("written");
                }
            }
        }
    }
    path
}

/// What one start writes the next one reads; and so does the host, which
/// interleaves the devices' files itself. `members` are the kernel's names in
/// the order of the set, `files` what is behind them.
fn keeps_data<'l>(lab: &'l Lab, members: &str, files: &[&str], start: &dyn Fn() -> Start<'l>) {
    let text = "0123456789abcdef".repeat(300);
    start()
        .exec(&format!(
            "cxl create-region {members}; mkfs.ext4 pmem0; mount -o rw pmem0 /d; \
             mkdir /d/x; echo {text} > /d/x/f"
        ))
        .ok();
    let image = joined(lab, files);
    tools::assert_clean(&image);
    let expected = format!("{text}\n");
    assert_eq!(tools::read_file(&image, "/x/f"), expected.as_bytes());
    let output = start()
        .exec("cxl list -R --json; mount pmem0 /d; cat /d/x/f; umount /d; fsck pmem0")
        .ok()
        .text();
    for part in [
        "\"origin\":\"labels\"",
        &format!("\"interleave_ways\":{}", files.len()),
        &expected,
        "pmem0: clean",
    ] {
        assert!(output.contains(part), "{part} is not in {output}");
    }
}

#[test]
fn two_ways_over_two_host_bridges() {
    let lab = Lab::new("cxl2");
    let files = ["a.img", "b.img"];
    keeps_data(&lab, "mem0 mem1", &files, &|| set(&lab, &files));
}

#[test]
fn three_ways_over_three_host_bridges() {
    let lab = Lab::new("cxl3");
    let files = ["a.img", "b.img", "c.img"];
    // The window's remainder is of the whole address: with this much RAM its
    // first chunk goes to the last bridge.
    let order = ["c.img", "a.img", "b.img"];
    keeps_data(&lab, "mem2 mem0 mem1", &order, &|| set(&lab, &files));
}

/// QEMU's options for devices behind two host bridges with a switch each.
fn behind_switches<'l>(lab: &'l Lab, files: &[&str; 4]) -> Start<'l> {
    let mut options = vec![
        "-machine".to_string(),
        format!(
            "cxl=on,cxl-fmw.0.targets.0=hb0,cxl-fmw.0.targets.1=hb1,cxl-fmw.0.size={}",
            4 * UNIT
        ),
    ];
    let mut device = |text: String| options.extend(["-device".to_string(), text]);
    for bridge in 0..2 {
        let bus = 32 + 32 * bridge;
        device(format!("pxb-cxl,id=hb{bridge},bus=pcie.0,bus_nr={bus}"));
        device(format!(
            "cxl-rp,id=rp{bridge},bus=hb{bridge},port=0,chassis={bridge},slot=0"
        ));
        device(format!("cxl-upstream,id=us{bridge},bus=rp{bridge}"));
        for port in 0..2 {
            let slot = 1 + port;
            device(format!(
                "cxl-downstream,id=ds{bridge}{port},bus=us{bridge},port={port},\
                 chassis={bridge},slot={slot}"
            ));
        }
    }
    for (nth, file) in files.iter().enumerate() {
        for (kind, size) in [("", UNIT), (".lsa", 1 << 20)] {
            let path = lab.path(&format!("{file}{kind}"));
            if !path.exists() {
                let new = File::create(&path).expect("a device's file");
                new.set_len(size).expect("its size");
            }
            options.extend([
                "-object".to_string(),
                format!(
                    "memory-backend-file,id=m{nth}{kind},share=on,size={size},mem-path={}",
                    path.display()
                ),
            ]);
        }
        let (bridge, port) = (nth / 2, nth % 2);
        options.extend([
            "-device".to_string(),
            format!(
                "cxl-type3,id=cxl{nth},bus=ds{bridge}{port},persistent-memdev=m{nth},\
                 lsa=m{nth}.lsa,sn={}",
                nth + 100
            ),
        ]);
    }
    let start = lab.quire(Arch::X86_64).arg("--no-pmem");
    options
        .into_iter()
        .fold(start, |start, option| start.arg("--qemu-arg").arg(option))
}

#[test]
fn four_ways_over_two_host_bridges_and_their_switches() {
    let lab = Lab::new("cxl4");
    let files = ["a.img", "b.img", "c.img", "d.img"];
    // Chunks go to the bridges in turn, and at each to the switch's ports.
    let order = ["a.img", "c.img", "b.img", "d.img"];
    keeps_data(&lab, "mem0 mem2 mem1 mem3", &order, &|| {
        behind_switches(&lab, &files)
    });
}

/// A device alone: its file is the file system. Then a part of a file is lost
/// while the machine runs.
#[test]
fn lost_media_are_seen_survived_and_cleared() {
    let lab = Lab::new("cxlpoison");
    let image = lab.path("c.img");
    let body = "0123456789abcde\n".repeat(2048);
    let source = lab.path("body");
    std::fs::write(&source, &body).expect("the body");
    tools::mkfs(&image, UNIT, ["-b", "4096"]);
    tools::debugfs(&image, &format!("write {} victim", source.display()));
    tools::debugfs(&image, &format!("write {} other", source.display()));
    let block = tools::block_of(&image, "victim", 3);
    let dpa = block * 4096 + 128;

    let socket = lab.path("qmp");
    let connect = socket.clone();
    let mut qmp = Some(std::thread::spawn(move || Qmp::connect(&connect)));
    let output = set(&lab, &["c.img"])
        .args(["--qemu-arg", "-qmp", "--qemu-arg"])
        .arg(format!("unix:{},server=on,wait=on", socket.display()))
        .watch(
            &format!(
                "mount -o rw pmem0 /d; sha256sum /d/victim; echo ready; cxl monitor 1; \
                 cat /d/victim; sha256sum /d/other; pmem health; cxl list -L --json; \
                 cxl clear-poison -a {dpa} mem0; sha256sum /d/victim; pmem health; \
                 cxl list -L --json"
            ),
            |line| {
                if line != "ready" {
                    return;
                }
                let mut qmp = qmp.take().expect("once").join().expect("connected");
                let device = "\"path\":\"/machine/peripheral/cxl0\"";
                qmp.execute(
                    "cxl-inject-poison",
                    &format!("{{{device},\"start\":{dpa},\"length\":64}}"),
                );
                qmp.execute(
                    "cxl-inject-general-media-event",
                    &format!(
                        "{{{device},\"log\":\"failure\",\"flags\":0,\"dpa\":{dpa},\
                         \"descriptor\":1,\"type\":0,\"transaction-type\":1}}"
                    ),
                );
            },
        )
        // `cat` has failed; everything after it worked.
        .status(1)
        .says("memory error");
    let text = output.text();
    let before = tools::sha256(&source);
    let good = |name: &str| format!("{before}  /d/{name}\n");
    assert!(
        text.contains(&good("victim")) && text.contains(&good("other")),
        "{text}"
    );
    for part in [
        format!("event=\"general media\" dpa={dpa:#x} "),
        "uncorrectable=true".into(),
        "pmem0      has lost memory".into(),
        format!("\"dpa\":\"{dpa:#x}\",\"hpa\":\""),
        "pmem0      ok".into(),
        "\"media_errors\":[]".into(),
    ] {
        assert!(text.contains(&part), "{part} is not in {text}");
    }
    // 64 bytes are zeros now, the rest is what it was.
    let mut expected = body.into_bytes();
    let at = 3 * 4096 + 128;
    expected[at..at + 64].fill(0);
    assert!(tools::read_file(&image, "/victim") == expected);
    tools::assert_clean(&image);
}

#[test]
fn volatile_devices_are_listed_only() {
    let lab = Lab::new("cxlram");
    let window = format!("cxl=on,cxl-fmw.0.targets.0=hb0,cxl-fmw.0.size={UNIT}");
    let object = format!("memory-backend-ram,id=ram1,size={UNIT}");
    let options = [
        ["-machine", &window],
        ["-object", &object],
        ["-device", "pxb-cxl,id=hb0,bus=pcie.0,bus_nr=32"],
        ["-device", "cxl-rp,id=rp0,bus=hb0,port=0,chassis=0,slot=0"],
        [
            "-device",
            "cxl-type3,id=v,bus=rp0,volatile-memdev=ram1,sn=7",
        ],
    ];
    let start = lab.quire(Arch::X86_64).arg("--no-pmem");
    let output = options
        .iter()
        .flatten()
        .fold(start, |start, option| start.arg("--qemu-arg").arg(option))
        .args(["--append", "cxl=create"])
        .exec("cxl list --json; pmem list; cxl list")
        .ok()
        .text();
    for part in [
        "[{\"memdev\":\"mem0\",\"ram_size\":268435456,\"serial\":7,",
        "no persistent memory was found",
        "volatile only: not used",
    ] {
        assert!(output.contains(part), "{part} is not in {output}");
    }
}

/// On aarch64 a QEMU with CXL runs it, one without is refused by name: which
/// of the two this QEMU is decides what is asserted.
#[test]
fn aarch64_has_cxl_or_says_that_it_has_not() {
    let lab = Lab::new("cxlarm");
    let qemu = find_program("qemu-system-aarch64").expect("it was provisioned");
    let start = || {
        lab.quire(Arch::Aarch64)
            .arg("--cxl")
            .arg(format!("{},size=256M", lab.path("c.img").display()))
    };
    if supported(Arch::Aarch64, Path::new(&qemu)).is_ok() {
        eprintln!("this QEMU's virt machine has CXL");
        start()
            .exec("cxl create-region mem0; mkfs.ext4 pmem0; mount -o rw pmem0 /d; echo kept > /d/f")
            .ok();
        let output = start().exec("mount pmem0 /d; cat /d/f").ok().text();
        assert!(output.contains("kept"), "{output}");
    } else {
        eprintln!("this QEMU's virt machine has no CXL");
        start()
            .exec("cxl list")
            .status(67)
            .says("QEMU 11 or later has");
        assert!(!lab.path("c.img").exists(), "nothing was made");
    }
}
