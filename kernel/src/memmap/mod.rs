//! Page descriptors and folios of device memory.
