//! What is started before the application, in its thread, in this order, and
//! ended after it.

/// How often it is looked whether a file system has changes that wait for
/// long.
const COMMIT_CHECK_NS: u64 = 1_000_000_000;

/// Starts the services.
pub fn start() {
    if let Some(crc32c) = quire_arch::checksum::crc32c() {
        quire_fs::disk::checksum::accelerate(crc32c);
    }
    crate::dax::init();
    crate::pmem::start();
    crate::dev::nvme::p2p::start(&crate::pmem::is_ram);
    if let Err(error) = crate::sched::spawn("commit", commit_old) {
        log::error!("files: changes wait for a sync: {error}");
    }
}

/// Commits what file systems have held in memory for some seconds.
fn commit_old() {
    loop {
        crate::sched::sleep_ns(COMMIT_CHECK_NS);
        if let Err(error) = crate::app::fs::tree().commit(true) {
            log::error!("files: {error}");
        }
    }
}

/// Ends what the application may have left open, when it has returned: file
/// systems are made durable and marked clean.
pub fn stop() {
    if let Err(error) = crate::app::fs::tree().unmount_all() {
        log::error!("files: {error}");
    }
}
