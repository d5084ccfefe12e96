//! Numbers and counts in the format of the page.

/// A share from 0 to 1 with one decimal: `95.4 %`.
pub(super) fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

/// A count and what it counts: `1 image`, `2 images`.
pub(super) fn counted(count: usize, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}
