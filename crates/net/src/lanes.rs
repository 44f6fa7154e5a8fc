//! Threads that each serve connections of their own.
//!
//! A request of an agent is a chain of short steps: octets, a frame, a look into the view, a few frames back. On a
//! runtime of several workers every step that wakes another may wake another worker too, which finds nothing to do, or
//! takes the step away to a cache that knows nothing of it. On a lane the whole chain stays on one thread; lanes beside
//! each other use all processors (docs/adr/0014).

use std::io;
use std::thread;

use tokio::runtime::{Builder, Handle};
use tokio_util::sync::{CancellationToken, DropGuard};

/// More lanes than this would only wait: the datastore and the network come first.
const LANES_MAX: usize = 32;

/// Single-threaded runtimes, each on a thread of its own. What runs there ends when this is dropped.
#[derive(Debug)]
pub struct Lanes {
    handles: Vec<Handle>,
    _ended: DropGuard,
}

impl Lanes {
    /// A lane for each processor that this process may use.
    ///
    /// # Errors
    /// The system gives no thread, or no epoll descriptor.
    pub fn start() -> io::Result<Self> {
        let count = thread::available_parallelism().map_or(1, usize::from).min(LANES_MAX);
        let ended = CancellationToken::new();
        let handles = (0..count).map(|n| lane(n, ended.clone())).collect::<io::Result<_>>()?;
        Ok(Self { handles, _ended: ended.drop_guard() })
    }

    /// Where to spawn, at least one.
    pub fn handles(&self) -> &[Handle] {
        &self.handles
    }
}

fn lane(number: usize, ended: CancellationToken) -> io::Result<Handle> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let handle = runtime.handle().clone();
    thread::Builder::new().name(format!("lane-{number}")).spawn(move || {
        runtime.block_on(ended.cancelled_owned());
        // A read of the datastore that does not end must not keep the thread.
        runtime.shutdown_background();
    })?;
    Ok(handle)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn lanes_run_beside_each_other_and_end_together() {
        let lanes = Lanes::start().unwrap();
        let running: Vec<_> = lanes
            .handles()
            .iter()
            .map(|lane| {
                lane.spawn(async {
                    let name = thread::current().name().map(str::to_owned);
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    assert_eq!(thread::current().name().map(str::to_owned), name);
                    name
                })
            })
            .collect();
        let mut names = Vec::new();
        for lane in running {
            names.push(lane.await.unwrap().unwrap());
        }
        assert_eq!(names, (0..names.len()).map(|n| format!("lane-{n}")).collect::<Vec<_>>());
        let endless = lanes.handles()[0].spawn(std::future::pending::<()>());
        drop(lanes);
        assert!(endless.await.unwrap_err().is_cancelled());
    }
}
