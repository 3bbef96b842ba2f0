//! Everything that talks to the firmware.

pub mod answers;
pub mod boot;
pub mod machine;
pub mod memory;
pub mod volume;
