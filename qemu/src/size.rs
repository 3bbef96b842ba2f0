//! Sizes as people write them: `4096`, `128K`, `512M`, `1G`, `2T`.

/// Bytes in one GiB.
pub const GIB: u64 = 1 << 30;
/// 2^40 bytes.
pub const TIB: u64 = 1 << 40;
/// Bytes in one MiB.
pub const MIB: u64 = 1 << 20;

/// Parses a number of bytes with an optional binary suffix (K, M, G, T,
/// optionally followed by `iB` or `B`).
pub fn parse(text: &str) -> Result<u64, String> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, suffix) = text.split_at(digits);
    let shift = match suffix.to_ascii_uppercase().as_str() {
        "" | "B" => 0,
        "K" | "KB" | "KIB" => 10,
        "M" | "MB" | "MIB" => 20,
        "G" | "GB" | "GIB" => 30,
        "T" | "TB" | "TIB" => 40,
        _ => {
            return Err(format!(
                "`{text}` is not a size: write 4096, 128K, 512M or 1G"
            ));
        }
    };
    number
        .parse::<u64>()
        .ok()
        .and_then(|n| n.checked_mul(1 << shift))
        .ok_or_else(|| format!("`{text}` is not a size: write 4096, 128K, 512M or 1G"))
}

/// Like [`parse`], but refuses zero: the size of something that must exist.
pub fn parse_nonzero(text: &str) -> Result<u64, String> {
    match parse(text)? {
        0 => Err("a size of zero makes no sense here".into()),
        n => Ok(n),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_every_suffix() {
        assert_eq!(parse("4096"), Ok(4096));
        assert_eq!(parse("128K"), Ok(128 << 10));
        assert_eq!(parse("512m"), Ok(512 << 20));
        assert_eq!(parse("1GiB"), Ok(GIB));
        assert_eq!(parse("2T"), Ok(2 << 40));
    }

    #[test]
    fn refuses_what_is_no_size() {
        for bad in ["", "G", "1X", "-1", "1.5G", "99999999999T", " 1"] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
        assert!(parse_nonzero("0G").is_err());
    }
}
