//! Patterns in words: `*`, `?` and `[…]`, matched against the tree.
//!
//! As in the POSIX shell: a pattern's `*`, `?` and `[` never match a slash nor
//! a dot at a name's beginning, matches come sorted bytewise, and a pattern
//! that matches nothing stays as it was written.

use alloc::vec::Vec;

use crate::env::{Env, join};
use crate::parse::Word;

/// One piece of a pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Byte(u8),
    Any,
    Star,
    Set(bool, Vec<(u8, u8)>),
}

/// A pattern for one name.
#[derive(Clone, Debug, Default)]
pub struct Pattern {
    pieces: Vec<Piece>,
}

impl Pattern {
    /// From a word's bytes, of which the quoted ones stand for themselves.
    pub fn new(bytes: &[u8], quoted: &[bool]) -> Pattern {
        let special = |at: usize| !quoted.get(at).copied().unwrap_or(false);
        let mut pieces = Vec::new();
        let mut at = 0;
        while at < bytes.len() {
            let byte = bytes[at];
            match byte {
                b'*' if special(at) => pieces.push(Piece::Star),
                b'?' if special(at) => pieces.push(Piece::Any),
                b'[' if special(at) => {
                    if let Some((set, end)) = set(bytes, at) {
                        pieces.push(set);
                        at = end;
                        continue;
                    }
                    pieces.push(Piece::Byte(b'['));
                }
                _ => pieces.push(Piece::Byte(byte)),
            }
            at += 1;
        }
        Pattern { pieces }
    }

    /// From text in which nothing is quoted, as `find -name` has it.
    pub fn unquoted(bytes: &[u8]) -> Pattern {
        Pattern::new(bytes, &[])
    }

    /// Whether a name fits; `?` takes a whole UTF-8 character.
    pub fn matches(&self, name: &[u8]) -> bool {
        // The usual backtracking to the last star: no recursion, and time at
        // most the product of both lengths.
        let (mut piece, mut at) = (0, 0);
        let mut star: Option<(usize, usize)> = None;
        loop {
            let step = match self.pieces.get(piece) {
                Some(Piece::Star) => {
                    star = Some((piece, at));
                    piece += 1;
                    continue;
                }
                Some(Piece::Byte(byte)) => usize::from(name.get(at) == Some(byte)),
                Some(Piece::Any) => char_length(&name[at..]),
                Some(Piece::Set(negated, ranges)) => match name.get(at) {
                    Some(byte) => {
                        let inside = ranges.iter().any(|(lo, hi)| lo <= byte && byte <= hi);
                        usize::from(inside != *negated)
                    }
                    None => 0,
                },
                None if at == name.len() => return true,
                None => 0,
            };
            if step > 0 {
                piece += 1;
                at += step;
                continue;
            }
            match &mut star {
                Some((star_piece, from)) if *from < name.len() => {
                    *from += 1;
                    piece = *star_piece + 1;
                    at = *from;
                }
                _ => return false,
            }
        }
    }
}

fn char_length(rest: &[u8]) -> usize {
    let len = match rest.first() {
        None => return 0,
        Some(0xc2..=0xdf) => 2,
        Some(0xe0..=0xef) => 3,
        Some(0xf0..=0xf4) => 4,
        Some(_) => 1,
    };
    match rest.get(..len).map(core::str::from_utf8) {
        Some(Ok(_)) => len,
        _ => 1,
    }
}

/// Reads `[…]` at a position; gives the position after it.
fn set(bytes: &[u8], open: usize) -> Option<(Piece, usize)> {
    let mut at = open + 1;
    let negated = matches!(bytes.get(at), Some(b'!' | b'^'));
    if negated {
        at += 1;
    }
    let first = at;
    let mut ranges = Vec::new();
    loop {
        let low = *bytes.get(at)?;
        if low == b']' && at > first {
            return Some((Piece::Set(negated, ranges), at + 1));
        }
        match (bytes.get(at + 1), bytes.get(at + 2)) {
            (Some(b'-'), Some(&high)) if high != b']' => {
                ranges.push((low, high));
                at += 3;
            }
            _ => {
                ranges.push((low, low));
                at += 1;
            }
        }
    }
}

