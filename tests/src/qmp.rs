//! QEMU's control socket, as far as tests need it: one command after another.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// A connection.
#[derive(Debug)]
pub struct Qmp {
    stream: BufReader<UnixStream>,
}

impl Qmp {
    /// Connects as soon as QEMU listens.
    pub fn connect(socket: &Path) -> Self {
        let limit = Instant::now() + Duration::from_secs(300);
        let stream = loop {
            match UnixStream::connect(socket) {
                Ok(stream) => break stream,
                Err(e) if Instant::now() > limit => panic!("{}: {e}", socket.display()),
                Err(_) => sleep(Duration::from_millis(20)),
            }
        };
        let mut qmp = Self {
            stream: BufReader::new(stream),
        };
        let greeting = qmp.line();
        assert!(greeting.contains("QMP"), "{greeting}");
        qmp.execute("qmp_capabilities", "{}");
        qmp
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stream.read_line(&mut line).expect("QEMU answers");
        assert!(!line.is_empty(), "QEMU closed its control socket");
        line
    }

    /// Runs a command with its arguments as JSON.
    #[track_caller]
    pub fn execute(&mut self, command: &str, arguments: &str) {
        let text = format!("{{\"execute\":\"{command}\",\"arguments\":{arguments}}}\n");
        self.stream
            .get_mut()
            .write_all(text.as_bytes())
            .expect("QEMU listens");
        loop {
            let line = self.line();
            assert!(!line.starts_with("{\"error\""), "{command}: {line}");
            // Events come in between.
            if line.starts_with("{\"return\"") {
                return;
            }
        }
    }
}
