//! Memory of virtio-pmem devices, as a source.

use crate::dev::virtio::pmem::{self, PciDevice};
use crate::error::Result;
use crate::pmem::region::{Flush, Found, Handle, Region, Source};
use alloc::string::String;

/// The memory of all devices.
pub struct VirtioPmemSource;

impl Flush for PciDevice {
    fn flush(&self) -> Result<()> {
        self.flush()
    }

    fn fault(&self) -> Option<String> {
        self.fault().map(String::from)
    }

    fn describe(&self) -> String {
        alloc::format!("flush requests of {} at {}", self.name(), self.place())
    }
}

impl Source for VirtioPmemSource {
    fn name(&self) -> &'static str {
        "virtio-pmem"
    }

    fn discover(&self, found: &mut Found) {
        for device in pmem::devices() {
            let region = Region {
                flusher: Some(Handle(device.clone())),
                // What the CPU's caches hold, the host doesn't flush.
                ..Region::plain(device.range().clone(), self.name())
            };
            found.add_region(region, ("virtio-pmem configuration", 0));
        }
    }
}
