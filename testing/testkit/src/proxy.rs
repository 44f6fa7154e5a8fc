//! A TCP proxy between a program and what it needs, which cuts, holds and delays.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::place;

/// What is read at once.
const CHUNK: usize = 16 * 1024;

/// A listener on 127.0.0.1 that hands connections on. It ends with the value, and so do its connections.
pub struct Proxy {
    port: u16,
    line: Arc<Line>,
}

/// What all its connections share.
struct Line {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Where connections go.
    target: u16,
    /// New connections are refused.
    cut: bool,
    /// Nothing goes through, and nobody is told.
    held: bool,
    /// How late everything is.
    delay: Duration,
    /// Of the proxy itself.
    ended: bool,
    open: Vec<TcpStream>,
    accepted: u64,
}

impl Line {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    /// Waits as long as the line is held, and says how late what passes is; `None` at the end.
    fn pass(&self) -> Option<Duration> {
        let mut state = self.lock();
        while state.held && !state.ended {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        (!state.ended).then_some(state.delay)
    }
}

impl Proxy {
    /// A proxy to a port of 127.0.0.1.
    ///
    /// # Errors
    /// There is no port for it.
    pub fn start(target: u16) -> Result<Self> {
        let port = place::port()?;
        let listener =
            TcpListener::bind(("127.0.0.1", port)).map_err(|error| Error::doing("a proxy's port", error))?;
        let state = State { target, ..State::default() };
        let line = Arc::new(Line { state: Mutex::new(state), changed: Condvar::new() });
        let shared = Arc::clone(&line);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if shared.lock().ended {
                    return;
                }
                take(&shared, client);
            }
        });
        Ok(Self { port, line })
    }

    /// Where it listens on 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Ends all connections and takes no more, until [`Proxy::mend`].
    pub fn cut(&self) {
        self.line.change(|state| {
            state.cut = true;
            close(state);
        });
    }

    /// Ends all connections; new ones are taken.
    pub fn reset(&self) {
        self.line.change(close);
    }

    /// Lets nothing through any more, without a word to either side, until [`Proxy::mend`].
    pub fn hold(&self) {
        self.line.change(|state| state.held = true);
    }

    /// Makes everything so late, in each direction.
    pub fn delay(&self, by: Duration) {
        self.line.change(|state| state.delay = by);
    }

    /// Lets everything through again, at once.
    pub fn mend(&self) {
        self.line.change(|state| {
            state.cut = false;
            state.held = false;
            state.delay = Duration::ZERO;
        });
    }

    /// How many connections it ever took.
    #[must_use]
    pub fn accepted(&self) -> u64 {
        self.line.lock().accepted
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.line.change(|state| {
            state.ended = true;
            close(state);
        });
        // Wakes the listener, which looks and ends.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

fn close(state: &mut State) {
    for stream in state.open.drain(..) {
        let _ = stream.shutdown(Shutdown::Both);
    }
}

/// Hands a connection on, or lets it fall.
fn take(line: &Arc<Line>, client: TcpStream) {
    let mut state = line.lock();
    state.accepted += 1;
    if state.cut {
        return;
    }
    let Ok(server) = TcpStream::connect(("127.0.0.1", state.target)) else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let copies = (client.try_clone(), server.try_clone(), client.try_clone(), server.try_clone());
    let (Ok(from_client), Ok(to_server), Ok(kept), Ok(kept_too)) = copies else { return };
    // Closed ones are forgotten when there are many.
    if state.open.len() > 1000 {
        state.open.retain(|stream| stream.peer_addr().is_ok());
    }
    state.open.extend([kept, kept_too]);
    drop(state);
    let there = Arc::clone(line);
    let back = Arc::clone(line);
    thread::spawn(move || copy(&there, from_client, to_server));
    thread::spawn(move || copy(&back, server, client));
}

fn copy(line: &Line, mut from: TcpStream, mut to: TcpStream) {
    let mut chunk = vec![0; CHUNK];
    while let Ok(read @ 1..) = from.read(&mut chunk) {
        let Some(delay) = line.pass() else { break };
        if !delay.is_zero() {
            thread::park_timeout(delay);
        }
        if to.write_all(&chunk[..read]).is_err() {
            break;
        }
    }
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that says back what it hears.
    fn echo() -> u16 {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                thread::spawn(move || {
                    let mut chunk = [0; 64];
                    while let Ok(read @ 1..) = stream.read(&mut chunk) {
                        let _ = stream.write_all(&chunk[..read]);
                    }
                });
            }
        });
        port
    }

    fn call(stream: &mut TcpStream) -> std::io::Result<()> {
        stream.write_all(b"hello")?;
        stream.read_exact(&mut [0; 5])
    }

    #[test]
    fn lines_are_cut_held_and_mended() {
        let proxy = Proxy::start(echo()).unwrap();
        let connect = || TcpStream::connect(("127.0.0.1", proxy.port())).unwrap();
        let mut stream = connect();
        call(&mut stream).unwrap();
        proxy.hold();
        stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        assert!(call(&mut stream).is_err());
        proxy.mend();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream.read_exact(&mut [0; 5]).unwrap();
        proxy.cut();
        assert!(call(&mut stream).is_err());
        assert!(call(&mut connect()).is_err());
        proxy.mend();
        proxy.delay(Duration::from_millis(1));
        call(&mut connect()).unwrap();
        assert_eq!(proxy.accepted(), 3);
    }
}
