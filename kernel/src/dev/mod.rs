//! Devices: interrupts, PCI and what sits on it, memory for transfers.

pub mod block;
pub mod dma;
pub mod irq;
mod msix;
pub mod nvme;
pub mod pci;
mod pci_names;
pub mod virtio;
