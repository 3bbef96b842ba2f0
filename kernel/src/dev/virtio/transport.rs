//! The registers of a virtio device on PCI.
//!
//! Vendor capabilities in configuration space say in which BAR, and where in
//! it, each structure lies. What they say is checked against the BAR before
//! anything is mapped, and every access against the structure.
//!
//! Virtio 1.2: 4.1.4 (structures), 4.1.5 (start and notification).

use crate::dev::pci::{Bar, Function};
use crate::error::{Error, Result};
use crate::mm;
use alloc::format;
use alloc::vec::Vec;
use quire_arch::{PhysAddr, VirtAddr};
use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// `PCI_CAP_ID_VNDR`.
const VENDOR: u8 = 0x09;

/// `cfg_type` of the capabilities.
const COMMON: u8 = 1;
const NOTIFY: u8 = 2;
const ISR: u8 = 3;
const DEVICE: u8 = 4;

/// Fields of the common structure (4.1.4.3).
mod common {
    pub const DEVICE_FEATURE_SELECT: u64 = 0;
    pub const DEVICE_FEATURE: u64 = 4;
    pub const DRIVER_FEATURE_SELECT: u64 = 8;
    pub const DRIVER_FEATURE: u64 = 12;
    pub const DEVICE_STATUS: u64 = 20;
    pub const CONFIG_GENERATION: u64 = 21;
    pub const QUEUE_SELECT: u64 = 22;
    pub const QUEUE_SIZE: u64 = 24;
    pub const QUEUE_MSIX_VECTOR: u64 = 26;
    pub const QUEUE_ENABLE: u64 = 28;
    pub const QUEUE_NOTIFY_OFF: u64 = 30;
    pub const QUEUE_DESC: u64 = 32;
    pub const QUEUE_DRIVER: u64 = 40;
    pub const QUEUE_DEVICE: u64 = 48;
    pub const LEN: u64 = 56;
}

/// A structure: which kind, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    kind: u8,
    bar: u8,
    offset: u32,
    len: u32,
    /// Bytes between two queues' notification registers; of [`NOTIFY`] only.
    multiplier: u32,
}

impl Place {
    /// Reads the capability whose words `word` gives.
    fn read(word: impl Fn(u16) -> u32) -> Self {
        let kind = (word(0) >> 24) as u8;
        Self {
            kind,
            bar: word(4) as u8,
            offset: word(8),
            len: word(12),
            multiplier: if kind == NOTIFY { word(16) } else { 0 },
        }
    }

    /// Its physical addresses.
    fn locate(&self, bars: &[Option<Bar>; 6]) -> Result<(PhysAddr, u64), &'static str> {
        let (base, room) = match bars.get(usize::from(self.bar)) {
            Some(Some(Bar::Memory { base, len, .. })) => (*base, *len),
            _ => return Err("names a BAR that is none of memory"),
        };
        let (offset, len) = (u64::from(self.offset), u64::from(self.len));
        if len == 0 || offset + len > room {
            return Err("names a structure that its BAR doesn't hold");
        }
        Ok((base + offset, len))
    }
}

/// A mapped structure.
#[derive(Debug, Clone, Copy)]
struct Window {
    base: VirtAddr,
    len: u64,
}

impl Window {
    fn at<T>(self, offset: u64) -> Option<*mut T> {
        let width = size_of::<T>() as u64;
        let inside = offset.checked_add(width)? <= self.len;
        let address = self.base + offset;
        (inside && address.0.is_multiple_of(width)).then(|| address.as_mut_ptr())
    }

    /// Reads a register of 1, 2 or 4 bytes.
    fn read<T: Copy>(self, offset: u64) -> Option<T> {
        // SAFETY: mapped uncached for good, inside, aligned.
        self.at(offset)
            .map(|at: *mut T| unsafe { at.read_volatile() })
    }

    /// Writes a register of 1, 2 or 4 bytes.
    fn write<T: Copy>(self, offset: u64, value: T) {
        if let Some(at) = self.at::<T>(offset) {
            // SAFETY: as in `read`; what the device does then concerns memory
            // that the queue's owner has set aside for it.
            unsafe { at.write_volatile(value) };
        }
    }

    /// A register of eight bytes, by halves as every device allows (4.1.3.1).
    fn write_wide(self, offset: u64, value: u64) {
        self.write(offset, value as u32);
        self.write(offset + 4, (value >> 32) as u32);
    }
}

/// A device's registers. The device is reset when they are dropped.
#[derive(Debug)]
pub struct PciTransport {
    /// The kind of device: 2 for disks, 27 for persistent memory.
    kind: u16,
    common: Window,
    notify: Window,
    multiplier: u32,
    isr: Option<Window>,
    device: Option<Window>,
    /// Where the queues that are set up are notified.
    notify_at: Vec<(u16, u64)>,
}

