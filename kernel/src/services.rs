//! What is started before the application, in its thread, in this order, and
//! ended after it.

/// Starts the services.
pub fn start() {
    crate::dax::init();
    crate::pmem::start();
    crate::dev::nvme::p2p::start(&crate::pmem::is_ram);
}

/// Ends what the application may have left open, when it has returned: file
/// systems are made durable and marked clean.
pub fn stop() {
    if let Err(error) = crate::app::fs::tree().unmount_all() {
        log::error!("files: {error}");
    }
}
