//! Memory devices: what is known of one, and its commands as functions.

use super::cdat::Cdat;
use super::command::{self, Alerts, Health, Identity, Opcode, Partitions, PoisonList, Security};
use super::command::{Poison, Uuid};
use super::device::{self, Device, MediaStatus};
use super::doe;
use super::dvsec::{self, BlockKind, DeviceCapability};
use super::event::Records;
use super::regs::{Function, address_text, extended_capabilities};
use super::topology::PortId;
use crate::error::{Error, Result};
use crate::pmem::{LabelArea, LabelStore};
use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Range;

/// A place in the list of memory devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemdevId(pub usize);

/// More records than a device should have are not asked for.
const MAX_ROUNDS: usize = 4096;

/// A label storage area, reached by Get LSA and Set LSA. The mailbox has its
/// own lock.
#[derive(Clone)]
struct Lsa {
    device: Arc<Device>,
    size: u32,
}

impl Lsa {
    fn check(&self, offset: u64, len: usize) -> Result<u32> {
        let end = offset.saturating_add(len as u64);
        match end <= u64::from(self.size) {
            // At most `size`, which has 32 bits.
            true => Ok(offset as u32),
            false => Err(Error::invalid(format!(
                "{len} bytes at {offset:#x} lie beyond the label storage area"
            ))),
        }
    }
}

impl LabelArea for Lsa {
    fn size(&self) -> u64 {
        u64::from(self.size)
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let mut at = self.check(offset, buf.len())?;
        for part in buf.chunks_mut(self.device.payload_size()) {
            let length = part.len() as u32;
            let mut input = at.to_le_bytes().to_vec();
            input.extend(length.to_le_bytes());
            let answer = self.device.run(Opcode::GetLsa, &input)?;
            let answer = answer
                .get(..part.len())
                .ok_or_else(|| short(Opcode::GetLsa))?;
            part.copy_from_slice(answer);
            at += length;
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        let mut at = self.check(offset, data.len())?;
        let room = self.device.payload_size().saturating_sub(8).max(1);
        for part in data.chunks(room) {
            let mut input = at.to_le_bytes().to_vec();
            input.extend([0; 4]);
            input.extend(part);
            self.device.run(Opcode::SetLsa, &input)?;
            at += part.len() as u32;
        }
        Ok(())
    }
}

/// A CXL memory device.
pub struct Memdev {
    /// `mem0`, …, in order of the addresses on PCI.
    pub name: String,
    /// The PCI function.
    pub function: Arc<dyn Function>,
    /// The device's serial number, 0 when it has none.
    pub serial: u64,
    /// Its port in the tree.
    pub endpoint: PortId,
    /// Identify Memory Device.
    pub identity: Identity,
    /// Its partitions.
    pub partitions: Partitions,
    /// Commands that its Command Effects Log names.
    pub commands: BTreeSet<u16>,
    /// Latency and bandwidth.
    pub cdat: Option<Cdat>,
    /// Locks and passphrases.
    pub security: Security,
    /// The device saves what it holds when the platform flushes.
    pub has_gpf: bool,
    capability: DeviceCapability,
    device: Arc<Device>,
    labels: Option<LabelStore>,
}

fn short(opcode: Opcode) -> Error {
    Error::io(format!(
        "{}: the device's answer is too short",
        opcode.name()
    ))
}

impl Memdev {
    /// Asks a function what it is. Component registers are the port's.
    pub fn probe(function: Arc<dyn Function>) -> Result<Self> {
        let capability = DeviceCapability::read(&*function)
            .ok_or_else(|| Error::unsupported("a memory device without a CXL device DVSEC"))?;
        if !capability.mem_capable() {
            return Err(Error::unsupported("a device without CXL.mem"));
        }
        let block = dvsec::registers(&*function, BlockKind::Device, device::BLOCK_LEN)?
            .ok_or_else(|| Error::unsupported("a memory device without device registers"))?;
        let device = Arc::new(Device::read(&block)?);
        device.wait_ready()?;
        let commands = read_effects(&device)?;
        let identity = Identity::decode(&device.run(Opcode::IdentifyMemoryDevice, &[])?)
            .ok_or_else(|| short(Opcode::IdentifyMemoryDevice))?;
        let knows_labels = [Opcode::GetLsa, Opcode::SetLsa]
            .iter()
            .all(|opcode| commands.contains(&opcode.code()));
        let labels = (identity.lsa_size > 0 && knows_labels).then(|| {
            LabelStore(Arc::new(Lsa {
                device: device.clone(),
                size: identity.lsa_size,
            }))
        });
        let mut memdev = Self {
            name: String::new(),
            serial: serial_number(&*function),
            endpoint: PortId(0),
            partitions: Partitions::default(),
            cdat: None,
            security: Security::default(),
            has_gpf: dvsec::has_device_gpf(&*function),
            function,
            identity,
            commands,
            capability,
            device,
            labels,
        };
        memdev.partitions = memdev.read_partitions()?;
        if memdev.supports(Opcode::GetSecurityState) {
            let answer = memdev.run(Opcode::GetSecurityState, &[])?;
            memdev.security =
                Security::decode(&answer).ok_or_else(|| short(Opcode::GetSecurityState))?;
        }
        Ok(memdev)
    }

