//! The console: log and standard-output channels on one serial line, and input.
