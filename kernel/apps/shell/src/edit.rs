//! The line editor on a serial line: a state machine from bytes that a
//! terminal sends to lines, and to the bytes that keep its screen right.
//!
//! It knows no console: [`Editor::feed`] takes one byte, appends to `screen`
//! what has to be printed, and says what has happened. So it is tested without
//! a terminal, and the same code would serve any byte channel.
//!
//! Rules: the line is bytes, the cursor always stands between two UTF-8
//! characters (a byte that is not part of one counts as a character of its
//! own); a line that is wider than the terminal is shown through a window that
//! follows the cursor, so nothing ever wraps and redrawing needs no knowledge
//! of rows.

use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

/// What a byte led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing to do but to print what was put on the screen.
    None,
    /// A line is complete.
    Line(Vec<u8>),
    /// Ctrl-C: the line was thrown away.
    Cancelled,
    /// Ctrl-D on an empty line.
    End,
}

/// What could stand at the cursor.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Completion {
    /// Where in the line the word begins that the candidates replace.
    pub start: usize,
    /// Whole replacements, as they are to be typed; one that is final ends in
    /// a space or a `/`.
    pub candidates: Vec<Vec<u8>>,
}

/// Who knows what could stand at the cursor.
pub trait Completer {
    /// Completes the part of the line that ends at the cursor.
    fn complete(&self, before_cursor: &[u8]) -> Completion;
}

/// A completer that knows nothing.
pub struct NoCompletion;

