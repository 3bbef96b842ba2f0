//! A namespace over ordinary memory, for tests: everything above it is what
//! runs on persistent memory.

use super::identity::{Identity, Mode};
use super::info::{Map, PfnInfo};
use super::namespace::{Namespace, Reach};
use super::region::{PersistenceDomain, Region};
use crate::error::{Error, Result};
use crate::mm::frame;
use alloc::string::String;
use alloc::sync::Arc;
use core::ops::Range;
use quire_arch::{PageSize, Pfn, PhysAddr, VirtAddr};

/// Memory that the direct map shows already, writable.
struct Ram;

impl Reach for Ram {
    fn address(&self, range: Range<PhysAddr>) -> Result<VirtAddr> {
        Ok(frame::direct(range.start))
    }
    fn map(&self, _: Range<PhysAddr>, _: bool) -> Result<()> {
        Ok(())
    }
    fn protect(&self, _: Range<PhysAddr>, _: bool) -> Result<()> {
        Ok(())
    }
    fn unmap(&self, _: Range<PhysAddr>) -> Result<()> {
        Ok(())
    }
    fn map_register(&self, at: PhysAddr) -> Result<VirtAddr> {
        Err(Error::BadAddress { addr: at.as_u64() })
    }
}

/// The namespace and its memory, in no list; both go when it is dropped.
pub struct Trial {
    namespace: Arc<Namespace>,
    frames: (Pfn, u32),
}

impl Trial {
    /// 2^order frames of zeros.
    pub fn new(name: &str, order: u32) -> Result<Self> {
        Self::of(None, name, order)
    }

    /// The same in device-dax mode.
    pub fn generic(name: &str, order: u32, align: PageSize) -> Result<Self> {
        Self::of(Some(align), name, order)
    }

    fn of(dax: Option<PageSize>, name: &str, order: u32) -> Result<Self> {
        let first = frame::alloc_zeroed(order).ok_or(Error::NoMemory)?;
        let start = first.phys().as_u64();
        let region = Region {
            dev: String::from(name),
            persistence_domain: PersistenceDomain::MemoryController,
            ..Region::plain(start..start + (4096 << order), "test")
        };
        let mut identity = Identity::whole(0, &region);
        if let Some(align) = dax {
            let bytes = align.bytes();
            let info = PfnInfo::new(start, 4096 << order, true, Map::Mem, bytes as u32);
            let info = info.ok_or(Error::NoMemory)?;
            identity.mode = Mode::DevDax(PfnInfo {
                // No block stands here: all of it is data.
                dataoff: 0,
                npfns: 1 << order,
                ..info
            });
        }
        let namespace = Namespace::attach(identity, region, Arc::new(Ram), &|_| false);
        match namespace {
            Ok(namespace) => Ok(Self {
                namespace,
                frames: (first, order),
            }),
            Err(error) => {
                // SAFETY: just taken; nobody has it.
                unsafe { frame::free(first, order) };
                Err(error)
            }
        }
    }

    /// The namespace.
    pub fn namespace(&self) -> &Arc<Namespace> {
        &self.namespace
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        let map = self.namespace.pgmap();
        map.kill();
        let second = crate::sched::now_ns() + 1_000_000_000;
        if !map.drain(Some(second)) || map.release().is_err() {
            // Somebody has a page of it: the frames are lost with it.
            log::error!("pmem: {} is in use at its end", self.namespace.name());
            return;
        }
        let (first, order) = self.frames;
        // SAFETY: from `alloc_zeroed` with this order; every folio is at rest
        // and the pgmap takes no new uses.
        unsafe { frame::free(first, order) };
    }
}
