//! The boot protocol's types that differ between CPUs.

/// A CPU, as the loader describes it.
pub type MpInfo = limine::mp::Cpu;
