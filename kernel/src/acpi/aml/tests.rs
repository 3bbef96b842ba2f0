//! Tests: code by hand, QEMU's device as a model, hostile code.

#![allow(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::unwrap_used,
    clippy::panic
)]
use super::*;
use alloc::boxed::Box;
use proptest::prelude::*;

type Answer = dyn FnMut(u32, u32, u32, &[u8]) -> Vec<u8> + Send;

/// A machine that is memory, and a mailbox behind port 0xa18 as QEMU's NVDIMM
/// has it.
pub(crate) struct Model {
    pub page: u64,
    pub memory: Vec<u8>,
    pub now: core::cell::Cell<u64>,
    /// How much later each look at the clock is.
    pub tick: u64,
    pub notified: Vec<(Path, u64)>,
    /// Stack that is left, and how much less there is at each question.
    pub stack: core::cell::Cell<u64>,
    pub stack_step: u64,
    /// Answers a call: handle, revision, function, argument.
    pub answer: Box<Answer>,
}

impl Model {
    pub fn new(page: u64) -> Self {
        Self {
            page,
            memory: vec![0; 4096],
            now: core::cell::Cell::new(0),
            tick: 50_000_000,
            notified: Vec::new(),
            stack: core::cell::Cell::new(64 << 10),
            stack_step: 0,
            answer: Box::new(|_, _, _, _| vec![1, 0, 0, 0]),
        }
    }

    fn word(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.memory[at..at + 4].try_into().unwrap())
    }

    fn range(&self, address: u64, width: u8) -> Result<core::ops::Range<usize>> {
        let refused = Error::BadAddress { addr: address };
        let at = address.checked_sub(self.page).ok_or(refused.clone())? as usize;
        let range = at..at + usize::from(width);
        (range.end <= self.memory.len())
            .then_some(range)
            .ok_or(refused)
    }
}

impl Host for Model {
    fn read(&mut self, space: Space, address: u64, width: u8) -> Result<u64> {
        if space != Space::Memory {
            return Ok(0);
        }
        let range = self.range(address, width)?;
        Ok(value::little_endian(&self.memory[range]))
    }

    fn write(&mut self, space: Space, address: u64, width: u8, value: u64) -> Result<()> {
        if space == Space::Io && address == 0xa18 {
            if value != self.page {
                return Ok(());
            }
            let input = self.memory[12..].to_vec();
            let [handle, revision, function] = [self.word(0), self.word(4), self.word(8)];
            let out = (self.answer)(handle, revision, function, &input);
            self.memory.fill(0);
            self.memory[..4].copy_from_slice(&(out.len() as u32 + 4).to_le_bytes());
            self.memory[4..4 + out.len()].copy_from_slice(&out);
            return Ok(());
        }
        if space != Space::Memory {
            return Ok(());
        }
        let range = self.range(address, width)?;
        self.memory[range.clone()].copy_from_slice(&value.to_le_bytes()[..range.len()]);
        Ok(())
    }

    fn now_ns(&self) -> u64 {
        self.now.set(self.now.get().saturating_add(self.tick));
        self.now.get()
    }

    fn wait_ns(&self, ns: u64) {
        self.now.set(self.now.get().saturating_add(ns));
    }

    fn stack_left(&self) -> u64 {
        let left = self.stack.get();
        self.stack.set(left.saturating_sub(self.stack_step));
        left
    }

    fn notify(&mut self, device: &Path, value: u64) {
        self.notified.push((device.clone(), value));
    }
}

/// PkgLength and what follows it.
fn package(body: &[u8]) -> Vec<u8> {
    let len = body.len() + 2;
    assert!(len < 1 << 12);
    let mut out = vec![0x40 | (len & 15) as u8, (len >> 4) as u8];
    out.extend(body);
    out
}

/// A table with this code.
fn table(code: &[u8]) -> Vec<u8> {
    let mut out = vec![0; HEADER];
    out.extend(code);
    out
}

fn op(prefix: &[u8], parts: &[&[u8]]) -> Vec<u8> {
    let mut out = prefix.to_vec();
    for part in parts {
        out.extend(*part);
    }
    out
}

