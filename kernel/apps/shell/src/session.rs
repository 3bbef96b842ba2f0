//! From the kernel's command line to the prompt: what the image does.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use quire::app::{io, system};
use quire::vfs::Vfs;
use quire_fs::mkfs::MkfsOptions;

use crate::commands::device_make;
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
            match self
                .editor
                .feed(io::read_byte(), &NoCompletion, &mut screen)
            {
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
        // What else was typed ahead is lost; nothing waits for it.
        self.interactive && core::iter::from_fn(io::try_read_byte).any(|byte| byte == 0x03)
    }
}

/// One `mount=` of the command line: `DEV:DIR[:ro|rw][:format]`.
#[derive(Debug, PartialEq, Eq)]
struct MountWord {
    device: String,
    dir: String,
    writable: bool,
    format: bool,
}

impl MountWord {
    fn parse(text: &str) -> Result<MountWord, String> {
        let mut parts = text.split(':');
        let (Some(device), Some(dir)) = (parts.next(), parts.next()) else {
            return Err("it is DEV:DIR[:ro|rw][:format]".to_string());
        };
        let mut word = MountWord {
            device: device.to_string(),
            dir: dir.to_string(),
            writable: false,
            format: false,
        };
        for option in parts {
            match option {
                "ro" => word.writable = false,
                "rw" => word.writable = true,
                "format" => word.format = true,
                other => return Err(format!("`{other}` is none of ro, rw, format")),
            }
        }
        if word.device.is_empty() || word.dir.is_empty() {
            return Err("device or directory is missing".to_string());
        }
        Ok(word)
    }
}

/// Makes a file system if the device is blank; says whether it did.
fn format_blank(env: &mut Env, device: &str) -> Result<bool, String> {
    let blank = {
        let claim = env
            .vfs
            .claim_device(device, false)
            .map_err(|e| e.to_string())?;
        quire_fs::probe::is_blank(&**claim.pmem()).map_err(|e| e.to_string())?
    };
    if blank {
        let made = device_make(env.vfs, device, &mut MkfsOptions::default())
            .map_err(|error| error.to_string())?;
        log::info!("mkfs.ext4: {}", made.trim_end());
    }
    Ok(blank)
}

fn mount_word(env: &mut Env, text: &str) -> Result<(), String> {
    let word = MountWord::parse(text)?;
    if word.format {
        format_blank(env, &word.device)?;
    }
    let dir = env.absolute(word.dir.as_bytes());
    env.vfs
        .mount(&word.device, &dir, word.writable)
        .map_err(|error| format!("{}: {error}", word.device))?;
    let mode = if word.writable { "rw" } else { "ro" };
    log::info!("mount: {} on {} {mode}", word.device, word.dir);
    Ok(())
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
    for text in cmdline.all("mount") {
        if let Err(why) = mount_word(&mut env, text) {
            io::errors(format!("error: mount={text}: {why}\n").as_bytes());
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
            let byte = io::read_byte();
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_words() {
        let word = MountWord::parse("pmem0:/pmem0:rw:format").unwrap();
        assert!(word.writable && word.format);
        assert_eq!((&word.device[..], &word.dir[..]), ("pmem0", "/pmem0"));
        let word = MountWord::parse("pmem1:/x").unwrap();
        assert!(!word.writable && !word.format);
        for wrong in ["pmem0", "", ":/x", "pmem0:", "pmem0:/x:blue"] {
            assert!(MountWord::parse(wrong).is_err(), "{wrong}");
        }
    }
}
