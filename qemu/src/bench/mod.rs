//! `quire bench`: what operations cost, beside what they cost in Linux.
//!
//! Both architectures' Quire run the shell's `bench` under `--icount`, where
//! QEMU counts instructions: the figures are the same on every machine and in
//! every run of the same build. Linux's were taken the same way and are kept in
//! `docs/bench/linux.json`. The figures of Quire that belong to a commit are
//! kept in `docs/bench/quire.json`, and the book's page is made of both.
//!
//! | module | what |
//! |---|---|
//! | [`measure`] | starts the guests |
//! | [`run`] | figures in files |
//! | [`table`] | side by side, as text and for the book |
//! | [`html`] | as a picture |
//! | [`scale`] | how costs grow: curves |
//! | [`chart`] | a picture of curves |

pub mod chart;
pub mod html;
pub mod measure;
pub mod run;
pub mod scale;
pub mod table;

use self::measure::{measure, order};
use self::run::{Run, load, save};
use self::table::Table;
use crate::cli::BenchArgs;
use crate::error::{Context, Failure, Result};
use crate::workspace::Workspace;
use std::path::PathBuf;

/// More instructions than recorded that are still the same, in percent.
const TOLERANCE: f64 = 3.0;
/// The same when another compiler has made the kernel.
const OTHER_COMPILER: f64 = 15.0;

fn linux_file(workspace: &Workspace) -> PathBuf {
    workspace.root.join("docs/bench/linux.json")
}

fn record_file(workspace: &Workspace) -> PathBuf {
    workspace.root.join("docs/bench/quire.json")
}

fn page_file(workspace: &Workspace) -> PathBuf {
    workspace.root.join("docs/src/results.md")
}

/// Measures, compares, prints; the exit status.
pub fn run(workspace: &Workspace, args: &BenchArgs) -> Result<u8> {
    if args.scale {
        return scale::run(workspace, args);
    }
    if args.record && !args.filters.is_empty() {
        return Err(Failure::setup(
            "--record keeps all operations: leave the filters out",
        ));
    }
    let recorded = match record_file(workspace) {
        file if file.exists() => load(&file)?,
        _ => Vec::new(),
    };
    let linux = linux(workspace, &args.linux)?;
    let mut quire = Vec::new();
    match &args.from {
        Some(file) => quire = load(file)?,
        None => {
            for arch in args.arch.list() {
                quire.push(measure(workspace, arch, &args.filters, args.yes)?);
            }
        }
    }
    let table = Table::new(&quire, &recorded, &linux, &order());
    print!("{}", table.text());
    if let Some(file) = &args.json {
        save(file, &quire)?;
    }
    if let Some(file) = &args.html {
        let date = quire.first().map_or("", |run| run.date.as_str());
        std::fs::write(file, html::page(&table, date))
            .context(|| format!("cannot write {}", file.display()))?;
    }
    if args.record {
        let mut kept = quire.clone();
        let others = recorded
            .iter()
            .filter(|old| quire.iter().all(|new| new.arch != old.arch));
        kept.extend(others.cloned());
        save(&record_file(workspace), &kept)?;
        let page = page(&kept, &load(&linux_file(workspace))?);
        let file = page_file(workspace);
        std::fs::write(&file, page).context(|| format!("cannot write {}", file.display()))?;
        eprintln!("quire: recorded in {}", record_file(workspace).display());
    }
    if args.check {
        return check(&quire, &recorded);
    }
    Ok(0)
}

/// Linux's runs of one version.
fn linux(workspace: &Workspace, version: &str) -> Result<Vec<Run>> {
    let all = load(&linux_file(workspace))?;
    let of = |run: &Run| run.system.split(' ').nth(1) == Some(version);
    let runs: Vec<Run> = all.iter().filter(|run| of(run)).cloned().collect();
    if runs.is_empty() {
        let known: Vec<&str> = all
            .iter()
            .filter_map(|run| run.system.split(' ').nth(1))
            .collect();
        return Err(Failure::setup(format!(
            "Linux {version} has not been measured; there is {}",
            known.join(", ")
        )));
    }
    Ok(runs)
}

