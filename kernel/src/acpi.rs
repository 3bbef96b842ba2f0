//! ACPI tables and the firmware's AML, through the `acpi` crate.