    /// Reads latency and bandwidth; what is wrong with them is no obstacle.
    pub fn read_cdat(&mut self) -> Result<()> {
        if let Some(table) = doe::read_cdat(&*self.function)? {
            let cdat = Cdat::parse(&table)
                .map_err(|reason| Error::io(format!("{}: CDAT: {reason}", self.name)))?;
            self.cdat = Some(cdat);
        }
        Ok(())
    }

    /// Where it is on PCI.
    pub fn host(&self) -> String {
        address_text(self.function.address())
    }

    /// Whether the device knows a command.
    pub fn supports(&self, opcode: Opcode) -> bool {
        self.commands.contains(&opcode.code())
    }

    /// Its registers.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Lets it answer to accesses of its memory. True when it didn't before.
    pub fn enable_mem(&self) -> Result<bool> {
        let before = self.capability.mem_enabled(&*self.function);
        self.capability.enable_mem(&*self.function)?;
        Ok(!before)
    }

    /// Whether it answers to accesses of its memory.
    pub fn mem_enabled(&self) -> bool {
        self.capability.mem_enabled(&*self.function)
    }

    /// Undoes [`Self::enable_mem`].
    pub fn disable_mem(&self) {
        self.capability.disable_mem(&*self.function);
    }

    /// Runs a command that doesn't erase the media.
    pub fn run(&self, opcode: Opcode, input: &[u8]) -> Result<Vec<u8>> {
        if opcode.erases() {
            return Err(Error::NotPermitted {
                why: format!(
                    "{} destroys all data of {}: Quire never sends it",
                    opcode.name(),
                    self.name
                )
                .into(),
            });
        }
        self.device.run(opcode, input)
    }

    /// Runs a command that the device must know.
    fn ask(&self, opcode: Opcode, input: &[u8]) -> Result<Vec<u8>> {
        if !self.supports(opcode) {
            return Err(Error::unsupported(format!(
                "{} by {}",
                opcode.name(),
                self.name
            )));
        }
        self.run(opcode, input)
    }

    fn read_partitions(&self) -> Result<Partitions> {
        let identity = &self.identity;
        let fixed = Partitions {
            active_volatile: identity.volatile_only_capacity,
            active_persistent: identity.persistent_only_capacity,
            ..Partitions::default()
        };
        // Devices whose partitions can't move need not have the command.
        if identity.partition_alignment == 0 || !self.supports(Opcode::GetPartitionInfo) {
            return Ok(fixed);
        }
        let answer = self.run(Opcode::GetPartitionInfo, &[])?;
        let found = Partitions::decode(&answer).ok_or_else(|| short(Opcode::GetPartitionInfo))?;
        let sum = found.active_volatile.checked_add(found.active_persistent);
        match sum {
            Some(sum) if sum <= identity.total_capacity => Ok(found),
            _ => Err(Error::io("the partitions are larger than the device")),
        }
    }

