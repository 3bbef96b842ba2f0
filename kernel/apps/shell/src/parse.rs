//! From a script's text to what has to be run.
//!
//! The grammar is the part of the POSIX shell's that scripts for a file system
//! need, and means the same there:
//!
//! ```text
//! script   = { and-or [ ";" | newline ] }
//! and-or   = pipeline { ( "&&" | "||" ) pipeline }
//! pipeline = command { "|" command }
//! command  = { word | ( ">" | ">>" | "<" | "2>" | "2>>" ) word }
//! ```
//!
//! `'…'` quotes everything, `"…"` everything but `\"`, `\\` and a line's end
//! after a backslash, `\X` one character; `#` at the start of a word begins a
//! comment. There are no variables, no substitutions and no background jobs:
//! `$` and the backquote stand for themselves.
//!
//! Nothing here touches files: patterns are expanded when a command is about to
//! run (see [`crate::expand`]), because earlier commands may have made the
//! files that they match.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

/// One word: its bytes, and which of them were quoted and so are never part of
/// a pattern.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Word {
    /// The bytes after quotes have been taken away.
    pub bytes: Vec<u8>,
    /// For each byte, whether it was quoted.
    pub quoted: Vec<bool>,
}

impl Word {
    /// A word in which nothing is special.
    pub fn literal(bytes: &[u8]) -> Word {
        Word {
            bytes: bytes.to_vec(),
            quoted: alloc::vec![true; bytes.len()],
        }
    }

    fn push(&mut self, byte: u8, quoted: bool) {
        self.bytes.push(byte);
        self.quoted.push(quoted);
    }

    /// Whether it holds `*`, `?` or `[` that was not quoted.
    pub fn is_pattern(&self) -> bool {
        self.bytes
            .iter()
            .zip(&self.quoted)
            .any(|(byte, quoted)| !quoted && matches!(byte, b'*' | b'?' | b'['))
    }
}

/// Which stream a redirection concerns, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RedirectKind {
    /// `< FILE`
    Input,
    /// `> FILE`
    Output,
    /// `>> FILE`
    Append,
    /// `2> FILE`
    Errors,
    /// `2>> FILE`
    AppendErrors,
}

/// One redirection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirect {
    /// What is redirected.
    pub kind: RedirectKind,
    /// Where to.
    pub target: Word,
}

/// A command: a name and its arguments, with redirections.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Command {
    /// Name and arguments; empty when there are only redirections.
    pub words: Vec<Word>,
    /// Redirections in the order in which they were written.
    pub redirects: Vec<Redirect>,
}

/// What stands between a pipeline and the one before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Join {
    /// The first of an and-or list: it runs whatever came before.
    Always,
    /// `&&`: only if the list has succeeded so far.
    IfOk,
    /// `||`: only if it has failed.
    IfFailed,
}

/// Commands, each of which reads what the one before it printed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pipeline {
    /// The script's line that it begins on, from 1.
    pub line: usize,
    /// How it hangs on the pipeline before.
    pub join: Join,
    /// At least one.
    pub commands: Vec<Command>,
}

/// Why a script was refused before anything of it was run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyntaxError {
    /// Line, from 1.
    pub line: usize,
    /// What is wrong.
    pub what: String,
}

impl fmt::Display for SyntaxError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.what)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Word(Word),
    Redirect(RedirectKind),
    End,
    And,
    Or,
    Pipe,
}

struct Lexer<'a> {
    text: &'a [u8],
    at: usize,
    line: usize,
}

