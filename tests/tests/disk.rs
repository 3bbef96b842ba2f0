//! Disk images from `quire image`, booted as a user would boot them.

use quire_tests::{Arch, Lab};

/// One image for both architectures, as a virtio disk and as a USB stick.
#[test]
fn one_image_boots_everywhere() {
    let lab = Lab::new("disk");
    let image = lab.path("disk.img");
    let made = lab
        .launcher()
        .args(["image", "--arch", "all", "-o"])
        .arg(&image)
        // On a stick nobody types: the kernel says what it has to say and
        // switches the machine off.
        .args(["--append", "init='echo booted from disk; poweroff'"])
        .status()
        .expect("the launcher starts");
    assert!(made.success());
    for arch in Arch::ALL {
        for bus in ["virtio", "usb"] {
            let output = lab
                .quire(arch)
                .args(["--no-pmem", "--timeout", "240", "--disk-bus", bus, "--disk"])
                .arg(&image)
                .run()
                .ok();
            assert!(
                output.text().contains("booted from disk"),
                "{arch:?} {bus}: {}",
                output.text()
            );
        }
    }
}

/// A loader that knows base revision 2 only, as Limine 8 does, starts the same
/// kernel: addresses of tables come by the direct map, and the tag stays as it
/// was. The image's `limine.conf` names the kernel twice, for older and newer
/// versions of Limine; one of the two lines makes room for ours.
#[test]
fn an_older_loader_boots_the_same_kernel() {
    const LINE: &[u8] = b"    path: boot():/quire-${ARCH}.elf\n";
    let lab = Lab::new("revision-2");
    let image = lab.path("disk.img");
    let made = lab
        .launcher()
        .args(["image", "--arch", "all", "-o"])
        .arg(&image)
        .args(["--append", "init='acpi; poweroff'"])
        .status()
        .expect("the launcher starts");
    assert!(made.success());
    let mut bytes = std::fs::read(&image).expect("image");
    let at = bytes
        .windows(LINE.len())
        .position(|window| window == LINE)
        .expect("limine.conf lies whole in the image");
    let mut line = b"    base_revision: 2".to_vec();
    line.resize(LINE.len() - 1, b' ');
    line.push(b'\n');
    bytes[at..at + LINE.len()].copy_from_slice(&line);
    std::fs::write(&image, bytes).expect("image");
    for arch in Arch::ALL {
        let output = lab
            .quire(arch)
            .args(["--no-pmem", "--smp", "2", "--timeout", "240", "--disk"])
            .arg(&image)
            .run()
            .ok();
        let text = output.text();
        assert!(text.contains("revision=2 "), "{arch:?}: {text}");
        assert!(text.contains("cpu: count=2 "), "{arch:?}: {text}");
        assert!(text.contains("FACP"), "{arch:?}: {text}");
    }
}
