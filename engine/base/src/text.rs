//! Amounts of bytes as people write them.

/// A text that is not an amount of bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an amount of bytes such as 4096, 64MiB, 8GiB or 1.5TiB")]
pub struct BadAmount(String);

const UNITS: [(&str, u64); 10] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("B", 1),
    ("", 1),
];

/// Reads `8GiB`, `500 MB`, `1.5TiB` or plain bytes. Binary units have an `i`; bare letters (`8G`) are refused, since
/// they mean one thing here and another there.
pub fn parse_bytes(text: &str) -> Result<u64, BadAmount> {
    let bad = || BadAmount(text.into());
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let (_, factor) = UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit.trim())).ok_or_else(bad)?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if fraction.len() > 9 || (number.contains('.') && fraction.is_empty()) {
        return Err(bad());
    }
    let whole: u64 = whole.parse().map_err(|_| bad())?;
    let scale = 10u64.pow(fraction.len() as u32);
    let fraction: u64 = if fraction.is_empty() { 0 } else { fraction.parse().map_err(|_| bad())? };
    let part = u128::from(fraction) * u128::from(*factor) / u128::from(scale);
    let bytes = u128::from(whole) * u128::from(*factor) + part;
    u64::try_from(bytes).map_err(|_| bad())
}

/// `bytes` in the largest binary unit that leaves at least one, with one decimal where there is one.
pub fn show_bytes(bytes: u64) -> String {
    let Some((name, factor)) = UNITS[..4].iter().rev().find(|(_, factor)| bytes >= *factor) else {
        return format!("{bytes} B");
    };
    if bytes.is_multiple_of(*factor) {
        format!("{} {name}", bytes / factor)
    } else {
        format!("{:.1} {name}", bytes as f64 / *factor as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_read() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("64KiB", 65_536),
            ("8GiB", 8 << 30),
            ("8 gib", 8 << 30),
            ("1.5MiB", 3 << 19),
            ("500MB", 500_000_000),
            ("7B", 7),
        ] {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        for text in ["", "GiB", "8G", "-1", "1e9", "1.MiB", "1..5", "99999999TiB", "8GiBB", ".5GiB"] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn amounts_are_shown() {
        for (bytes, text) in
            [(0, "0 B"), (1023, "1023 B"), (65_536, "64 KiB"), (3 << 19, "1.5 MiB"), (8 << 30, "8 GiB")]
        {
            assert_eq!(show_bytes(bytes), text);
        }
    }
}
