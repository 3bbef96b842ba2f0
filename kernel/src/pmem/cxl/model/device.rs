//! Device registers: a mailbox that answers.

use super::super::command::{CEL, Opcode};
use super::super::event;
use super::super::regs::Registers;
use std::collections::BTreeMap;
use std::sync::Mutex;

const STATUS: u64 = 0x80;
const MAILBOX: u64 = 0x100;
const MEMDEV: u64 = 0x60;
const PAYLOAD: usize = 512;

/// What a command does when a test plants something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It ends with this return code.
    Code(u16),
    /// The doorbell is never given back.
    Hangs,
    /// The answer is these bytes.
    Answer(Vec<u8>),
    /// It goes on in the background, and ends with this code.
    Background(u16),
}

pub(crate) struct State {
    pub faults: BTreeMap<u16, Fault>,
    pub lsa: Vec<u8>,
    pub poison: Vec<u64>,
    pub events: Vec<Vec<u8>>,
    /// Writes to the label area that still work; then they fail.
    pub lsa_writes: Option<usize>,
    pub health: [u8; 18],
    cdat: Vec<u8>,
    registers: Vec<u8>,
    opcodes_seen: Vec<u16>,
}

pub(crate) struct DeviceModel {
    volatile: u64,
    persistent: u64,
    pub state: Mutex<State>,
}

