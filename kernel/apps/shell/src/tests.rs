//! Every file command over the in-memory root, through the shell's front door.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use quire::vfs::{NoDevices, Time, Vfs};

use crate::complete::FromEnv;
use crate::edit::Completer;
use crate::env::{Console, Env};
use crate::json::check;

/// A console that remembers.
#[derive(Default)]
pub(crate) struct Recorder {
    pub out: Vec<u8>,
    pub err: Vec<u8>,
    input: Vec<Vec<u8>>,
}

impl Console for Recorder {
    fn output(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
    }

    fn errors(&mut self, bytes: &[u8]) {
        self.err.extend_from_slice(bytes);
    }

    fn read_line(&mut self) -> Option<Vec<u8>> {
        (!self.input.is_empty()).then(|| self.input.remove(0))
    }
}

fn clock() -> Time {
    Time {
        seconds: 1_795_468_053,
        nanoseconds: 42,
    }
}

pub(crate) fn tree() -> Vfs {
    Vfs::new(Box::new(NoDevices), clock)
}

/// Trees to run the same commands in: the root in memory, and an ext4 mounted
/// over it.
fn trees() -> [Vfs; 2] {
    let ext4 = with_device(alloc::vec![0; 16 << 20]);
    ok(
        &ext4,
        "mkfs.ext4 pmem0 > /dev/null; mount -o rw pmem0 /; rmdir /lost+found",
    );
    [tree(), ext4]
}

/// Runs a script; gives status, output and errors.
pub(crate) fn run_in(vfs: &Vfs, script: &str) -> (u8, String, String) {
    let mut console = Recorder::default();
    let status = crate::run_script(&mut Env::new(vfs, &mut console, false), script.as_bytes());
    (
        status,
        String::from_utf8_lossy(&console.out).into_owned(),
        String::from_utf8_lossy(&console.err).into_owned(),
    )
}

/// Runs a script that must succeed without a word of complaint.
pub(crate) fn ok(vfs: &Vfs, script: &str) -> String {
    let (status, out, err) = run_in(vfs, script);
    assert_eq!((status, &err[..]), (0, ""), "{script}");
    out
}

/// Runs a script that must fail with this status and these words.
pub(crate) fn fails(vfs: &Vfs, script: &str, status: u8, words: &str) -> String {
    let (found, out, err) = run_in(vfs, script);
    assert_eq!(found, status, "{script}: {err}");
    assert!(err.starts_with("error: "), "{script}: {err}");
    assert!(err.contains(words), "{script}: {err}");
    out
}

#[test]
fn the_contract_of_statuses() {
    for vfs in trees() {
        the_contract_of_statuses_in(&vfs);
    }
}

fn the_contract_of_statuses_in(vfs: &Vfs) {
    for (script, status) in [
        ("", 0),
        ("true", 0),
        ("true; true", 0),
        ("false; true", 1),
        ("true; nosuch; false", 60),
        ("false || true", 0),
        ("false && nosuch", 1),
        ("true && false; true", 1),
        ("false | true", 1),
        ("exit 7; false", 7),
        ("false; exit 7", 1),
        ("exit 3 && nosuch", 3),
        ("ls -q", 2),
        ("echo 'open", 2),
        ("repeat 3 'echo x >> /f' && cat /f", 0),
    ] {
        assert_eq!(run_in(vfs, script).0, status, "{script}");
    }
    assert_eq!(run_in(vfs, "cat /f").1, "x\nx\nx\n");
    // Nothing of a script with a mistake is run.
    assert_eq!(run_in(vfs, "echo a; echo 'b").1, "");
    // After a failure the script goes on.
    assert_eq!(run_in(vfs, "cat /none; echo on").1, "on\n");
    fails(
        vfs,
        "cat /none",
        1,
        "error: cat: /none: none not found: check the name",
    );
    fails(
        vfs,
        "nosuch x",
        60,
        "error: nosuch: no such command: try `help`",
    );
    fails(vfs, "mkdir", 2, "usage: mkdir [-p]");
    fails(vfs, "poweroff-x", 60, "no such");
}

