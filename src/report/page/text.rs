//! Numbers and counts in the format of the page.

pub(super) use crate::data::counted;

/// A share from 0 to 1 with one decimal: `95.4 %`.
pub(in super::super) fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

/// A number of seconds in one or two units: `2.4 s`, `3 min 20 s`, `2 h 5 min`.
pub(super) fn duration(seconds: f64) -> String {
    match seconds.round() as u64 {
        0..10 => format!("{seconds:.1} s"),
        whole @ 10..60 => format!("{whole} s"),
        whole @ 60..3600 => format!("{} min {} s", whole / 60, whole % 60),
        whole => format!("{} h {} min", whole / 3600, whole % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_the_units_that_matter() {
        for (seconds, expected) in [
            (0.04, "0.0 s"),
            (2.36, "2.4 s"),
            (59.4, "59 s"),
            (59.6, "1 min 0 s"),
            (200.0, "3 min 20 s"),
            (7500.0, "2 h 5 min"),
        ] {
            assert_eq!(duration(seconds), expected);
        }
    }
}