impl Lexer<'_> {
    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn peek_second(&self) -> Option<u8> {
        self.text.get(self.at + 1).copied()
    }

    fn bump(&mut self) -> Option<u8> {
        let byte = self.peek()?;
        self.at += 1;
        if byte == b'\n' {
            self.line += 1;
        }
        Some(byte)
    }

    fn error<T>(&self, what: &str) -> Result<T, SyntaxError> {
        Err(SyntaxError {
            line: self.line,
            what: String::from(what),
        })
    }

    /// The next token with the line that it began on.
    fn next(&mut self) -> Result<Option<(Token, usize)>, SyntaxError> {
        loop {
            match self.peek() {
                Some(b' ' | b'\t' | b'\r') => self.at += 1,
                Some(b'\\') if self.peek_second() == Some(b'\n') => {
                    self.bump();
                    self.bump();
                }
                Some(b'#') => {
                    while self.peek().is_some_and(|byte| byte != b'\n') {
                        self.at += 1;
                    }
                }
                _ => break,
            }
        }
        let line = self.line;
        let Some(byte) = self.peek() else {
            return Ok(None);
        };
        let second = self.peek_second();
        let (token, length) = match (byte, second) {
            (b'\n' | b';', _) => (Token::End, 1),
            (b'&', Some(b'&')) => (Token::And, 2),
            (b'&', _) => {
                return self.error("`&`: commands do not run in the background; use `;` or `&&`");
            }
            (b'|', Some(b'|')) => (Token::Or, 2),
            (b'|', _) => (Token::Pipe, 1),
            (b'>', Some(b'>')) => (Token::Redirect(RedirectKind::Append), 2),
            (b'>', _) => (Token::Redirect(RedirectKind::Output), 1),
            (b'<', _) => (Token::Redirect(RedirectKind::Input), 1),
            (b'2', Some(b'>')) if self.text.get(self.at + 2) == Some(&b'>') => {
                (Token::Redirect(RedirectKind::AppendErrors), 3)
            }
            (b'2', Some(b'>')) => (Token::Redirect(RedirectKind::Errors), 2),
            _ => return Ok(Some((Token::Word(self.word()?), line))),
        };
        for _ in 0..length {
            self.bump();
        }
        Ok(Some((token, line)))
    }

    fn word(&mut self) -> Result<Word, SyntaxError> {
        let mut word = Word::default();
        while let Some(byte) = self.peek() {
            match byte {
                b' ' | b'\t' | b'\r' | b'\n' | b';' | b'&' | b'|' | b'<' | b'>' => break,
                b'\'' => {
                    self.bump();
                    loop {
                        match self.bump() {
                            Some(b'\'') => break,
                            Some(inside) => word.push(inside, true),
                            None => return self.error("a single quote is not closed"),
                        }
                    }
                }
                b'"' => {
                    self.bump();
                    loop {
                        match self.bump() {
                            Some(b'"') => break,
                            Some(b'\\') => match self.peek() {
                                Some(escaped @ (b'"' | b'\\' | b'$' | b'`')) => {
                                    self.bump();
                                    word.push(escaped, true);
                                }
                                Some(b'\n') => {
                                    self.bump();
                                }
                                _ => word.push(b'\\', true),
                            },
                            Some(inside) => word.push(inside, true),
                            None => return self.error("a double quote is not closed"),
                        }
                    }
                }
                b'\\' => {
                    self.bump();
                    match self.bump() {
                        Some(b'\n') => {}
                        Some(escaped) => word.push(escaped, true),
                        None => return self.error("nothing follows the last backslash"),
                    }
                }
                _ => {
                    self.bump();
                    word.push(byte, false);
                }
            }
        }
        Ok(word)
    }
}

