//! Access control lists: ext4 stores a shorter form than programs see.
//! On the media entries of a class (owner, group, mask, others) have no id.

use alloc::vec::Vec;

use crate::mount::le32;

const DISK_VERSION: u32 = 1;
const USER_VERSION: u32 = 2;
const NO_ID: u32 = u32::MAX;

/// Whether entries with this tag carry an id.
fn has_id(tag: u16) -> Option<bool> {
    match tag {
        0x02 | 0x08 => Some(true),
        0x01 | 0x04 | 0x10 | 0x20 => Some(false),
        _ => None,
    }
}

fn head(bytes: &[u8], at: usize) -> Option<(u16, u16)> {
    let word = le32(bytes, at)?;
    Some((word as u16, (word >> 16) as u16))
}

fn push(out: &mut Vec<u8>, tag: u16, perm: u16, id: Option<u32>) {
    out.extend_from_slice(&tag.to_le_bytes());
    out.extend_from_slice(&perm.to_le_bytes());
    if let Some(id) = id {
        out.extend_from_slice(&id.to_le_bytes());
    }
}

/// The form for programs from the form on the media.
pub(super) fn from_disk(disk: &[u8]) -> Option<Vec<u8>> {
    if le32(disk, 0)? != DISK_VERSION {
        return None;
    }
    let mut out = USER_VERSION.to_le_bytes().to_vec();
    let mut at = 4;
    while at < disk.len() {
        let (tag, perm) = head(disk, at)?;
        at = at.saturating_add(4);
        let id = if has_id(tag)? {
            let id = le32(disk, at)?;
            at = at.saturating_add(4);
            id
        } else {
            NO_ID
        };
        push(&mut out, tag, perm, Some(id));
    }
    Some(out)
}

/// The form for the media from the form for programs.
pub(super) fn to_disk(user: &[u8]) -> Option<Vec<u8>> {
    if le32(user, 0)? != USER_VERSION || user.len() & 7 != 4 {
        return None;
    }
    let mut out = DISK_VERSION.to_le_bytes().to_vec();
    let mut at = 4;
    while at < user.len() {
        let (tag, perm) = head(user, at)?;
        let id = le32(user, at.saturating_add(4))?;
        push(&mut out, tag, perm, has_id(tag)?.then_some(id));
        at = at.saturating_add(8);
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back() {
        let mut user = vec![2, 0, 0, 0];
        push(&mut user, 1, 7, Some(NO_ID));
        push(&mut user, 2, 5, Some(1000));
        push(&mut user, 4, 5, Some(NO_ID));
        push(&mut user, 0x10, 5, Some(NO_ID));
        push(&mut user, 0x20, 0, Some(NO_ID));
        let disk = to_disk(&user).unwrap();
        assert_eq!(disk.len(), 4 + 4 * 4 + 8);
        assert_eq!(from_disk(&disk).unwrap(), user);
        assert!(from_disk(&disk[..disk.len() - 1]).is_none());
    }
}
