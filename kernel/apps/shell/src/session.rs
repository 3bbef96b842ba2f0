//! From the kernel's command line to the prompt: what the image does.

use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use quire::app::{io, mount, system};
use quire::sync::SpinLock;
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
}

const WIDTH: usize = 80;

const CTRL_C: u8 = 0x03;

/// What was typed while a command ran and nobody has read yet.
static AHEAD: SpinLock<VecDeque<u8>> = SpinLock::new(VecDeque::new());

/// The next byte typed; waits for it.
fn read_byte() -> u8 {
    let ahead = AHEAD.lock().pop_front();
    ahead.unwrap_or_else(io::read_byte)
}

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
        let mut screen = Vec::new();
        self.editor.begin(b"> ", &mut screen);
        loop {
            self.output(&core::mem::take(&mut screen));
            match self.editor.feed(read_byte(), &NoCompletion, &mut screen) {
                Action::None => {}
                Action::Line(line) => {
                    self.output(&screen);
                    return Some(line);
                }
                Action::Cancelled | Action::End => {
                    self.output(&screen);
                    return None;
                }
            }
        }
    }

    fn width(&self) -> Option<usize> {
        self.interactive.then_some(WIDTH)
    }

    fn interrupted(&mut self) -> bool {
        if !self.interactive {
            return false;
        }
        // Reading may wait for the console: no lock is held meanwhile.
        while let Some(byte) = io::try_read_byte() {
            if byte == CTRL_C {
                // What was typed before it was for a command that is stopped.
                AHEAD.lock().clear();
                return true;
            }
            AHEAD.lock().push_back(byte);
        }
        false
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
    let mut screen = Vec::new();
    loop {
        let prompt = format!("quire:{}# ", shown(&env.cwd));
        editor.begin(prompt.as_bytes(), &mut screen);
        let line = loop {
            env.console.output(&core::mem::take(&mut screen));
            let byte = read_byte();
            match editor.feed(byte, &FromEnv(&env), &mut screen) {
                Action::None => {}
                Action::Line(line) => break line,
                Action::Cancelled => break Vec::new(),
                Action::End => {
                    screen.extend_from_slice(b"(type `poweroff` to leave)\r\n");
                    break Vec::new();
                }
            }
        };
        env.console.output(&core::mem::take(&mut screen));
        run(&mut env, &line);
        if let Some(status) = env.leaving {
            return status;
        }
    }
}