#[test]
fn redirections_and_pipes() {
    for vfs in trees() {
        redirections_and_pipes_in(&vfs);
    }
}

fn redirections_and_pipes_in(vfs: &Vfs) {
    assert_eq!(ok(vfs, "mkdir /d; echo hello > /d/f; cat /d/f"), "hello\n");
    assert_eq!(ok(vfs, "echo -n more >> /d/f; cat < /d/f"), "hello\nmore");
    assert_eq!(ok(vfs, "cat /d/f | head -n 1 | wc"), "1 1 6\n");
    assert_eq!(
        ok(vfs, "echo gone > /dev/null; > /empty; wc -c /empty"),
        "0 /empty\n"
    );
    assert_eq!(
        ok(vfs, "cat /none 2> /e || cat /e"),
        "error: cat: /none: none not found: check the name\n"
    );
    fails(vfs, "echo x > /none/f", 1, "error: echo: /none/f");
    fails(vfs, "echo x > /d", 1, "is a directory");
    assert_eq!(ok(vfs, "cd /d; echo rel > g; pwd; cat ../d/g"), "/d\nrel\n");
    assert_eq!(
        ok(
            vfs,
            "touch /d/a1 /d/a2 /d/.h; cd /d; echo a* /d/?1 [fg] 'a*' x* .h*"
        ),
        "a1 a2 /d/a1 f g a* x* .h\n"
    );
    assert_eq!(ok(vfs, "echo /*/a[0-1]"), "/d/a1\n");
    let mut console = Recorder {
        input: alloc::vec![b"typed".to_vec()],
        ..Recorder::default()
    };
    crate::run_script(&mut Env::new(vfs, &mut console, false), b"cat > /typed");
    assert_eq!(ok(vfs, "cat /typed"), "typed\n");
}

#[test]
fn ls_shows_what_linux_shows() {
    let vfs = tree();
    ok(
        &vfs,
        "mkdir -m 750 /d; echo 12345 > /d/file; ln -s file /d/link; touch /d/.hid",
    );
    ok(
        &vfs,
        "chmod 4711 /d/file; chown 10:200 /d/file; mkdir /d/sub; touch /d/sub/x",
    );
    assert_eq!(ok(&vfs, "ls /d"), "file\nlink\nsub\n");
    assert_eq!(ok(&vfs, "ls -a /d"), ".\n..\n.hid\nfile\nlink\nsub\n");
    assert_eq!(
        ok(&vfs, "ls -l /d"),
        "total 4\n\
         -rws--x--x 1 10 200  6 2026-11-23 21:07 file\n\
         lrwxrwxrwx 1  0   0  4 2026-11-23 21:07 link -> file\n\
         drwxr-xr-x 2  0   0 32 2026-11-23 21:07 sub\n"
    );
    assert_eq!(
        ok(&vfs, "ls -ld /d"),
        "drwxr-x--- 3 0 0 128 2026-11-23 21:07 /d\n"
    );
    assert_eq!(ok(&vfs, "ls -R /d"), "/d:\nfile\nlink\nsub\n\n/d/sub:\nx\n");
    assert_eq!(ok(&vfs, "ls /d/file /d/sub"), "/d/file\n\n/d/sub:\nx\n");
    fails(&vfs, "ls /none /d/sub", 1, "ls: /none");
    let json = ok(&vfs, "ls --json /d");
    assert_eq!(json.lines().count(), 3);
    json.lines().for_each(check::valid);
    assert!(json.contains("\"name\":\"link\"") && json.contains("\"target\":\"file\""));
}

