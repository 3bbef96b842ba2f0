//! The device options (`--nvdimm FILE,size=1G` and the like) and the files
//! behind them.

use crate::error::{Context, Failure, Result};
use crate::size;
use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};

/// The words of one device option: a file name, then `key=value` or flags.
struct Words<'a> {
    option: &'static str,
    text: &'a str,
    file: PathBuf,
    rest: std::str::Split<'a, char>,
}

impl<'a> Words<'a> {
    fn new(option: &'static str, text: &'a str) -> std::result::Result<Self, String> {
        let mut rest = text.split(',');
        match rest.next() {
            Some(file) if !file.is_empty() => Ok(Self {
                option,
                text,
                file: PathBuf::from(file),
                rest,
            }),
            _ => Err(format!("{option} needs a file name first")),
        }
    }

    /// Hands every further word to `set` as key and value (empty for flags).
    fn each(
        self,
        known: &str,
        mut set: impl FnMut(&str, &str) -> std::result::Result<bool, String>,
    ) -> std::result::Result<PathBuf, String> {
        for word in self.rest {
            let (key, value) = word.split_once('=').unwrap_or((word, ""));
            if !set(key, value)? {
                return Err(format!(
                    "{} {}: unknown word `{word}`; known are {known}",
                    self.option, self.text
                ));
            }
        }
        Ok(self.file)
    }
}

fn number(key: &str, value: &str) -> std::result::Result<u32, String> {
    value
        .parse()
        .map_err(|_| format!("{key}={value}: not a number"))
}

/// `--nvdimm FILE[,size=S][,label=S][,node=N][,unarmed]`
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Nvdimm {
    /// The backing file.
    pub file: PathBuf,
    /// Its size, needed when the file does not exist.
    pub size: Option<u64>,
    /// Size of the label area at the file's end.
    pub label: Option<u64>,
    /// NUMA node.
    pub node: Option<u32>,
    /// The module says that it cannot keep data through a power cut.
    pub unarmed: bool,
}

impl std::str::FromStr for Nvdimm {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let mut it = Self::default();
        it.file = Words::new("--nvdimm", text)?.each(
            "size=S, label=S, node=N, unarmed",
            |key, value| {
                match key {
                    "size" => it.size = Some(size::parse_nonzero(value)?),
                    "label" => it.label = Some(size::parse_nonzero(value)?),
                    "node" => it.node = Some(number(key, value)?),
                    "unarmed" if value.is_empty() => it.unarmed = true,
                    _ => return Ok(false),
                }
                Ok(true)
            },
        )?;
        Ok(it)
    }
}

/// `--cxl FILE[,size=S][,lsa=FILE][,ways=N]`
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Cxl {
    /// The backing file.
    pub file: PathBuf,
    /// Its size, needed when the file does not exist.
    pub size: Option<u64>,
    /// The label storage area; FILE.lsa when not said.
    pub lsa: Option<PathBuf>,
    /// How many devices share one interleave set; consecutive options with
    /// the same number form it.
    pub ways: Option<u32>,
}

impl std::str::FromStr for Cxl {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let mut it = Self::default();
        it.file = Words::new("--cxl", text)?.each("size=S, lsa=FILE, ways=N", |key, value| {
            match key {
                "size" => it.size = Some(size::parse_nonzero(value)?),
                "lsa" if !value.is_empty() => it.lsa = Some(PathBuf::from(value)),
                "ways" => match number(key, value)? {
                    n @ (1 | 2 | 3 | 4 | 6 | 8 | 12 | 16) => it.ways = Some(n),
                    n => return Err(format!("ways={n}: say 1, 2, 3, 4, 6, 8, 12 or 16")),
                },
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        Ok(it)
    }
}

/// `--virtio-pmem FILE[,size=S]` and `--nvme-pmr FILE[,size=S]`
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plain {
    /// The backing file.
    pub file: PathBuf,
    /// Its size, needed when the file does not exist.
    pub size: Option<u64>,
}

impl std::str::FromStr for Plain {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let mut it = Self::default();
        it.file = Words::new("the option", text)?.each("size=S", |key, value| {
            if key == "size" {
                it.size = Some(size::parse_nonzero(value)?);
            }
            Ok(key == "size")
        })?;
        Ok(it)
    }
}

/// `--nvme-cmb SIZE[,file=FILE]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NvmeCmb {
    /// Bytes of the memory buffer: a power of two of at least 1 MiB.
    pub size: u64,
    /// The file behind the controller's blocks, if it is to have any.
    pub file: Option<PathBuf>,
}

impl std::str::FromStr for NvmeCmb {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let (first, rest) = match text.split_once(',') {
            Some((first, rest)) => (first, Some(rest)),
            None => (text, None),
        };
        let size = size::parse_nonzero(first)?;
        if !size.is_power_of_two() || size < 1 << 20 {
            return Err(format!("{first}: a power of two of at least 1M"));
        }
        let file = match rest.map(|rest| rest.split_once('=')) {
            None => None,
            Some(Some(("file", file))) if !file.is_empty() => Some(PathBuf::from(file)),
            Some(_) => return Err(format!("--nvme-cmb {text}: after the size, file=FILE")),
        };
        Ok(Self { size, file })
    }
}