impl PciTransport {
    /// Finds and maps the registers, and lets the device access memory. It
    /// doesn't yet: it was told no addresses.
    pub(super) fn new(function: &Function) -> Result<Self> {
        let bars = function.bars();
        let mut windows: [Option<(Window, u32)>; 5] = [None; 5];
        let vendor = |(id, _): &(u8, u16)| *id == VENDOR;
        for (_, at) in function.capabilities().into_iter().filter(vendor) {
            let place = Place::read(|word| function.read(at + word));
            let Some(slot) = windows.get_mut(usize::from(place.kind)) else {
                continue;
            };
            // The device's first choice counts (4.1.4).
            if slot.is_some() || place.kind == 0 {
                continue;
            }
            let (base, len) = place.locate(&bars).map_err(|reason| Error::Firmware {
                table: format!("virtio capability {} of {function}", place.kind).into(),
                offset: at.into(),
                reason: reason.into(),
            })?;
            let base = mm::map_device(base, len)?;
            *slot = Some((Window { base, len }, place.multiplier));
        }
        let window = |kind: u8| windows.get(usize::from(kind)).copied().flatten();
        let need = |kind, name: &str| {
            window(kind).ok_or_else(|| Error::not_found(format!("{name} structure of {function}")))
        };
        let (common, _) = need(COMMON, "the common configuration")?;
        if common.len < common::LEN {
            return Err(Error::io(format!("{function}: its registers are cut off")));
        }
        let (notify, multiplier) = need(NOTIFY, "the notification")?;
        function.enable(true);
        Ok(Self {
            kind: kind(function.device),
            common,
            notify,
            multiplier,
            isr: window(ISR).map(|(window, _)| window),
            device: window(DEVICE).map(|(window, _)| window),
            notify_at: Vec::new(),
        })
    }

    /// Has a queue that is not in use yet signal the first MSI-X vector; tells
    /// whether the device could.
    pub(super) fn use_first_vector(&mut self, queue: u16) -> bool {
        self.common.write(common::QUEUE_SELECT, queue);
        self.common.write(common::QUEUE_MSIX_VECTOR, 0u16);
        self.common.read(common::QUEUE_MSIX_VECTOR) == Some(0u16)
    }

    /// A field of the queue, by its number.
    fn queue_field(&self, queue: u16, field: u64) -> u16 {
        self.common.write(common::QUEUE_SELECT, queue);
        self.common.read(field).unwrap_or(0)
    }

    fn config(&self, offset: usize, len: usize) -> virtio_drivers::Result<Window> {
        let window = self
            .device
            .ok_or(virtio_drivers::Error::ConfigSpaceMissing)?;
        match offset.checked_add(len) {
            Some(end) if end as u64 <= window.len => Ok(window),
            _ => Err(virtio_drivers::Error::ConfigSpaceTooSmall),
        }
    }
}

/// What kind of virtio device a PCI device identifier is for (4.1.2.1).
pub(super) fn kind(device: u16) -> u16 {
    match device {
        // Transitional disks; nothing else that old is used.
        0x1001 => 2,
        _ => device.wrapping_sub(0x1040),
    }
}

impl Transport for PciTransport {
    fn device_type(&self) -> DeviceType {
        // The crate has no name for persistent memory. Nothing that is used
        // here asks.
        DeviceType::try_from(self.kind).unwrap_or(DeviceType::Memory)
    }

    fn read_device_features(&mut self) -> u64 {
        let half = |nth: u32| {
            self.common.write(common::DEVICE_FEATURE_SELECT, nth);
            let bits: Option<u32> = self.common.read(common::DEVICE_FEATURE);
            u64::from(bits.unwrap_or(0))
        };
        half(0) | half(1) << 32
    }

    fn write_driver_features(&mut self, features: u64) {
        for nth in 0..2u32 {
            self.common.write(common::DRIVER_FEATURE_SELECT, nth);
            let half = (features >> (32 * nth)) as u32;
            self.common.write(common::DRIVER_FEATURE, half);
        }
    }

    fn max_queue_size(&mut self, queue: u16) -> u32 {
        self.queue_field(queue, common::QUEUE_SIZE).into()
    }

    fn notify(&mut self, queue: u16) {
        let known = self.notify_at.iter().find(|(number, _)| *number == queue);
        if let Some((_, at)) = known {
            self.notify.write(*at, queue);
        }
    }

    fn get_status(&self) -> DeviceStatus {
        let status: u8 = self.common.read(common::DEVICE_STATUS).unwrap_or(0);
        DeviceStatus::from_bits_truncate(status.into())
    }

    fn set_status(&mut self, status: DeviceStatus) {
        self.common
            .write(common::DEVICE_STATUS, status.bits() as u8);
    }

    fn set_guest_page_size(&mut self, _: u32) {
        // Of older transports.
    }

    fn requires_legacy_layout(&self) -> bool {
        false
    }

