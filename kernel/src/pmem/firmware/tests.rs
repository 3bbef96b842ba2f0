//! Tests: label areas, health and scrub over a model of the firmware.

use super::health::{Health, State};
use super::*;
use crate::acpi::aml::Aml;
use crate::acpi::aml::tests::{Model, nvdimm_table};
use crate::pmem::label::{Label, LabelArea, LabelSet, LabelStore, Slot, Uuid, Version};
use crate::sync::Mutex;
use proptest::prelude::*;

const PAGE: u64 = 0x3fff_f000;

/// The interpreter over a model of QEMU's device.
struct Interpreted(Mutex<Aml<Model>>);

impl Methods for Interpreted {
    fn evaluate(&self, path: &Path, args: Vec<Value>) -> Result<Option<Value>> {
        self.0.lock().evaluate(path, args)
    }
    fn devices(&self) -> Vec<Path> {
        self.0.lock().devices()
    }
}

/// A machine with two NVDIMMs that have label areas, reached through AML.
fn machine() -> (Root, Arc<Mutex<Vec<Vec<u8>>>>) {
    let areas = Arc::new(Mutex::new(vec![vec![0u8; 16 << 10], vec![0; 16 << 10]]));
    let theirs = areas.clone();
    let mut model = Model::new(PAGE);
    model.answer = Box::new(move |handle, _, function, input| {
        let word = |at: usize| u32::from_le_bytes(input[at..at + 4].try_into().unwrap()) as usize;
        let mut areas = theirs.lock();
        let area = &mut areas[handle as usize - 1];
        let mut out = vec![0; 4];
        match function {
            0 => out = vec![0x71, 0, 0, 0],
            4 => {
                out.extend((area.len() as u32).to_le_bytes());
                out.extend(1000u32.to_le_bytes());
            }
            5 if word(0) + word(4) <= area.len() => {
                out.extend(&area[word(0)..word(0) + word(4)]);
            }
            6 if word(0) + word(4) <= area.len() => {
                let (at, len) = (word(0), word(4));
                area[at..at + len].copy_from_slice(&input[8..8 + len]);
            }
            _ => out = vec![3, 0, 0, 0],
        }
        out
    });
    let mut aml = Aml::new(model, 1);
    assert_eq!(aml.load("SSDT", &nvdimm_table()), []);
    let root = Root::find(Arc::new(Interpreted(Mutex::new(aml)))).unwrap();
    (root, areas)
}

#[test]
fn labels_are_kept_behind_the_firmwares_methods() {
    let (root, areas) = machine();
    assert_eq!(root.path().to_string(), "\\_SB_.NVDR");
    assert!(root.device(3).is_none());
    let device = root.device(2).unwrap();
    let area = labels::NfitLabels::find(&device).unwrap().unwrap();
    assert_eq!(area.size(), 16 << 10);
    assert!(area.read(16 << 10, &mut [0]).is_err());
    let store = LabelStore(Arc::new(area));
    let mut set = LabelSet::init(&store, Version::V1_2).unwrap();
    let label = Slot::Namespace(Label {
        uuid: Uuid([7; 16]),
        name: "through AML".into(),
        nlabel: 1,
        rawsize: 1 << 24,
        ..Label::default()
    });
    set.update(&[], vec![label.clone()]).unwrap();
    let crate::pmem::label::State::Labels(again) = LabelSet::load(&store).unwrap() else {
        panic!("labels are gone");
    };
    assert_eq!(again.slots, [(0, label)]);
    assert!(
        areas.lock()[0].iter().all(|b| *b == 0),
        "the other one's are untouched"
    );
    assert_eq!(
        health::ask(&device),
        Ok(None),
        "QEMU's family has no health"
    );
}

/// Methods that are functions: name, arguments, answer.
struct Scripted<F>(F);

impl<F: Fn(u64, u64, &[u8]) -> Option<Vec<u8>> + Send + Sync> Methods for Scripted<F> {
    fn evaluate(&self, path: &Path, args: Vec<Value>) -> Result<Option<Value>> {
        let text = path.to_string();
        Ok(match &text[text.len() - 4..] {
            "_HID" if text == "\\NVDR._HID" => Some(Value::String(b"ACPI0012".to_vec())),
            "_ADR" => Some(Value::Integer(1)),
            "_DSM" => {
                let family = args[0].as_buffer().unwrap();
                let family = u64::from_le_bytes(family[..8].try_into().unwrap());
                let input = match args[3].as_package() {
                    Some([Value::Buffer(input)]) => input.clone(),
                    _ => Vec::new(),
                };
                let function = args[2].as_integer().unwrap();
                let answer = (self.0)(family, function, &input);
                Some(Value::Buffer(answer.unwrap_or_else(|| vec![0])))
            }
            _ => None,
        })
    }
    fn devices(&self) -> Vec<Path> {
        vec![Path::parse("\\NVDR"), Path::parse("\\NVDR.NV00")]
    }
}

