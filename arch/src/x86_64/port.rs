//! I/O ports (Intel SDM volume 1, chapter 19).

use x86_64::instructions::port::Port;

/// Reads a port of 1, 2 or 4 bytes. `None`: no such access.
///
/// # Safety
///
/// Reading may make the device act: that must be sound.
pub unsafe fn read(port: u16, width: u8) -> Option<u32> {
    // SAFETY: the caller's promise.
    unsafe {
        match width {
            1 => Some(Port::<u8>::new(port).read().into()),
            2 => Some(Port::<u16>::new(port).read().into()),
            4 => Some(Port::<u32>::new(port).read()),
            _ => None,
        }
    }
}

/// Writes a port of 1, 2 or 4 bytes. `None`: no such access.
///
/// # Safety
///
/// What the device does then must be sound.
pub unsafe fn write(port: u16, width: u8, value: u32) -> Option<()> {
    // SAFETY: the caller's promise.
    unsafe {
        match width {
            1 => Port::<u8>::new(port).write(value as u8),
            2 => Port::<u16>::new(port).write(value as u16),
            4 => Port::<u32>::new(port).write(value),
            _ => return None,
        }
    }
    Some(())
}
