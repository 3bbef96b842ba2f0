//! The editor driven byte by byte, and a terminal that shows what it prints.

use super::*;

/// As much of a terminal as the editor uses: one row, a cursor.
#[derive(Default)]
struct Terminal {
    rows: Vec<Vec<char>>,
    row: Vec<char>,
    at: usize,
}

impl Terminal {
    fn print(&mut self, bytes: &[u8]) {
        let text = String::from_utf8_lossy(bytes).into_owned();
        let mut chars = text.chars().peekable();
        while let Some(c) = chars.next() {
            match c {
                '\r' => self.at = 0,
                '\n' => self.rows.push(core::mem::take(&mut self.row)),
                '\x07' => {}
                '\x1b' => {
                    assert_eq!(chars.next(), Some('['));
                    let mut number = String::new();
                    let end = loop {
                        match chars.next().unwrap() {
                            c @ '0'..='9' => number.push(c),
                            c => break c,
                        }
                    };
                    match end {
                        'K' => self.row.truncate(self.at),
                        'D' => self.at -= number.parse::<usize>().unwrap(),
                        'H' => self.at = 0,
                        'J' => self.row.clear(),
                        other => panic!("terminal cannot do {other}"),
                    }
                }
                c => {
                    if self.at < self.row.len() {
                        self.row[self.at] = c;
                    } else {
                        self.row.push(c);
                    }
                    self.at += 1;
                }
            }
        }
    }
}

struct Words(&'static [&'static str]);

impl Completer for Words {
    fn complete(&self, before: &[u8]) -> Completion {
        let start = before.iter().rposition(|&b| b == b' ').map_or(0, |i| i + 1);
        Completion {
            start,
            candidates: self
                .0
                .iter()
                .filter(|word| word.as_bytes().starts_with(&before[start..]))
                .map(|word| word.as_bytes().to_vec())
                .collect(),
        }
    }
}

struct Session {
    editor: Editor,
    terminal: Terminal,
    words: Words,
}

impl Session {
    fn new() -> Session {
        let mut session = Session {
            editor: Editor::new(40),
            terminal: Terminal::default(),
            words: Words(&["mkdir ", "mkfs.ext4 ", "mount ", "größe ", "grün "]),
        };
        session.begin();
        session
    }

    fn begin(&mut self) {
        let mut screen = Vec::new();
        self.editor.begin(b"$ ", &mut screen);
        self.terminal.print(&screen);
    }

    /// Types, and gives the last thing that happened. The terminal must show
    /// the line and its cursor after every single byte.
    fn type_in(&mut self, text: impl AsRef<[u8]>) -> Action {
        let mut last = Action::None;
        for &byte in text.as_ref() {
            let mut screen = Vec::new();
            last = self.editor.feed(byte, &self.words, &mut screen);
            self.terminal.print(&screen);
            if last != Action::None {
                self.begin();
            }
            let line = String::from_utf8_lossy(&self.editor.line).into_owned();
            if self.editor.search.is_none() && line.chars().count() < 37 {
                let row: String = self.terminal.row.iter().collect();
                assert_eq!(row, format!("$ {line}"));
                let before = String::from_utf8_lossy(&self.editor.line[..self.editor.cursor]);
                assert_eq!(self.terminal.at, 2 + before.chars().count());
            }
        }
        last
    }

    fn line(&self) -> String {
        String::from_utf8_lossy(&self.editor.line).into_owned()
    }
}

#[test]
fn typing_and_every_way_to_end_a_line() {
    let mut session = Session::new();
    assert_eq!(session.type_in("ls\r"), Action::Line(b"ls".to_vec()));
    // CR LF is one line's end, LF alone is one too.
    assert_eq!(session.type_in("\n"), Action::None);
    assert_eq!(session.type_in("\n"), Action::Line(Vec::new()));
    assert_eq!(session.type_in("rm -r /\x03"), Action::Cancelled);
    assert_eq!(session.line(), "");
    assert_eq!(session.type_in("\x04"), Action::End);
    assert_eq!(
        session.type_in("\x01\x02\x06\x1b[D\x1b[C\x7f\x0b"),
        Action::None
    );
}

