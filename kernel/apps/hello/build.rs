//! Links the image by the kernel's linker script. Host builds are left alone.

fn main() {
    println!("cargo:rerun-if-changed=../../image.ld");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("none") {
        // Set by cargo for every build script.
        let dir = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
        println!("cargo:rustc-link-arg-bins=-T{dir}/../../image.ld");
        // Limine rounds each segment to its own alignment before it maps it, so
        // a linker's 64 KiB would let neighbours of different access overlap.
        println!("cargo:rustc-link-arg-bins=-zmax-page-size=4096");
    }
}
