//! Hand-made NFIT tables for tests.

/// Builds a table entry by entry, then patches length and checksum.
#[derive(Clone)]
pub(crate) struct TableBuilder(Vec<u8>);

/// GUID of byte-addressable persistent memory as it lies in a table.
pub(crate) const PERSISTENT: [u8; 16] = [
    0x79, 0xd3, 0xf0, 0x66, 0xf3, 0xb4, 0x74, 0x40, 0xac, 0x43, 0x0d, 0x33, 0x18, 0xb7, 0x8c, 0xdb,
];
/// GUID of volatile memory as it lies in a table.
pub(crate) const VOLATILE: [u8; 16] = [
    0x4f, 0x94, 0x05, 0x73, 0xda, 0xfd, 0xe3, 0x44, 0xb1, 0x6c, 0x3f, 0x22, 0xd2, 0x52, 0xe5, 0xd0,
];

/// A machine whose first GiB is RAM.
pub(crate) struct TestMachine;

impl super::Machine for TestMachine {
    fn is_ram(&self, range: core::ops::Range<u64>) -> bool {
        range.start < 1 << 30
    }
    fn limit(&self) -> u64 {
        1 << 46
    }
}

impl TableBuilder {
    pub(crate) fn new() -> Self {
        let mut bytes = vec![0; 40];
        bytes[..4].copy_from_slice(b"NFIT");
        bytes[8] = 1;
        Self(bytes)
    }

    /// An entry of `kind` with this body after the four-byte header.
    pub(crate) fn entry(mut self, kind: u16, body: &[u8]) -> Self {
        let len = u16::try_from(body.len() + 4).unwrap();
        self.0.extend(kind.to_le_bytes());
        self.0.extend(len.to_le_bytes());
        self.0.extend(body);
        self
    }

    /// Bytes as they are.
    pub(crate) fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }

    pub(crate) fn spa(self, index: u16, guid: &[u8; 16], base: u64, length: u64) -> Self {
        let mut body = Vec::new();
        body.extend(index.to_le_bytes());
        body.extend(2u16.to_le_bytes());
        body.extend([0; 4]);
        body.extend(0u32.to_le_bytes());
        body.extend(guid);
        body.extend(base.to_le_bytes());
        body.extend(length.to_le_bytes());
        body.extend(0x8008u64.to_le_bytes());
        self.entry(0, &body)
    }

    pub(crate) fn memdev(
        self,
        handle: u32,
        spa: u16,
        dcr: u16,
        size: u64,
        region_offset: u64,
        flags: u16,
    ) -> Self {
        let mut body = Vec::new();
        body.extend(handle.to_le_bytes());
        body.extend((handle as u16).to_le_bytes());
        body.extend(0u16.to_le_bytes());
        body.extend(spa.to_le_bytes());
        body.extend(dcr.to_le_bytes());
        body.extend(size.to_le_bytes());
        body.extend(region_offset.to_le_bytes());
        body.extend(0u64.to_le_bytes());
        body.extend(0u16.to_le_bytes());
        body.extend(1u16.to_le_bytes());
        body.extend(flags.to_le_bytes());
        body.extend(0u16.to_le_bytes());
        self.entry(1, &body)
    }

    /// A control region; `len` bytes of it in all.
    pub(crate) fn control(self, index: u16, serial: u32, len: usize) -> Self {
        let mut body = Vec::new();
        body.extend(index.to_le_bytes());
        body.extend(0x8086u16.to_le_bytes());
        body.extend(1u16.to_le_bytes());
        body.extend(1u16.to_le_bytes());
        body.extend([0; 6]);
        body.extend([0; 6]);
        body.extend(serial.to_le_bytes());
        body.extend(0x301u16.to_le_bytes());
        body.extend([0; 100]);
        body.truncate(len - 4);
        self.entry(4, &body)
    }

    pub(crate) fn flush_hints(self, handle: u32, addresses: &[u64]) -> Self {
        let mut body = Vec::new();
        body.extend(handle.to_le_bytes());
        body.extend((addresses.len() as u16).to_le_bytes());
        body.extend([0; 6]);
        for address in addresses {
            body.extend(address.to_le_bytes());
        }
        self.entry(6, &body)
    }

    pub(crate) fn capabilities(self, highest: u8, bits: u32) -> Self {
        let mut body = vec![highest, 0, 0, 0];
        body.extend(bits.to_le_bytes());
        body.extend([0; 4]);
        self.entry(7, &body)
    }

    /// What QEMU makes for one `-device nvdimm` of `size` bytes at `base`.
    pub(crate) fn qemu(base: u64, size: u64) -> Self {
        Self::new()
            .spa(2, &PERSISTENT, base, size)
            .memdev(1, 2, 2, size, 0, 0)
            .control(2, 0x0012_3456, 80)
            .capabilities(1, 3)
    }

    pub(crate) fn build(mut self) -> Vec<u8> {
        let len = u32::try_from(self.0.len()).unwrap();
        self.0[4..8].copy_from_slice(&len.to_le_bytes());
        self.0[9] = 0;
        let sum = self.0.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        self.0[9] = sum.wrapping_neg();
        self.0
    }
}

/// Ordinary memory in the place of a device's, aligned as asked.
pub(crate) struct HostMemory {
    base: *mut u8,
    layout: std::alloc::Layout,
}

// SAFETY: the memory is reached through copies only.
unsafe impl Send for HostMemory {}
// SAFETY: as above.
unsafe impl Sync for HostMemory {}

impl HostMemory {
    pub(crate) fn new(len: usize, align: usize) -> Self {
        let layout = std::alloc::Layout::from_size_align(len, align).unwrap();
        // SAFETY: the size isn't 0.
        let base = unsafe { std::alloc::alloc_zeroed(layout) };
        assert!(!base.is_null());
        Self { base, layout }
    }

    /// On the host the physical address of memory is its address.
    pub(crate) fn phys(&self) -> quire_arch::PhysAddr {
        quire_arch::PhysAddr(self.base as u64)
    }
}

impl Drop for HostMemory {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout.
        unsafe { std::alloc::dealloc(self.base, self.layout) };
    }
}

impl super::namespace::Reach for HostMemory {
    fn address(
        &self,
        range: core::ops::Range<quire_arch::PhysAddr>,
    ) -> crate::error::Result<quire_arch::VirtAddr> {
        assert_eq!(range.start, self.phys());
        Ok(quire_arch::VirtAddr(range.start.as_u64()))
    }
    fn map(&self, _: core::ops::Range<quire_arch::PhysAddr>, _: bool) -> crate::error::Result<()> {
        Ok(())
    }
    fn protect(
        &self,
        _: core::ops::Range<quire_arch::PhysAddr>,
        _: bool,
    ) -> crate::error::Result<()> {
        Ok(())
    }
    fn unmap(&self, _: core::ops::Range<quire_arch::PhysAddr>) -> crate::error::Result<()> {
        Ok(())
    }
    fn map_register(&self, at: quire_arch::PhysAddr) -> crate::error::Result<quire_arch::VirtAddr> {
        Ok(quire_arch::VirtAddr(at.as_u64()))
    }
}

/// A region of ordinary memory.
pub(crate) fn host_region(start: u64, len: u64) -> super::Region {
    super::Region {
        dev: "region0".into(),
        numa_node: Some(0),
        persistence_domain: super::region::PersistenceDomain::MemoryController,
        ..super::Region::plain(start..start + len, "test")
    }
}
