//! Boot information: what the loader handed over, in our own terms.