#[test]
fn stat_df_du_find_tree() {
    let vfs = tree();
    ok(
        &vfs,
        "mkdir -p /d/e; dd if=/dev/zero of=/d/big bs=5000 count=1 2> /dev/null; ln -s big /d/l || false",
    );
    assert_eq!(
        ok(&vfs, "stat -c '%n %s %b %a %F %h %Y %N' /d/big /d/l"),
        "/d/big 5000 16 644 regular file 1 1795468053 '/d/big'\n/d/l 3 0 777 symbolic link 1 1795468053 '/d/l' -> 'big'\n"
    );
    let text = ok(&vfs, "stat /d/big");
    assert!(text.contains("  Size: 5000") && text.contains("Access: (0644/-rw-r--r--)"));
    assert!(text.contains("Modify: 2026-11-23 21:07:33.000000042 +0000"));
    check::valid(&ok(&vfs, "stat --json /d/l"));
    fails(&vfs, "stat /none", 1, "none not found");

    let df = ok(&vfs, "df /d");
    let mut lines = df.lines();
    assert_eq!(
        lines.next().unwrap().split_whitespace().next(),
        Some("Filesystem")
    );
    let cells: Vec<&str> = lines.next().unwrap().split_whitespace().collect();
    assert_eq!(
        (cells[0], cells[1], cells[2], cells[5]),
        ("ramfs", "131072", "8", "/")
    );
    check::valid(&ok(&vfs, "df --json"));

    assert_eq!(ok(&vfs, "du /d"), "0\t/d/e\n8\t/d\n");
    assert_eq!(ok(&vfs, "du -sb /d/big /d/e"), "5000\t/d/big\n0\t/d/e\n");
    assert_eq!(
        ok(&vfs, "du -a /d/big; du -ah /d"),
        "8\t/d/big\n8.0K\t/d/big\n0\t/d/e\n0\t/d/l\n8.0K\t/d\n"
    );

    assert_eq!(ok(&vfs, "find /d"), "/d\n/d/big\n/d/e\n/d/l\n");
    assert_eq!(ok(&vfs, "find / -name 'b*' -type f"), "/d/big\n");
    assert_eq!(
        ok(&vfs, "cd /d; find . -type d; find -maxdepth 0"),
        ".\n./e\n.\n"
    );
    ok(&vfs, "find / --json").lines().for_each(check::valid);
    fails(&vfs, "find / -exec x", 2, "no option -exec");
    fails(&vfs, "find /none", 1, "not found");
    assert_eq!(
        ok(&vfs, "touch /d/e/x; tree /d"),
        "/d\n├── big\n├── e\n│   └── x\n└── l -> big\n\n1 directories, 3 files\n"
    );
}

#[test]
fn copying_moving_removing() {
    for vfs in trees() {
        copying_moving_removing_in(&vfs);
    }
}

fn copying_moving_removing_in(vfs: &Vfs) {
    ok(
        vfs,
        "mkdir -p /a/b; echo one > /a/f; echo two > /a/b/g; ln -s f /a/l; ln /a/f /a/hard",
    );
    ok(
        vfs,
        "setfattr -n user.k -v v /a/f; chmod 600 /a/f; touch -d @5 /a/f /a/b",
    );
    ok(vfs, "cp /a/f /copy; cp -r /a /tree; cp -a /a /kept");
    assert_eq!(
        ok(vfs, "cat /copy /tree/b/g; readlink /tree/l"),
        "one\ntwo\nf\n"
    );
    assert_eq!(
        ok(
            vfs,
            "stat -c '%a %h' /tree/f; stat -c '%a %h %Y' /kept/f /kept/b"
        ),
        "600 1\n600 2 5\n755 2 5\n"
    );
    assert_eq!(
        ok(vfs, "getfattr -d /kept/hard"),
        "# file: /kept/hard\nuser.k=\"v\"\n\n"
    );
    fails(vfs, "cp /a /x", 1, "is a directory: copy it with -r");
    fails(vfs, "cp -r /a /a/b/c", 1, "into itself");
    fails(vfs, "cp /copy /copy", 1, "same file");
    fails(vfs, "cp /copy /a/f /copy", 1, "not a directory");
    fails(vfs, "cp /none /copy /a/b", 1, "/none");
    assert_eq!(ok(vfs, "cat /a/b/copy"), "one\n");

    ok(vfs, "mount -o rw ramfs /m; mv /kept /m/moved; mv /copy /m");
    assert_eq!(
        ok(vfs, "cat /m/moved/b/g /m/copy; stat -c %h /m/moved/f; ls /"),
        "two\none\n2\na\nm\ntree\n"
    );
    ok(
        vfs,
        "mv /m/copy /m/moved/b; mv /tree/f /tree/renamed; mv -n /tree/renamed /tree/hard",
    );
    assert_eq!(ok(vfs, "ls /tree"), "b\nhard\nl\nrenamed\n");
    fails(vfs, "mv /tree /tree/b", 1, "into itself");
    fails(vfs, "mv /none /x", 1, "none not found");

    fails(vfs, "rm /tree", 1, "remove it with -r");
    fails(vfs, "rm /none", 1, "not found");
    fails(vfs, "rmdir /tree", 1, "not empty");
    fails(vfs, "rm -r /", 1, "not removed");
    ok(
        vfs,
        "rm -f /none; rm /tree/l; rm -r /tree /a; ls /tree 2> /dev/null || true; umount /m",
    );
    assert_eq!(ok(vfs, "ls /"), "m\n");
}

