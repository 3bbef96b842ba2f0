extern crate std;

use alloc::format;
use proptest::prelude::*;
use std::string::ToString;

use super::*;

fn ok(file: &str) -> Config {
    parse(file.as_bytes(), "x86-64").unwrap()
}

#[test]
fn the_launchers_file() {
    let config = ok(
        "timeout: 0\n/Quire\n    protocol: limine\n    path: boot():/quire-${ARCH}.elf\n    kernel_path: boot():/other.elf\n    cmdline: exec='ls -l /; cat a' mount=pmem0:/pmem0:rw:format\n",
    );
    assert_eq!(config.path, "/quire-x86-64.elf");
    assert_eq!(
        config.cmdline,
        b"exec='ls -l /; cat a' mount=pmem0:/pmem0:rw:format"
    );
}

#[test]
fn older_names_case_comments_and_returns() {
    let config = ok(
        "# c\r\n\r\n\t/Quire  \r\n#path: boot():/no\r\n  KERNEL_PATH: boot:///k.elf\t\r\n  Kernel_Cmdline:   a  b \r\n",
    );
    assert_eq!(config.path, "/k.elf");
    assert_eq!(config.cmdline, b"a  b");
}

#[test]
fn an_older_loader_on_request() {
    let with = |line: &str| parse(format!("/Q\npath: boot():/k\n{line}\n").as_bytes(), "x");
    assert_eq!(with("").unwrap().max_revision, MAX_REVISION);
    assert_eq!(with("Base_Revision: 2 ").unwrap().max_revision, 2);
    for odd in ["0", "4", "", "-1", "two", "99999999999999999999"] {
        let error = with(&format!("base_revision: {odd}")).unwrap_err();
        assert_eq!(error, ConfigError::Revision { found: odd.into() });
    }
}

#[test]
fn memory_and_a_tree_of_ones_own() {
    let config = ok(
        "/Q\npath: boot():/k\ndtb_path: boot():/board.dtb\nefi_memory: 14 0x8000 0x100000000 4096\n\
         efi_memory: 7 262144 0x2000 0x1000\n",
    );
    assert_eq!(config.tree.as_deref(), Some("/board.dtb"));
    let plain: Vec<_> = config
        .memory
        .iter()
        .map(|d| (d.kind, d.attributes, d.base, d.pages))
        .collect();
    assert_eq!(plain, [(14, 0x8000, 1 << 32, 1), (7, 1 << 18, 0x2000, 1)]);
    let config = ok("/Q\npath: boot():/k\n");
    assert!(config.tree.is_none() && config.memory.is_empty());
    for odd in [
        "",
        "14 0 0",
        "14 0 1 4096",
        "14 0 0 0",
        "14 0 0 4095",
        "14 0 0xfffffffffffff000 0x2000",
        "4294967296 0 0 4096",
        "14 0 0 4096 1",
        "x 0 0 4096",
    ] {
        let text = format!("/Q\npath: boot():/k\nefi_memory: {odd}\n");
        assert_eq!(
            parse(text.as_bytes(), "x"),
            Err(ConfigError::Memory { found: odd.into() })
        );
    }
}

#[test]
fn only_the_first_entry_counts() {
    let config = ok("cmdline: global\n/A\npath: boot():/a\n/B\npath: boot():/b\ncmdline: b\n");
    assert_eq!(config.path, "/a");
    assert_eq!(config.cmdline, b"");
}

#[test]
fn a_directory_is_entered() {
    let config = ok("/+Dir\n//Sub\npath: boot():/sub\n//Next\npath: boot():/next\n");
    assert_eq!(config.path, "/sub");
}

#[test]
fn own_macros_and_unknown_ones() {
    let config = ok("${K}=dir/k.elf\n/Q\npath: boot():/${K}\ncmdline: [${NOPE}] $HOME ${ARCH}$\n");
    assert_eq!(config.path, "/dir/k.elf");
    assert_eq!(config.cmdline, b"[] $HOME x86-64$");
}

#[test]
fn command_lines_keep_odd_bytes() {
    let long: Vec<u8> = (0..8192u32)
        .map(|i| (i % 255 + 1) as u8)
        .filter(|b| !b"\n\r$".contains(b))
        .collect();
    let mut file = b"/Q\npath: boot():/k\ncmdline: x".to_vec();
    file.extend_from_slice(&long);
    file.extend_from_slice(b"x\n");
    let config = parse(&file, "aarch64").unwrap();
    assert_eq!(config.cmdline.len(), long.len() + 2);
    assert_eq!(&config.cmdline[1..=long.len()], &long[..]);
}

#[test]
fn errors_name_the_cause() {
    let error = |file: &str| parse(file.as_bytes(), "x86-64").unwrap_err();
    assert_eq!(error(""), ConfigError::NoEntry);
    assert!(matches!(error("/Q\n"), ConfigError::NoPath { entry } if entry == "Q"));
    assert!(matches!(
        error("/Q\nprotocol: linux\npath: boot():/k"),
        ConfigError::Protocol { .. }
    ));
    for path in [
        "hdd(1:1):/k",
        "boot():/",
        "boot():/k#abc",
        "boot():/a\\b",
        "k",
    ] {
        let error = error(&format!("/Q\npath: {path}\n"));
        assert!(matches!(error, ConfigError::Path { .. }), "{path}: {error}");
    }
    assert_eq!(
        error("/Q\npath: boot():/${K\n"),
        ConfigError::Macro { line: 2 }
    );
    assert_eq!(error("/Q\n\0\n"), ConfigError::ZeroByte { line: 2 });
    let large = "#".repeat(MAX_CONFIG + 1);
    assert_eq!(error(&large), ConfigError::TooLarge);
    let bomb = format!(
        "${{A}}={}\n/Q\ncmdline: {}\n",
        "y".repeat(2000),
        "${A}".repeat(2000)
    );
    assert_eq!(error(&bomb), ConfigError::Expansion);
    assert!(!error("/Q\npath: \x1b[2J\n").to_string().contains('\x1b'));
}

proptest! {
    #[test]
    fn any_bytes_are_answered(file in proptest::collection::vec(any::<u8>(), 0..600)) {
        let _ = parse(&file, "aarch64");
    }

    #[test]
    fn near_misses_are_answered(file in "[/#a-z:=\\$\\{\\}\n\r ()]{0,300}") {
        if let Ok(config) = parse(file.as_bytes(), "aarch64") {
            prop_assert!(config.path.starts_with('/'));
            prop_assert!(!config.cmdline.contains(&b'\n'));
        }
    }

    #[test]
    fn command_lines_survive(cmdline in "[!-#%-~]([ -#%-~]{0,300}[!-#%-~])?") {
        let file = format!("/Q\npath: boot():/k\ncmdline: {cmdline}\n");
        prop_assert_eq!(parse(file.as_bytes(), "x86-64").unwrap().cmdline, cmdline.as_bytes());
    }
}
