//! CPUs, threads and time.
