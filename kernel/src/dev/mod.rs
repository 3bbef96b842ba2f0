//! Devices: interrupts, PCI and what sits on it.

pub mod irq;