impl Completer for NoCompletion {
    fn complete(&self, _: &[u8]) -> Completion {
        Completion::default()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Escape {
    No,
    Started,
    /// After ESC [ : the numeric parameter so far.
    Csi(u32),
    /// After ESC O.
    Ss3,
}

const HISTORY: usize = 200;
const LONGEST: usize = 8192;

/// The editor's whole state.
pub struct Editor {
    prompt: Vec<u8>,
    line: Vec<u8>,
    cursor: usize,
    window: usize,
    width: usize,
    history: VecDeque<Vec<u8>>,
    /// Where in the history we are; its length stands for the new line.
    recall: usize,
    /// The new line, kept while older ones are shown.
    draft: Vec<u8>,
    killed: Vec<u8>,
    escape: Escape,
    /// Bytes of a UTF-8 character that is not complete yet.
    partial: Vec<u8>,
    search: Option<Vec<u8>>,
    last_was_return: bool,
}

impl Default for Editor {
    fn default() -> Self {
        Editor::new(80)
    }
}

/// How many bytes a UTF-8 character that begins with this byte has.
fn sequence_length(first: u8) -> usize {
    match first {
        0xc2..=0xdf => 2,
        0xe0..=0xef => 3,
        0xf0..=0xf4 => 4,
        _ => 1,
    }
}

/// The first character of `bytes`: its length in bytes and its width in
/// columns.
fn character(bytes: &[u8]) -> (usize, usize) {
    let Some(&first) = bytes.first() else {
        return (0, 0);
    };
    let length = sequence_length(first);
    let text = bytes
        .get(..length)
        .and_then(|b| core::str::from_utf8(b).ok());
    match text.and_then(|text| text.chars().next()) {
        Some(c) => (length, width_of(c)),
        None => (1, 1),
    }
}

/// Columns that a character takes: none for what combines with the one before,
/// two for the wide East Asian blocks and pictures.
fn width_of(c: char) -> usize {
    match u32::from(c) {
        0x300..=0x36f | 0x200b..=0x200f | 0xfe00..=0xfe0f => 0,
        0x1100..=0x115f
        | 0x2e80..=0x303e
        | 0x3041..=0xa4cf
        | 0xac00..=0xd7a3
        | 0xf900..=0xfaff
        | 0xfe30..=0xfe6f
        | 0xff00..=0xff60
        | 0xffe0..=0xffe6
        | 0x1f300..=0x1f64f
        | 0x1f900..=0x1f9ff
        | 0x20000..=0x3fffd => 2,
        _ => 1,
    }
}

fn columns(mut bytes: &[u8]) -> usize {
    let mut total = 0;
    while !bytes.is_empty() {
        let (length, width) = character(bytes);
        total += width;
        bytes = &bytes[length..];
    }
    total
}

impl Editor {
    /// An editor for a terminal of so many columns.
    pub fn new(width: usize) -> Editor {
        Editor {
            prompt: Vec::new(),
            line: Vec::new(),
            cursor: 0,
            window: 0,
            width: width.max(20),
            history: VecDeque::new(),
            recall: 0,
            draft: Vec::new(),
            killed: Vec::new(),
            escape: Escape::No,
            partial: Vec::new(),
            search: None,
            last_was_return: false,
        }
    }

    /// Begins a new line under this prompt.
    pub fn begin(&mut self, prompt: &[u8], screen: &mut Vec<u8>) {
        self.prompt = prompt.to_vec();
        self.line.clear();
        self.cursor = 0;
        self.window = 0;
        self.partial.clear();
        self.escape = Escape::No;
        self.search = None;
        self.recall = self.history.len();
        self.draft.clear();
        self.redraw(screen);
    }

    /// The lines entered so far, oldest first.
    pub fn history(&self) -> impl Iterator<Item = &[u8]> {
        self.history.iter().map(Vec::as_slice)
    }

    /// Takes one byte from the terminal.
    pub fn feed(&mut self, byte: u8, completer: &dyn Completer, screen: &mut Vec<u8>) -> Action {
        let after_return = core::mem::replace(&mut self.last_was_return, byte == b'\r');
        if byte == b'\n' && after_return {
            return Action::None; // a terminal that sends CR LF
        }
        if self.escape != Escape::No {
            self.escape_byte(byte, screen);
            return Action::None;
        }
        if self.search.is_some() && self.search_byte(byte, screen) {
            return Action::None;
        }
        match byte {
            b'\r' | b'\n' => return self.accept(screen),
            0x01 => self.move_to(0, screen),
            0x02 => self.left(screen),
            0x03 => {
                screen.extend_from_slice(b"^C\r\n");
                return Action::Cancelled;
            }
            0x04 if self.line.is_empty() => {
                screen.extend_from_slice(b"\r\n");
                return Action::End;
            }
            0x04 => self.delete_forward(screen),
            0x05 => self.move_to(self.line.len(), screen),
            0x06 => self.right(screen),
            0x08 | 0x7f => self.backspace(screen),
            0x09 => self.tab(completer, screen),
            0x0b => {
                self.killed = self.line.split_off(self.cursor);
                self.redraw(screen);
            }
            0x0c => {
                screen.extend_from_slice(b"\x1b[H\x1b[2J");
                self.redraw(screen);
            }
            0x0e => self.older_or_newer(false, screen),
            0x10 => self.older_or_newer(true, screen),
            0x12 => {
                self.search = Some(Vec::new());
                self.redraw(screen);
            }
            0x15 => {
                self.killed = self.line.drain(..self.cursor).collect();
                self.cursor = 0;
                self.redraw(screen);
            }
            0x17 => self.delete_word(screen),
            0x19 => {
                let killed = self.killed.clone();
                self.insert(&killed, screen);
            }
            0x1b => self.escape = Escape::Started,
            0x00..=0x1f => {}
            _ => self.text_byte(byte, screen),
        }
        Action::None
    }

    fn accept(&mut self, screen: &mut Vec<u8>) -> Action {
        screen.extend_from_slice(b"\r\n");
        let line = core::mem::take(&mut self.line);
        self.cursor = 0;
        self.window = 0;
        if !line.trim_ascii().is_empty() && self.history.back() != Some(&line) {
            self.history.push_back(line.clone());
            if self.history.len() > HISTORY {
                self.history.pop_front();
            }
        }
        self.recall = self.history.len();
        Action::Line(line)
    }

    /// Collects the bytes of a character, so that half a character is never
    /// shown and the cursor never stands inside one.
    fn text_byte(&mut self, byte: u8, screen: &mut Vec<u8>) {
        if (0x80..0xc0).contains(&byte) && !self.partial.is_empty() {
            self.partial.push(byte);
        } else {
            // What was begun cannot be completed any more: keep it as it is.
            if !self.partial.is_empty() {
                let partial = core::mem::take(&mut self.partial);
                self.insert(&partial, screen);
            }
            self.partial.push(byte);
        }
        if self.partial.len() >= sequence_length(self.partial[0]) {
            let whole = core::mem::take(&mut self.partial);
            self.insert(&whole, screen);
        }
    }

    fn insert(&mut self, bytes: &[u8], screen: &mut Vec<u8>) {
        if self.line.len() + bytes.len() > LONGEST {
            screen.push(0x07);
            return;
        }
        let at_end = self.cursor == self.line.len();
        self.line
            .splice(self.cursor..self.cursor, bytes.iter().copied());
        self.cursor += bytes.len();
        let fits = columns(&self.prompt) + columns(&self.line) < self.width;
        if at_end && self.window == 0 && fits && self.search.is_none() {
            screen.extend_from_slice(bytes);
        } else {
            self.redraw(screen);
        }
    }

    fn previous(&self) -> usize {
        let mut at = 0;
        while at < self.cursor {
            let next = at + character(&self.line[at..]).0;
            if next >= self.cursor {
                return at;
            }
            at = next;
        }
        0
    }

    fn next(&self) -> usize {
        self.cursor + character(&self.line[self.cursor..]).0
    }

    fn move_to(&mut self, cursor: usize, screen: &mut Vec<u8>) {
        if cursor != self.cursor {
            self.cursor = cursor;
            self.redraw(screen);
        }
    }

    fn left(&mut self, screen: &mut Vec<u8>) {
        self.move_to(self.previous(), screen);
    }

    fn right(&mut self, screen: &mut Vec<u8>) {
        self.move_to(self.next(), screen);
    }

    fn backspace(&mut self, screen: &mut Vec<u8>) {
        if !self.partial.is_empty() {
            self.partial.clear();
        } else if self.cursor > 0 {
            let previous = self.previous();
            self.line.drain(previous..self.cursor);
            self.cursor = previous;
            self.redraw(screen);
        }
    }

    fn delete_forward(&mut self, screen: &mut Vec<u8>) {
        let next = self.next();
        if next > self.cursor {
            self.line.drain(self.cursor..next);
            self.redraw(screen);
        }
    }

    fn word_start(&self) -> usize {
        let before = &self.line[..self.cursor];
        let word_end = before.trim_ascii_end().len();
        before[..word_end]
            .iter()
            .rposition(|byte| byte.is_ascii_whitespace())
            .map_or(0, |space| space + 1)
    }

    fn word_end(&self) -> usize {
        let after = &self.line[self.cursor..];
        let blanks = after.len() - after.trim_ascii_start().len();
        let word = after[blanks..]
            .iter()
            .position(|byte| byte.is_ascii_whitespace())
            .unwrap_or(after.len() - blanks);
        self.cursor + blanks + word
    }

    fn delete_word(&mut self, screen: &mut Vec<u8>) {
        let start = self.word_start();
        self.killed = self.line.drain(start..self.cursor).collect();
        self.cursor = start;
        self.redraw(screen);
    }

    fn older_or_newer(&mut self, older: bool, screen: &mut Vec<u8>) {
        if self.recall == self.history.len() {
            self.draft = self.line.clone();
        }
        if older && self.recall > 0 {
            self.recall -= 1;
        } else if !older && self.recall < self.history.len() {
            self.recall += 1;
        } else {
            return;
        }
        self.line = match self.history.get(self.recall) {
            Some(line) => line.clone(),
            None => core::mem::take(&mut self.draft),
        };
        self.cursor = self.line.len();
        self.redraw(screen);
    }

    fn escape_byte(&mut self, byte: u8, screen: &mut Vec<u8>) {
        let state = core::mem::replace(&mut self.escape, Escape::No);
        match (state, byte) {
            (Escape::Started, b'[') => self.escape = Escape::Csi(0),
            (Escape::Started, b'O') => self.escape = Escape::Ss3,
            (Escape::Started, b'b') => self.move_to(self.word_start(), screen),
            (Escape::Started, b'f') => self.move_to(self.word_end(), screen),
            (Escape::Csi(n), b'0'..=b'9') => {
                let digit = u32::from(byte - b'0');
                self.escape = Escape::Csi(n.saturating_mul(10).saturating_add(digit));
            }
            // A second parameter (Ctrl or Shift held down) is read and ignored.
            (Escape::Csi(_), b';') => self.escape = Escape::Csi(0),
            (Escape::Csi(_) | Escape::Ss3, b'A') => self.older_or_newer(true, screen),
            (Escape::Csi(_) | Escape::Ss3, b'B') => self.older_or_newer(false, screen),
            (Escape::Csi(5), b'C') => self.move_to(self.word_end(), screen),
            (Escape::Csi(5), b'D') => self.move_to(self.word_start(), screen),
            (Escape::Csi(_) | Escape::Ss3, b'C') => self.right(screen),
            (Escape::Csi(_) | Escape::Ss3, b'D') => self.left(screen),
            (Escape::Csi(_) | Escape::Ss3, b'H') | (Escape::Csi(1 | 7), b'~') => {
                self.move_to(0, screen);
            }
            (Escape::Csi(_) | Escape::Ss3, b'F') | (Escape::Csi(4 | 8), b'~') => {
                self.move_to(self.line.len(), screen);
            }
            (Escape::Csi(3), b'~') => self.delete_forward(screen),
            _ => {}
        }
    }

    /// A byte while Ctrl-R searches; false when it ends the search and is then
    /// taken as it always is.
    fn search_byte(&mut self, byte: u8, screen: &mut Vec<u8>) -> bool {
        let Some(mut query) = self.search.take() else {
            return false;
        };
        let older_than = match byte {
            0x12 => self.recall,
            0x08 | 0x7f => {
                query.pop();
                self.history.len()
            }
            0x20..=0x7e | 0x80..=0xff => {
                query.push(byte);
                self.history.len()
            }
            0x07 => {
                self.line.clear();
                self.cursor = 0;
                self.redraw(screen);
                return true;
            }
            _ => {
                self.redraw(screen);
                return false;
            }
        };
        let found = (0..older_than).rev().find(|&index| {
            let line = &self.history[index];
            !query.is_empty() && line.windows(query.len()).any(|part| part == query)
        });
        match found {
            Some(index) => {
                self.recall = index;
                self.line = self.history[index].clone();
                self.cursor = self.line.len();
            }
            None => screen.push(0x07),
        }
        self.search = Some(query);
        self.redraw(screen);
        true
    }

    fn tab(&mut self, completer: &dyn Completer, screen: &mut Vec<u8>) {
        let Completion {
            start,
            mut candidates,
        } = completer.complete(&self.line[..self.cursor]);
        candidates.sort();
        candidates.dedup();
        let Some(first) = candidates.first() else {
            screen.push(0x07);
            return;
        };
        let mut common = first.len();
        for other in &candidates {
            let same = first.iter().zip(other).take_while(|(a, b)| a == b).count();
            common = common.min(same);
        }
        // Never half a character.
        while common > 0 && first.get(common).is_some_and(|b| (0x80..0xc0).contains(b)) {
            common -= 1;
        }
        let typed = self.line.get(start..self.cursor).unwrap_or_default();
        if common > typed.len() || (candidates.len() == 1 && first[..] != *typed) {
            let replacement = first[..common].to_vec();
            let cursor = start + replacement.len();
            self.line.splice(start..self.cursor, replacement);
            self.cursor = cursor;
            self.redraw(screen);
        } else if candidates.len() > 1 {
            screen.extend_from_slice(b"\r\n");
            self.list(&candidates, screen);
            self.redraw(screen);
        }
    }

    /// Prints candidates in columns.
    fn list(&self, candidates: &[Vec<u8>], screen: &mut Vec<u8>) {
        let widest = candidates.iter().map(|c| columns(c)).max().unwrap_or(0) + 2;
        let per_row = (self.width / widest).max(1);
        for (index, candidate) in candidates.iter().enumerate() {
            screen.extend_from_slice(candidate);
            if (index + 1) % per_row == 0 || index + 1 == candidates.len() {
                screen.extend_from_slice(b"\r\n");
            } else {
                for _ in columns(candidate)..widest {
                    screen.push(b' ');
                }
            }
        }
    }

    /// Draws the row anew and puts the terminal's cursor where ours is.
    fn redraw(&mut self, screen: &mut Vec<u8>) {
        let prompt: Vec<u8> = match &self.search {
            Some(query) => {
                let query = String::from_utf8_lossy(query);
                format!("(search `{query}`) ").into_bytes()
            }
            None => self.prompt.clone(),
        };
        let room = self
            .width
            .saturating_sub(columns(&prompt) + 1)
            .max(self.width / 4);
        if self.cursor < self.window {
            self.window = self.cursor;
        }
        if columns(&self.line) <= room {
            self.window = 0;
        }
        while columns(&self.line[self.window..self.cursor]) > room {
            self.window += character(&self.line[self.window..]).0;
        }
        let mut end = self.window;
        let mut shown = 0;
        while end < self.line.len() {
            let (length, width) = character(&self.line[end..]);
            if shown + width > room {
                break;
            }
            shown += width;
            end += length;
        }
        screen.push(b'\r');
        screen.extend_from_slice(&prompt);
        screen.extend_from_slice(&self.line[self.window..end]);
        screen.extend_from_slice(b"\x1b[K");
        let back = columns(&self.line[self.cursor..end.max(self.cursor)]);
        if back > 0 {
            screen.extend_from_slice(format!("\x1b[{back}D").as_bytes());
        }
    }
}

#[cfg(test)]
mod tests;
