//! Where a copy goes on that has met lost memory.
//!
//! A load of memory that the media has lost ends in a machine check or an
//! external abort at that very instruction. Copies that are meant for such
//! memory ([`cache::copy_checked`](crate::cache::copy_checked)) name, in a
//! section of the image, the instructions that may meet it and the place to
//! go on at: their end, with what is left to copy in a register. The trap
//! handler looks the interrupted instruction up here.
//!
//! An ordinary copy has no entry: whoever did not expect a loss does not go on
//! as if nothing were missing.

/// One range of instructions. Offsets are from the field's own address, as
/// the assembler writes them.
#[repr(C)]
struct Entry {
    start: i32,
    end: i32,
    landing: i32,
}

/// Makes an entry of three labels, inside of an `asm!`.
macro_rules! recover {
    ($start:literal, $end:literal, $landing:literal) => {
        concat!(
            ".pushsection .quire_recover, \"a\", @progbits\n",
            ".balign 4\n",
            ".long ",
            $start,
            " - .\n",
            ".long ",
            $end,
            " - .\n",
            ".long ",
            $landing,
            " - .\n",
            ".popsection",
        )
    };
}
pub(crate) use recover;

unsafe extern "C" {
    // From the image's linker script.
    static __recover_start: [Entry; 0];
    static __recover_end: [Entry; 0];
}

fn target(field: &i32) -> u64 {
    (&raw const *field as u64).wrapping_add_signed(i64::from(*field))
}

/// Where to go on when the instruction at `pc` has met lost memory.
pub(crate) fn landing(pc: u64) -> Option<u64> {
    let (start, end) = (&raw const __recover_start, &raw const __recover_end);
    let count = (end as usize - start as usize) / size_of::<Entry>();
    // SAFETY: the linker script puts the two around all entries, which nothing
    // writes.
    let entries = unsafe { core::slice::from_raw_parts(start.cast::<Entry>(), count) };
    entries
        .iter()
        .find(|entry| (target(&entry.start)..target(&entry.end)).contains(&pc))
        .map(|entry| target(&entry.landing))
}
