//! I/O ports: this machine has none.

/// Reads a port. `None`: there is none.
///
/// # Safety
///
/// None to be kept here; other machines' devices may act.
pub unsafe fn read(_port: u16, _width: u8) -> Option<u32> {
    None
}

/// Writes a port. `None`: there is none.
///
/// # Safety
///
/// None to be kept here; other machines' devices may act.
pub unsafe fn write(_port: u16, _width: u8, _value: u32) -> Option<()> {
    None
}
