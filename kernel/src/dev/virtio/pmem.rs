//! Persistent memory whose host makes it durable when it is asked
//! (virtio-pmem).
//!
//! The memory is ordinary memory of the host, of a file's cache there: what
//! the CPU has written back is in the host's hands, and durable when the
//! device has answered a flush. One request is as good as another, so those of
//! several threads are under way together, and whoever looks at the queue
//! takes everybody's answers: a thread that must not block never waits for one
//! that sleeps.
//!
//! A device that has failed to flush has lost stores that it can't name. The
//! failure stays: every later flush may succeed, and still the content is not
//! what was stored. So it is told from then on ([`Device::fault`]).
//!
//! Virtio 1.2: 5.19 (PMEM device).
//!
//! Lock order: the state (a spin lock) is innermost.

use super::transport::{self, PciTransport};
use super::{Answers, Kernel, agree, failure, interrupts};
use crate::dev::pci::{self, Function};
use crate::error::{Error, Result};
use crate::sync::{Once, SpinLock};
use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use bitflags::bitflags;
use core::ops::Range;
use virtio_drivers::Hal;
use virtio_drivers::queue::VirtQueue;
use virtio_drivers::transport::Transport;

const KIND: u16 = 27;
const QUEUE: u16 = 0;
/// Descriptors; a request takes two.
const QUEUE_SIZE: usize = 32;
/// Requests under way.
const REQUESTS: usize = QUEUE_SIZE / 2;
/// `VIRTIO_PMEM_REQ_TYPE_FLUSH`.
const FLUSH: u32 = 0;

bitflags! {
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Features: u64 {
        const VERSION_1 = 1 << 32;
    }
}

/// What the device reads, and what it writes.
struct Request {
    kind: [u8; 4],
    answer: [u8; 4],
}

/// A place for a request.
enum Slot {
    Free,
    /// The device has it, under the queue's token.
    Sent(u16, Box<Request>),
    /// The device's answer, for whoever asked.
    Answered(i32),
}

struct State<H: Hal, T: Transport> {
    // Dropped first: the device lets go of the queue's memory.
    transport: T,
    queue: VirtQueue<H, QUEUE_SIZE>,
    slots: [Slot; REQUESTS],
    /// It has answered what nobody asked, or can't be asked: nothing that it
    /// says counts any more.
    broken: Option<virtio_drivers::Error>,
}

impl<H: Hal, T: Transport> State<H, T> {
    /// Sends a request and gives its slot; `None` while there is no room.
    fn send(&mut self) -> Option<usize> {
        self.take_answers();
        let free = |slot: &Slot| matches!(slot, Slot::Free);
        let nth = self.slots.iter().position(free)?;
        let mut request = Box::new(Request {
            kind: FLUSH.to_le_bytes(),
            // A device that writes nothing has not flushed.
            answer: [0xff; 4],
        });
        let Request { kind, answer } = &mut *request;
        // SAFETY: the request stays in its box, in the slot, until its token
        // has been popped; dropping the transport resets the device.
        match unsafe { self.queue.add(&[kind], &mut [answer]) } {
            Ok(token) => {
                *self.slots.get_mut(nth)? = Slot::Sent(token, request);
                if self.queue.should_notify() {
                    self.transport.notify(QUEUE);
                }
            }
            Err(error) => {
                self.broken.get_or_insert(error);
            }
        }
        Some(nth)
    }

    /// Takes all answers that there are.
    fn take_answers(&mut self) {
        while self.broken.is_none()
            && let Some(token) = self.queue.peek_used()
        {
            let asked = |slot: &&mut Slot| matches!(slot, Slot::Sent(sent, _) if *sent == token);
            let popped = match self.slots.iter_mut().find(asked) {
                Some(slot) => match core::mem::replace(slot, Slot::Answered(-1)) {
                    Slot::Sent(_, mut request) => {
                        let Request { kind, answer } = &mut *request;
                        // SAFETY: the buffers that were added with this token.
                        let popped = unsafe { self.queue.pop_used(token, &[kind], &mut [answer]) };
                        *slot = Slot::Answered(i32::from_le_bytes(*answer));
                        popped.map(drop)
                    }
                    other => {
                        *slot = other;
                        Ok(())
                    }
                },
                None => Err(virtio_drivers::Error::WrongToken),
            };
            if let Err(error) = popped {
                self.broken = Some(error);
            }
        }
    }

