//! Running an operation many times and dividing what it cost.

use std::time::{Duration, Instant};

use anyhow::Result;
use futures_util::stream::{self, StreamExt, TryStreamExt};

use crate::figure::{Figure, median};
use crate::process::Process;

/// Names of the figures of one operation.
pub(crate) struct Names {
    pub(crate) cpu: &'static str,
    pub(crate) rate: &'static str,
    pub(crate) latency: &'static str,
}

/// Runs `operations` times `each` operations at most `at_once` at a time; gives CPU per operation of the
/// process, throughput and median latency of a call. A tenth more runs before, unmeasured.
pub(crate) async fn operations<F, Fut>(
    names: Names,
    process: &Process,
    calls: usize,
    each: usize,
    at_once: usize,
    call: F,
) -> Result<Vec<Figure>>
where
    F: Fn(usize) -> Fut,
    Fut: Future<Output = Result<()>>,
{
    let warm = calls / 10;
    stream::iter(0..warm).map(&call).buffer_unordered(at_once).try_collect::<Vec<()>>().await?;
    let cpu = process.cpu()?;
    let start = Instant::now();
    let call = &call;
    let latencies: Vec<f64> = stream::iter(warm..warm + calls)
        .map(|n| async move {
            let start = Instant::now();
            call(n).await?;
            anyhow::Ok(start.elapsed().as_secs_f64() * 1e6)
        })
        .buffer_unordered(at_once)
        .try_collect()
        .await?;
    let elapsed = start.elapsed();
    let cpu = process.cpu()?.saturating_sub(cpu);
    let total = to_f64(calls * each);
    Ok(vec![
        Figure::new(names.cpu, "CPU µs", cpu.as_secs_f64() * 1e6 / total),
        Figure::new(names.rate, "/s", total / elapsed.as_secs_f64()),
        Figure::new(names.latency, "µs", median(&latencies)),
    ])
}

/// A count as a number to divide by.
#[expect(clippy::cast_precision_loss, reason = "counts here are far below 2^52")]
pub(crate) fn to_f64(count: usize) -> f64 {
    count as f64
}

/// Asks until the answer is yes, at most so long.
pub(crate) async fn until<F, Fut>(what: &str, at_most: Duration, mut ask: F) -> Result<Duration>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = bool>,
{
    let start = Instant::now();
    while !ask().await {
        anyhow::ensure!(start.elapsed() < at_most, "{what}: not within {at_most:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(start.elapsed())
}
