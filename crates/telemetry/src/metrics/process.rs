//! What the process says of itself: go-metrics' runtime gauges, and the collectors of Prometheus' Go client, as far
//! as they mean something without Go's runtime (docs/differences.md).

use std::fs;

use rustix::process::{Resource, getrlimit};

use super::prometheus::Family;

/// Bytes of the heap, where the allocator can say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Heap {
    /// Allocated by the program.
    pub allocated: u64,
    /// In pages that hold something allocated.
    pub active: u64,
    /// Mapped from the system.
    pub mapped: u64,
}

/// Asks the allocator; `None` where it cannot say.
pub type HeapProbe = fn() -> Option<Heap>;

/// The gauges that go-metrics sends each second, by the second part of their names.
pub(crate) fn runtime_gauges(heap: HeapProbe) -> Vec<(&'static str, f64)> {
    let mut gauges = vec![("num_goroutines", tasks())];
    if let Some(heap) = heap() {
        gauges.push(("alloc_bytes", heap.allocated as f64));
        gauges.push(("sys_bytes", heap.mapped as f64));
    }
    gauges
}

/// What a scrape of Prometheus' Go client shows beside the application's metrics.
pub(crate) fn families(heap: HeapProbe) -> Vec<Family> {
    let gauge = |name, help, value| Family { name, help, kind: "gauge", value };
    let counter = |name, help, value| Family { name, help, kind: "counter", value };
    let mut families = vec![gauge("go_goroutines", "Number of tasks that currently exist.", tasks())];
    if let Some(heap) = heap() {
        let (allocated, active) = (heap.allocated as f64, heap.active as f64);
        families.extend([
            gauge(
                "go_memstats_alloc_bytes",
                "Number of bytes allocated in heap and currently in use.",
                allocated,
            ),
            gauge(
                "go_memstats_heap_alloc_bytes",
                "Number of heap bytes allocated and currently in use.",
                allocated,
            ),
            gauge("go_memstats_heap_inuse_bytes", "Number of heap bytes that are in use.", active),
            gauge("go_memstats_sys_bytes", "Number of bytes obtained from system.", heap.mapped as f64),
        ]);
    }
    if let Some(stat) = Stat::read() {
        families.extend([
            gauge("go_threads", "Number of OS threads created.", stat.threads),
            counter(
                "process_cpu_seconds_total",
                "Total user and system CPU time spent in seconds.",
                stat.cpu_seconds,
            ),
            gauge("process_resident_memory_bytes", "Resident memory size in bytes.", stat.resident),
            gauge(
                "process_start_time_seconds",
                "Start time of the process since unix epoch in seconds.",
                stat.start_seconds,
            ),
            gauge("process_virtual_memory_bytes", "Virtual memory size in bytes.", stat.virtual_size),
        ]);
    }
    let limit = |resource| getrlimit(resource).current.map(|limit| limit as f64);
    if let Some(open) = open_files() {
        families.push(gauge("process_open_fds", "Number of open file descriptors.", open));
    }
    let files = limit(Resource::Nofile).unwrap_or(u64::MAX as f64);
    families.push(gauge("process_max_fds", "Maximum number of open file descriptors.", files));
    let memory = limit(Resource::As).unwrap_or(u64::MAX as f64);
    let help = "Maximum amount of virtual memory available in bytes.";
    families.push(gauge("process_virtual_memory_max_bytes", help, memory));
    if let Some((received, sent)) = network() {
        let help = "Number of bytes received by the process over the network.";
        families.push(counter("process_network_receive_bytes_total", help, received));
        let help = "Number of bytes sent by the process over the network.";
        families.push(counter("process_network_transmit_bytes_total", help, sent));
    }
    families
}

/// Tasks that are alive: what goroutines are to Go.
fn tasks() -> f64 {
    tokio::runtime::Handle::try_current().map_or(0.0, |runtime| runtime.metrics().num_alive_tasks() as f64)
}

/// `/proc/self/stat` (proc_pid_stat(5)).
struct Stat {
    threads: f64,
    cpu_seconds: f64,
    resident: f64,
    start_seconds: f64,
    virtual_size: f64,
}

impl Stat {
    fn read() -> Option<Self> {
        let text = fs::read_to_string("/proc/self/stat").ok()?;
        let boot = fs::read_to_string("/proc/stat").ok()?;
        let boot = boot.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok())?;
        let ticks = rustix::param::clock_ticks_per_second() as f64;
        Self::parse(&text, boot, ticks, rustix::param::page_size() as f64)
    }

    /// Fields are counted from behind the command's name, which may hold anything.
    fn parse(text: &str, boot: f64, ticks: f64, page: f64) -> Option<Self> {
        let (_, after) = text.rsplit_once(") ")?;
        let fields: Vec<&str> = after.split_ascii_whitespace().collect();
        let number = |place: usize| fields.get(place - 3)?.parse::<f64>().ok();
        Some(Self {
            threads: number(20)?,
            cpu_seconds: (number(14)? + number(15)?) / ticks,
            resident: number(24)? * page,
            start_seconds: boot + number(22)? / ticks,
            virtual_size: number(23)?,
        })
    }
}

fn open_files() -> Option<f64> {
    // One of them is the folder that is being read.
    fs::read_dir("/proc/self/fd").ok().map(|files| files.count().saturating_sub(1) as f64)
}

/// Bytes received and sent in the process's network namespace.
fn network() -> Option<(f64, f64)> {
    let text = fs::read_to_string("/proc/self/net/netstat").ok()?;
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("IpExt: "));
    let (names, values) = (lines.next()?, lines.next()?);
    let value = |wanted: &str| {
        let place = names.split(' ').position(|name| name == wanted)?;
        values.split(' ').nth(place)?.parse::<f64>().ok()
    };
    Some((value("InOctets")?, value("OutOctets")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stat_line_is_read_behind_the_name() {
        let line =
            "7 (a) b) S 1 7 7 0 -1 4194560 1 0 0 0 250 50 0 0 20 0 9 0 1000 4096000 30 18446744073709551615";
        let stat = Stat::parse(line, 1000.0, 100.0, 4096.0).unwrap();
        assert_eq!((stat.threads, stat.cpu_seconds, stat.resident), (9.0, 3.0, 122_880.0));
        assert_eq!((stat.start_seconds, stat.virtual_size), (1010.0, 4_096_000.0));
        assert!(Stat::parse("7 (a) S 1", 0.0, 1.0, 1.0).is_none());
    }

    #[tokio::test]
    async fn this_process_says_what_it_is() {
        let families = families(|| Some(Heap { allocated: 1, active: 2, mapped: 3 }));
        let value = |name: &str| families.iter().find(|f| f.name == name).map(|f| f.value).unwrap();
        assert!(value("process_open_fds") > 2.0 && value("process_resident_memory_bytes") > 1e6);
        assert!(value("process_start_time_seconds") > 1.7e9 && value("go_threads") >= 1.0);
        assert_eq!(value("go_memstats_sys_bytes"), 3.0);
        let gauges = runtime_gauges(|| None);
        assert_eq!(gauges.iter().map(|(name, _)| *name).collect::<Vec<_>>(), ["num_goroutines"]);
    }
}
