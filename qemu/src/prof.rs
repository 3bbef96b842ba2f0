//! `quire prof`: a flame graph of what commands do in the guest.
//!
//! The guest's `prof` samples and folds the stacks; this starts it, as a script
//! would, takes the stacks from the end of what it prints, and draws them.

use crate::cli::ProfArgs;
use crate::error::{Context, Failure, Result};
use std::process::{Command, Stdio};

/// Stands between what the commands print and the folded stacks.
const MARK: &str = "==== folded stacks ====";
/// Where the guest keeps them: in memory.
const FOLDED: &str = "/prof.folded";

/// Profiles, draws, prints the list; the exit status.
pub fn run(args: &ProfArgs) -> Result<u8> {
    let program = std::env::current_exe().context(|| "cannot find this program")?;
    if args.command.contains('\'') {
        return Err(Failure::setup("the command may not contain a single quote"));
    }
    let script = format!(
        "prof -p {} -o {FOLDED} '{}'; echo '{MARK}'; cat {FOLDED}",
        args.period, args.command
    );
    let mut command = Command::new(program);
    command
        .args(["--arch", args.arch.name(), "--exec", &script])
        .args(["--timeout", &args.timeout.to_string()])
        .args(&args.options)
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    if !args.real_time {
        command.arg("--icount");
    }
    let output = command.output().context(|| "cannot start this program")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let Some((list, folded)) = text.split_once(&format!("{MARK}\n")) else {
        print!("{text}");
        let log = String::from_utf8_lossy(&output.stderr);
        return Err(Failure::setup(format!("the guest gave no stacks:\n{log}")));
    };
    print!("{list}");
    if let Some(file) = &args.folded {
        std::fs::write(file, folded).context(|| format!("cannot write {}", file.display()))?;
    }
    let svg = draw(folded, &args.command)?;
    std::fs::write(&args.output, svg)
        .context(|| format!("cannot write {}", args.output.display()))?;
    eprintln!("quire: the flame graph is in {}", args.output.display());
    Ok(output
        .status
        .code()
        .and_then(|code| u8::try_from(code).ok())
        .unwrap_or(1))
}

/// Draws folded stacks.
fn draw(folded: &str, title: &str) -> Result<Vec<u8>> {
    let mut options = inferno::flamegraph::Options::default();
    options.title = title.to_string();
    options.count_name = "samples".into();
    let mut svg = Vec::new();
    inferno::flamegraph::from_lines(&mut options, folded.lines(), &mut svg)
        .context(|| "cannot draw the stacks")?;
    Ok(svg)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stacks_become_a_picture() {
        let svg = draw("main;a 3\nmain;b 1\n", "stat").expect("drawn");
        let svg = String::from_utf8(svg).expect("text");
        assert!(svg.contains("<svg") && svg.contains("stat") && svg.contains("main"));
        assert!(draw("", "nothing").is_err());
    }
}
