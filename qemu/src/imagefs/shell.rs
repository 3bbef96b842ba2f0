//! The shell's file commands on an image file.
//!
//! The image is the device `pmem0`, mounted as the root of the tree, so paths
//! in commands are paths of the image. The commands are those of the shell
//! that runs in the kernel, over the same tree and the same file system.

use super::{DAMAGED, OK, REFUSED, now, refuse};
use quire::vfs::{MemDevices, Time, Vfs};
use quire_fs::{FilePmem, Pmem};
use quire_shell::env::{Console, Env};
use quire_shell::exec;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::Arc;

/// The image's name among the devices.
pub const DEVICE: &str = "pmem0";

/// What one step of a copy moves.
const CHUNK: usize = 1 << 20;

/// The terminal that this program was started from.
pub(super) struct Terminal;

impl Console for Terminal {
    fn output(&mut self, bytes: &[u8]) {
        // Nobody is left to tell when the reader has gone.
        let _ = io::stdout().write_all(bytes);
    }

    fn errors(&mut self, bytes: &[u8]) {
        let _ = io::stderr().write_all(bytes);
    }
}

/// A tree with the image as its only device.
fn tree(image: &Path, writable: bool) -> Result<Vfs, String> {
    let pmem = FilePmem::open(image, writable).map_err(|e| e.to_string())?;
    Ok(tree_over(Arc::new(pmem)))
}

/// A tree with some memory as its only device.
pub(super) fn tree_over(pmem: Arc<dyn Pmem + Send + Sync>) -> Vfs {
    let devices = MemDevices::new();
    devices.add(DEVICE, pmem);
    let clock = || Time {
        seconds: now(),
        nanoseconds: 0,
    };
    Vfs::new(Box::new(devices), clock)
}

/// Runs a script with the image mounted.
pub fn run(image: &Path, script: &[u8], writable: bool) -> u8 {
    with_mounted(image, writable, |vfs| {
        let mut terminal = Terminal;
        exec::run(&mut Env::new(vfs, &mut terminal, false), script) == 0
    })
}

/// Runs a script on the device itself, which is not mounted.
pub fn run_unmounted(image: &Path, script: &[u8], writable: bool) -> u8 {
    let vfs = match tree(image, writable) {
        Ok(vfs) => vfs,
        Err(e) => return refuse(image, e),
    };
    let mut terminal = Terminal;
    match exec::run(&mut Env::new(&vfs, &mut terminal, false), script) {
        0 => OK,
        _ => REFUSED,
    }
}

/// One command of the shell with these arguments, each quoted.
pub fn command(name: &str, arguments: &[String]) -> Vec<u8> {
    let mut script = name.as_bytes().to_vec();
    for argument in arguments {
        script.extend_from_slice(b" '");
        script.extend_from_slice(argument.replace('\'', "'\\''").as_bytes());
        script.push(b'\'');
    }
    script
}

/// Copies a file of the image to the host, or to standard output.
pub fn get(image: &Path, from: &str, to: Option<&Path>) -> u8 {
    with_mounted(image, false, |vfs| {
        let copied = (|| -> Result<(), String> {
            let mut options = quire::vfs::OpenOptions::new();
            options.read(true);
            let file = vfs
                .open(from.as_bytes(), &options)
                .map_err(|e| format!("/{}: {e}", from.trim_start_matches('/')))?;
            let mut out: Box<dyn Write> = match to {
                Some(path) => {
                    Box::new(File::create(path).map_err(|e| format!("{}: {e}", path.display()))?)
                }
                None => Box::new(io::stdout()),
            };
            let mut buffer = vec![0; CHUNK];
            loop {
                let n = file.read(&mut buffer).map_err(|e| e.to_string())?;
                if n == 0 {
                    return out.flush().map_err(|e| e.to_string());
                }
                out.write_all(&buffer[..n]).map_err(|e| e.to_string())?;
            }
        })();
        report(image, copied)
    })
}

/// Copies a file of the host into the image.
pub fn put(image: &Path, from: &Path, to: &str) -> u8 {
    let mut source = match File::open(from) {
        Ok(file) => file,
        Err(e) => return refuse(from, e),
    };
    with_mounted(image, true, |vfs| {
        let copied = (|| -> Result<(), String> {
            let mut options = quire::vfs::OpenOptions::new();
            options.write(true).create(true).truncate(true);
            let file = vfs
                .open(to.as_bytes(), &options)
                .map_err(|e| format!("/{}: {e}", to.trim_start_matches('/')))?;
            let mut buffer = vec![0; CHUNK];
            loop {
                let n = source.read(&mut buffer).map_err(|e| e.to_string())?;
                if n == 0 {
                    return Ok(());
                }
                file.write_all(&buffer[..n]).map_err(|e| e.to_string())?;
            }
        })();
        report(image, copied)
    })
}

fn report(image: &Path, result: Result<(), String>) -> bool {
    match result {
        Ok(()) => true,
        Err(e) => {
            eprintln!("quire: {}: {e}", image.display());
            false
        }
    }
}

/// Creates a sparse image of `size` bytes, unless it exists.
pub fn create(image: &Path, size: u64) -> Result<(), String> {
    if image.exists() {
        return Err("it exists: leave out --size to format it as it is".into());
    }
    let made = File::create(image).and_then(|file| file.set_len(size));
    if let Err(e) = made {
        // What could not be sized is not left behind.
        let _ = fs::remove_file(image);
        return Err(e.to_string());
    }
    Ok(())
}

/// Makes an image at least so long, with a hole.
pub fn stretch(image: &Path, size: u64) -> Result<(), String> {
    let file = File::options()
        .write(true)
        .open(image)
        .map_err(|e| e.to_string())?;
    let now = file.metadata().map_err(|e| e.to_string())?.len();
    if now < size {
        file.set_len(size).map_err(|e| e.to_string())?;
    }
    Ok(())
}

fn with_mounted(image: &Path, writable: bool, work: impl FnOnce(&Vfs) -> bool) -> u8 {
    let vfs = match tree(image, writable) {
        Ok(vfs) => vfs,
        Err(e) => return refuse(image, e),
    };
    if let Err(e) = vfs.mount(DEVICE, b"/", writable) {
        return refuse(image, e);
    }
    let done = work(&vfs);
    // What was printed must be out before anything is said of the unmount.
    let flushed = io::stdout().flush().is_ok();
    let unmounted = report(
        image,
        vfs.unmount_all().map_err(|e| format!("unmount: {e}")),
    );
    if done && flushed && unmounted {
        OK
    } else {
        DAMAGED
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_stay_what_they_are() {
        assert_eq!(
            command("ls", &["-l".into(), "a b".into(), "it's $X".into()]),
            b"ls '-l' 'a b' 'it'\\''s $X'"
        );
    }
}
