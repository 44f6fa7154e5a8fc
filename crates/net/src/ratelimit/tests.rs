//! Buckets with given times, and waits on paused time.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{GENERATION, PerKeyLimiter, RateError, TokenBucket};

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_bucket_gives_its_burst_and_then_its_rate() {
    let bucket = TokenBucket::per_second(2);
    let start = Instant::now();
    assert!(bucket.allow(2, start));
    assert!(!bucket.allow(1, start));
    assert!(bucket.allow(1, start + SECOND / 2));
    assert!(!bucket.allow(1, start + SECOND / 2));
    assert!(bucket.allow(2, start + 10 * SECOND));
    assert!(!bucket.allow(1, start + 10 * SECOND), "no more than the burst is saved");
}

#[test]
fn calls_queue_and_keep_their_order() {
    let bucket = TokenBucket::per_second(1);
    let start = Instant::now();
    let turns = [0, 1, 2].map(|_| bucket.reserve(1, start, None).expect("within burst").turn());
    assert_eq!(turns, [start, start + SECOND, start + 2 * SECOND]);
    let late = bucket.reserve(1, start, Some(start + 2 * SECOND)).expect_err("its turn is in 3 s");
    assert_eq!(late.to_string(), "rate: Wait(n=1) would exceed context deadline");
    let next = bucket.reserve(1, start, Some(start + 3 * SECOND)).expect("the refused took nothing");
    assert_eq!(next.turn(), start + 3 * SECOND);
}

#[test]
fn more_than_the_burst_is_an_error_with_the_reference_text() {
    let error = TokenBucket::per_second(500).reserve(501, Instant::now(), None).expect_err("too many");
    assert_eq!(error, RateError::ExceedsBurst { count: 501, burst: 500 });
    assert_eq!(error.to_string(), "rate (501) exceeds burst size (500)");
    assert!(TokenBucket::per_second(0).reserve(1, Instant::now(), None).is_err());
    assert!(TokenBucket::new(0.0, 1).reserve(1, Instant::now(), None).is_ok());
}

#[test]
fn an_abandoned_call_gives_back_what_nobody_counts_on() {
    let bucket = TokenBucket::per_second(1);
    let start = Instant::now();
    bucket.reserve(1, start, None).expect("the burst");
    let waiting = bucket.reserve(1, start, None).expect("in 1 s");
    bucket.cancel(waiting, start);
    assert_eq!(bucket.reserve(1, start, None).expect("again").turn(), start + SECOND);

    let first = bucket.reserve(1, start, None).expect("in 2 s");
    let second = bucket.reserve(1, start, None).expect("in 3 s");
    bucket.cancel(first, start);
    assert_eq!(bucket.reserve(1, start, None).expect("after it").turn(), second.turn() + SECOND);
    bucket.cancel(first, start + 5 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn a_wait_ends_at_its_turn_and_dropping_it_gives_the_place_back() {
    let bucket = TokenBucket::per_second(1);
    let start = tokio::time::Instant::now();
    bucket.wait(1, None).await.expect("at once");
    assert_eq!(start.elapsed(), Duration::ZERO);
    tokio::select! {
        biased;
        _ = bucket.wait(1, None) => panic!("not its turn"),
        () = tokio::task::yield_now() => {}
    }
    bucket.wait(1, None).await.expect("its turn");
    assert!(start.elapsed() >= SECOND && start.elapsed() < 2 * SECOND);
}

fn address(number: u32) -> IpAddr {
    Ipv4Addr::from(number).into()
}

#[test]
fn keys_do_not_share_and_unused_ones_are_forgotten() {
    let limiter = PerKeyLimiter::per_second(1);
    let start = Instant::now();
    let first = limiter.bucket(address(1), start);
    assert!(first.allow(1, start));
    assert!(limiter.bucket(address(2), start).allow(1, start));
    assert!(Arc::ptr_eq(&first, &limiter.bucket(address(1), start)));

    // A new key ends the generation; the first is still known in the next.
    limiter.bucket(address(3), start + GENERATION);
    assert!(Arc::ptr_eq(&first, &limiter.bucket(address(1), start + GENERATION)));
    limiter.bucket(address(4), start + 2 * GENERATION);
    limiter.bucket(address(5), start + 3 * GENERATION);
    assert!(!Arc::ptr_eq(&first, &limiter.bucket(address(1), start + 3 * GENERATION)));
}

#[test]
fn any_number_of_keys_stays_within_two_generations() {
    let limiter = PerKeyLimiter { keys_max: 10, ..PerKeyLimiter::per_second(1) };
    let start = Instant::now();
    for number in 0..1000 {
        limiter.bucket(address(number), start);
        let generations = limiter.generations.lock();
        assert!(generations.current.len() <= 10 && generations.previous.len() <= 10);
    }
}