    /// Device addresses of the volatile partition.
    pub fn volatile(&self) -> Range<u64> {
        0..self.partitions.active_volatile
    }

    /// Device addresses of the persistent partition.
    pub fn persistent(&self) -> Range<u64> {
        let start = self.partitions.active_volatile;
        start..start.saturating_add(self.partitions.active_persistent)
    }

    /// Why stores to it must not be made.
    pub fn read_only_reason(&self) -> Option<String> {
        if let Some(status) = self.device.device_status()
            && status.media() != MediaStatus::Ready
        {
            return Some(format!(
                "{}: media status is {:?}",
                self.name,
                status.media()
            ));
        }
        if self.security.locked() {
            return Some(format!("{} is locked by a passphrase", self.name));
        }
        let health = self.health().ok()?;
        let complaint = health.media_complaint()?;
        health
            .refuses_writes()
            .then(|| format!("{}: {complaint}", self.name))
    }

    /// How it is.
    pub fn health(&self) -> Result<Health> {
        let answer = self.ask(Opcode::GetHealthInfo, &[])?;
        Health::decode(&answer).ok_or_else(|| short(Opcode::GetHealthInfo))
    }

    /// When it warns.
    pub fn alerts(&self) -> Result<Alerts> {
        let answer = self.ask(Opcode::GetAlertConfiguration, &[])?;
        Alerts::decode(&answer).ok_or_else(|| short(Opcode::GetAlertConfiguration))
    }

    /// The device's clock: nanoseconds since 1970, 0 when it was never set.
    pub fn timestamp(&self) -> Result<u64> {
        let answer = self.ask(Opcode::GetTimestamp, &[])?;
        quire_arch::acpi::read_u64(&answer, 0).ok_or_else(|| short(Opcode::GetTimestamp))
    }

    /// Sets the device's clock.
    pub fn set_timestamp(&self, ns: u64) -> Result<()> {
        self.ask(Opcode::SetTimestamp, &ns.to_le_bytes()).map(drop)
    }

    /// Says whether data would be lost if the power went now.
    pub fn set_dirty(&self, dirty: bool) -> Result<()> {
        if !self.supports(Opcode::SetShutdownState) {
            return Ok(());
        }
        self.run(Opcode::SetShutdownState, &[u8::from(dirty)])
            .map(drop)
    }

    /// Its label storage area.
    pub fn label_store(&self) -> Option<&LabelStore> {
        self.labels.as_ref()
    }

    /// The addresses in a range whose content is lost, in order. True when the
    /// device says that some are missing from its list.
    pub fn poison(&self, range: Range<u64>) -> Result<(Vec<Poison>, bool)> {
        let mut all = Vec::new();
        let mut overflow = false;
        let length = range.end.saturating_sub(range.start) / 64;
        let mut input = range.start.to_le_bytes().to_vec();
        input.extend(length.to_le_bytes());
        for _ in 0..MAX_ROUNDS {
            let answer = self.ask(Opcode::GetPoisonList, &input)?;
            let list = PoisonList::decode(&answer).ok_or_else(|| short(Opcode::GetPoisonList))?;
            overflow |= list.overflow;
            all.extend(list.records);
            if !list.more {
                all.sort_by_key(|record| record.dpa);
                return Ok((all, overflow));
            }
        }
        Err(Error::io(format!(
            "{}: the poison list doesn't end",
            self.name
        )))
    }

    /// Makes 64 bytes lose their content.
    pub fn inject_poison(&self, dpa: u64) -> Result<()> {
        self.check_line(dpa)?;
        self.ask(Opcode::InjectPoison, &dpa.to_le_bytes()).map(drop)
    }

