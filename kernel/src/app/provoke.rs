//! Mistakes that the kernel must catch, made on purpose: each ends in a panic
//! that names it, with a backtrace. For tests, and for who wants to see it.

use crate::error::{Error, Result};
use crate::sync::SpinLock;
use crate::vfs::File;
use quire_arch::layout;

/// Stores to persistent memory by its address in the direct map, as a wild
/// pointer would: the first byte of a namespace, with the value that it has.
/// Returns when nobody caught it (`pmem_guard=off`).
#[inline(never)]
pub fn stray_store(namespace: &str) -> Result<()> {
    let phys = crate::pmem::find(namespace)?.phys();
    let addr = phys.as_u64();
    let va = layout::direct_map(phys).ok_or(Error::BadAddress { addr })?;
    if crate::mm::space::translate(va).is_none() {
        return Err(Error::invalid(
            "nobody uses the namespace: it is not mapped",
        ));
    }
    let at = va.as_mut_ptr::<u8>();
    // SAFETY: a page that is mapped, and the value that is there: nothing
    // changes, whoever else uses the byte. The store is what must not succeed.
    unsafe { at.write_volatile(at.read_volatile()) };
    Ok(())
}

/// Touches a mapping of a file while it holds a spin lock. Never returns if the
/// file has a byte.
#[inline(never)]
pub fn touch_locked(file: &File) -> Result<()> {
    let mapping = file.map(0..4096, crate::dax::Perms::Read)?;
    let lock = SpinLock::new(0u8);
    let mut value = lock.lock();
    // SAFETY: the first byte of the mapping; whether the file has it is what
    // the fault finds out.
    *value = unsafe { mapping.as_ptr().read_volatile() };
    Ok(())
}
