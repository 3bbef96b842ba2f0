//! What is the matter with a namespace: usable, lost memory, large leaves.

use super::{Finding, Patient, Verdict};
use crate::pmem::identity::Mode;
use crate::pmem::info::Map;
use crate::pmem::namespace::Namespace;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

impl Patient<'_> {
    pub(super) fn namespace(&self, namespace: &Namespace, found: &mut Vec<Finding>) {
        let (dev, identity) = (namespace.name(), namespace.identity());
        let usable = match (&identity.problem, namespace.read_only_reason()) {
            (Some(problem), _) => Finding::new(
                dev,
                "usable",
                Verdict::Broken,
                "its info block is not believed: all of it counts as raw",
            )
            .seen("info block", &**problem)
            .next("restore the block, or make the namespace anew: `pmem destroy`, `pmem create`"),
            (None, Some(why)) => {
                Finding::new(dev, "usable", Verdict::Broken, format!("read-only: {why}"))
                    .seen("region", &*namespace.region().dev)
                    .next("see what is said of its region")
            }
            (None, None) => Finding::new(
                dev,
                "usable",
                Verdict::Ok,
                format!("{} mode", identity.mode.name()),
            )
            .seen("region", &*namespace.region().dev),
        };
        found.push(match namespace.user() {
            Some(user) => usable.seen("used by", user),
            None => usable,
        });
        if namespace.pgmap().has_poison() {
            found.push(
                Finding::new(
                    dev,
                    "errors",
                    Verdict::Attention,
                    "parts of it have lost their content",
                )
                .seen("bad blocks", "see `pmem health`")
                .next("rewrite or delete what `fsck` and reads name"),
            );
        }
        found.push(leaves(dev, namespace));
    }
}

/// Why, or why not, files on a namespace are mapped with leaves of 2 MiB.
fn leaves(dev: &str, namespace: &Namespace) -> Finding {
    const LEAF: u64 = 2 << 20;
    let (identity, range) = (namespace.identity(), &namespace.region().range);
    let place = format!("{:#x}", range.start);
    let no = |answer: String, next: &str| {
        Finding::new(dev, "2MiB", Verdict::Attention, answer)
            .seen("first byte of data", &*place)
            .next(next)
    };
    match &identity.mode {
        Mode::Sector(_) => {
            Finding::new(dev, "2MiB", Verdict::Note, "sectors are not mapped at all")
                .seen("mode", "sector")
                .next("take fsdax mode for mapped files")
        }
        Mode::FsDax(info) | Mode::DevDax(info)
            if u64::from(info.align) < LEAF && info.align != 0 =>
        {
            no(
                format!("made for leaves of {} bytes", info.align),
                "make it anew with -a 2M",
            )
            .seen("info block, align", format!("{:#x}", info.align))
        }
        _ if range.start % LEAF != 0 => no(
            "data does not start at a multiple of 2 MiB".into(),
            "make it anew in fsdax mode with -a 2M, or give the DIMM a size that keeps its neighbour aligned",
        ),
        _ if range.end - range.start < LEAF => {
            no("it is smaller than a leaf".into(), "use a larger one")
        }
        mode => {
            let map = match mode {
                Mode::FsDax(info) | Mode::DevDax(info) if info.map == Map::Dev => "dev",
                _ => "mem",
            };
            Finding::new(
                dev,
                "2MiB",
                Verdict::Ok,
                "leaves of 2 MiB are possible where a file's blocks allow it",
            )
            .seen("first byte of data", place)
            .seen("page descriptors", map)
        }
    }
}
