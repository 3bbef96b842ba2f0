//! MSI-X: a device's interrupts as messages.
//!
//! PCI Express Base 4.0: 7.7.2 (MSI-X capability and table).

use super::irq;
use super::pci::{Bar, Function};
use crate::error::{Error, Result};
use crate::mm::{self, frame};
use alloc::format;
use quire_arch as arch;

const CAPABILITY: u8 = 0x11;
const ENABLE: u32 = 1 << 31;
const FUNCTION_MASK: u32 = 1 << 30;

/// Has the device's first MSI-X vector call `handler`. The device must still
/// be told to use vector 0. For good.
pub fn enable(function: &Function, handler: fn()) -> Result<u32> {
    let (_, at) = function
        .capabilities()
        .into_iter()
        .find(|(id, _)| *id == CAPABILITY)
        .ok_or_else(|| Error::not_found(format!("MSI-X capability of {function}")))?;
    let table = function.read(at + 4);
    let (bar, offset) = ((table & 7) as usize, u64::from(table & !7));
    let (base, len) = match function.bars().get(bar) {
        Some(Some(Bar::Memory { base, len, .. })) => (*base, *len),
        _ => return Err(Error::not_found(format!("{function} BAR {bar}"))),
    };
    if offset.checked_add(16).is_none_or(|end| end > len) {
        return Err(Error::io(format!("{function}: MSI-X table beyond its BAR")));
    }
    let entry = mm::map_device(base + offset, 16)?;
    let a = function.address;
    let requester = u32::from(a.bus()) << 8 | u32::from(a.device()) << 3 | u32::from(a.function());
    let memory = |order| {
        let phys = frame::alloc_zeroed(order)?.phys();
        Some((phys, frame::direct(phys)))
    };
    let msi = arch::irq::allocate_msi(requester, &memory)
        .map_err(|e| Error::io(format!("{function}: {e}")))?;
    if !irq::register(msi.line, handler) {
        return Err(Error::busy("every interrupt handler's place"));
    }
    function.enable(true);
    let control = function.read(at) & !FUNCTION_MASK;
    // SAFETY: the table's first entry, which is mapped; the message goes to
    // the interrupt controller. All vectors are masked until the last store.
    unsafe {
        function.write(at, control | ENABLE | FUNCTION_MASK);
        let entry = entry.as_mut_ptr::<u32>();
        entry.write_volatile(msi.address as u32);
        entry.add(1).write_volatile((msi.address >> 32) as u32);
        entry.add(2).write_volatile(msi.data);
        entry.add(3).write_volatile(0);
        function.write(at, control | ENABLE);
    }
    Ok(msi.line)
}
