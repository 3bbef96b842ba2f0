//! NVDIMMs that are plugged in while the kernel runs: firmware tells of it by
//! an event (general-purpose on x86_64, a generic event device on aarch64).

use quire_tests::qmp::Qmp;
use quire_tests::{Arch, Lab};

fn an_nvdimm_comes(arch: Arch) {
    let lab = Lab::new("hotplug");
    let (first, second) = (lab.path("first.img"), lab.path("second.img"));
    std::fs::File::create(&second)
        .and_then(|file| file.set_len(64 << 20))
        .expect("the second's media");
    let socket = lab.path("qmp");
    let connect = socket.clone();
    let mut qmp = Some(std::thread::spawn(move || Qmp::connect(&connect)));
    let output = lab
        .quire(arch)
        .arg("--nvdimm")
        .arg(format!("{},size=64M", first.display()))
        .args(["--qemu-arg", "-m", "--qemu-arg", "1024M,slots=3,maxmem=8G"])
        .args(["--qemu-arg", "-qmp", "--qemu-arg"])
        .arg(format!("unix:{},server=on,wait=on", socket.display()))
        .watch(
            "mkfs.ext4 pmem0; mount -o rw pmem0 /a; echo old > /a/f; sync; echo ready; \
             pmem monitor -t 200; pmem list; mkfs.ext4 pmem1; mount -o rw pmem1 /b; \
             echo came later > /b/f; umount /b; cat /a/f; pmem list --json",
            |line| {
                if line != "ready" {
                    return;
                }
                let mut qmp = qmp.take().expect("once").join().expect("connected");
                qmp.execute(
                    "object-add",
                    &format!(
                        "{{\"qom-type\":\"memory-backend-file\",\"id\":\"late\",\"share\":true,\
                         \"size\":{},\"mem-path\":\"{}\"}}",
                        64 << 20,
                        second.display()
                    ),
                );
                qmp.execute(
                    "device_add",
                    "{\"driver\":\"nvdimm\",\"id\":\"latedimm\",\"memdev\":\"late\"}",
                );
            },
        )
        .ok();
    let text = output.text();
    for part in [
        "nmem1 appeared\n",
        "appeared with pmem1\n",
        "\nnmem1 ",
        "\nregion1 ",
        "\nold\n",
    ] {
        assert!(
            text.contains(part),
            "{part} missing in\n{text}\n{}",
            output.stderr
        );
    }
    let second = std::fs::read(&second).expect("the media");
    let kept = b"came later\n";
    assert!(second.windows(kept.len()).any(|part| part == kept));
}

#[test]
fn x86_64_an_nvdimm_comes() {
    an_nvdimm_comes(Arch::X86_64);
}

#[test]
fn aarch64_an_nvdimm_comes() {
    an_nvdimm_comes(Arch::Aarch64);
}