    fn queue_set(&mut self, queue: u16, size: u32, desc: u64, driver: u64, device: u64) {
        let off = self.queue_field(queue, common::QUEUE_NOTIFY_OFF);
        let at = u64::from(off) * u64::from(self.multiplier);
        self.notify_at.retain(|(number, _)| *number != queue);
        self.notify_at.push((queue, at));
        self.common.write(common::QUEUE_SIZE, size as u16);
        self.common.write_wide(common::QUEUE_DESC, desc);
        self.common.write_wide(common::QUEUE_DRIVER, driver);
        self.common.write_wide(common::QUEUE_DEVICE, device);
        self.common.write(common::QUEUE_ENABLE, 1u16);
    }

    fn queue_unset(&mut self, _: u16) {
        // Only a reset of the device ends a queue's use.
    }

    fn queue_used(&mut self, queue: u16) -> bool {
        self.queue_field(queue, common::QUEUE_ENABLE) != 0
    }

    fn ack_interrupt(&mut self) -> InterruptStatus {
        let bits: u8 = self.isr.and_then(|isr| isr.read(0)).unwrap_or(0);
        InterruptStatus::from_bits_retain(bits.into())
    }

    fn read_config_generation(&self) -> u32 {
        let generation: Option<u8> = self.common.read(common::CONFIG_GENERATION);
        generation.unwrap_or(0).into()
    }

    fn read_config_space<T: FromBytes + IntoBytes>(
        &self,
        offset: usize,
    ) -> virtio_drivers::Result<T> {
        let window = self.config(offset, size_of::<T>())?;
        let mut value = T::new_zeroed();
        // By words where they are whole ones, as fields must be read (4.1.3.1).
        let (mut at, bytes) = (offset as u64, value.as_mut_bytes());
        let width = if bytes.len().is_multiple_of(4) && at.is_multiple_of(4) {
            4
        } else if bytes.len() == 2 && at.is_multiple_of(2) {
            2
        } else {
            1
        };
        for part in bytes.chunks_mut(width) {
            let word: u32 = match width {
                4 => window.read(at).unwrap_or(u32::MAX),
                2 => window.read(at).unwrap_or(u16::MAX).into(),
                _ => window.read(at).unwrap_or(u8::MAX).into(),
            };
            for (to, from) in part.iter_mut().zip(word.to_le_bytes()) {
                *to = from;
            }
            at += width as u64;
        }
        Ok(value)
    }

    fn write_config_space<T: IntoBytes + Immutable>(
        &mut self,
        offset: usize,
        value: T,
    ) -> virtio_drivers::Result<()> {
        let window = self.config(offset, size_of::<T>())?;
        for (at, byte) in (offset as u64..).zip(value.as_bytes()) {
            window.write(at, *byte);
        }
        Ok(())
    }
}

impl Drop for PciTransport {
    fn drop(&mut self) {
        self.set_status(DeviceStatus::empty());
        // The memory of its queues is given back next: not before the device
        // has let go of it (4.1.4.3.2). One that is gone reads as ones.
        while !self.get_status().is_empty() && self.common.read(0) != Some(u32::MAX) {
            core::hint::spin_loop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bars(len: u64) -> [Option<Bar>; 6] {
        let mut bars = [None; 6];
        bars[4] = Some(Bar::Memory {
            base: PhysAddr(0xfe00_0000),
            len,
            prefetchable: true,
        });
        bars[1] = Some(Bar::Io { port: 0x60 });
        bars
    }

    fn place(words: [u32; 5]) -> Place {
        Place::read(|at| words[usize::from(at / 4)])
    }

    #[test]
    fn capabilities_place_structures_in_bars() {
        let notify = place([0x0214_0009, 4, 0x3000, 0x1000, 4]);
        assert_eq!((notify.kind, notify.multiplier), (NOTIFY, 4));
        let there = notify.locate(&bars(0x4000));
        assert_eq!(there, Ok((PhysAddr(0xfe00_3000), 0x1000)));
        assert!(notify.locate(&bars(0x3fff)).is_err());
        // A common structure has no multiplier, whatever follows it.
        assert_eq!(place([0x0110_0009, 4, 0, 56, 99]).multiplier, 0);
        for (bar, len) in [(1, 56), (0, 56), (7, 56), (255, 56), (4, 0)] {
            assert!(
                place([0x0110_0009, bar, 0, len, 0])
                    .locate(&bars(0x4000))
                    .is_err()
            );
        }
    }

    #[test]
    fn device_identifiers_name_the_kind() {
        assert_eq!([kind(0x1001), kind(0x1042), kind(0x105b)], [2, 2, 27]);
    }

    proptest! {
        #[test]
        fn no_structure_lies_outside_its_bar(words in any::<[u32; 5]>(), len in 1u64..1 << 33) {
            if let Ok((base, size)) = place(words).locate(&bars(len)) {
                prop_assert!(base.0 >= 0xfe00_0000 && base.0 + size <= 0xfe00_0000 + len);
            }
        }
    }
}
