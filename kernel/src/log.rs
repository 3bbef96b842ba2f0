//! The log: levels, a ring buffer that `dmesg` reads, and the console sink.
