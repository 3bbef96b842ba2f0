//! From the kernel's command line to the prompt: what the image does.

use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use quire::app::{io, mount, system};
use quire::vfs::Vfs;

use crate::complete::FromEnv;
use crate::edit::{Action, Editor, NoCompletion};
use crate::env::{Console, Env, shown};
use crate::exec::run;
use crate::format::human;

/// The kernel's console. The width is a usual terminal's: the serial line does
/// not tell.
struct Serial {
    interactive: bool,
    editor: Editor,
    /// What was typed while a command ran.
    ahead: VecDeque<u8>,
}

const WIDTH: usize = 80;

impl Console for Serial {
    fn output(&mut self, bytes: &[u8]) {
        // A console that cannot be written has nobody to tell.
        let _ = io::stdout().write(bytes);
    }

    fn errors(&mut self, bytes: &[u8]) {
        io::errors(bytes);
    }

    fn read_line(&mut self) -> Option<Vec<u8>> {
        if !self.interactive {
            return None;
        }
        let mut editor = core::mem::take(&mut self.editor);
        let mut screen = Vec::new();
        editor.begin(b"> ", &mut screen);
        let line = loop {
            self.show(&mut screen);
            let byte = self.next_byte();
            match editor.feed(byte, &NoCompletion, &mut screen) {
                Action::None => {}
                Action::Line(line) => break Some(line),
                Action::Cancelled | Action::End => break None,
            }
        };
        self.show(&mut screen);
        self.editor = editor;
        line
    }

    fn next_byte(&mut self) -> u8 {
        self.ahead.pop_front().unwrap_or_else(io::read_byte)
    }

    fn width(&self) -> Option<usize> {
        self.interactive.then_some(WIDTH)
    }

    fn interrupted(&mut self) -> bool {
        if !self.interactive {
            return false;
        }
        let mut stop = false;
        while let Some(byte) = io::try_read_byte() {
            if byte == 0x03 {
                // What was typed before it is thrown away, as at the prompt.
                self.ahead.clear();
                stop = true;
            } else {
                self.ahead.push_back(byte);
            }
        }
        stop
    }
}

/// What a person sees first.
fn banner(vfs: &Vfs) -> String {
    let mut text = format!(
        "\nQuire on {}: {} CPUs, {} of memory\n",
        system::arch_name(),
        system::cpu_count(),
        human(system::memory().total),
    );
    for device in vfs.devices() {
        let mounts = vfs.mounts();
        let mount = mounts.iter().find(|mount| mount.device == device.name);
        let place = match mount {
            Some(mount) if mount.writable => format!("mounted at {}", shown(&mount.dir)),
            Some(mount) => format!("mounted at {}, read-only", shown(&mount.dir)),
            None => format!("not mounted (mount {} /mnt)", device.name),
        };
        text.push_str(&format!(
            "{}: {} of persistent memory, {place}\n",
            device.name,
            human(device.size)
        ));
    }
    if vfs.devices().is_empty() {
        text.push_str("no persistent memory was found\n");
    }
    let rooms = vfs.mounts();
    let dir = rooms
        .iter()
        .map(|mount| &mount.dir)
        .find(|dir| dir.as_slice() != b"/");
    let place = dir.map_or_else(|| "/".to_string(), |dir| shown(dir));
    text.push_str(&format!("try: help, pmem list, ls {place}, poweroff\n\n"));
    text
}

/// The whole application: mounts, scripts, prompt. Gives the exit status.
pub fn start() -> u8 {
    let cmdline = system::kernel_cmdline();
    let exec = cmdline.get("exec");
    let mut serial = Serial {
        interactive: exec.is_none(),
        editor: Editor::new(WIDTH),
        ahead: VecDeque::new(),
    };
    let mut env = Env::new(quire::app::fs::tree(), &mut serial, true);
    let mut status = 0;
    for word in cmdline.all("mount") {
        if let Err(error) = mount::word(word) {
            io::errors(format!("error: mount={word}: {error}\n").as_bytes());
            status = 1;
        }
    }
    if let Some(script) = cmdline.get("init") {
        let init = run(&mut env, script.as_bytes());
        if status == 0 {
            status = init;
        }
        if env.leaving.is_some() {
            return status;
        }
    }
    if let Some(script) = exec {
        let exec = run(&mut env, script.as_bytes());
        // What was asked for counts; a mount that failed shows in it, or does
        // not matter to it.
        return exec;
    }
    interact(env)
}

fn interact(mut env: Env) -> u8 {
    let banner = banner(env.vfs);
    env.console.output(banner.as_bytes());
    let mut editor = Editor::new(WIDTH);
    loop {
        let prompt = format!("quire:{}# ", shown(&env.cwd));
        let line = env.prompt(&mut editor, prompt.as_bytes());
        env.stopped = false;
        run(&mut env, &line);
        if let Some(status) = env.leaving {
            return status;
        }
    }
}

impl Env<'_> {
    /// Reads a command line at the prompt, with history and completion.
    fn prompt(&mut self, editor: &mut Editor, prompt: &[u8]) -> Vec<u8> {
        let mut screen = Vec::new();
        editor.begin(prompt, &mut screen);
        loop {
            self.console.show(&mut screen);
            let byte = self.console.next_byte();
            let action = editor.feed(byte, &FromEnv(self), &mut screen);
            let line = match action {
                Action::None => continue,
                Action::Line(line) => line,
                Action::Cancelled => Vec::new(),
                Action::End => {
                    screen.extend_from_slice(b"(type `poweroff` to leave)\r\n");
                    Vec::new()
                }
            };
            self.console.show(&mut screen);
            return line;
        }
    }
}