/// A backing file that exists, is locked for this run, and has a known size.
#[derive(Debug)]
pub struct Backing {
    /// Absolute path.
    pub path: PathBuf,
    /// Size in bytes.
    pub len: u64,
    /// Held until the run is over: two machines on one file would destroy it.
    _lock: Option<File>,
}

impl Backing {
    /// Opens the file, creating it sparse when it is missing and `size` is
    /// known, and locks it. A file that exists keeps its size: one that
    /// differs from `size` is refused rather than changed.
    pub fn open(path: &Path, size: Option<u64>) -> Result<Self> {
        let path = std::path::absolute(path).context(|| path.display().to_string())?;
        let shown = path.display();
        let file = match OpenOptions::new().read(true).write(true).open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let Some(size) = size else {
                    return Err(Failure::setup(format!(
                        "{shown} does not exist: give its size, as in {shown},size=1G, to create it"
                    )));
                };
                if let Some(parent) = path.parent() {
                    std::fs::create_dir_all(parent)
                        .context(|| format!("cannot create {}", parent.display()))?;
                }
                let file = OpenOptions::new()
                    .read(true)
                    .write(true)
                    .create_new(true)
                    .open(&path)
                    .context(|| format!("cannot create {shown}"))?;
                file.set_len(size)
                    .context(|| format!("cannot make {shown} {size} bytes long"))?;
                file
            }
            // A file that may only be read can still back a read-only device.
            Err(e) => return Err(Failure::setup(format!("cannot open {shown}: {e}"))),
        };
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Failure::setup(format!(
                    "{shown} is in use by another Quire: leave that one first, or give this one \
                     its own file with --nvdimm FILE,size=1G"
                )));
            }
            Err(TryLockError::Error(e)) => {
                return Err(Failure::setup(format!("cannot lock {shown}: {e}")));
            }
        }
        let len = length(&file).context(|| format!("cannot measure {shown}"))?;
        if let Some(size) = size
            && size != len
        {
            return Err(Failure::setup(format!(
                "{shown} is {len} bytes long, not {size}: leave out size= or name another file"
            )));
        }
        if len == 0 {
            return Err(Failure::setup(format!("{shown} is empty")));
        }
        Ok(Self {
            path,
            len,
            _lock: Some(file),
        })
    }

    /// A backing that stands only on paper, for describing a machine.
    pub fn described(path: impl Into<PathBuf>, len: u64) -> Self {
        Self {
            path: path.into(),
            len,
            _lock: None,
        }
    }
}

/// The length of a file or of a block device.
fn length(mut file: &File) -> std::io::Result<u64> {
    use std::io::{Seek, SeekFrom};
    let end = file.seek(SeekFrom::End(0))?;
    file.seek(SeekFrom::Start(0))?;
    Ok(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nvdimm_words() {
        assert_eq!(
            "a b.img,size=1G,label=128K,node=1,unarmed".parse(),
            Ok(Nvdimm {
                file: "a b.img".into(),
                size: Some(1 << 30),
                label: Some(128 << 10),
                node: Some(1),
                unarmed: true,
            })
        );
        assert_eq!(
            "x".parse(),
            Ok(Nvdimm {
                file: "x".into(),
                ..Nvdimm::default()
            })
        );
        for bad in [
            "",
            ",size=1G",
            "x,size",
            "x,size=0",
            "x,unarmed=1",
            "x,foo",
            "x,node=a",
        ] {
            assert!(bad.parse::<Nvdimm>().is_err(), "{bad}");
        }
    }

    #[test]
    fn cxl_words() {
        assert_eq!(
            "c.img,size=256M,lsa=l.img,ways=2".parse(),
            Ok(Cxl {
                file: "c.img".into(),
                size: Some(256 << 20),
                lsa: Some("l.img".into()),
                ways: Some(2),
            })
        );
        assert!("c.img,ways=5".parse::<Cxl>().is_err());
    }

    #[test]
    fn backing_files_are_created_once_and_locked() {
        let dir = std::env::temp_dir().join(format!("quire-backing-{}", std::process::id()));
        let path = dir.join("d.img");
        assert_eq!(Backing::open(&path, None).unwrap_err().status, 67);
        {
            let first = Backing::open(&path, Some(1 << 20)).expect("created");
            assert_eq!(first.len, 1 << 20);
            let second = Backing::open(&path, None).unwrap_err();
            assert!(second.message.contains("in use"), "{second}");
        }
        assert!(Backing::open(&path, Some(2 << 20)).is_err());
        assert_eq!(Backing::open(&path, None).expect("exists").len, 1 << 20);
        std::fs::remove_dir_all(dir).expect("cleanup");
    }
}
