//! Where things are: the source tree, cargo's target directory, Quire's own
//! state, and a scratch directory for each run.
//!
//! `target/quire/` holds what outlives a run (the default NVDIMM, the result
//! of the KVM probe); `target/quire/run/PID/` what does not. The environment
//! variable `QUIRE_STATE` puts all of it elsewhere, which is how the test
//! suites stay away from the developer's files.

use crate::error::{Context, Result};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// Paths that every step needs.
#[derive(Debug, Clone)]
pub struct Workspace {
    /// The root of the source tree.
    pub root: PathBuf,
    /// Cargo's target directory.
    pub target: PathBuf,
    /// Quire's own files, usually `target/quire`.
    pub state: PathBuf,
}

impl Workspace {
    /// Finds the tree that this program was built from.
    pub fn locate() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .map_or_else(|| PathBuf::from("."), Path::to_path_buf);
        let target = target_of_this_program().unwrap_or_else(|| root.join("target"));
        let state = std::env::var_os("QUIRE_STATE")
            .map(PathBuf::from)
            .map(|p| std::path::absolute(&p).unwrap_or(p))
            .unwrap_or_else(|| target.join("quire"));
        Self {
            root,
            target,
            state,
        }
    }

    /// The NVDIMM that is there when no device is asked for.
    pub fn default_nvdimm(&self) -> PathBuf {
        self.state.join("nvdimm0.img")
    }

    /// Makes a directory for this run only, and clears away those of runs
    /// that were killed.
    pub fn scratch(&self) -> Result<Scratch> {
        let base = self.state.join("run");
        fs::create_dir_all(&base).context(|| format!("cannot create {}", base.display()))?;
        clear_abandoned(&base);
        let path = base.join(std::process::id().to_string());
        fs::create_dir_all(&path).context(|| format!("cannot create {}", path.display()))?;
        let lock_path = path.join("lock");
        let lock = File::create(&lock_path)
            .context(|| format!("cannot create {}", lock_path.display()))?;
        lock.lock()
            .context(|| format!("cannot lock {}", lock_path.display()))?;
        Ok(Scratch { path, _lock: lock })
    }
}

/// `target/PROFILE/quire` and `target/PROFILE/deps/TEST` both lie below the
/// directory that cargo marks with `CACHEDIR.TAG`.
fn target_of_this_program() -> Option<PathBuf> {
    let exe = std::env::current_exe().ok()?;
    exe.ancestors()
        .skip(1)
        .take(4)
        .find(|p| p.join("CACHEDIR.TAG").exists())
        .map(Path::to_path_buf)
}

/// Removes scratch directories whose owner is gone: the lock tells.
fn clear_abandoned(base: &Path) {
    let Ok(entries) = fs::read_dir(base) else {
        return;
    };
    for entry in entries.flatten() {
        let path = entry.path();
        // A directory without a lock file is being made this very moment.
        if let Ok(lock) = File::open(path.join("lock"))
            && lock.try_lock().is_ok()
        {
            // Losing a race for it with another start is fine.
            let _ = fs::remove_dir_all(&path);
        }
    }
}

/// A directory that disappears with the run.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    _lock: File,
}

impl Scratch {
    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}
