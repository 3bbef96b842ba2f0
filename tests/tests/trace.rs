//! `quire fs trace`: the log, read by a program that shares no code with the
//! one that wrote it, rebuilds the image, and the image after a power cut.

use quire_tests::{Lab, tools};
use std::collections::BTreeMap;
use std::process::Output;

fn fs(lab: &Lab, args: &[&str]) -> Output {
    lab.launcher()
        .arg("fs")
        .args(args)
        .output()
        .expect("the launcher starts")
}

#[track_caller]
fn ok(lab: &Lab, args: &[&str]) -> String {
    let output = fs(lab, args);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{args:?}: {errors}");
    String::from_utf8(output.stdout).expect("text")
}

fn bytes(hex: &str) -> Vec<u8> {
    assert_eq!(hex.len() % 2, 0);
    (0..hex.len() / 2)
        .map(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).expect("hex"))
        .collect()
}

/// Media as a power cut right now would leave it, if nothing reached it that
/// had not been written back and fenced.
struct Media {
    /// Everything that was stored.
    stored: Vec<u8>,
    /// What is sure.
    sure: Vec<u8>,
    /// Lines with stores that are not sure: whether they are on their way.
    lines: BTreeMap<usize, bool>,
    line: usize,
}

impl Media {
    fn lines_of(&self, offset: usize, len: usize) -> std::ops::Range<usize> {
        offset / self.line..(offset + len).div_ceil(self.line)
    }

    fn store(&mut self, offset: usize, data: &[u8], bypasses: bool) {
        self.stored[offset..offset + data.len()].copy_from_slice(data);
        for line in self.lines_of(offset, data.len()) {
            let on_its_way = self.lines.get(&line).copied().unwrap_or(true);
            self.lines.insert(line, bypasses && on_its_way);
        }
    }

    fn write_back(&mut self, offset: usize, len: usize) {
        for line in self.lines_of(offset, len) {
            self.lines.entry(line).and_modify(|l| *l = true);
        }
    }

    fn fence(&mut self) {
        let (stored, sure, size) = (&self.stored, &mut self.sure, self.line);
        self.lines.retain(|line, on_its_way| {
            if *on_its_way {
                let range = line * size..(line + 1) * size;
                sure[range.clone()].copy_from_slice(&stored[range]);
            }
            !*on_its_way
        });
    }
}

#[test]
fn a_log_rebuilds_the_image_and_what_a_cut_leaves() {
    let lab = Lab::new("trace");
    ok(&lab, &["mkfs", "fs.img", "--size", "16M"]);
    let before = std::fs::read(lab.path("fs.img")).expect("image");
    let script = "mkdir /d\n\n# a comment\necho one > /d/f; echo two > /d/g\nsync\n\
                  mv /d/f /d/h\ncat /not-there\ntruncate -s 100000 /d/g\nln /d/h /d/i\n\
                  setfattr -n user.a -v b /d/h\nsync\nrm /d/g\n";
    std::fs::write(lab.path("script"), script).expect("script");
    let output = fs(&lab, &["trace", "fs.img", "script", "-o", "log"]);
    assert_eq!(output.status.code(), Some(3), "one command fails");
    let after = std::fs::read(lab.path("fs.img")).expect("image");
    tools::assert_clean(&lab.path("fs.img"));

    let log = std::fs::read_to_string(lab.path("log")).expect("a log");
    let mut lines = log.lines();
    let head: Vec<&str> = lines.next().expect("a head").split(' ').collect();
    let size = before.len().to_string();
    let wanted = [
        "#",
        "quire-trace",
        "1",
        "media",
        &size,
        "line",
        "64",
        "unit",
        "8",
    ];
    assert_eq!(head, wanted);
    let mut media = Media {
        stored: before.clone(),
        sure: before,
        lines: BTreeMap::new(),
        line: 64,
    };
    let mut commands = Vec::new();
    let mut synced = Vec::new();
    let mut open = None;
    for line in lines {
        let (kind, rest) = line.split_once(' ').unwrap_or((line, ""));
        let mut words = rest.split(' ');
        let mut number = || words.next().and_then(|w| w.parse::<usize>().ok());
        match kind {
            "S" | "N" => {
                let offset = number().expect("an offset");
                let data = bytes(words.next().expect("bytes"));
                media.store(offset, &data, kind == "N");
            }
            "W" => {
                let (offset, len) = (number().expect("offset"), number().expect("length"));
                media.write_back(offset, len);
            }
            "F" => media.fence(),
            "D" => {}
            "#" => match words.next().expect("a word") {
                "begin" => {
                    assert_eq!(open, None, "commands do not overlap");
                    open = Some(rest.to_string());
                }
                "end" => {
                    let begun = open.take().expect("a command was begun");
                    if begun.ends_with(": sync") {
                        synced.push(media.sure.clone());
                    }
                    let status = rest.split(' ').nth(3).expect("a status");
                    commands.push(format!("{begun} = {status}"));
                }
                _ => {}
            },
            _ => panic!("unknown line: {line}"),
        }
    }
    assert_eq!(open, None);
    assert_eq!(
        commands[..6],
        [
            "begin 1 line 1: mkdir /d = 0",
            "begin 2 line 4: echo one > /d/f; echo two > /d/g = 0",
            "begin 3 line 4: echo one > /d/f; echo two > /d/g = 0",
            "begin 4 line 5: sync = 0",
            "begin 5 line 6: mv /d/f /d/h = 0",
            "begin 6 line 7: cat /not-there = 1",
        ]
    );
    assert_eq!(commands.len(), 11);
    assert!(media.stored == after, "the log rebuilds the image");
    assert!(media.sure == after, "after an unmount everything is sure");

    // What had been synced is there, whatever else was under way.
    let paths = |image: &[u8]| -> Vec<String> {
        std::fs::write(lab.path("cut.img"), image).expect("image");
        let manifest = ok(&lab, &["manifest", "cut.img"]);
        let path = |line: &str| line.rsplit('|').next().map(String::from);
        let objects = manifest.lines().filter(|line| !line.starts_with("x|"));
        objects.filter_map(path).collect()
    };
    assert_eq!(synced.len(), 2);
    assert_eq!(paths(&synced[0]), ["d", "d/f", "d/g"]);
    assert_eq!(paths(&synced[1]), ["d", "d/g", "d/h", "d/i"]);
    assert_eq!(paths(&after), ["d", "d/h", "d/i"]);
    let refused = fs(&lab, &["trace", "log", "script", "-o", "other"]);
    assert_eq!(refused.status.code(), Some(2));
}