/// Method (name, args) { body }
pub(crate) fn method(name: &[u8; 4], args: u8, body: &[u8]) -> Vec<u8> {
    op(&[0x14], &[&package(&op(name, &[&[args], body]))])
}

pub(crate) fn device(name: &[u8; 4], body: &[u8]) -> Vec<u8> {
    op(&[0x5b, 0x82], &[&package(&op(name, &[body]))])
}

fn scope(name: &[u8; 4], body: &[u8]) -> Vec<u8> {
    op(&[0x10], &[&package(&op(name, &[body]))])
}

/// OperationRegion and a Field of it, with access by double words.
fn fields(region: &[u8; 4], space: u8, base: &[u8], len: u8, list: &[(&[u8; 4], u32)]) -> Vec<u8> {
    let mut out = op(&[0x5b, 0x80], &[region, &[space], base, &[0x0b, 0, len]]);
    let mut body = region.to_vec();
    body.push(3);
    for (name, bits) in list {
        body.extend(*name);
        body.push(0xc0 | (bits & 15) as u8);
        body.extend([(bits >> 4) as u8, (bits >> 12) as u8, (bits >> 20) as u8]);
    }
    out.extend(op(&[0x5b, 0x81], &[&package(&body)]));
    out
}

const PAGE: u64 = 0x3fff_f000;