fn scripted(f: impl Fn(u64, u64, &[u8]) -> Option<Vec<u8>> + Send + Sync + 'static) -> Root {
    Root::find(Arc::new(Scripted(f))).unwrap()
}

fn head(family: u32, mask: u32) -> impl Fn(u64, u64) -> Option<Vec<u8>> {
    move |asked, function| {
        let ours = asked as u32 == family;
        (ours && function == 0).then(|| mask.to_le_bytes().to_vec())
    }
}

#[test]
fn each_family_tells_its_health() {
    // Intel: critical, 3 % spares, 95 % used, 25 degrees, an alarm.
    let known = head(0x4309_ac30, 0x7);
    let root = scripted(move |family, function, _| {
        known(family, function).or_else(|| {
            let mut out = vec![0u8; 132];
            match (family as u32, function) {
                (0x4309_ac30, 1) => {
                    out[4..8].copy_from_slice(&0x60fu32.to_le_bytes());
                    out[12..16].copy_from_slice(&[2, 3, 95, 1]);
                    out[16..18].copy_from_slice(&400u16.to_le_bytes());
                    out[35] = 1;
                    Some(out)
                }
                (0x4309_ac30, 2) => Some(vec![0, 0, 0, 0, 1, 0, 5, 0, 0, 0, 0, 0]),
                _ => None,
            }
        })
    });
    let health = health::ask(&root.device(1).unwrap()).unwrap().unwrap();
    assert_eq!(
        (health.family, health.state),
        ("intel", Some(State::Critical))
    );
    for pair in [
        ("spares_percentage", 3),
        ("life_used_percentage", 95),
        ("temperature_16ths", 400),
        ("alarm_flags", 1),
        ("shutdown_state", 1),
        ("spares_threshold", 5),
    ] {
        assert!(
            health.values.contains(&pair),
            "{pair:?} in {:?}",
            health.values
        );
    }
    assert!(
        health
            .values
            .iter()
            .all(|(key, _)| *key != "shutdown_count"),
        "not valid"
    );

    let known = head(0x9002_c334, 0x3);
    let root = scripted(move |family, function, input| {
        known(family, function).or_else(|| {
            (family as u32 == 0x9002_c334 && function == 1).then(|| {
                assert_eq!(input, 0x3fu32.to_le_bytes());
                vec![0, 0, 0, 0, 3, 0, 0, 0, 1, 0x90, 1, 0, 0, 0, 0, 0]
            })
        })
    });
    let health = health::ask(&root.device(1).unwrap()).unwrap();
    let expected = Health {
        family: "hpe",
        state: Some(State::NonCritical),
        values: vec![("temperature_16ths", 400)],
    };
    assert_eq!(health, Some(expected));

    for (family, mask, function, answer, name, state) in [
        (
            0x1ee6_8b36u32,
            0x801u32,
            11,
            vec![0u8; 20],
            "msft",
            State::Ok,
        ),
        (
            0x5746_c5f2,
            0x7,
            1,
            vec![0, 0, 0, 0, 1, 0, 0, 0],
            "hyperv",
            State::Critical,
        ),
    ] {
        let known = head(family, mask);
        let root = scripted(move |asked, asked_function, _| {
            known(asked, asked_function).or_else(|| {
                (asked as u32 == family && asked_function == function).then(|| answer.clone())
            })
        });
        let health = health::ask(&root.device(1).unwrap()).unwrap().unwrap();
        assert_eq!((health.family, health.state), (name, Some(state)));
    }
    let root = scripted(|_, _, _| None);
    assert_eq!(health::ask(&root.device(1).unwrap()), Ok(None));
}

/// Firmware that scrubs: errors at some addresses, `most` of them in one
/// answer, each scrub running for a few looks.
struct Scrubber {
    bad: Vec<u64>,
    most: usize,
    range: (u64, u64),
    busy: u32,
}

