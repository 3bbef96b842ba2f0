//! CXL memory devices: finding them, making their memory appear, and asking
//! them how they are.
//!
//! | module | what |
//! |---|---|
//! | [`cedt`] | the firmware's table: host bridges and memory windows |
//! | [`interleave`] | which address goes to which device, and what it is there |
//! | [`dvsec`], [`doe`], [`cdat`] | what is in PCI configuration space, and the tables handed out there |
//! | [`component`] | component registers: HDM decoders |
//! | [`device`], [`command`], [`event`] | device registers: the mailbox, its commands, what devices report |
//! | [`memdev`], [`topology`] | devices, ports, and the tree that they make |
//! | [`plan`], [`region`] | what a region needs; making it, taking it apart, taking it over |
//! | [`label`], [`policy`] | which regions are there after a start |
//! | [`service`] | the state, the [`Source`](super::Source), what commands call |
//! | [`poison`] | lost memory: from devices into bad blocks, and back |
//! | [`doctor`] | what is the matter with devices, decoders and windows |
//! | [`list`] | listings, with the keys of Linux's `cxl list` |
//! | [`regs`], [`machine`] | how registers are reached |
//!
//! Rules: firmware's tables, registers and devices' answers are not trusted:
//! what makes no sense is left out with the reason. Decoders that firmware set
//! are taken over, locked ones never touched. A step that fails is undone. A
//! device is never told to erase itself.
//!
//! Section numbers are those of the CXL 3.1 specification.

pub mod cdat;
pub mod cedt;
pub mod command;
pub mod component;
pub mod device;
pub mod doctor;
pub mod doe;
pub mod dvsec;
pub mod event;
pub mod interleave;
pub mod label;
pub mod list;
mod machine;
pub mod memdev;
pub mod plan;
pub mod poison;
mod policy;
pub mod region;
pub mod regs;
pub mod service;
pub mod topology;

#[cfg(test)]
mod label_tests;
#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