#[test]
fn moving_inserting_and_killing() {
    let mut session = Session::new();
    session.type_in("cp a b");
    session.type_in("\x1b[D\x1b[D\x02X");
    assert_eq!(session.line(), "cp Xa b");
    session.type_in("\x01>\x05<");
    assert_eq!(session.line(), ">cp Xa b<");
    session.type_in("\x17");
    assert_eq!(session.line(), ">cp Xa ");
    session.type_in("\x1b[H\x1b[3~\x06\x06\x06\x0b");
    assert_eq!(session.line(), "cp ");
    session.type_in("\x19\x15");
    assert_eq!(session.line(), "");
    session.type_in("\x19\x1bb\x04");
    assert_eq!(session.line(), "cp a ");
    assert_eq!(session.type_in("\r"), Action::Line(b"cp a ".to_vec()));
}

#[test]
fn characters_are_never_cut() {
    let mut session = Session::new();
    session.type_in("äöü");
    session.type_in("\x7f");
    assert_eq!(session.line(), "äö");
    session.type_in("\x1b[D€");
    assert_eq!(session.line(), "ä€ö");
    session.type_in("\x1b[D\x04");
    assert_eq!(session.line(), "äö");
    // Bytes that are not UTF-8 are kept and count one each.
    let mut session = Session::new();
    for byte in *b"\xff\xe2\x82a" {
        session.editor.feed(byte, &NoCompletion, &mut Vec::new());
    }
    assert_eq!(session.editor.line, b"\xff\xe2\x82a");
    session.editor.feed(0x7f, &NoCompletion, &mut Vec::new());
    session.editor.feed(0x7f, &NoCompletion, &mut Vec::new());
    assert_eq!(session.editor.line, b"\xff\xe2");
}

#[test]
fn history_and_search() {
    let mut session = Session::new();
    session.type_in("one\rtwo\rtwo\r  \rthree\r");
    assert_eq!(session.editor.history().count(), 3);
    session.type_in("new\x1b[A\x1b[A");
    assert_eq!(session.line(), "two");
    session.type_in("\x10\x10\x10");
    assert_eq!(session.line(), "one");
    session.type_in("\x1bOB\x0e\x0e\x0e");
    assert_eq!(session.line(), "new");
    session.type_in("\x15\x12o");
    assert_eq!(session.line(), "two");
    session.type_in("\x12");
    assert_eq!(session.line(), "one");
    assert_eq!(session.type_in("\r"), Action::Line(b"one".to_vec()));
}

#[test]
fn completion_extends_then_lists() {
    let mut session = Session::new();
    session.type_in("mk\t");
    assert_eq!(session.line(), "mk");
    let listed: String = session.terminal.rows.last().unwrap().iter().collect();
    assert_eq!(
        listed.split_whitespace().collect::<Vec<_>>(),
        ["mkdir", "mkfs.ext4"]
    );
    session.type_in("d\t");
    assert_eq!(session.line(), "mkdir ");
    session.type_in("gr\t");
    // ö and ü share their first byte: it must not be inserted.
    assert_eq!(session.line(), "mkdir gr");
    session.type_in("ü\t");
    assert_eq!(session.line(), "mkdir grün ");
    session.type_in("zz\t");
    assert_eq!(session.line(), "mkdir grün zz");
}

#[test]
fn long_lines_scroll_and_never_wrap() {
    let mut session = Session::new();
    let text = "echo ".repeat(30);
    session.type_in(&text);
    assert_eq!(session.line(), text);
    assert!(session.terminal.row.len() < 40);
    assert!(session.terminal.rows.is_empty());
    session.type_in("\x01");
    let row: String = session.terminal.row.iter().collect();
    assert!(row.starts_with("$ echo echo"));
    assert_eq!(session.terminal.at, 2);
    // Unknown sequences do no harm.
    session.type_in("\x1b[99;5z\x1b[200~x");
    assert_eq!(session.line(), format!("x{text}"));
}
