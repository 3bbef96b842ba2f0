//! The interleaving models of the kernel's lock-free code: loom needs the
//! library built with its own flag, so this builds it apart and runs them.

use std::path::Path;
use std::process::Command;

#[test]
fn every_interleaving_model_holds() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let output = Command::new(env!("CARGO"))
        .current_dir(&root)
        .args(["test", "--quiet", "--package", "quire", "--lib"])
        .arg("--target-dir")
        .arg(root.join("target/loom"))
        .arg("loom")
        .env("RUSTFLAGS", "--cfg loom")
        .output()
        .expect("cargo can be started again");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let passed: usize = text
        .split_once("test result: ok. ")
        .and_then(|(_, rest)| rest.split_once(" passed"))
        .and_then(|(count, _)| count.parse().ok())
        .unwrap_or(0);
    assert!(passed >= 9, "only {passed} models ran:\n{text}");
}
