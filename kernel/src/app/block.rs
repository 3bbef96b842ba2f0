//! Block devices, and transfers between them and files.
//!
//! [`transfer`] moves bytes between a file and a device. Where the file is
//! mapped directly (DAX) its folios are pinned and the device reads or writes
//! the file's own memory; no byte is copied. Other files go by a buffer.
//!
//! ```no_run
//! use quire::app::{block, fs::File};
//!
//! # fn main() -> quire::error::Result<()> {
//! let disk = block::find("vda").expect("a disk");
//! let file = File::open_path("/pmem0/data")?;
//! block::transfer(&**disk, block::Direction::ToDevice, 0, &file, 0, 1 << 20)?;
//! disk.flush()
//! # }
//! ```

pub use crate::dev::block::{BlockDevice, SECTOR, devices, find};
use crate::dev::dma::RamBuffer;
pub use crate::dev::dma::{Buffer, Direction};
use crate::error::{Error, Result};
use crate::memmap::{self, PinOwner, Term};
use crate::vfs::File;
use quire_arch::PageSize;

/// Bytes pinned at once: what a truncation may find in use.
const PART: u64 = 8 << 20;

/// Moves `len` bytes between a device (from byte `device_at` on) and a file
/// (from byte `file_at` on); how many it were. A file that is read may end
/// before; one that is written must be long enough, and is durable after a
/// sync.
pub fn transfer(
    device: &dyn BlockDevice,
    direction: Direction,
    device_at: u64,
    file: &File,
    file_at: u64,
    len: u64,
) -> Result<u64> {
    let owner = PinOwner::new(alloc::format!("dma {}", device.name()));
    let mut done = 0;
    while done < len {
        let size = file.metadata()?.size;
        let rest = (len - done)
            .min(PART)
            .min(size.saturating_sub(file_at + done));
        if rest == 0 {
            break;
        }
        let (at, from) = (device_at + done, file_at + done);
        let whole = rest / SECTOR * SECTOR;
        let moved = match pinned(device, direction, at, file, from, whole, &owner) {
            Ok(moved) => moved,
            // Cut shorter since we asked: look again.
            Err(Error::BadAddress { .. }) if file.metadata()?.size < from + whole => continue,
            Err(error) => return Err(error),
        };
        if moved > 0 {
            done += moved;
            continue;
        }
        let part = rest.min(1 << 20);
        copied(device, direction, at, file, from, part)?;
        done += part;
    }
    Ok(done)
}

/// By pinned folios; 0 when that cannot be.
fn pinned(
    device: &dyn BlockDevice,
    direction: Direction,
    at: u64,
    file: &File,
    from: u64,
    len: u64,
    owner: &PinOwner,
) -> Result<u64> {
    if len == 0 || !at.is_multiple_of(SECTOR) {
        return Ok(0);
    }
    let dax = match file.node().dax_file() {
        Ok(dax) => dax,
        Err(Error::Unsupported { .. }) => return Ok(0),
        Err(error) => return Err(error),
    };
    let write = direction == Direction::FromDevice;
    let pins = dax.pin_range(from..from + len, owner, &Term::Short, write)?;
    let buffer = pins.into_buffer();
    let len = buffer.len() / SECTOR * SECTOR;
    device.transfer(direction, at / SECTOR, &buffer, 0..len)?;
    Ok(len)
}

/// By a buffer.
fn copied(
    device: &dyn BlockDevice,
    direction: Direction,
    at: u64,
    file: &File,
    from: u64,
    len: u64,
) -> Result<()> {
    let mut bytes = alloc::vec![0; len as usize];
    match direction {
        Direction::ToDevice => {
            let mut done = 0;
            while done < bytes.len() {
                match file.read_at(&mut bytes[done..], from + done as u64)? {
                    0 => return Err(Error::invalid("the file ends before that")),
                    count => done += count,
                }
            }
            write_at(device, at, &bytes)
        }
        Direction::FromDevice => {
            read_at(device, at, &mut bytes)?;
            file.write_at(&bytes, from).map(|_| ())
        }
    }
}

/// The sectors that bytes lie in: a buffer for them, the first, and the place
/// of the bytes in it.
fn sectors(device: &dyn BlockDevice, at: u64, len: u64) -> Result<(RamBuffer, u64, u64, u64)> {
    let end = at
        .checked_add(len)
        .filter(|end| *end <= device.sectors().saturating_mul(SECTOR));
    let end = end.ok_or_else(|| {
        Error::invalid(alloc::format!(
            "{len} bytes at {at} of {}, which has {}",
            device.name(),
            device.sectors() * SECTOR
        ))
    })?;
    let first = at / SECTOR;
    let bytes = end.next_multiple_of(SECTOR) - first * SECTOR;
    Ok((RamBuffer::new(bytes)?, first, bytes, at - first * SECTOR))
}

/// Reads any bytes of a device.
pub fn read_at(device: &dyn BlockDevice, at: u64, bytes: &mut [u8]) -> Result<()> {
    if bytes.is_empty() {
        return Ok(());
    }
    let (buffer, first, len, offset) = sectors(device, at, bytes.len() as u64)?;
    device.transfer(Direction::FromDevice, first, buffer.buffer(), 0..len)?;
    buffer.read(offset, bytes)
}

/// Writes any bytes of a device; of a sector that is covered in part, the rest
/// stays.
pub fn write_at(device: &dyn BlockDevice, at: u64, bytes: &[u8]) -> Result<()> {
    if bytes.is_empty() {
        return Ok(());
    }
    let (mut buffer, first, len, offset) = sectors(device, at, bytes.len() as u64)?;
    if len != bytes.len() as u64 {
        device.transfer(Direction::FromDevice, first, buffer.buffer(), 0..len)?;
    }
    buffer.write(offset, bytes)?;
    device.transfer(Direction::ToDevice, first, buffer.buffer(), 0..len)
}

/// Moves bytes from one place of a device to another (or to another device) by
/// way of a third device's memory: peer-to-peer. RAM and CPU have no part in
/// it. Everything is whole pages of 4 KiB; how many bytes were moved.
pub fn transfer_by_peer(
    pool: &str,
    from: (&dyn BlockDevice, u64),
    to: (&dyn BlockDevice, u64),
    len: u64,
) -> Result<u64> {
    const PAGE: u64 = PageSize::Size4K.bytes();
    if !(from.1 | to.1 | len).is_multiple_of(PAGE) {
        return Err(Error::invalid("peer-to-peer transfers are of whole pages"));
    }
    let pool = memmap::pool(pool)?;
    // A page for each request: what is in a device's registers' space need not
    // be reachable in larger pieces.
    let buffer = Buffer::peer(alloc::vec![pool.take(PageSize::Size4K)?])?;
    let mut done = 0;
    while done < len {
        let (source, target) = ((from.1 + done) / SECTOR, (to.1 + done) / SECTOR);
        from.0
            .transfer(Direction::FromDevice, source, &buffer, 0..PAGE)?;
        to.0.transfer(Direction::ToDevice, target, &buffer, 0..PAGE)?;
        done += PAGE;
    }
    Ok(done)
}
