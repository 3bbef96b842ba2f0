//! What is started before the application, in its thread, in this order.

/// Starts the services.
pub fn start() {
    crate::dax::init();
    crate::pmem::start();
}
