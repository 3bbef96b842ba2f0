//! Checked access, and random use against a model.

use super::*;

pub fn checked_access_ends_in_errors() -> Outcome {
    let rig = Rig::new(4)?;
    rig.fs.lay_out(0..2, 1)?;
    let mapping = text(map(&rig.file, 0, 8 << 12, Perms::ReadWrite))?;
    let mut buf = [1; 100];
    text(mapping.read_at(2 * 4096 - 50, &mut buf))?;
    check!(buf[0] == 0 && buf[99] == 0);
    text(mapping.read_at(4096, &mut buf[..10]))?;
    check!(buf[0] == 1 ^ 0x5a);
    check!(
        mapping.read_at(4 * 4096 - 50, &mut buf).is_err(),
        "past the end of the file"
    );
    check!(
        mapping.write_at(8 * 4096 - 50, &buf).is_err(),
        "past the mapping"
    );
    check!(mapping.read_at(u64::MAX, &mut buf).is_err());
    text(mapping.write_at(3 * 4096 - 1, b"ab"))?;
    text(mapping.read_at(3 * 4096 - 1, &mut buf[..2]))?;
    check!(&buf[..2] == b"ab");
    check!(mapping.leaves() == 0, "checked access made leaves");
    let reader = rig.map(Perms::Read)?;
    check!(reader.write_at(0, b"x").is_err());
    Ok(())
}

/// Stores, loads, syncs, punches and truncations at random, against an array.
pub fn random_use_against_a_model() -> Outcome {
    const BLOCKS: u64 = 1100;
    let rig = Rig::new(BLOCKS)?;
    let mapping = rig.map(Perms::ReadWrite)?;
    let other = text(map(&rig.file, 4096, 600 << 12, Perms::Read))?;
    let mut model = vec![0u8; BLOCKS as usize];
    let mut seed = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = move |n: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed % n
    };
    for step in 0..4000u32 {
        let block = random(BLOCKS);
        let value = step as u8 | 1;
        let at = |b: u64| model.get(b as usize).copied().unwrap_or(0);
        match random(8) {
            0 | 1 => {
                store(&mapping, block << 12, value);
                model[block as usize] = value;
            }
            2 => {
                text(mapping.write_at(block << 12, &[value]))?;
                model[block as usize] = value;
            }
            3 => check!(
                load(&mapping, block << 12) == at(block),
                "step {step} block {block}"
            ),
            4 => {
                let mut byte = [0];
                text(mapping.read_at(block << 12, &mut byte))?;
                check!(byte[0] == at(block), "step {step} block {block}");
            }
            5 if (1..601).contains(&block) => {
                check!(
                    load(&other, (block - 1) << 12) == at(block),
                    "step {step} block {block}"
                );
            }
            6 => {
                let end = (block + 1 + random(40)).min(BLOCKS);
                let lease = text(rig.file.break_layout(block..end, Wait::No))?;
                if random(4) > 0 {
                    rig.fs.punch(&lease, block..end)?;
                    (block..end).for_each(|b| model[b as usize] = 0);
                }
            }
            7 if random(8) == 0 => text(rig.file.sync(0..BLOCKS))?,
            _ => {}
        }
    }
    for block in 0..BLOCKS {
        let expected = model[block as usize];
        check!(
            load(&mapping, block << 12) == expected,
            "block {block} at the end"
        );
    }
    drop(mapping);
    drop(other);
    rig.at_rest()?;
    drop(text(rig.file.break_layout(0..u64::MAX, Wait::No))?);
    check!(rig.map.usage().descriptors() == 0, "{:?}", rig.map.usage());
    Ok(())
}