#[test]
fn names_attributes_and_lengths() {
    for vfs in trees() {
        names_attributes_and_lengths_in(&vfs);
    }
}

fn names_attributes_and_lengths_in(vfs: &Vfs) {
    ok(
        vfs,
        "mkdir -p /d/x/y /d/x; echo text > /d/f; ln -s f /d/s; ln -sf g /d/s; cd /d; ln f h",
    );
    assert_eq!(
        ok(vfs, "readlink /d/s; stat -c %h /d/h; readlink -f /d/x/../h"),
        "g\n2\n/d/h\n"
    );
    fails(vfs, "mkdir /d", 1, "d exists");
    fails(vfs, "ln /d /e", 1, "one name only");
    fails(vfs, "ln -s a /d/f", 1, "f exists");
    ok(
        vfs,
        "touch -d @1000.5 /d/t; touch -c /d/not; truncate -s 10 /d/t /d/new; truncate -s +2 /d/t",
    );
    assert_eq!(
        ok(
            vfs,
            "stat -c '%s' /d/t /d/new; ls /d/not 2> /dev/null || echo none"
        ),
        "12\n10\nnone\n"
    );
    ok(
        vfs,
        "truncate -s -5 /d/t; fallocate -l 100 /d/t; fallocate -n -l 1K /d/t; echo 0123456789 > /d/p; fallocate -p -o 2 -l 3 /d/p",
    );
    assert_eq!(
        ok(vfs, "stat -c %s /d/t; hexdump /d/p"),
        "100\n00000000  30 31 00 00 00 35 36 37  38 39 0a                 |01...56789.|\n0000000b\n"
    );
    fails(vfs, "truncate /d/t", 2, "-s is needed");
    fails(vfs, "fallocate /d/t", 2, "-l takes");
    fails(vfs, "fallocate -p -c -l 4K /d/t", 2, "one of");
    fails(vfs, "fallocate -i -n -l 4K /d/t", 2, "change the length");
    ok(
        vfs,
        "truncate -s 8K /d/u; echo tail >> /d/u; fallocate -c -o 4K -l 4K /d/u; fallocate --insert-range -l 4096 /d/u; fallocate -z -l 9K /d/u; fallocate --zero-range -n -o 9K -l 9K /d/u",
    );
    assert_eq!(ok(vfs, "stat -c %s /d/u"), "9216\n");
    fails(vfs, "fallocate -c -l 1K /d/u", 1, "whole blocks");
    ok(
        vfs,
        "chmod 640 /d/f; chmod u+x,o=r /d/f; chmod -R go-rwx /d/x; chown 5 /d/f; chown :6 /d/f; chown -h 9 /d/s",
    );
    assert_eq!(
        ok(vfs, "stat -c '%a %u:%g' /d/f /d/x/y /d/s"),
        "744 5:6\n700 0:0\n777 9:0\n"
    );
    fails(vfs, "chmod 8 /d/f", 2, "not a mode");
    fails(vfs, "chown bob /d/f", 2, "not a number");
    ok(
        vfs,
        "setfattr -n user.a -v 0x00ff /d/f; setfattr -n user.b -v 'b c' /d/f",
    );
    assert_eq!(
        ok(
            vfs,
            "getfattr /d/f; getfattr -n user.a /d/f; getfattr -d /d/h"
        ),
        "# file: /d/f\nuser.a\nuser.b\n\n# file: /d/f\nuser.a=0x00ff\n\n# file: /d/h\nuser.a=0x00ff\nuser.b=\"b c\"\n\n"
    );
    check::valid(&ok(vfs, "getfattr --json /d/f"));
    ok(vfs, "setfattr -x user.a /d/f; sync /d/f; sync");
    fails(vfs, "setfattr -x user.a /d/f", 1, "user.a not found");
}

