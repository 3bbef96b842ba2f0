//! The tree's in-kernel tests: what threads do to it at once, which the host's
//! tests of single calls do not show.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::check;
use crate::error::Error;
use crate::sched;
use crate::selftest::Test;

use super::{NoDevices, OpenOptions, Vfs, wall_clock};

/// The in-kernel tests of this module.
pub const TESTS: &[Test] = &[
    Test {
        name: "vfs.crc32c_by_the_cpu_is_that_by_tables",
        run: crc32c_by_the_cpu_is_that_by_tables,
    },
    Test {
        name: "vfs.removed_file_lives_until_closed",
        run: removed_file_lives_until_closed,
    },
    Test {
        name: "vfs.threads_append_without_loss",
        run: threads_append_without_loss,
    },
    Test {
        name: "vfs.threads_open_while_others_remove",
        run: threads_open_while_others_remove,
    },
];

fn tree() -> Arc<Vfs> {
    Arc::new(Vfs::new(Box::new(NoDevices), wall_clock))
}

fn text(error: Error) -> String {
    error.to_string()
}

fn removed_file_lives_until_closed() -> Result<(), String> {
    let vfs = tree();
    vfs.write(b"/f", b"kept").map_err(text)?;
    let file = vfs
        .open(b"/f", OpenOptions::new().read(true))
        .map_err(text)?;
    vfs.remove_file(b"/f").map_err(text)?;
    check!(!vfs.exists(b"/f"));
    let mut content = Vec::new();
    file.read_to_end(&mut content).map_err(text)?;
    check!(content == b"kept");
    drop(file);
    check!(vfs.statfs(b"/").map_err(text)?.inodes == 1);
    Ok(())
}

const THREADS: usize = 4;
const ROUNDS: usize = 200;

/// Runs `f` in several threads on one tree; gives the first complaint.
fn in_threads(
    vfs: &Arc<Vfs>,
    f: impl Fn(&Vfs, usize) -> Result<(), String> + Send + Sync + Copy + 'static,
) -> Result<(), String> {
    let mut handles = Vec::new();
    for number in 0..THREADS {
        let vfs = vfs.clone();
        handles.push(sched::spawn("selftest", move || f(&vfs, number)).map_err(text)?);
    }
    let results: Vec<_> = handles.into_iter().map(|handle| handle.join()).collect();
    results.into_iter().collect()
}

fn threads_append_without_loss() -> Result<(), String> {
    let vfs = tree();
    in_threads(&vfs, |vfs, number| {
        let mut options = OpenOptions::new();
        let file = vfs.open(b"/log", options.append(true).create(true));
        let file = file.map_err(text)?;
        for _ in 0..ROUNDS {
            let line = format!("thread {number}\n");
            file.write_all(line.as_bytes()).map_err(text)?;
        }
        Ok(())
    })?;
    let log = vfs.read(b"/log").map_err(text)?;
    let whole = log
        .split(|byte| *byte == b'\n')
        .filter(|line| line.len() == 8);
    check!(whole.count() == THREADS * ROUNDS);
    Ok(())
}

fn threads_open_while_others_remove() -> Result<(), String> {
    let vfs = tree();
    in_threads(&vfs, |vfs, number| {
        let content = format!("{number}");
        for _ in 0..ROUNDS {
            let name = format!("/t{number}");
            vfs.write(name.as_bytes(), content.as_bytes())
                .map_err(text)?;
            vfs.rename(name.as_bytes(), b"/shared").map_err(text)?;
            // Somebody else may have taken it away, but whatever is read is
            // one thread's whole file.
            match vfs.read(b"/shared") {
                Ok(found) => check!(found.len() == 1),
                Err(Error::NotFound { .. }) => {}
                Err(error) => return Err(text(error)),
            }
            match vfs.remove_file(b"/shared") {
                Ok(()) | Err(Error::NotFound { .. }) => {}
                Err(error) => return Err(text(error)),
            }
        }
        Ok(())
    })?;
    let left = vfs.statfs(b"/").map_err(text)?.inodes;
    check!(left <= 2);
    Ok(())
}

fn crc32c_by_the_cpu_is_that_by_tables() -> Result<(), String> {
    use quire_arch::checksum;
    use quire_fs::disk::checksum::crc32c_by_tables;
    let Some(crc32c) = checksum::crc32c() else {
        return Ok(());
    };
    let bytes: Vec<u8> = (0..1024_u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    for start in 0..16 {
        for end in (start..bytes.len()).step_by(37) {
            let (part, crc) = (&bytes[start..end], (start * 77 + end) as u32);
            let (by_cpu, by_tables) = (crc32c(crc, part), crc32c_by_tables(crc, part));
            check!(by_cpu == by_tables, "bytes {start}..{end}: {by_cpu:#x}");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn in_kernel_tests_hold_here_too() {
        for test in super::TESTS {
            assert_eq!((test.run)(), Ok(()), "{}", test.name);
        }
    }
}
