//! The time of what `counts` counts, by criterion: for a quiet machine, and for one change against another.
//!
//! ```text
//! cargo bench --bench time -- --save-baseline before
//! cargo bench --bench time -- --baseline before
//! ```

mod workloads;

use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};

/// Turns that are made ready at a time.
const TURNS: usize = 1_000;

fn time(criterion: &mut Criterion) {
    for workload in &workloads::ALL {
        let mut group = criterion.benchmark_group(workload.name);
        group.throughput(Throughput::Elements(workload.units)).sample_size(20).bench_function(
            workload.unit,
            |bencher| {
                bencher.iter_custom(|iterations| {
                    let mut left = usize::try_from(iterations).unwrap_or(usize::MAX);
                    let mut took = Duration::ZERO;
                    while left > 0 {
                        let turns = left.min(TURNS);
                        let mut turn = (workload.prepare)(turns);
                        let began = Instant::now();
                        (0..turns).for_each(|_| turn());
                        took += began.elapsed();
                        left -= turns;
                    }
                    took
                });
            },
        );
        group.finish();
    }
}

criterion_group!(benches, time);
criterion_main!(benches);
