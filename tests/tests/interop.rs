//! File systems made by e2fsprogs, read and written by Quire.

use quire_tests::{Arch, Lab, tools, tree};
use std::fmt::Write;
use std::path::Path;

/// `sha256sum -r` in the guest against the host's.
fn same_content(arch: Arch, files: u64, size: u64) {
    let lab = Lab::new("content");
    let root = lab.path("tree");
    let paths = tree::make(&root, files);
    let image = lab.path("fs.img");
    tools::mkfs(&image, size, [Path::new("-d"), &root]);
    let output = lab
        .quire(arch)
        .arg("--nvdimm")
        .arg(&image)
        .exec("mount pmem0 /m; sha256sum -r /m")
        .ok();
    let mut actual: Vec<(String, String)> = output
        .text()
        .lines()
        .filter_map(|line| line.split_once("  "))
        .map(|(sum, path)| (path.trim_start_matches("/m/").to_string(), sum.to_string()))
        .collect();
    actual.sort();
    let mut expected: Vec<(String, String)> = paths
        .iter()
        .map(|path| (path.display().to_string(), tools::sha256(&root.join(path))))
        .collect();
    expected.sort();
    assert_eq!(actual.len(), expected.len());
    for (a, e) in actual.iter().zip(&expected) {
        assert_eq!(a, e);
    }
    tools::assert_clean(&image);
}

#[test]
fn x86_64_reads_thousands_of_files() {
    same_content(Arch::X86_64, 3000, 128 << 20);
}

#[test]
fn aarch64_reads_a_sparse_64_gib_file_system() {
    same_content(Arch::Aarch64, 1000, 64 << 30);
}

/// Hundreds of operations; what must be there in the end is known.
fn mixed_writes(arch: Arch) {
    let lab = Lab::new("writes");
    let root = lab.path("tree");
    tree::make(&root, 60);
    let image = lab.path("fs.img");
    tools::mkfs(&image, 64 << 20, [Path::new("-d"), &root]);
    let mut script = String::from("cd /pmem0\n");
    for n in 0..40 {
        // Every operation that changes names, sizes and attributes.
        writeln!(
            script,
            "mkdir -p w/a{n}/b; echo text-{n} > w/a{n}/f; echo more >> w/a{n}/f; \
             cp w/a{n}/f w/a{n}/b/copy; ln w/a{n}/f w/a{n}/hard; ln -s f w/a{n}/soft; \
             mv w/a{n}/b/copy w/moved{n}; chmod 600 w/moved{n}; chown 5:6 w/moved{n}; \
             truncate -s {} w/a{n}/hole; rmdir w/a{n}/b; rm w/a{n}/hard",
            5000 * (n + 1)
        )
        .expect("a string");
        if n % 3 == 0 {
            writeln!(script, "rm -r w/a{n}").expect("a string");
        }
    }
    script.push_str("rm -r many; cat w/a1/f w/moved0; sync");
    lab.quire(arch)
        .mounted(&image)
        .exec(&script)
        .ok()
        .printed("text-1\nmore\ntext-0\nmore\n");
    tools::assert_clean(&image);
    assert_eq!(tools::read_file(&image, "/w/a2/f"), b"text-2\nmore\n");
    // debugfs shows where a link leads.
    assert_eq!(tools::read_file(&image, "/w/a2/soft"), b"f");
    assert_eq!(tools::read_file(&image, "/w/a1/hole"), vec![0; 10_000]);
}

#[test]
fn x86_64_writes_stay_consistent() {
    mixed_writes(Arch::X86_64);
}

#[test]
fn aarch64_writes_stay_consistent() {
    mixed_writes(Arch::Aarch64);
}

