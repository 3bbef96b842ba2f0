//! Devices: interrupts, PCI and what sits on it.

pub mod irq;
pub mod nvme;
pub mod pci;
mod pci_names;
