//! Files and paths: the in-memory root, mounts, open files.