/// What a word stands for: itself, or the paths that it matches.
pub fn expand(env: &Env, word: &Word) -> Vec<Vec<u8>> {
    if !word.is_pattern() {
        return alloc::vec![word.bytes.clone()];
    }
    let mut found: Vec<Vec<u8>> = alloc::vec![Vec::new()];
    let mut at = 0;
    let bytes = &word.bytes;
    while at < bytes.len() && !found.is_empty() {
        let slashes = bytes[at..].iter().take_while(|&&b| b == b'/').count();
        let start = at + slashes;
        let name = bytes[start..].iter().take_while(|&&b| b != b'/').count();
        let end = start + name;
        let last = end == bytes.len();
        let part = Word {
            bytes: bytes[start..end].to_vec(),
            quoted: word.quoted[start..end].to_vec(),
        };
        for path in &mut found {
            path.extend_from_slice(&bytes[at..start]);
        }
        if part.is_pattern() {
            let pattern = Pattern::new(&part.bytes, &part.quoted);
            let hidden = part.bytes.first() == Some(&b'.');
            found = found
                .iter()
                .flat_map(|path| matching(env, path, &pattern, hidden))
                .collect();
        } else {
            for path in &mut found {
                path.extend_from_slice(&part.bytes);
            }
        }
        if last || start == bytes.len() {
            break;
        }
        at = end;
    }
    found.retain(|path| env.vfs.symlink_metadata(&env.absolute(path)).is_ok());
    found.sort();
    if found.is_empty() {
        found.push(word.bytes.clone());
    }
    found
}

fn matching(env: &Env, dir: &[u8], pattern: &Pattern, hidden: bool) -> Vec<Vec<u8>> {
    let path = match dir {
        b"" => env.cwd.clone(),
        _ => env.absolute(dir),
    };
    let Ok(entries) = env.vfs.read_dir(&path) else {
        return Vec::new();
    };
    entries
        .filter_map(Result::ok)
        .filter(|entry| hidden || !entry.name.starts_with(b"."))
        .filter(|entry| pattern.matches(&entry.name))
        .map(|entry| match dir {
            b"" => entry.name.into_vec(),
            _ if dir.ends_with(b"/") => [dir, &entry.name].concat(),
            _ => join(dir, &entry.name),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (pattern, name, fits) in [
            ("*", "", true),
            ("*", "abc", true),
            ("a*c", "abbc", true),
            ("a*c", "abcd", false),
            ("*a*b*", "xxaxxbxx", true),
            ("*a*b", "aab", true),
            ("?", "ä", true),
            ("??", "ä", false),
            ("[a-c]x", "bx", true),
            ("[!a-c]x", "bx", false),
            ("[^a-c]x", "dx", true),
            ("[]]", "]", true),
            ("[a-]", "-", true),
            ("[x", "[x", true),
            ("a", "ab", false),
            ("ab", "a", false),
            ("*.txt", "a.txt", true),
            ("*.txt", ".txt", true),
            ("a**b", "ab", true),
        ] {
            let found = Pattern::unquoted(pattern.as_bytes()).matches(name.as_bytes());
            assert_eq!(found, fits, "{pattern} {name}");
        }
        // Quoted, nothing is special.
        assert!(!Pattern::new(b"*", &[true]).matches(b"a"));
        // Many stars take no exponential time.
        let name = alloc::vec![b'a'; 200];
        assert!(!Pattern::unquoted(&b"a*".repeat(30)).matches(&[&name[..], b"b"].concat()[..0]));
        let pattern = [b"*a".repeat(30), b"*c".to_vec()].concat();
        assert!(!Pattern::unquoted(&pattern).matches(&name));
    }
}