/// Every fault of a gigabyte is served by a large leaf: by what `dax stat`
/// counts, on a new file system of either maker.
fn large_leaves(arch: Arch, image: &Path, lab: &Lab, prepare: &str) {
    // What is allocated as a whole, and what grows call by call; dd leaves no
    // holes.
    let commands = format!(
        "{prepare}mount -o rw pmem0 /m; fallocate -l 1G /m/f; map -w -p /m/f 0 1G; \
         dax stat --json; unmap; truncate -s 96M /m/f; dd if=/m/f of=/m/g bs=256K; map -p /m/g 0 96M; \
         dax stat --json; unmap; umount /m"
    );
    let output = lab
        .quire(arch)
        .args(["--nvdimm", &format!("{},size=2G", image.display())])
        .exec(&commands)
        .ok();
    let text = output.text();
    let stats: Vec<serde_json::Value> = text
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    let [made, grown] = &stats[..] else {
        panic!("two lines of counters: {text}");
    };
    let count = |stat: &serde_json::Value, name: &str| stat[name].as_u64().expect("a counter");
    for (stat, pieces) in [(made, 512), (grown, 512 + 48)] {
        assert_eq!(count(stat, "faults_4k"), 0, "{text}");
        let large = count(stat, "faults_2m") + 512 * count(stat, "faults_1g");
        assert_eq!(large, pieces, "{text}");
        assert_eq!(count(stat, "zero_large"), 0, "{text}");
    }
    assert_eq!(made["fallbacks"]["alignment"], 0, "{text}");
    tools::assert_clean(image);
}

#[test]
fn x86_64_maps_a_gigabyte_by_large_leaves() {
    let lab = Lab::new("leaves");
    let image = lab.path("ours.img");
    large_leaves(Arch::X86_64, &image, &lab, "mkfs.ext4 pmem0; ");
    let image = lab.path("ext4.img");
    tools::mkfs::<&str>(&image, 2 << 30, []);
    large_leaves(Arch::X86_64, &image, &lab, "");
}

#[test]
fn aarch64_maps_a_gigabyte_by_large_leaves() {
    let lab = Lab::new("leaves-arm");
    let image = lab.path("ext4.img");
    tools::mkfs::<&str>(&image, 2 << 30, []);
    large_leaves(Arch::Aarch64, &image, &lab, "");
}

#[test]
fn an_image_that_needs_recovery_is_recovered_only_for_writing() {
    let lab = Lab::new("recovery");
    let image = lab.path("fs.img");
    let tree = lab.path("tree");
    std::fs::create_dir(&tree).expect("dir");
    std::fs::write(tree.join("f"), "old content\n").expect("file");
    tools::mkfs(&image, 32 << 20, [Path::new("-d"), &tree]);
    // A transaction that only the journal holds: new content of f's block.
    let block = tools::block_of(&image, "/f", 0);
    let new = lab.path("block");
    let mut content = b"new content\n".to_vec();
    content.resize(4096, 0);
    std::fs::write(&new, &content).expect("block");
    let script = lab.path("journal");
    let commands = format!("jo\njw -b {block} {}\njc\n", new.display());
    std::fs::write(&script, commands).expect("script");
    tools::debugfs_script(&image, &script);
    let before = std::fs::read(&image).expect("the image");
    lab.quire(Arch::X86_64)
        .arg("--nvdimm")
        .arg(&image)
        .exec("mount pmem0 /m; cat /m/f")
        .ok()
        .printed("new content\n");
    let after = std::fs::read(&image).expect("the image");
    assert!(before == after, "a read-only mount wrote to the image");
    lab.quire(Arch::X86_64)
        .mounted(&image)
        .exec("cat /pmem0/f")
        .ok()
        .printed("new content\n");
    tools::assert_clean(&image);
    assert_eq!(tools::read_file(&image, "/f"), b"new content\n");
}

/// What the guest makes, the host's checker accepts.
fn own_mkfs(arch: Arch) {
    let lab = Lab::new("mkfs");
    let image = lab.path("fs.img");
    lab.quire(arch)
        .arg("--nvdimm")
        .arg(format!("{},size=256M", image.display()))
        .exec("mkfs.ext4 pmem0 -L made; mount -o rw pmem0 /m; echo x > /m/f; umount /m")
        .ok();
    tools::assert_clean(&image);
    assert_eq!(tools::read_file(&image, "/f"), b"x\n");
}

#[test]
fn x86_64_makes_a_file_system() {
    own_mkfs(Arch::X86_64);
}

#[test]
fn aarch64_makes_a_file_system() {
    own_mkfs(Arch::Aarch64);
}
