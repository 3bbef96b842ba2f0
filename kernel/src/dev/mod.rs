//! Devices: PCI and what sits on it.