/// The operations that need more than was recorded.
fn slower(quire: &[Run], recorded: &[Run]) -> Result<Vec<String>> {
    let mut worse = Vec::new();
    for run in quire {
        let old = recorded.iter().find(|old| old.arch == run.arch);
        let old = old.ok_or_else(|| {
            Failure::setup(format!(
                "nothing is recorded for {}: `bench --record`",
                run.arch
            ))
        })?;
        let same = run.versions.get("compiler") == old.versions.get("compiler");
        let tolerance = if same { TOLERANCE } else { OTHER_COMPILER };
        for (op, figure) in &run.ops {
            let Some(before) = old.ops.get(op) else {
                worse.push(format!("{} {op}: not recorded", run.arch));
                continue;
            };
            let most = before.ns as f64 * (1.0 + tolerance / 100.0);
            if figure.ns as f64 > most {
                worse.push(format!(
                    "{} {op}: {} instructions, recorded {}, at most {tolerance} % more",
                    run.arch, figure.ns, before.ns
                ));
            }
        }
    }
    Ok(worse)
}

fn check(quire: &[Run], recorded: &[Run]) -> Result<u8> {
    let worse = slower(quire, recorded)?;
    for line in &worse {
        eprintln!("quire: {line}");
    }
    if !worse.is_empty() {
        eprintln!("quire: if that is meant, `cargo run -- bench --record` keeps the new figures");
    }
    Ok(u8::from(!worse.is_empty()))
}

/// The book's page.
pub fn page(quire: &[Run], linux: &[Run]) -> String {
    let mut out = String::from(
        "# Results\n\nThis page is made by `cargo run -- bench --record`; what the operations \
         mean is in [Measuring](bench.md). Instructions, counted by QEMU; medians.\n\n",
    );
    for run in quire.iter().chain(linux) {
        let versions = run
            .versions
            .iter()
            .map(|(key, value)| format!("{key} {value}"));
        let versions: Vec<String> = versions.collect();
        out.push_str(&format!(
            "- {} on {}, {}: {}\n",
            run.system,
            run.arch,
            run.date,
            versions.join("; ")
        ));
    }
    out.push('\n');
    out + &Table::new(quire, quire, linux, &order()).markdown()
}

#[cfg(test)]
mod tests {
    use super::run::Figure;
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn the_page_in_the_book_is_made_of_the_recorded_figures() {
        let workspace = Workspace::locate();
        let quire = load(&record_file(&workspace)).expect("a record");
        let linux = load(&linux_file(&workspace)).expect("Linux's figures");
        let kept = std::fs::read_to_string(page_file(&workspace)).expect("the page");
        assert_eq!(
            kept,
            page(&quire, &linux),
            "run `cargo run -- bench --record`"
        );
    }

    /// What was asked for: 60 million instructions with 1 GiB, twice that with
    /// 1 TiB.
    #[test]
    fn the_recorded_starts_are_short() {
        let workspace = Workspace::locate();
        for run in load(&record_file(&workspace)).expect("a record") {
            let start = |op: &str| run.ops[op].ns;
            assert!(start("boot_to_mount_1g") <= 60_000_000, "{}", run.arch);
            assert!(start("boot_to_mount_1t") <= 120_000_000, "{}", run.arch);
        }
    }

    #[test]
    fn more_than_the_tolerance_is_told() {
        let run = |ns: u64, compiler: &str| Run {
            system: "Quire".into(),
            arch: "x86_64".into(),
            date: String::new(),
            versions: BTreeMap::from([("compiler".into(), compiler.into())]),
            ops: BTreeMap::from([(
                "stat".into(),
                Figure {
                    ns,
                    n: 1,
                    limit: None,
                },
            )]),
        };
        let recorded = [run(1_000, "a")];
        let told = |ns, compiler| {
            slower(&[run(ns, compiler)], &recorded)
                .expect("recorded")
                .len()
        };
        assert_eq!(
            (told(1_030, "a"), told(1_031, "a"), told(900, "a")),
            (0, 1, 0)
        );
        assert_eq!((told(1_150, "b"), told(1_151, "b")), (0, 1));
        assert!(slower(&[run(1, "a")], &[]).is_err());
    }
}