/// A table like QEMU's: an NVDIMM root device with two NVDIMMs, whose methods
/// go through a mailbox page.
pub(crate) fn nvdimm_table() -> Vec<u8> {
    let name = |name: &[u8; 4], value: &[u8]| op(&[0x08], &[name, value]);
    // NCAL (handle, function, argument)
    let mut call = fields(b"NPIO", 1, &[0x0b, 0x18, 0x0a], 0x04, &[(b"NTFI", 32)]);
    let page = op(&[0x0c], &[&(PAGE as u32).to_le_bytes()]);
    call.extend(fields(
        b"NRAM",
        0,
        &page,
        0x10,
        &[
            (b"HDLE", 32),
            (b"REVS", 32),
            (b"FUNC", 32),
            (b"FARG", 32672),
        ],
    ));
    call.extend(fields(
        b"NRA2",
        0,
        &page,
        0x10,
        &[(b"RLEN", 32), (b"ODAT", 32736)],
    ));
    let store = |value: &[u8], to: &[u8]| op(&[0x70], &[value, to]);
    call.extend(store(&[0x68], b"HDLE"));
    call.extend(store(&[0x01], b"REVS"));
    call.extend(store(&[0x69], b"FUNC"));
    call.extend(store(&[0x6a], b"FARG"));
    call.extend(store(&page, b"NTFI"));
    // Local1 = (RLEN - 4) << 3; CreateField (ODAT, 0, Local1, OBUF)
    call.extend(op(&[0x74], &[b"RLEN", &[0x0a, 4, 0x61]]));
    call.extend([0x79, 0x61, 0x0a, 3, 0x61]);
    call.extend(op(&[0x5b, 0x13], &[b"ODAT", &[0x00, 0x61], b"OBUF"]));
    // Return (Concatenate (Buffer () {}, OBUF, Local7))
    call.extend(op(&[0xa4, 0x73, 0x11, 0x02, 0x00], &[b"OBUF", &[0x67]]));
    let mut root = name(b"_HID", b"\x0dACPI0012\0");
    root.extend(method(b"NCAL", 3, &call));
    for nth in 1..=2u8 {
        let mut nvdimm = name(b"_ADR", &[0x0a, nth]);
        // Local0 = NCAL (_ADR, function, Concatenate (Buffer () {}, argument…))
        let ask = |function: u8, argument: &[u8]| {
            let call = op(b"NCAL", &[b"_ADR", &[0x0a, function], argument]);
            op(&[0x70], &[&call, &[0x60]])
        };
        let word = |at: u8, name: &[u8; 4]| op(&[0x8a, 0x60], &[&[0x0a, at], name]);
        let buffer = |size: u8| op(&[0x11], &[&package(&[0x0a, size])]);
        let mut info = ask(4, &buffer(1));
        info.extend(op(
            &word(0, b"STTS"),
            &[&word(4, b"SLSA"), &word(8, b"MAXT")],
        ));
        info.extend(op(&[0xa4, 0x12], &[&package(b"\x03STTSSLSAMAXT")]));
        nvdimm.extend(method(b"_LSI", 0, &info));
        // Local1 = Buffer (8) {}; its words: offset and length
        let input = |size: u8| {
            let mut out = op(&[0x70], &[&buffer(size), &[0x61]]);
            out.extend(op(
                &[0x8a, 0x61],
                &[&[0x00], b"OFFS", &[0x8a, 0x61, 0x0a, 4], b"LENG"],
            ));
            out.extend(op(&[0x70, 0x68], &[b"OFFS", &[0x70, 0x69], b"LENG"]));
            out
        };
        let mut read = input(8);
        read.extend(ask(5, &[0x61]));
        read.extend(word(0, b"STTS"));
        // CreateField (Local0, 32, LENG << 3, LDAT)
        read.extend(op(&[0x79], &[b"LENG", &[0x0a, 3, 0x62]]));
        read.extend(op(&[0x5b, 0x13, 0x60, 0x0a, 32, 0x62], &[b"LDAT"]));
        read.extend(op(&[0xa4, 0x12], &[&package(b"\x02STTSLDAT")]));
        nvdimm.extend(method(b"_LSR", 2, &read));
        // As in QEMU: Concatenate (INPT, Arg2, INPT) makes INPT longer.
        let mut write = name(b"INPT", &buffer(8));
        let field = |at: &[u8], name: &[u8; 4]| op(&[0x8a], &[b"INPT", at, name]);
        write.extend(op(&field(&[0x00], b"OFFS"), &[&field(&[0x0a, 4], b"LENG")]));
        write.extend(op(&[0x70, 0x68], &[b"OFFS", &[0x70, 0x69], b"LENG"]));
        write.extend(op(&[0x73], &[b"INPT", &[0x6a], b"INPT"]));
        write.extend(ask(6, b"INPT"));
        write.extend(word(0, b"STTS"));
        write.extend(op(&[0xa4], &[b"STTS"]));
        nvdimm.extend(method(b"_LSW", 3, &write));
        // _DSM (uuid, revision, function, package)
        let argument = [0x83, 0x88, 0x6b, 0x00, 0x00];
        let mut dsm = op(&[0x70, 0x11], &[&package(&[0x01, 0]), &[0x62]]);
        // If (LGreater (SizeOf (Arg3), 0)) { Local2 = DerefOf (Arg3 [0]) }
        let mut then = vec![0x94, 0x87, 0x6b, 0x00];
        then.extend(op(&[0x70], &[&argument, &[0x62]]));
        dsm.extend(op(&[0xa0], &[&package(&then)]));
        dsm.extend(op(&[0xa4], &[b"NCAL", b"_ADR", &[0x6a, 0x62]]));
        nvdimm.extend(method(b"_DSM", 4, &dsm));
        root.extend(device(&[b'N', b'V', b'0', b'0' + nth], &nvdimm));
    }
    table(&scope(b"_SB_", &device(b"NVDR", &root)))
}

fn machine(code: &[u8]) -> Aml<Model> {
    let mut aml = Aml::new(Model::new(PAGE), 2);
    assert_eq!(aml.load("TEST", &table(code)), []);
    aml
}

fn ask(aml: &mut Aml<Model>, path: &str) -> Result<Option<Value>> {
    aml.evaluate(&Path::parse(path), vec![])
}