impl Scrubber {
    fn call(&mut self, function: u64, input: &[u8]) -> Vec<u8> {
        let field = |at: usize| u64::from_le_bytes(input[at..at + 8].try_into().unwrap());
        match function {
            0 => vec![0x1e],
            1 => {
                let mut out = vec![0, 0, 2, 0];
                out.extend(4096u32.to_le_bytes());
                out.extend(256u32.to_le_bytes());
                out.extend([0; 4]);
                out
            }
            2 => {
                self.range = (field(0), field(0) + field(8));
                self.busy = 3;
                vec![0; 8]
            }
            3 => {
                if self.busy > 0 {
                    self.busy -= 1;
                    let mut out = vec![0, 0, 1, 0];
                    out.extend(48u32.to_le_bytes());
                    out.resize(48, 0);
                    return out;
                }
                let (start, end) = self.range;
                let inside = self.bad.iter().filter(|at| (start..end).contains(*at));
                let inside: Vec<u64> = inside.copied().collect();
                let told = &inside[..inside.len().min(self.most)];
                let next = match told.last() {
                    Some(last) if told.len() < inside.len() => last + 256,
                    _ => 0,
                };
                let mut out = vec![0; 4];
                out.extend((48 + 24 * told.len() as u32).to_le_bytes());
                let rest = if next == 0 { 0 } else { end - next };
                for field in [start, end - start, next, rest] {
                    out.extend(field.to_le_bytes());
                }
                out.extend(2u16.to_le_bytes());
                out.extend(u16::from(next != 0).to_le_bytes());
                out.extend((told.len() as u32).to_le_bytes());
                for at in told {
                    out.extend([0; 8]);
                    out.extend(at.to_le_bytes());
                    out.extend(256u64.to_le_bytes());
                }
                out
            }
            4 => {
                let (start, len) = (field(0), field(8));
                self.bad.retain(|at| !(start..start + len).contains(at));
                let mut out = vec![0; 8];
                out.extend(len.to_le_bytes());
                out
            }
            _ => vec![1, 0, 0, 0],
        }
    }
}

fn scrubber(bad: &[u64], most: usize) -> Root {
    let model = Mutex::new(Scrubber {
        bad: bad.to_vec(),
        most,
        range: (0, 0),
        busy: 0,
    });
    scripted(move |family, function, input| {
        (family as u32 == 0x2f10_e7a4).then(|| model.lock().call(function, input))
    })
}

#[test]
fn a_scrub_finds_all_errors_however_few_an_answer_holds() {
    let base = 4u64 << 30;
    let bad = [base, base + 256, base + 4096, base + 8192, base + (1 << 20)];
    for most in 1..=6 {
        let root = scrubber(&bad, most);
        let range = base..base + (2 << 20);
        let can = root.scrub_capability(&range).unwrap().unwrap();
        assert_eq!(can.clear_unit, 256);
        let mut waits = 0;
        let found = root.scrub(range.clone(), &mut |_| waits += 1).unwrap();
        let expected = [
            base..base + 512,
            base + 4096..base + 4352,
            base + 8192..base + 8448,
            base + (1 << 20)..base + (1 << 20) + 256,
        ];
        assert_eq!(found, expected, "{most} in an answer");
        assert!(waits >= 3);
        assert_eq!(root.clear_error(&(base..base + 512)), Ok(512));
        let found = root.scrub(range, &mut |_| {}).unwrap();
        assert_eq!(found, expected[1..]);
    }
    // Without the functions there is no scrub, and asking for one is an error.
    let root = scripted(|_, _, _| None);
    assert_eq!(root.scrub_capability(&(0..4096)), Ok(None));
    assert!(root.scrub(0..4096, &mut |_| {}).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]
    #[test]
    fn any_answer_is_survived(
        answers in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..140), 1..8),
        zero: bool,
    ) {
        let turn = core::sync::atomic::AtomicUsize::new(0);
        let root = scripted(move |_, _, _| {
            let nth = turn.fetch_add(1, core::sync::atomic::Ordering::Relaxed);
            let mut answer = answers[nth % answers.len()].clone();
            // A status of 0 goes further.
            if zero && answer.len() > 4 {
                answer[..2].fill(0);
            }
            Some(answer)
        });
        let mut waits = 0u64;
        let _ = root.scrub(0..1 << 30, &mut |_| waits += 1);
        let _ = root.scrub_capability(&(0..1 << 30));
        let _ = root.clear_error(&(0..256));
        let device = root.device(1).unwrap();
        let _ = health::ask(&device);
        if let Ok(Some(area)) = labels::NfitLabels::find(&device) {
            let _ = area.read(0, &mut [0; 64]);
            let _ = area.write(0, &[0; 64]);
        }
    }
}