    /// Gives 64 bytes content again: zeros.
    pub fn clear_poison(&self, dpa: u64) -> Result<()> {
        self.check_line(dpa)?;
        let mut input = dpa.to_le_bytes().to_vec();
        input.extend([0; 64]);
        self.ask(Opcode::ClearPoison, &input).map(drop)
    }

    fn check_line(&self, dpa: u64) -> Result<()> {
        let end = self.persistent().end.max(self.volatile().end);
        match dpa.is_multiple_of(64) && dpa < end {
            true => Ok(()),
            false => Err(Error::invalid(format!(
                "{dpa:#x} is no multiple of 64 inside {}",
                self.name
            ))),
        }
    }

    /// A log's records; they stay in the log.
    pub fn events(&self, log: u8) -> Result<Records> {
        let answer = self.ask(Opcode::GetEventRecords, &[log])?;
        Records::decode(&answer).ok_or_else(|| short(Opcode::GetEventRecords))
    }

    /// Takes records out of a log.
    pub fn clear_events(&self, log: u8, handles: &[u16]) -> Result<()> {
        for some in handles.chunks(255) {
            let mut input = [log, 0, some.len() as u8, 0, 0, 0].to_vec();
            some.iter()
                .for_each(|handle| input.extend(handle.to_le_bytes()));
            self.ask(Opcode::ClearEventRecords, &input)?;
        }
        Ok(())
    }

    /// Takes all records out of all logs that the device says have some.
    pub fn take_events(&self) -> Result<Vec<(&'static str, super::event::Record)>> {
        let mut out = Vec::new();
        let status = self.device.event_status();
        for (log, name) in super::event::LOGS.into_iter().rev() {
            if !status.has(log) {
                continue;
            }
            for _ in 0..MAX_ROUNDS {
                let found = self.events(log)?;
                if found.overflow {
                    log::warn!("cxl: {} log={name} records were lost", self.name);
                }
                let handles: Vec<u16> = found.records.iter().map(|r| r.handle).collect();
                self.clear_events(log, &handles)?;
                let done = !found.more || found.records.is_empty();
                out.extend(found.records.into_iter().map(|record| (name, record)));
                if done {
                    break;
                }
            }
        }
        Ok(out)
    }
}

/// The Command Effects Log: which commands the device knows.
fn read_effects(device: &Device) -> Result<BTreeSet<u16>> {
    let answer = device.run(Opcode::GetSupportedLogs, &[])?;
    let logs = command::supported_logs(&answer).ok_or_else(|| short(Opcode::GetSupportedLogs))?;
    let size = logs
        .iter()
        .find(|(uuid, _)| *uuid == command::CEL)
        .map(|(_, size)| *size)
        .ok_or_else(|| Error::unsupported("a device without a Command Effects Log"))?;
    let log = read_log(device, &command::CEL, size.min(1 << 16))?;
    Ok(command::command_effects(&log)
        .into_iter()
        .map(|(code, _)| code)
        .collect())
}

/// A log of the device.
fn read_log(device: &Device, uuid: &Uuid, size: u32) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    while (out.len() as u32) < size {
        let at = out.len() as u32;
        let length = (size - at).min(device.payload_size() as u32);
        let mut input = uuid.to_vec();
        input.extend(at.to_le_bytes());
        input.extend(length.to_le_bytes());
        let answer = device.run(Opcode::GetLog, &input)?;
        let answer = answer
            .get(..length as usize)
            .ok_or_else(|| short(Opcode::GetLog))?;
        out.extend(answer);
    }
    Ok(out)
}

/// The device's serial number, from its extended capability.
fn serial_number(function: &dyn Function) -> u64 {
    extended_capabilities(function)
        .into_iter()
        .find(|(kind, _)| *kind == 3)
        .map_or(0, |(_, at)| {
            u64::from(function.read(at + 8)) << 32 | u64::from(function.read(at + 4))
        })
}
