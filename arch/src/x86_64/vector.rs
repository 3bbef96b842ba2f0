//! Who owns which interrupt vector.

/// Where the masked 8259s would interrupt; only their spurious interrupts do.
pub const PIC: u8 = 0x20;
/// Device lines: vector `LINES` is global system interrupt 0.
pub const LINES: u8 = 0x30;
/// First vector after the I/O APICs' lines, and the first for messages of
/// devices (MSI), which count as lines as well.
pub const LINES_END: u8 = 0x90;
/// First vector after the devices' messages.
pub const MSI_END: u8 = 0xe0;
/// The local timer.
pub const TIMER: u8 = 0xe0;
/// Messages: `IPI` plus the number of the message.
pub const IPI: u8 = 0xe1;
/// The local APIC reports an error.
pub const ERROR: u8 = 0xe8;
/// The local APIC had nothing to say after all. Its low four bits are set, as
/// old APICs demand.
pub const SPURIOUS: u8 = 0xff;