#[test]
fn a_mailbox_like_qemus_answers() {
    let mut model = Model::new(PAGE);
    model.answer = Box::new(|handle, _, function, input| {
        assert_eq!(handle, 2);
        let word = |at: usize| u32::from_le_bytes(input[at..at + 4].try_into().unwrap());
        let mut out = vec![0; 4];
        match function {
            4 => out.extend([0, 0, 2, 0, 0xf4, 0x0f, 0, 0]),
            5 => {
                assert_eq!((word(0), word(4)), (16, 3000));
                out.extend((0..3000u32).map(|n| n as u8));
            }
            6 => assert_eq!((word(0), word(4), &input[8..12]), (7, 4, &[1, 2, 3, 4][..])),
            _ => out = vec![9; 40],
        }
        out
    });
    let mut aml = Aml::new(model, 1);
    assert_eq!(aml.load("SSDT", &nvdimm_table()), []);
    let before = aml.len();
    let path = |name: &str| Path::parse(&format!("\\_SB.NVDR.NV02.{name}"));
    let n = Value::Integer;
    let info = aml.evaluate(&path("_LSI"), vec![]).unwrap().unwrap();
    assert_eq!(info, Value::Package(vec![n(0), n(0x20000), n(4084)]));
    let read = aml
        .evaluate(&path("_LSR"), vec![n(16), n(3000)])
        .unwrap()
        .unwrap();
    let data: Vec<u8> = (0..3000u32).map(|n| n as u8).collect();
    assert_eq!(read, Value::Package(vec![n(0), Value::Buffer(data)]));
    let args = vec![n(7), n(4), Value::Buffer(vec![1, 2, 3, 4])];
    assert_eq!(aml.evaluate(&path("_LSW"), args), Ok(Some(n(0))));
    let argument = Value::Package(vec![Value::Buffer(vec![5; 8])]);
    let args = vec![Value::Buffer(vec![0; 16]), n(1), n(8), argument];
    assert_eq!(
        aml.evaluate(&path("_DSM"), args),
        Ok(Some(Value::Buffer(vec![9; 40])))
    );
    assert_eq!(aml.len(), before, "methods leave nothing behind");
    assert_eq!(aml.evaluate(&path("_FOO"), vec![]), Ok(None));
}

#[test]
fn operators() {
    let n = Value::Integer;
    let returns = |code: &[u8]| {
        let mut aml = machine(&method(b"TEST", 0, &op(&[0xa4], &[code])));
        ask(&mut aml, "\\TEST").unwrap().unwrap()
    };
    // Add, Subtract below zero, shifts beyond the width, Mod
    assert_eq!(returns(&[0x72, 0x0a, 7, 0x0a, 8, 0]), n(15));
    assert_eq!(returns(&[0x74, 0, 1, 0]), n(u64::MAX));
    assert_eq!(returns(&[0x79, 1, 0x0a, 64, 0]), n(0));
    assert_eq!(returns(&[0x85, 0x0a, 17, 0x0a, 5, 0]), n(2));
    // FindSetLeftBit, FindSetRightBit
    assert_eq!(returns(&[0x81, 0x0a, 0x28, 0]), n(6));
    assert_eq!(returns(&[0x82, 0x0a, 0x28, 0]), n(4));
    // LNot (LEqual (1, 1)), LLess ("a", "b"), LEqual of buffers
    assert_eq!(returns(&[0x92, 0x93, 1, 1]), n(0));
    assert_eq!(returns(b"\x95\x0da\0\x0db\0"), n(u64::MAX));
    let buffer = op(&[0x11], &[&package(&[0x0a, 2, 1, 2])]);
    assert_eq!(returns(&op(&[0x93], &[&buffer, &buffer])), n(u64::MAX));
    // Concatenate ("a", 1), Mid ("hello", 1, 3), ToInteger ("12")
    assert_eq!(
        returns(b"\x73\x0da\0\x01\x00"),
        Value::String(b"a0000000000000001".to_vec())
    );
    assert_eq!(
        returns(b"\x9e\x0dhello\0\x01\x0a\x03\x00"),
        Value::String(b"ell".to_vec())
    );
    assert_eq!(returns(b"\x99\x0d12\0\x00"), n(12));
    assert_eq!(returns(b"\x5b\x28\x0a\x42\x00"), n(42));
    // Match (Package {5, 7, 9}, MGT, 6, MTR, 0, 0)
    let list = op(&[0x12], &[&package(&[3, 0x0a, 5, 0x0a, 7, 0x0a, 9])]);
    assert_eq!(
        returns(&op(&[0x89], &[&list, &[5, 0x0a, 6, 0, 0, 0]])),
        n(1)
    );
    // DerefOf (Index (Package, 2))
    assert_eq!(returns(&op(&[0x83, 0x88], &[&list, &[0x0a, 2, 0]])), n(9));
    assert_eq!(returns(b"_OSI\x0dWindows 2015\0"), n(u64::MAX));
}

