//! How a plugin's program is started so that it never outlives us (pkg/common/catalog/cmd_linux.go: Pdeathsig).
//!
//! The kernel ends a child with its parent where the child asks for it, after the fork and before the program. Rust
//! can run nothing there without `unsafe`; so a binary that calls [`run_if_launcher`] first in its `main` is started
//! once more, asks, and becomes the program. The signal comes when the *thread* that forked ends: one thread that
//! lives as long as the process starts all plugins.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::{CommandExt, parent_id};
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError, mpsc};

use rustix::process::{Signal, set_parent_process_death_signal};
use tokio::process::Child;
use tokio::sync::oneshot;

/// The first argument of a launcher.
const MARK: &str = "--spire-plugin-launcher";

/// Whether this process can be started as a launcher.
static CAN_LAUNCH: AtomicBool = AtomicBool::new(false);

/// Becomes a plugin's program where this process was started for that. Call it first in `main`: it returns an exit
/// code only where the program could not be run.
pub fn run_if_launcher() -> Option<ExitCode> {
    CAN_LAUNCH.store(true, Ordering::Relaxed);
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next()? != MARK {
        return None;
    }
    let parent = arguments.next()?.to_str()?.parse::<u32>().ok()?;
    let program = arguments.next()?;
    // The parent may have ended before the kernel was asked.
    if set_parent_process_death_signal(Some(Signal::KILL)).is_err() || parent_id() != parent {
        return Some(ExitCode::FAILURE);
    }
    let error = Command::new(&program).args(arguments).exec();
    complain(&program, &error);
    Some(ExitCode::from(127))
}

#[expect(clippy::print_stderr, reason = "whoever started this reads it as the plugin's log")]
fn complain(program: &OsString, error: &io::Error) {
    eprintln!("[ERROR] fork/exec {}: {}", program.display(), spire_net::errno_text(error));
}

/// The command that runs the program; by way of a launcher where there is one.
pub(crate) fn command(program: &PathBuf, arguments: &[String]) -> tokio::process::Command {
    let launcher = CAN_LAUNCH.load(Ordering::Relaxed).then(|| PathBuf::from("/proc/self/exe"));
    let mut command = match launcher {
        None => tokio::process::Command::new(program),
        Some(launcher) => {
            let mut command = tokio::process::Command::new(launcher);
            command.arg(MARK).arg(std::process::id().to_string()).arg(program);
            command
        }
    };
    command.args(arguments);
    command
}

struct Order {
    command: tokio::process::Command,
    runtime: tokio::runtime::Handle,
    started: oneshot::Sender<io::Result<Child>>,
}

/// Starts the command on the thread that starts them all.
pub(crate) async fn spawn(command: tokio::process::Command) -> io::Result<Child> {
    let gone = || io::Error::other("the thread that starts plugins ended");
    let (started, child) = oneshot::channel();
    let order = Order { command, runtime: tokio::runtime::Handle::current(), started };
    orders()?.send(order).map_err(|_| gone())?;
    child.await.map_err(|_| gone())?
}

fn orders() -> io::Result<mpsc::Sender<Order>> {
    static ORDERS: Mutex<Option<mpsc::Sender<Order>>> = Mutex::new(None);
    let mut orders = ORDERS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(orders) = &*orders {
        return Ok(orders.clone());
    }
    let (sender, receiver) = mpsc::channel::<Order>();
    std::thread::Builder::new().name("plugin-launcher".to_owned()).spawn(move || {
        for mut order in receiver {
            let _runtime = order.runtime.enter();
            // Whoever gave up waiting gets no child: it is killed when it is dropped.
            let _ = order.started.send(order.command.spawn());
        }
    })?;
    *orders = Some(sender.clone());
    Ok(sender)
}
