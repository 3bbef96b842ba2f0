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
