//! UEFI loader that hands over by the Limine boot protocol.
fn main() {}