#[test]
fn loops_calls_and_names() {
    // Local0 = 0; While (Local0 < 10) { Local0++; If (Local0 == 5) { Break } }
    let mut body = vec![0x70, 0x00, 0x60];
    let mut turn = vec![0x95, 0x60, 0x0a, 10, 0x75, 0x60];
    let then = [0x93, 0x60, 0x0a, 5, 0xa5];
    turn.extend(op(&[0xa0], &[&package(&then)]));
    body.extend(op(&[0xa2], &[&package(&turn)]));
    body.extend([0xa4, 0x60]);
    let mut code = method(b"LOOP", 0, &body);
    // A scope's method finds a name in a scope above.
    code.extend(b"\x08VALU\x0a\x2a");
    code.extend(device(b"DEV0", &method(b"GETV", 0, b"\xa4VALU")));
    // Notify (DEV0, 0x81)
    code.extend(method(b"TELL", 0, b"\x86DEV0\x0a\x81"));
    // If (0) {} Else { Return (LOOP ()) }
    let mut choose = op(&[0xa0], &[&package(&[0x00])]);
    choose.extend(op(&[0xa1], &[&package(b"\xa4LOOP")]));
    code.extend(method(b"CHSE", 0, &choose));
    let mut aml = machine(&code);
    assert_eq!(ask(&mut aml, "\\LOOP"), Ok(Some(Value::Integer(5))));
    assert_eq!(ask(&mut aml, "\\DEV0.GETV"), Ok(Some(Value::Integer(42))));
    assert_eq!(ask(&mut aml, "\\CHSE"), Ok(Some(Value::Integer(5))));
    ask(&mut aml, "\\TELL").unwrap();
    assert_eq!(aml.host().notified, [(Path::parse("\\DEV0"), 0x81)]);
}

#[test]
fn what_does_not_end_is_stopped() {
    let says = |code: &[u8], what: &str| {
        let mut aml = machine(code);
        let error = ask(&mut aml, "\\TEST").unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
        assert!(error.contains("TEST (AML) offset=0x"), "{error}");
        // It can be asked again.
        assert_eq!(ask(&mut aml, "\\_REV"), Ok(Some(Value::Integer(2))));
    };
    // While (1) {}; TEST () { TEST () }; Sleep (a minute); Fatal
    says(
        &method(b"TEST", 0, &op(&[0xa2], &[&package(&[0x01])])),
        "does not end",
    );
    says(&method(b"TEST", 0, b"TEST"), "calls within each other");
    says(
        &method(b"TEST", 0, b"\x5b\x22\x0b\x60\xea"),
        "waits too long",
    );
    says(
        &method(b"TEST", 0, b"\x5b\x32\x01\0\0\0\0\0"),
        "fatal error",
    );
    // Buffer (0xffffffff) {}
    let buffer = op(&[0x11], &[&package(&[0x0c, 0xff, 0xff, 0xff, 0xff])]);
    says(
        &method(b"TEST", 0, &op(&[0xa4], &[&buffer])),
        "too much memory",
    );
    // Not (Not (Not (…
    says(
        &method(b"TEST", 0, &op(&[0xa4], &[&[0x92; 300], &[0x00]])),
        "nested too deep",
    );
    // A package in itself, again and again: Local0 = Package {Local0}
    let wrap = op(&[0x70, 0x12], &[&package(&[0x01, 0x60]), &[0x60]]);
    says(
        &method(
            b"TEST",
            0,
            &op(&[0xa2], &[&package(&op(&[0x01], &[&wrap]))]),
        ),
        "nested too deep",
    );
    // Store beyond a region; to a name that isn't there; division by zero.
    let region = fields(
        b"REGN",
        0,
        &op(&[0x0c], &[&(PAGE as u32).to_le_bytes()]),
        1,
        &[(b"FAR0", 32)],
    );
    let mut far = region;
    far.extend(method(b"TEST", 0, b"\x70\x01NOPE"));
    says(&far, "NOPE is not defined");
    says(&method(b"TEST", 0, &[0x78, 1, 0, 0, 0]), "division by zero");
}

