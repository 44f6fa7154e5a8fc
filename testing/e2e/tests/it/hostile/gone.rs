//! Connections that outlive the process that made them: to whoever holds them they give nothing, and not what belongs to
//! the process that has its ID by now.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::RawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use spire_testkit::{Daemon, Error, Output, Result};

use super::{HOST, WORKLOAD, everything_works};
use crate::harness::site::text;
use crate::harness::{Outcome, SOON, Site};

/// Connects to a socket, says which descriptor that is, and does nothing else.
const CONNECT: &str = "import socket, sys, time\ns = socket.socket(socket.AF_UNIX)\ns.connect(sys.argv[1])\n\
                       print('connected as', s.fileno(), flush=True)\ntime.sleep(600)";

/// Where the kernel keeps the last process ID that it gave.
const LAST_PID: &str = "/proc/sys/kernel/ns_last_pid";

/// How often a process ID is tried to be had again, which others may take first.
const ATTEMPTS: u32 = 50;

const SLEEPER: &str = "spiffe://example.org/sleeper";

/// A connection on which the client has said [`PREFACE`], and what was read of the answer.
struct Held {
    stream: UnixStream,
    first: [u8; 1],
}

/// What a client says first.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A process with a connection to the agent that the agent has taken, and that connection, which somebody else holds too.
fn connected(site: &Site) -> Result<(Daemon, Held)> {
    let socket = site.agent.socket();
    let args = ["-c", CONNECT, text(&socket)];
    let process = Daemon::start("caller", "python3".as_ref(), &args, site.folder())?;
    let said = process.wait_for(&["connected as "], SOON)?;
    let number: RawFd = said.rsplit(' ').next().and_then(|number| number.parse().ok()).unwrap_or(-1);
    let doing = |error| Error::doing("taking a descriptor", error);
    let pid = i32::try_from(process.pid()).ok().and_then(Pid::from_raw).ok_or_else(|| Error::new("no ID"))?;
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).map_err(doing)?;
    let held = pidfd_getfd(&pidfd, number, PidfdGetfdFlags::empty()).map_err(doing)?;
    let mut held = UnixStream::from(held);
    let doing = |error| Error::doing("the connection", error);
    held.write_all(PREFACE).map_err(doing)?;
    // The first octet of what the agent answers with.
    let mut first = [0; 1];
    held.read_exact(&mut first).map_err(doing)?;
    Ok((process, Held { stream: held, first }))
}

/// Passes on what is read, until nothing more comes.
fn pass(mut from: UnixStream, mut to: UnixStream) {
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        if to.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}

/// What a workload gets that speaks over this connection.
fn fetched_over(site: &Site, held: Held) -> Result<Output> {
    let path: PathBuf = site.path("held.sock");
    let _ = std::fs::remove_file(&path);
    let doing = |error| Error::doing("a socket", error);
    let listener = UnixListener::bind(&path).map_err(doing)?;
    std::thread::spawn(move || -> std::io::Result<()> {
        let (mut client, _) = listener.accept()?;
        client.read_exact(&mut [0; PREFACE.len()])?;
        client.write_all(&held.first)?;
        let held = held.stream;
        let (from, to) = (held.try_clone()?, client.try_clone()?);
        std::thread::spawn(move || pass(from, to));
        pass(client, held);
        Ok(())
    });
    let args = ["api", "fetch", "x509", "-timeout", "10s", "-socketPath", text(&path)];
    spire_testkit::Run::new(site.agent_programs.agent()).args(&args).within(site.folder()).output()
}

fn gave_nothing(output: &Output) {
    assert!(output.code != 0 && !output.stdout.contains("SPIFFE ID"), "{output}");
}

pub(super) fn processes() -> Outcome {
    let mut site = Site::new()?;
    site.agent.unix.push_str("\n            workload_size_limit = -1");
    let _server = site.start_server()?;
    let sleep = std::fs::canonicalize("/bin/sleep")?;
    site.entry(HOST, SLEEPER, &format!("unix:path:{}", text(&sleep)), &[])?;
    let mut agent = everything_works(&site)?;

    // As long as the process is there, its connection is worth what it is.
    let (process, held) = connected(&site)?;
    let output = fetched_over(&site, held)?;
    assert!(output.stdout.contains(WORKLOAD) && !output.stdout.contains(SLEEPER), "{output}");
    drop(process);

    let (mut process, held) = connected(&site)?;
    process.kill()?;
    gave_nothing(&fetched_over(&site, held)?);

    // Another process gets the ID before anything is asked.
    for attempt in 0.. {
        let (mut process, held) = connected(&site)?;
        let pid = process.pid();
        process.kill()?;
        std::fs::write(LAST_PID, (pid - 1).to_string())?;
        let sleeper = Daemon::start("sleeper", &sleep, &["600"], site.folder())?;
        if sleeper.pid() != pid {
            assert!(attempt < ATTEMPTS, "no process ID was given again");
            continue;
        }
        let mark = agent.mark();
        gave_nothing(&fetched_over(&site, held)?);
        agent.wait_after(mark, &["could not verify existence of the original caller"], SOON)?;
        break;
    }
    site.wait_identities(&[WORKLOAD])?;
    assert!(agent.is_running());
    Ok(())
}
