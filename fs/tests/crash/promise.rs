//! What calls have promised at some moment of a run, and whether a tree keeps it.

use std::collections::BTreeMap;

use crate::common::{Object, Tree};
use crate::explore::Trace;
use crate::ops::Op;

/// What has been promised at some moment of a run.
pub struct Promise<'a> {
    /// The trees after each call.
    pub trees: &'a [Tree],
    /// The first that may be found, and the last.
    pub first: usize,
    pub last: usize,
    /// Files that were stored over in place, and the tree since which what was
    /// stored is durable.
    pub loose: BTreeMap<&'static [u8], usize>,
}

impl Promise<'_> {
    pub fn window(&self) -> &[Tree] {
        &self.trees[self.first..=self.last]
    }

    pub fn allows(&self, found: &Tree) -> bool {
        self.window().contains(found) || self.window().iter().any(|tree| self.mixes(found, tree))
    }

    /// Whether `found` is this tree but for bytes that were stored in place.
    pub fn mixes(&self, found: &Tree, tree: &Tree) -> bool {
        found.len() == tree.len()
            && found
                .iter()
                .zip(tree)
                .all(|((path, object), (name, want))| {
                    path == name
                        && (object == want
                            || self.loose.get(&path[..]).is_some_and(|&since| {
                                let versions = &self.trees[since.max(self.first)..=self.last];
                                is_mixed(object, want, versions, path)
                            }))
                })
    }
}

/// Whether an object is as wanted, with each byte from one of the versions.
pub fn is_mixed(found: &Object, want: &Object, versions: &[Tree], path: &[u8]) -> bool {
    let blank = |object: &Object| Object {
        content: Vec::new(),
        ..object.clone()
    };
    let contents: Vec<&Vec<u8>> = versions
        .iter()
        .filter_map(|tree| tree.get(path))
        .map(|object| &object.content)
        .chain([&want.content])
        .collect();
    blank(found) == blank(want)
        && (0..found.content.len())
            .all(|at| contents.iter().any(|c| c.get(at) == found.content.get(at)))
}

impl Trace {
    pub fn begun(&self, index: &str, promise: &mut Promise<'_>) {
        let call: usize = index.parse().expect("a number");
        promise.last = call + 1;
        if let Some(path) = self.ops[call].overwrites() {
            let since = promise.first;
            promise.loose.entry(path).or_insert(since);
        }
    }

    /// What has been promised when a call has returned.
    pub fn ended(&self, index: &str, promise: &mut Promise<'_>) {
        let call: usize = index.parse().expect("a number");
        let now = call + 1;
        let synced: &[u8] = match self.ops[call] {
            Op::Sync => {
                promise.first = now;
                promise.loose.clear();
                return;
            }
            Op::FsyncG => b"g",
            Op::FdatasyncBig => b"big",
            _ => return,
        };
        // The last call that changed the file: all of it for `fsync`, its
        // length and content for `fdatasync`.
        let state = |tree: &Tree| {
            let object = tree.get(synced)?;
            let all = (object.perm, object.nlink, self.attributes(tree, synced));
            let fsync = self.ops[call] == Op::FsyncG;
            Some((object.size, object.content.clone(), fsync.then_some(all)))
        };
        if state(&self.trees[now]).is_none() {
            return;
        }
        let changed = (1..=now).rev().find(|&at| {
            let overwritten = self.ops[at - 1].overwrites() == Some(synced);
            // What was stored in place does not wait for a commit.
            !overwritten && state(&self.trees[at]) != state(&self.trees[at - 1])
        });
        promise.first = promise.first.max(changed.unwrap_or(0));
        if let Some(since) = promise.loose.get_mut(synced) {
            *since = now;
        }
    }

    pub fn attributes(&self, tree: &Tree, path: &[u8]) -> Vec<Object> {
        let prefix = [path, b"\0"].concat();
        tree.range(prefix.clone()..)
            .take_while(|(name, _)| name.starts_with(&prefix))
            .map(|(_, object)| object.clone())
            .collect()
    }
}

pub fn difference(found: &Tree, window: &[Tree]) -> String {
    let name = |path: &[u8]| String::from_utf8_lossy(path).into_owned();
    let size = |o: Option<&Object>| {
        o.map_or("absent".to_owned(), |o| {
            format!("{} bytes, {} links", o.size, o.nlink)
        })
    };
    let mut paths: Vec<&Vec<u8>> = window.iter().flatten().map(|(path, _)| path).collect();
    paths.extend(found.keys());
    paths.sort();
    paths.dedup();
    let mut text = String::new();
    for path in paths {
        let all: Vec<_> = window.iter().map(|tree| tree.get(path)).collect();
        if all.iter().any(|o| *o != found.get(path)) {
            let all: Vec<String> = all.iter().map(|o| size(*o)).collect();
            text += &format!("{}: {}, was {all:?}; ", name(path), size(found.get(path)));
        }
    }
    text
}
