//! Direct access: files mapped into the address space.
