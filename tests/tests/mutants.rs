//! The list of breakages in `tests/mutants` is true: every patch applies to
//! this tree, names a test that exists, and is in the README's table.
//! (`tests/mutants/run` shows that each is caught.)

use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn header<'a>(patch: &'a str, key: &str) -> &'a str {
    let prefix = format!("{key}: ");
    let line = patch.lines().find_map(|line| line.strip_prefix(&*prefix));
    line.unwrap_or_else(|| panic!("no `{key}:` in\n{patch}"))
}

#[test]
fn every_patch_applies_and_names_its_test() {
    let folder = root().join("tests/mutants");
    let readme = std::fs::read_to_string(folder.join("README.md")).unwrap();
    let mut count = 0;
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|e| e != "patch") {
            continue;
        }
        count += 1;
        let name = path.file_stem().unwrap().to_str().unwrap();
        let patch = std::fs::read_to_string(&path).unwrap();
        let check = Command::new("git")
            .args(["apply", "--check"])
            .arg(&path)
            .current_dir(root())
            .output()
            .unwrap();
        assert!(
            check.status.success(),
            "{name} no longer applies: {}",
            String::from_utf8_lossy(&check.stderr)
        );
        let test = header(&patch, "Caught-by");
        let function = test.rsplit("::").next().unwrap();
        let module = if test.contains("loom") {
            "kernel/src/memmap/loom_tests.rs".into()
        } else {
            let at = test.find("::host").unwrap();
            format!("kernel/src/{}.rs", test[..at].replace("::", "/"))
        };
        let file = root().join(&module);
        // A module of several files is a folder.
        let source = match std::fs::read_to_string(&file) {
            Ok(source) => source,
            Err(_) => std::fs::read_dir(file.with_extension(""))
                .unwrap()
                .map(|entry| std::fs::read_to_string(entry.unwrap().path()).unwrap())
                .collect(),
        };
        assert!(
            source.contains(&format!("fn {function}")),
            "{name}: {module} has no test {function}…"
        );
        assert!(["plain", "loom"].contains(&header(&patch, "Model")));
        let line = format!("| `{name}` | {} | `{test}` |", header(&patch, "Breaks"));
        assert!(readme.contains(&line), "README.md lacks\n{line}");
    }
    assert!(count >= 10, "{count} patches");
}