impl DeviceModel {
    pub fn new(volatile: u64, persistent: u64) -> Self {
        let mut registers = vec![0u8; 0x1000];
        let mut put = |at: u64, bytes: &[u8]| {
            registers[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
        };
        put(0, &(3u64 << 32 | 1 << 16).to_le_bytes());
        for (nth, (id, at, length)) in [
            (1u32, STATUS, 8u32),
            (2, MAILBOX, 0x20 + PAYLOAD as u32),
            (0x4000, MEMDEV, 8),
        ]
        .into_iter()
        .enumerate()
        {
            let header = 0x10 * (nth as u64 + 1);
            put(header, &id.to_le_bytes());
            put(header + 4, &(at as u32).to_le_bytes());
            put(header + 8, &length.to_le_bytes());
        }
        put(MAILBOX, &9u32.to_le_bytes());
        put(MEMDEV, &(1u64 << 4 | 1 << 2).to_le_bytes());
        Self {
            volatile,
            persistent,
            state: Mutex::new(State {
                faults: BTreeMap::new(),
                lsa: vec![0; 128 << 10],
                poison: Vec::new(),
                events: Vec::new(),
                lsa_writes: None,
                health: [0; 18],
                cdat: super::super::cdat::sample(),
                registers,
                opcodes_seen: Vec::new(),
            }),
        }
    }

    pub fn cdat(&self) -> Vec<u8> {
        self.state.lock().unwrap().cdat.clone()
    }

    pub fn set_cdat(&self, cdat: Vec<u8>) {
        self.state.lock().unwrap().cdat = cdat;
    }

    pub fn plant(&self, opcode: Opcode, fault: Option<Fault>) {
        let mut state = self.state.lock().unwrap();
        match fault {
            Some(fault) => state.faults.insert(opcode.code(), fault),
            None => state.faults.remove(&opcode.code()),
        };
    }

    /// Puts bytes over the registers.
    pub fn force(&self, at: u64, bytes: &[u8]) {
        let mut state = self.state.lock().unwrap();
        let at = at as usize;
        state.registers[at..at + bytes.len()].copy_from_slice(bytes);
    }

    pub fn saw(&self, opcode: Opcode) -> bool {
        let state = self.state.lock().unwrap();
        state.opcodes_seen.contains(&opcode.code())
    }

    fn identity(&self) -> Vec<u8> {
        let mut answer = vec![0; 69];
        answer[..5].copy_from_slice(b"MODEL");
        let mut put = |at: usize, value: u64| {
            answer[at..at + 8].copy_from_slice(&value.to_le_bytes());
        };
        put(16, self.volatile + self.persistent);
        put(24, self.volatile);
        put(32, self.persistent);
        answer[56..60].copy_from_slice(&(128u32 << 10).to_le_bytes());
        answer[60] = 255;
        answer[63] = 8;
        answer
    }

    fn answer(&self, state: &mut State, opcode: u16, input: &[u8]) -> Result<Vec<u8>, u16> {
        let word = |at: usize| u32::from_le_bytes(input[at..at + 4].try_into().unwrap());
        let wide = |at: usize| u64::from_le_bytes(input[at..at + 8].try_into().unwrap());
        let known = Opcode::ALL.iter().find(|known| known.code() == opcode);
        Ok(match known.ok_or(3u16)? {
            Opcode::GetSupportedLogs => {
                let mut out = vec![1, 0, 0, 0, 0, 0, 0, 0];
                out.extend(CEL);
                out.extend((4 * Opcode::ALL.len() as u32).to_le_bytes());
                out
            }
            Opcode::GetLog => {
                let mut log = Vec::new();
                for opcode in Opcode::ALL {
                    log.extend(opcode.code().to_le_bytes());
                    log.extend([0, 0]);
                }
                let (at, length) = (word(16) as usize, word(20) as usize);
                log.get(at..at + length).ok_or(2u16)?.to_vec()
            }
            Opcode::IdentifyMemoryDevice => self.identity(),
            Opcode::GetLsa => {
                let (at, length) = (word(0) as usize, word(4) as usize);
                state.lsa.get(at..at + length).ok_or(2u16)?.to_vec()
            }
            Opcode::SetLsa => {
                let (at, data) = (word(0) as usize, &input[8..]);
                match &mut state.lsa_writes {
                    Some(0) => return Err(0x11),
                    Some(left) => *left -= 1,
                    None => {}
                }
                let place = state.lsa.get_mut(at..at + data.len()).ok_or(2u16)?;
                place.copy_from_slice(data);
                Vec::new()
            }
            Opcode::GetHealthInfo => state.health.to_vec(),
            Opcode::GetAlertConfiguration => vec![0; 16],
            Opcode::GetSecurityState => vec![0; 4],
            Opcode::GetTimestamp => 5u64.to_le_bytes().to_vec(),
            Opcode::GetPoisonList => {
                let range = wide(0)..wide(0) + 64 * wide(8);
                let mut out = vec![0; 32];
                for dpa in state.poison.iter().filter(|dpa| range.contains(dpa)) {
                    out[10] += 1;
                    out.extend((dpa | 3).to_le_bytes());
                    out.extend(1u32.to_le_bytes());
                    out.extend([0; 4]);
                }
                out
            }
            Opcode::InjectPoison => {
                state.poison.push(wide(0));
                Vec::new()
            }
            Opcode::ClearPoison => {
                let dpa = wide(0);
                state.poison.retain(|known| *known != dpa);
                Vec::new()
            }
            Opcode::GetEventRecords => {
                let mut out = vec![0; 32];
                for record in state.events.iter().take(2) {
                    out[20] += 1;
                    out.extend(record);
                }
                out[0] = if state.events.len() > 2 { 2 } else { 0 };
                out
            }
            Opcode::ClearEventRecords => {
                for nth in 0..usize::from(input[2]) {
                    let handle = &input[6 + 2 * nth..8 + 2 * nth];
                    state.events.retain(|record| record[20..22] != *handle);
                }
                Vec::new()
            }
            _ => Vec::new(),
        })
    }

    /// The doorbell was rung.
    fn ring(&self, state: &mut State) {
        let command = read(&state.registers, MAILBOX + 8);
        let opcode = command as u16;
        let length = (command >> 16 & 0x1f_ffff) as usize;
        state.opcodes_seen.push(opcode);
        let payload = (MAILBOX + 0x20) as usize;
        let input = state.registers[payload..payload + length.min(PAYLOAD)].to_vec();
        let mut background = None;
        let outcome = match state.faults.get(&opcode).cloned() {
            Some(Fault::Hangs) => {
                state.registers[MAILBOX as usize + 4] = 1;
                return;
            }
            Some(Fault::Code(code)) => Err(code),
            Some(Fault::Answer(answer)) => Ok(answer),
            Some(Fault::Background(code)) => {
                background = Some(code);
                Err(1)
            }
            None => self.answer(state, opcode, &input),
        };
        let (code, answer) = match outcome {
            Ok(answer) => (0, answer),
            Err(code) => (code, Vec::new()),
        };
        state.registers[payload..payload + answer.len()].copy_from_slice(&answer);
        let command = u64::from(opcode) | (answer.len() as u64) << 16;
        write(&mut state.registers, MAILBOX + 8, command);
        write(&mut state.registers, MAILBOX + 0x10, u64::from(code) << 32);
        if let Some(code) = background {
            let status = u64::from(opcode) | 100 << 16 | u64::from(code) << 32;
            write(&mut state.registers, MAILBOX + 0x18, status);
        }
        state.registers[MAILBOX as usize + 4] = 0;
    }
}

fn read(registers: &[u8], at: u64) -> u64 {
    let at = at as usize;
    u64::from_le_bytes(registers[at..at + 8].try_into().unwrap())
}

fn write(registers: &mut [u8], at: u64, value: u64) {
    let at = at as usize;
    registers[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

impl Registers for DeviceModel {
    fn len(&self) -> u64 {
        0x1000
    }

    fn read32(&self, at: u64) -> u32 {
        let state = self.state.lock().unwrap();
        if at == STATUS {
            return u32::from(!state.events.is_empty());
        }
        let at = at as usize;
        u32::from_le_bytes(state.registers[at..at + 4].try_into().unwrap())
    }

    fn write32(&self, at: u64, value: u32) {
        let mut state = self.state.lock().unwrap();
        if at == MAILBOX + 4 && value & 1 != 0 {
            self.ring(&mut state);
            return;
        }
        let at = at as usize;
        state.registers[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }

    fn read64(&self, at: u64) -> u64 {
        read(&self.state.lock().unwrap().registers, at)
    }

    fn write64(&self, at: u64, value: u64) {
        write(&mut self.state.lock().unwrap().registers, at, value);
    }
}

/// A general media event of an uncorrectable error.
pub(crate) fn lost(handle: u16, dpa: u64) -> Vec<u8> {
    event::media_record(handle, dpa, 1)
}
