//! Amounts of processor and memory as Kubernetes writes them: `500m`, `1.5`, `64Mi`, `1e3`.
//!
//! Source: Kubernetes API reference, "Quantity".

/// The amount as a number (cores, bytes); `None` if the text is not a quantity.
#[must_use]
pub fn parse(text: &str) -> Option<f64> {
    const SUFFIXES: [(&str, f64); 15] = [
        ("Ki", 1024.0),
        ("Mi", 1_048_576.0),
        ("Gi", 1_073_741_824.0),
        ("Ti", 1_099_511_627_776.0),
        ("Pi", 1_125_899_906_842_624.0),
        ("Ei", 1_152_921_504_606_846_976.0),
        ("n", 1e-9),
        ("u", 1e-6),
        ("m", 1e-3),
        ("k", 1e3),
        ("M", 1e6),
        ("G", 1e9),
        ("T", 1e12),
        ("P", 1e15),
        ("E", 1e18),
    ];
    let (number, factor) =
        SUFFIXES.iter().find_map(|(suffix, factor)| Some((text.strip_suffix(suffix)?, *factor))).unwrap_or((text, 1.0));
    // Rust also reads "inf" and "NaN", and an exponent before a suffix.
    let written = |c: char| c.is_ascii_digit() || "+-.".contains(c) || (factor == 1.0 && "eE".contains(c));
    if !number.chars().all(written) {
        return None;
    }
    Some(number.parse::<f64>().ok()? * factor)
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn quantities_are_parsed() {
        for (text, amount) in [
            ("0", 0.0),
            ("1", 1.0),
            ("1.5", 1.5),
            ("200m", 0.2),
            ("64Ki", 65_536.0),
            ("500Mi", 524_288_000.0),
            ("1Gi", 1_073_741_824.0),
            ("64k", 64_000.0),
            ("2M", 2_000_000.0),
            ("1G", 1e9),
            ("1e3", 1000.0),
            ("1E3", 1000.0),
            ("2E", 2e18),
        ] {
            assert_eq!(parse(text), Some(amount), "{text}");
        }
        for text in ["", "Mi", "one", "1 Gi", "1gi", "1KB", "inf", "NaN", "1e3Ki"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