#[test]
fn reading_counting_and_comparing() {
    for vfs in trees() {
        reading_counting_and_comparing_in(&vfs);
    }
}

fn reading_counting_and_comparing_in(vfs: &Vfs) {
    ok(
        vfs,
        "echo 'one two' > /f; echo three >> /f; echo four >> /f",
    );
    assert_eq!(
        ok(vfs, "wc /f; wc -l /f; cat /f | wc -w; wc -c /f /f"),
        "3 4 19 /f\n3 /f\n4\n19 /f\n19 /f\n38 total\n"
    );
    assert_eq!(
        ok(
            vfs,
            "head -n 1 /f; head -c 3 /f; tail -n 1 /f; tail -c 2 /f; tail -n 9 /f"
        ),
        "one two\nonefour\nr\none two\nthree\nfour\n"
    );
    assert_eq!(ok(vfs, "sha256sum /f; echo -n abc | sha256sum"),
        "4d4ec1a8a1b9a0a7bc1fbbf8ae9e7e3b9d0b3fb3f4a4a4bbd1ee1a2c5a1f5bd9  /f\nba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad  -\n"
            .replace("4d4ec1a8a1b9a0a7bc1fbbf8ae9e7e3b9d0b3fb3f4a4a4bbd1ee1a2c5a1f5bd9", &digest(b"one two\nthree\nfour\n")));
    ok(
        vfs,
        "mkdir -p /t/b /t/a.d; echo 1 > /t/b/z; echo 2 > /t/b.c; echo 3 > '/t/a.d/new\nline'; ln -s b.c /t/l",
    );
    let sums = ok(vfs, "sha256sum -r /t");
    let paths: Vec<&str> = sums
        .lines()
        .map(|line| &line[line.find("  ").unwrap() + 2..])
        .collect();
    assert_eq!(paths, ["/t/a.d/new\\nline", "/t/b.c", "/t/b/z"]);
    assert!(sums.starts_with('\\'));
    assert!(sums.contains(&format!("{}  /t/b.c\n", digest(b"2\n"))));
    ok(vfs, "sha256sum -r --json /t")
        .lines()
        .for_each(check::valid);
    fails(vfs, "sha256sum /t", 1, "is a directory");
    ok(vfs, "cp /f /g; cmp /f /g");
    assert_eq!(
        run_in(vfs, "echo more >> /g; cmp /f /g"),
        (1, "/f ends after byte 19\n".to_string(), String::new())
    );
    assert_eq!(
        run_in(vfs, "echo onx > /g; cmp /f /g").1,
        "/f /g differ: byte 3, line 1\n"
    );
    assert_eq!(
        ok(
            vfs,
            "dd if=/dev/zero of=/z bs=16 count=4 2> /dev/null || true; hexdump -n 48 /z; hexdump -s 60 /z"
        ),
        "00000000  00 00 00 00 00 00 00 00  00 00 00 00 00 00 00 00  |................|\n*\n00000030\n0000003c  00 00 00 00                                       |....|\n00000040\n"
    );
    let dd = run_in(
        vfs,
        "dd if=/f of=/z bs=4 skip=1 count=2 seek=1 conv=notrunc; hexdump -n 16 /z",
    );
    assert_eq!((dd.0, &dd.2[..]), (0, "8 bytes copied\n"));
    assert!(dd.1.contains("|....two.thre....|"), "{}", dd.1);
    assert_eq!(run_in(vfs, "dd if=/f bs=3 count=1").1, "one");
    fails(vfs, "dd if=/f of=/z bs=x", 2, "not a number");
}