    /// What became of the request in a slot; `None` while the device has it.
    fn answer(&mut self, nth: usize) -> Option<Result<(), String>> {
        self.take_answers();
        if let Some(error) = &self.broken {
            return Some(Err(format!("the device can't be talked to: {error}")));
        }
        let slot = self.slots.get_mut(nth)?;
        match *slot {
            Slot::Answered(answer) => {
                *slot = Slot::Free;
                Some(match answer {
                    0 => Ok(()),
                    error => Err(format!("the host could not flush (answer {error})")),
                })
            }
            _ => None,
        }
    }
}

/// A device.
pub struct Device<H: Hal, T: Transport> {
    name: String,
    place: String,
    range: Range<u64>,
    state: SpinLock<State<H, T>>,
    answers: Answers,
    fault: Once<String>,
}

/// The devices of this machine.
pub type PciDevice = Device<Kernel, PciTransport>;

impl<H: Hal, T: Transport> Device<H, T> {
    /// Takes the device into use. `line` has its queue interrupt.
    fn start(
        name: String,
        place: String,
        mut transport: T,
        line: impl FnOnce(&mut T) -> Option<u32>,
    ) -> Result<Self> {
        let features = agree(&mut transport, &name, Features::all())?;
        if !features.contains(Features::VERSION_1) {
            return Err(Error::unsupported(format!(
                "{name}: a device before virtio 1"
            )));
        }
        let [start, len] = transport
            .read_consistent(|| transport.read_config_space::<[u32; 4]>(0))
            .map(|words| [[words[0], words[1]], [words[2], words[3]]])
            .map(|fields| fields.map(|[low, high]| u64::from(high) << 32 | u64::from(low)))
            .map_err(failure(&name))?;
        let end = start.checked_add(len).ok_or_else(|| Error::Firmware {
            table: format!("configuration of {name}").into(),
            offset: 8,
            reason: format!("{len:#x} bytes from {start:#x} are too many").into(),
        })?;
        let answers = Answers::new(line(&mut transport));
        let queue = VirtQueue::new(&mut transport, QUEUE, false, false).map_err(failure(&name))?;
        transport.finish_init();
        log::info!(
            "virtio-pmem: {name} at={place} range={start:#x}..{end:#x} interrupts={}",
            answers.describe()
        );
        Ok(Self {
            name,
            place,
            range: start..end,
            state: SpinLock::new(State {
                transport,
                queue,
                slots: [const { Slot::Free }; REQUESTS],
                broken: None,
            }),
            answers,
            fault: Once::new(),
        })
    }

    /// `virtio-pmem0`, by PCI address.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it is on the bus.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// Physical addresses of its memory.
    pub fn range(&self) -> &Range<u64> {
        &self.range
    }

    /// What a flush has failed with before.
    pub fn fault(&self) -> Option<&str> {
        self.fault.get().map(String::as_str)
    }

    /// Makes durable what was stored before: the device has said so when this
    /// returns.
    pub fn flush(&self) -> Result<()> {
        let name = &self.name;
        let nth = self.answers.wait(name, || self.state.lock().send());
        let answer = self.answers.wait(name, || self.state.lock().answer(nth));
        // Others' answers have been taken as well, and a place is free.
        self.answers.wake();
        answer.map_err(|why| {
            let why = format!("{name}: {why}");
            self.fault.call_once(|| why.clone());
            Error::io(why)
        })
    }
}

static DEVICES: Once<Vec<Arc<PciDevice>>> = Once::new();

fn is_pmem(function: &Function) -> bool {
    function.vendor == 0x1af4 && transport::kind(function.device) == KIND
}

