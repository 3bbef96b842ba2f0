//! The host's own tools for ext4: the referees.

use quire_qemu::host::find_program;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;

/// A command of e2fsprogs.
fn tool(name: &str) -> Command {
    Command::new(find_program(name).unwrap_or_else(|| panic!("{name} is not installed")))
}

/// Runs a tool; its output and whether it succeeded.
fn run(command: &mut Command) -> (bool, String) {
    let output = command.output().expect("the tool starts");
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    (output.status.success(), text)
}

/// Asserts that `e2fsck -fn` finds nothing wrong.
#[track_caller]
pub fn assert_clean(image: &Path) {
    let (clean, text) = run(tool("e2fsck").arg("-fn").arg(image));
    assert!(clean, "e2fsck -fn {}:\n{text}", image.display());
}

/// Makes a file system in a new sparse file of `size` bytes.
#[track_caller]
pub fn mkfs<S: AsRef<OsStr>>(image: &Path, size: u64, options: impl IntoIterator<Item = S>) {
    let file = std::fs::File::create(image).expect("create the image");
    file.set_len(size).expect("size the image");
    let (made, text) = run(tool("mkfs.ext4")
        .args(["-q", "-F"])
        .args(options)
        .arg(image));
    assert!(made, "mkfs.ext4 {}:\n{text}", image.display());
}

/// Runs debugfs commands on an image, writing.
#[track_caller]
pub fn debugfs(image: &Path, commands: &str) -> String {
    let (done, text) = run(tool("debugfs").args(["-w", "-R", commands]).arg(image));
    assert!(done, "debugfs {commands}:\n{text}");
    text
}

/// The device's block under a file's block.
#[track_caller]
pub fn block_of(image: &Path, file: &str, block: u64) -> u64 {
    let text = debugfs(image, &format!("bmap {file} {block}"));
    text.split_whitespace()
        .filter_map(|word| word.parse().ok())
        .next_back()
        .unwrap_or_else(|| panic!("no block in {text}"))
}

/// Runs the debugfs commands in a file on an image, writing.
#[track_caller]
pub fn debugfs_script(image: &Path, script: &Path) {
    let (done, text) = run(tool("debugfs").arg("-w").arg("-f").arg(script).arg(image));
    assert!(done, "debugfs -f {}:\n{text}", script.display());
}

/// The content of one file of an image, read by debugfs.
#[track_caller]
pub fn read_file(image: &Path, path: &str) -> Vec<u8> {
    let output = tool("debugfs")
        .args(["-R", &format!("cat {path}")])
        .arg(image)
        .output()
        .expect("debugfs starts");
    assert!(output.status.success(), "debugfs cat {path}");
    output.stdout
}

/// Lets `e2fsck` replay the journal, and nothing else.
#[track_caller]
pub fn recover(image: &Path) {
    let (_, text) = run(tool("e2fsck").args(["-E", "journal_only", "-y"]).arg(image));
    assert!(
        text.contains("recovering journal") || !text.contains("MODIFIED"),
        "e2fsck -E journal_only {}:\n{text}",
        image.display()
    );
}

/// The contents of files of an image, read by debugfs; what is not there is
/// left out.
#[track_caller]
pub fn read_files<'a>(
    image: &Path,
    paths: impl IntoIterator<Item = &'a String>,
) -> BTreeMap<String, Vec<u8>> {
    let (script, dump) = (image.with_extension("cmd"), image.with_extension("dump"));
    let _ = std::fs::remove_dir_all(&dump);
    std::fs::create_dir_all(&dump).expect("a directory");
    let mut commands = String::new();
    let mut names = Vec::new();
    for (n, path) in paths.into_iter().enumerate() {
        commands += &format!("dump {path} {}\n", dump.join(n.to_string()).display());
        names.push(path);
    }
    std::fs::write(&script, commands).expect("the script");
    let (done, text) = run(tool("debugfs").arg("-f").arg(&script).arg(image));
    assert!(done, "debugfs {}:\n{text}", image.display());
    names
        .into_iter()
        .enumerate()
        .filter_map(|(n, path)| {
            let content = std::fs::read(dump.join(n.to_string())).ok()?;
            Some((path.clone(), content))
        })
        .collect()
}

/// `sha256sum` of a file of the host.
#[track_caller]
pub fn sha256(path: &Path) -> String {
    let (done, text) = run(Command::new("sha256sum").arg(path));
    assert!(done, "sha256sum {}: {text}", path.display());
    text.split_whitespace()
        .next()
        .unwrap_or_default()
        .to_string()
}