fn digest(data: &[u8]) -> String {
    use sha2::Digest;
    let hash = sha2::Sha256::digest(data);
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn mounts_and_machine_commands_on_the_host() {
    let vfs = tree();
    assert_eq!(
        ok(&vfs, "mount -o ro ramfs /r; mount"),
        "ramfs on / type ramfs (rw)\nramfs on /r type ramfs (ro)\n"
    );
    check::valid(&ok(&vfs, "mount --json"));
    fails(&vfs, "touch /r/x", 1, "read-only: mount it with -o rw");
    fails(&vfs, "cd /r; umount /r", 1, "cd elsewhere");
    fails(&vfs, "umount /", 1, "no mount point");
    fails(&vfs, "mount pmem9 /x", 1, "device pmem9 not found");
    fails(&vfs, "mount -o blue ramfs /x", 2, "not known");
    ok(&vfs, "umount /r");
    fails(&vfs, "mkfs.ext4 pmem0", 1, "device pmem0 not found");
}

#[test]
fn help_and_long_trees() {
    let vfs = tree();
    let help = ok(&vfs, "help");
    assert!(crate::commands::all().all(|entry| help.contains(entry.name)));
    assert!(ok(&vfs, "help ls").contains("-l"));
    assert_eq!(ok(&vfs, "help ls"), ok(&vfs, "ls --help"));
    // Deep trees need no deep stack.
    let mut path = String::new();
    for _ in 0..300 {
        path.push_str("/d");
    }
    ok(&vfs, &format!("mkdir -p {path}; touch {path}/f"));
    assert_eq!(ok(&vfs, "find / -type f").len(), 600 + 3);
    ok(&vfs, "cp -r /d /e; rm -r /d; tree /e");
    assert_eq!(ok(&vfs, "ls /"), "e\n");
}

#[test]
fn completion_knows_commands_options_and_paths() {
    for vfs in trees() {
        completion_knows_commands_options_and_paths_in(&vfs);
    }
}

fn completion_knows_commands_options_and_paths_in(vfs: &Vfs) {
    ok(
        vfs,
        "mkdir -p '/dir one' /data; touch /data/file /data/.hid; ln -s data /ldata",
    );
    let mut console = Recorder::default();
    let env = Env::new(vfs, &mut console, false);
    let complete = |line: &str| -> Vec<String> {
        let completion = FromEnv(&env).complete(line.as_bytes());
        let mut all: Vec<String> = completion
            .candidates
            .iter()
            .map(|c| {
                format!(
                    "{}{}",
                    &line[..completion.start],
                    String::from_utf8_lossy(c)
                )
            })
            .collect();
        all.sort();
        all
    };
    assert_eq!(complete("mkd"), ["mkdir "]);
    assert_eq!(complete("true; mkd"), ["true; mkdir "]);
    assert_eq!(complete("ls --js"), ["ls --json "]);
    assert_eq!(complete("ls /da"), ["ls /data/"]);
    assert_eq!(complete("ls /data/"), ["ls /data/file "]);
    assert_eq!(complete("ls /data/.h"), ["ls /data/.hid "]);
    assert_eq!(complete("cat < da"), ["cat < data/"]);
    assert_eq!(complete("ls d"), ["ls data/", "ls dir\\ one/"]);
    assert_eq!(complete("ls dir\\ o"), ["ls dir\\ one/"]);
    assert_eq!(complete("ls ld"), ["ls ldata/"]);
    assert_eq!(complete("help tre"), ["help tree "]);
    assert!(complete("ls 'da").is_empty());
    assert!(complete("").len() > 20);
}

/// A tree with one device, `pmem0`, that holds these bytes.
fn with_device(bytes: Vec<u8>) -> Vfs {
    let devices = quire::vfs::MemDevices::new();
    devices.add(
        "pmem0",
        alloc::sync::Arc::new(quire_fs::MemPmem::new(bytes)),
    );
    Vfs::new(Box::new(devices), clock)
}

#[test]
fn a_file_system_is_named_and_grows() {
    let vfs = with_device(alloc::vec![0; 24 << 20]);
    ok(&vfs, "mkfs.ext4 pmem0");
    let uuid = "12345678-9abc-4def-8123-456789abcdef";
    let set = alloc::format!("tune2fs -L data -O metadata_csum_seed -U {uuid} pmem0");
    ok(&vfs, &set);
    ok(&vfs, "mount -o rw pmem0 /p");
    assert!(ok(&vfs, "df --json /p").contains("\"label\":\"data\""));
    ok(&vfs, "tune2fs -L other pmem0; umount /p; mount pmem0 /p");
    assert!(ok(&vfs, "df --json /p").contains("\"label\":\"other\""));
    fails(&vfs, "tune2fs -L x pmem0", 1, "read-only");
    ok(&vfs, "umount /p");
    assert_eq!(
        ok(&vfs, "resize2fs pmem0; fsck pmem0 > /dev/null"),
        "pmem0: 24M, 6144 blocks of 4096 bytes\n"
    );
    fails(&vfs, "resize2fs pmem0 4M", 1, "smaller");
    fails(&vfs, "resize2fs pmem0 25M", 1, "no space");
    fails(&vfs, "tune2fs pmem0", 2, "nothing to set");
    fails(&vfs, "tune2fs -U 12 pmem0", 2, "32 hexadecimal digits");
    fails(&vfs, "tune2fs -L 12345678901234567 pmem0", 2, "16 bytes");
}

#[test]
fn a_file_system_is_made_as_it_is_asked_for() {
    let vfs = with_device(alloc::vec![0; 64 << 20]);
    let uuid = "12345678-9abc-4def-8123-456789abcdef";
    for (options, why) in [
        ("-N none", "number of inodes"),
        ("-i 12", "1K at least"),
        ("-N 100 -i 4096", "not both"),
        ("-m 51", "0 to 50"),
        ("-U 12", "32 hexadecimal digits"),
        ("-O large_dir,^extent", "can't do ^extent"),
        ("-O no_such_thing", "can't do no_such_thing"),
    ] {
        fails(&vfs, &alloc::format!("mkfs.ext4 {options} pmem0"), 2, why);
    }
    fails(&vfs, "mkfs.ext4 -N 1M pmem0", 1, "more inodes than blocks");
    // None of these has written anything: no force is needed.
    let made = ok(
        &vfs,
        &alloc::format!("mkfs.ext4 -N 1000 -m 0 -U {uuid} -O ^has_journal,large_dir pmem0"),
    );
    assert!(made.contains(" 1008 inodes, uuid 12345678-9abc-"), "{made}");
    ok(
        &vfs,
        "mount -o rw pmem0 /p; echo x > /p/f; umount /p; fsck pmem0",
    );
}

#[test]
fn a_file_system_is_made_once_and_mounted() {
    let vfs = with_device(alloc::vec![0; 16 << 20]);
    fails(&vfs, "mount pmem0 /p", 1, "error: mount: pmem0: ");
    let made = ok(&vfs, "mkfs.ext4 pmem0 -L data");
    assert!(
        made.starts_with("pmem0: ext4, 16M, 4096 blocks of 4096 bytes"),
        "{made}"
    );
    fails(&vfs, "mkfs.ext4 pmem0", 1, "error: mkfs.ext4: pmem0: ");
    ok(&vfs, "mkfs.ext4 pmem0 --force -L data; mount pmem0 /p");
    assert_eq!(ok(&vfs, "ls /p"), "lost+found\n");
    assert!(ok(&vfs, "df --json /p").contains("\"label\":\"data\""));
    fails(&vfs, "touch /p/x", 1, "read-only");
    fails(&vfs, "mkfs.ext4 pmem0 --force", 1, "pmem0 is mounted at /p");
    fails(&vfs, "mount pmem0 /q -o rw", 1, "pmem0 is mounted at /p");
    ok(&vfs, "umount pmem0");
}
