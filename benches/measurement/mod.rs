//! The duration of a benchmark of a short operation.

use std::time::Duration;

use criterion::Criterion;

/// Twenty samples in half a second.
pub fn brief() -> Criterion {
    Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(500))
}
