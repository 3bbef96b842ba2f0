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
/// kernel: addresses of tables come by the direct map, the tag stays as it was,
/// and the command line comes with the kernel's file alone.
#[test]
fn an_older_loader_boots_the_same_kernel() {
    let lab = Lab::new("revision-2");
    for arch in Arch::ALL {
        let output = lab
            .quire(arch)
            .args(["--no-pmem", "--loader-line", "base_revision: 2"])
            .exec("acpi")
            .ok()
            .says("revision=2 ")
            .says("cpu: count=2 ");
        let text = output.text();
        assert!(text.contains("FACP"), "{arch:?}: {text}");
    }
}
