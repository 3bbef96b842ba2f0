//! Ending: exit status, power-off, reboot.

/// Sends the exit status, if somebody listens for it, and switches the
/// machine off. On the host: ends the process.
pub fn exit(status: u8) -> ! {
    #[cfg(target_os = "none")]
    {
        log::info!("power: off status={status}");
        crate::console::send_status(status);
        stop_others();
        quire_arch::power::off()
    }
    #[cfg(not(target_os = "none"))]
    std::process::exit(status.into())
}

/// Restarts the machine. On the host: ends the process.
pub fn reboot() -> ! {
    #[cfg(target_os = "none")]
    {
        log::info!("power: reboot");
        stop_others();
        quire_arch::power::reboot()
    }
    #[cfg(not(target_os = "none"))]
    std::process::exit(0)
}

/// Nothing else runs from here on.
#[cfg(target_os = "none")]
fn stop_others() {
    quire_arch::cpu::irqs_disable();
    crate::panic::set_stopping();
    crate::sched::cpu::stop_others();
}
