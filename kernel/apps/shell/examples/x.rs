//! x
use quire_shell::*;
use std::sync::Arc;
struct C;
impl Console for C {
    fn output(&mut self, b: &[u8]) {
        use std::io::Write;
        std::io::stdout().write_all(b).unwrap()
    }
    fn errors(&mut self, b: &[u8]) {
        use std::io::Write;
        std::io::stderr().write_all(b).unwrap()
    }
}
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let d = quire::vfs::MemDevices::new();
    let bytes = std::fs::read(&a[1]).unwrap();
    let m = Arc::new(quire_fs::MemPmem::new(bytes));
    d.add("pmem0", m.clone());
    let v = quire::vfs::Vfs::new(Box::new(d), quire::vfs::wall_clock);
    let mut c = C;
    let s = run_script(&mut Env::new(&v, &mut c, false), a[2].as_bytes());
    v.unmount_all().unwrap();
    if a.len() > 3 {
        std::fs::write(&a[3], m.to_vec()).unwrap();
    }
    std::process::exit(s as i32)
}
