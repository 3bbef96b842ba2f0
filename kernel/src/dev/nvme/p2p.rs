//! Controller memory buffers as pools of peer-to-peer pages.

use super::Controller;
use super::regs::CmbUses;
use crate::error::Result;
use crate::memmap::{MemoryType, Pool, pool_spec};
use alloc::format;
use alloc::sync::Arc;
use core::ops::Range;
use quire_arch::PhysAddr;

/// Makes a pool of each controller's memory buffer that can hold data both
/// ways. Once, at start.
pub fn start(is_ram: &dyn Fn(Range<u64>) -> bool) {
    for controller in super::controllers() {
        match register(controller, is_ram) {
            Ok(Some(pool)) => log::info!(
                "nvme: {} base={} size={}",
                pool.name(),
                pool.pgmap().base(),
                pool.pgmap().len()
            ),
            Ok(None) => {}
            Err(error) => log::warn!("nvme: {}: memory buffer: {error}", controller.name),
        }
    }
}

fn register(
    controller: &Controller,
    is_ram: &dyn Fn(Range<u64>) -> bool,
) -> Result<Option<Arc<Pool>>> {
    let Some(cmb) = controller.cmb() else {
        return Ok(None);
    };
    if !cmb.uses.contains(CmbUses::RDS | CmbUses::WDS) {
        return Ok(None);
    }
    let range = PhysAddr(cmb.range.start)..PhysAddr(cmb.range.end);
    let name = format!("{}-cmb", controller.name);
    Pool::register(pool_spec(&name, MemoryType::PciP2pdma, range), is_ram).map(Some)
}