/// All devices, found at the first call. What is wrong with one is logged.
pub fn devices() -> &'static [Arc<PciDevice>] {
    DEVICES.call_once(|| {
        let mut found = Vec::new();
        for function in pci::functions().iter().filter(|f| is_pmem(f)) {
            let name = format!("virtio-pmem{}", found.len());
            let device = PciTransport::new(function).and_then(|transport| {
                Device::start(name, format!("{function}"), transport, |transport| {
                    interrupts(function, transport, QUEUE)
                })
            });
            match device {
                Ok(device) => found.push(Arc::new(device)),
                Err(error) => log::warn!("virtio-pmem: {function} left out: {error}"),
            }
        }
        found
    })
}

#[cfg(test)]
mod tests {
    use super::super::model::{Host, Model};
    use super::*;
    use std::thread;

    type Modelled = Device<Host, Model>;

    fn device(model: Model) -> Modelled {
        Device::start("virtio-pmem9".into(), "model".into(), model, |_| None).expect("it starts")
    }

    /// Answers with this value, at once.
    fn answering(answer: i32) -> Model {
        let mut config = 0x1_4000_0000u64.to_le_bytes().to_vec();
        config.extend((1u64 << 30).to_le_bytes());
        Model::new(config, move |request| {
            assert_eq!(request, FLUSH.to_le_bytes());
            Some(answer.to_le_bytes().to_vec())
        })
    }

    #[test]
    fn a_flush_is_one_request_and_its_answer() {
        let model = answering(0);
        let requests = model.requests();
        let device = device(model);
        assert_eq!(*device.range(), 0x1_4000_0000..0x1_8000_0000);
        for nth in 1..100 {
            assert_eq!(device.flush(), Ok(()));
            assert_eq!(requests.count(), nth);
        }
        assert_eq!(device.fault(), None);
    }

    #[test]
    fn a_failed_flush_is_an_error_and_stays_known() {
        let model = answering(-1);
        let host = model.requests();
        let device = device(model);
        let error = device.flush().unwrap_err().to_string();
        assert!(
            error.contains("virtio-pmem9: the host could not flush"),
            "{error}"
        );
        host.answer_with(0);
        assert_eq!(device.flush(), Ok(()), "the device works again");
        assert!(device.fault().is_some_and(|why| why.contains("answer -1")));
    }

    #[test]
    fn a_device_that_writes_no_answer_has_not_flushed() {
        let model = Model::new(vec![0; 16], |_| Some(Vec::new()));
        assert!(device(model).flush().is_err());
    }

    #[test]
    fn nobody_is_done_before_the_answer() {
        // The answers come only when all requests have been sent, and in
        // reverse order.
        let model = Model::new(vec![0; 16], |_| None);
        let host = model.requests();
        let device = Arc::new(device(model));
        let threads: Vec<_> = (0..40)
            .map(|_| {
                let device = device.clone();
                thread::spawn(move || device.flush())
            })
            .collect();
        let mut answered = 0;
        while answered < 40 {
            let waiting = threads
                .iter()
                .filter(|thread| !thread.is_finished())
                .count();
            assert!(waiting >= 40 - answered, "done without an answer");
            answered += host.answer_waiting(0);
            thread::yield_now();
        }
        for thread in threads {
            assert_eq!(thread.join().unwrap(), Ok(()));
        }
    }

    #[test]
    fn an_answer_to_nothing_ends_the_use_of_the_device() {
        let model = Model::new(vec![0; 16], |_| None);
        let host = model.requests();
        let device = device(model);
        host.lie(7);
        assert!(device.flush().is_err());
        assert!(device.flush().is_err());
        assert!(device.fault().is_some());
    }

    #[test]
    fn a_device_with_an_impossible_range_or_too_old_is_refused() {
        let start = |model| Modelled::start("d".into(), "p".into(), model, |_| None);
        assert!(start(Model::new(vec![0xff; 16], |_| None)).is_err());
        assert!(start(Model::new(vec![0; 15], |_| None)).is_err(), "cut off");
        let old = Model::new(vec![0; 16], |_| None).with_features(0);
        assert!(start(old).is_err());
        let stubborn = Model::new(vec![0; 16], |_| None).refusing_features();
        assert!(start(stubborn).is_err());
    }
}
