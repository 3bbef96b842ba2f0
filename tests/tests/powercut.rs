//! The machine is killed in the middle of writing: what it had acknowledged is
//! there, and `e2fsck` has nothing to say.

use quire_tests::{Arch, Lab, tools};

/// Files that a run writes, one after the other.
const FILES: usize = 400;

/// A script that says `n` when the file of that number is durable. Each file
/// is written in two pieces and renamed; every third one is removed again.
fn script() -> String {
    let mut text = String::from("mkdir -p /pmem0/d");
    for n in 0..FILES {
        let body = body(n);
        let half = body.len() / 2;
        text += &format!(
            "; echo -n {} > /pmem0/d/t; echo -n {} >> /pmem0/d/t; mv /pmem0/d/t /pmem0/d/{n}",
            &body[..half],
            &body[half..]
        );
        if n % 3 == 2 {
            text += &format!("; rm /pmem0/d/{}", n - 1);
        }
        text += &format!("; echo {n}");
    }
    text
}

fn body(n: usize) -> String {
    format!("{n:04}-").repeat(2 + n % 40)
}

fn cut(arch: Arch, moments: &[usize]) {
    let lab = Lab::new("powercut");
    for &moment in moments {
        let image = lab.path("nvdimm.img");
        let _ = std::fs::remove_file(&image);
        tools::mkfs(&image, 64 << 20, [""; 0]);
        let seen = lab.quire(arch).mounted(&image).cut_after(&script(), moment);
        let done = seen.len();
        assert!(
            done >= moment,
            "the machine stopped by itself after {done}: {seen:?}"
        );
        // Recover as the next start would, then judge.
        let recovered = lab
            .launcher()
            .args(["fs", "manifest", "--rw"])
            .arg(&image)
            .output()
            .expect("the launcher starts");
        assert_eq!(recovered.status.code(), Some(0), "{recovered:?}");
        tools::assert_clean(&image);
        for n in 0..done {
            // The file after the last acknowledged one may have taken this
            // one away already.
            let removed = n % 3 == 1 && n + 1 < done;
            let undecided = n % 3 == 1 && n + 1 == done;
            if !removed && !undecided {
                let found = tools::read_file(&image, &format!("/d/{n}"));
                assert_eq!(found, body(n).as_bytes(), "file {n} after a cut at {done}");
            }
        }
    }
}

#[test]
fn x86_64_keeps_what_it_acknowledged() {
    cut(Arch::X86_64, &[3, 97]);
}

#[test]
fn aarch64_keeps_what_it_acknowledged() {
    cut(Arch::Aarch64, &[5, 83]);
}
