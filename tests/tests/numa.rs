//! Where persistent memory is near: SRAT, SLIT and HMAT that QEMU makes.

use quire_tests::{Arch, Lab};

fn a_region_says_where_it_is_near(arch: Arch) {
    let lab = Lab::new("numa");
    let media = lab.path("media.img");
    std::fs::File::create(&media)
        .and_then(|file| file.set_len(64 << 20))
        .expect("the media");
    let machine = match arch {
        Arch::X86_64 => "q35,nvdimm=on,hmat=on",
        Arch::Aarch64 => "virt,nvdimm=on,hmat=on",
    };
    let memory = format!(
        "memory-backend-file,id=m0,share=on,size=64M,mem-path={}",
        media.display()
    );
    let mut start = lab.quire(arch).args(["--no-pmem", "--smp", "2"]);
    for [option, value] in [
        ["-machine", machine],
        ["-m", "1024M,slots=2,maxmem=8G"],
        ["-object", "memory-backend-ram,id=ram0,size=1024M"],
        ["-numa", "node,nodeid=0,memdev=ram0,cpus=0-1,initiator=0"],
        ["-numa", "node,nodeid=1,initiator=0"],
        ["-numa", "dist,src=0,dst=1,val=23"],
        [
            "-numa",
            "hmat-lb,initiator=0,target=0,hierarchy=memory,data-type=access-latency,latency=5",
        ],
        [
            "-numa",
            "hmat-lb,initiator=0,target=0,hierarchy=memory,data-type=access-bandwidth,bandwidth=400M",
        ],
        [
            "-numa",
            "hmat-lb,initiator=0,target=1,hierarchy=memory,data-type=access-latency,latency=70",
        ],
        [
            "-numa",
            "hmat-lb,initiator=0,target=1,hierarchy=memory,data-type=access-bandwidth,bandwidth=200M",
        ],
        ["-object", &memory],
        ["-device", "nvdimm,id=n0,memdev=m0,node=1"],
    ] {
        for word in [option, value] {
            start = start.args(["--qemu-arg", word]);
        }
    }
    let output = start
        .exec("pmem list -v; pmem list -v --json; pmem doctor")
        .ok();
    let text = output.text();
    for part in [
        "numa_node=1 distance[0]=23 initiator=0 read_latency=70 write_latency=70 read_bandwidth=200 write_bandwidth=200\n",
        "\"distances\":[{\"from\":0,\"distance\":23}]",
        "near: in proximity domain 1\n",
        "SLIT, from domain 0: distance 23\n",
        "read latency 70 ns",
    ] {
        assert!(
            text.contains(part),
            "{part} missing in\n{text}\n{}",
            output.stderr
        );
    }
}

#[test]
fn x86_64_region_says_where_it_is_near() {
    a_region_says_where_it_is_near(Arch::X86_64);
}

#[test]
fn aarch64_region_says_where_it_is_near() {
    a_region_says_where_it_is_near(Arch::Aarch64);
}