#[test]
fn a_wrong_definition_leaves_out_its_scope_only() {
    let mut code = device(b"BAD0", b"\x08NAM0\x0a\x01\xdd\xdd");
    code.extend(device(b"GOOD", b"\x08NAM0\x0a\x07"));
    let mut aml = Aml::new(Model::new(PAGE), 2);
    let errors = aml.load("TEST", &table(&code));
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert_eq!(ask(&mut aml, "\\GOOD.NAM0"), Ok(Some(Value::Integer(7))));
}

/// Loads a table and calls everything in it.
fn exercise(bytes: &[u8]) {
    let mut model = Model::new(PAGE);
    model.tick = 1_000_000_000;
    model.answer = Box::new(|_, _, function, _| match function {
        // An answer that claims too much, or nothing.
        5 => vec![0xff; 4000],
        _ => Vec::new(),
    });
    let mut aml = Aml::new(model, 2);
    aml.load("FUZZ", bytes);
    for path in aml.below(&Path::default()).into_iter().take(24) {
        let args = vec![
            Value::Integer(8),
            Value::Integer(64),
            Value::Buffer(vec![1; 64]),
        ];
        let _ = aml.evaluate(&path, args);
    }
}

#[test]
fn every_truncation_is_survived() {
    let bytes = nvdimm_table();
    for len in (0..bytes.len()).step_by(3) {
        exercise(&bytes[..len]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]
    #[test]
    fn mutations_are_survived(
        edits in proptest::collection::vec((36usize..1200, any::<u8>()), 1..5),
    ) {
        let mut bytes = nvdimm_table();
        for (at, byte) in edits {
            let at = at % bytes.len();
            bytes[at] = byte;
        }
        exercise(&bytes);
    }

    #[test]
    fn noise_is_survived(
        code in proptest::collection::vec(prop_oneof![
            Just(0x5bu8), Just(0x70), Just(0x12), Just(0x11), Just(0x60), Just(0x68), Just(0xa2),
            Just(0xa0), Just(0x88), Just(b'A'), Just(b'_'), 0u8..16, any::<u8>(),
        ], 0..200),
    ) {
        exercise(&table(&method(b"TEST", 0, &code)));
        exercise(&table(&code));
    }
}

#[test]
fn code_goes_no_deeper_than_the_stack_allows() {
    // Add (Add (… 1 …, 1), 1): nests far less than any count forbids.
    let depth = 30;
    let mut code = vec![0x72; depth];
    code.push(1);
    code.extend([1, 0].repeat(depth));
    let returns = op(&[0xa4], &[&code]);
    let evaluate = |stack_step| {
        let mut model = Model::new(0x1000);
        model.stack_step = stack_step;
        let mut aml = Aml::new(model, 2);
        assert_eq!(aml.load("T", &table(&method(b"DEEP", 0, &returns))), []);
        aml.host().stack.set(64 << 10);
        let value = aml.evaluate(&Path::parse("\\DEEP"), Vec::new());
        (value, aml.stack_left())
    };
    let (value, left) = evaluate(100);
    assert_eq!(value, Ok(Some(Value::Integer(depth as u64 + 1))));
    assert!((50 << 10..64 << 10).contains(&left), "{left}");
    let (value, left) = evaluate(4000);
    assert!(value.unwrap_err().to_string().contains("nested too deep"));
    // It stops in time: less than one more frame below what is kept.
    assert!(((20 << 10) - 4000..20 << 10).contains(&left), "{left}");
}