/// Reads a whole script.
pub fn parse(text: &[u8]) -> Result<Vec<Pipeline>, SyntaxError> {
    let mut lexer = Lexer {
        text,
        at: 0,
        line: 1,
    };
    let mut script = Vec::new();
    let mut commands: Vec<Command> = Vec::new();
    let mut command: Option<Command> = None;
    let mut join = Join::Always;
    let mut begin = None;
    // What the grammar still waits for, so that an open end can be named.
    let mut waiting: Option<&str> = None;

    let refuse = |line: usize, what: String| Err(SyntaxError { line, what });
    while let Some((token, line)) = lexer.next()? {
        if matches!(token, Token::Word(_) | Token::Redirect(_)) {
            begin.get_or_insert(line);
        }
        match token {
            Token::Word(word) => {
                command.get_or_insert_default().words.push(word);
                waiting = None;
            }
            Token::Redirect(kind) => match lexer.next()? {
                Some((Token::Word(target), _)) => {
                    let redirect = Redirect { kind, target };
                    command.get_or_insert_default().redirects.push(redirect);
                    waiting = None;
                }
                _ => return refuse(line, String::from("a redirection has no file name")),
            },
            Token::Pipe => match command.take() {
                Some(done) => {
                    commands.push(done);
                    waiting = Some("`|`");
                }
                None => return refuse(line, String::from("no command before `|`")),
            },
            Token::And | Token::Or | Token::End => {
                let name = match token {
                    Token::And => "`&&`",
                    Token::Or => "`||`",
                    _ => "`;`",
                };
                match command.take() {
                    Some(done) => {
                        commands.push(done);
                        let commands = core::mem::take(&mut commands);
                        let line = begin.take().unwrap_or(line);
                        script.push(Pipeline {
                            line,
                            join,
                            commands,
                        });
                    }
                    // An empty line, or a line's end after an operator.
                    None if token == Token::End
                        && lexer.text.get(lexer.at.wrapping_sub(1)) == Some(&b'\n') =>
                    {
                        continue;
                    }
                    None if token == Token::End && waiting.is_none() && commands.is_empty() => {
                        continue;
                    }
                    None => {
                        return refuse(line, alloc::format!("no command before {name}"));
                    }
                }
                (join, waiting) = match token {
                    Token::And => (Join::IfOk, Some("`&&`")),
                    Token::Or => (Join::IfFailed, Some("`||`")),
                    _ => (Join::Always, None),
                };
            }
        }
    }
    match command.take() {
        Some(done) => {
            commands.push(done);
            let line = begin.unwrap_or(lexer.line);
            script.push(Pipeline {
                line,
                join,
                commands,
            });
        }
        None => {
            if let Some(name) = waiting {
                return refuse(lexer.line, alloc::format!("no command after {name}"));
            }
        }
    }
    Ok(script)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<Vec<String>> {
        parse(text.as_bytes())
            .unwrap()
            .into_iter()
            .flat_map(|pipeline| pipeline.commands)
            .map(|command| {
                command
                    .words
                    .into_iter()
                    .map(|word| String::from_utf8(word.bytes).unwrap())
                    .collect()
            })
            .collect()
    }

    #[test]
    fn separators_comments_and_blank_lines() {
        assert_eq!(
            words("a 1; b\n\n# nothing\n  c # rest\n;d#e\n"),
            [vec!["a", "1"], vec!["b"], vec!["c"], vec!["d#e"]]
        );
        assert!(parse(b"").unwrap().is_empty());
        assert!(parse(b" # only this").unwrap().is_empty());
    }

    #[test]
    fn quotes_and_backslashes() {
        assert_eq!(
            words(r#"echo 'a  "b' "c '\" \\ \d" e\ f '' "" x'y'"z""#),
            [vec!["echo", "a  \"b", "c '\" \\ \\d", "e f", "", "", "xyz"]]
        );
        assert_eq!(words("a\\\nb c\\\n d"), [vec!["ab", "c", "d"]]);
        assert_eq!(
            words("echo a;echo 'b;c'"),
            [vec!["echo", "a"], vec!["echo", "b;c"]]
        );
    }

    #[test]
    fn a_pipeline_knows_its_line() {
        let script = parse(b"a; b\n\n# c\nd 'x\ny' |\ne &&\n> f\n").unwrap();
        let lines: Vec<usize> = script.iter().map(|pipeline| pipeline.line).collect();
        assert_eq!(lines, [1, 1, 4, 7]);
    }

    #[test]
    fn any_bytes_make_a_word() {
        let script = parse(b"cat \xff\xfe'\x80'").unwrap();
        assert_eq!(script[0].commands[0].words[1].bytes, b"\xff\xfe\x80");
    }

    #[test]
    fn quoting_decides_about_patterns() {
        let script = parse(b"ls *.c '*.c' \\*.c a\"?\" [x]").unwrap();
        let patterns: Vec<bool> = script[0].commands[0]
            .words
            .iter()
            .map(Word::is_pattern)
            .collect();
        assert_eq!(patterns, [false, true, false, false, false, true]);
    }

    #[test]
    fn joins_pipes_and_redirections() {
        let script = parse(b"a && b || c | d > f 2>> g < h; e").unwrap();
        let joins: Vec<Join> = script.iter().map(|pipeline| pipeline.join).collect();
        assert_eq!(
            joins,
            [Join::Always, Join::IfOk, Join::IfFailed, Join::Always]
        );
        let last = &script[2].commands[1];
        assert_eq!(last.words[0].bytes, b"d");
        let kinds: Vec<RedirectKind> = last.redirects.iter().map(|r| r.kind).collect();
        assert_eq!(
            kinds,
            [
                RedirectKind::Output,
                RedirectKind::AppendErrors,
                RedirectKind::Input
            ]
        );
        assert_eq!(last.redirects[1].target.bytes, b"g");
        // A digit that ends a word is not a stream's number.
        let script = parse(b"echo a2>f").unwrap();
        assert_eq!(script[0].commands[0].words[1].bytes, b"a2");
        // Operators may end a line.
        assert_eq!(parse(b"a &&\n\n b |\n c").unwrap().len(), 2);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        for (text, line, what) in [
            ("a\nb 'c", 2, "single quote"),
            ("\"", 1, "double quote"),
            ("a\\", 1, "backslash"),
            ("a &", 1, "background"),
            ("a >", 1, "no file name"),
            ("a > ; b", 1, "no file name"),
            ("| a", 1, "before `|`"),
            ("a |", 1, "after `|`"),
            ("a\n&& b", 2, "before `&&`"),
            ("a || ; b", 1, "before `;`"),
            ("a | ; b", 1, "before `;`"),
            ("a\n&&", 2, "before `&&`"),
        ] {
            let error = parse(text.as_bytes()).expect_err(text);
            assert!(error.what.contains(what), "{text}: {error}");
            assert_eq!(error.line, line, "{text}: {error}");
        }
    }
}
