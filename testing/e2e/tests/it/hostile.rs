//! Clients that mean harm, and proxies between us and clients, at the sockets of running programs.

mod brokers;
mod gone;
mod keys;
mod streams;
mod unread;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;

use rustix::net::{AddressFamily, SocketType, bind, connect, socket};
use spire_testkit::{Error, Result, Run};

use crate::harness::peer::Peer;
use crate::harness::site::own_uid;
use crate::harness::{Case, Need, Outcome, SOON, Site};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case {
            name: "hostile::silent_and_half_open_clients_starve_nobody",
            needs: &[Need::Ours],
            run: silent,
        },
        Case { name: "hostile::floods_starve_nobody", needs: &[Need::Ours], run: floods },
        Case { name: "hostile::streams_that_say_nothing", needs: &[Need::Ours], run: streams::silent },
        Case { name: "hostile::streams_that_say_nonsense", needs: &[Need::Ours], run: streams::nonsense },
        Case { name: "hostile::streams_that_nobody_reads", needs: &[Need::Ours], run: unread::rotations },
        Case {
            name: "hostile::connections_of_processes_that_are_gone",
            needs: &[Need::Ours, Need::Root, Need::Peer(Peer::Python)],
            run: gone::processes,
        },
        Case {
            name: "hostile::keys_and_chains_that_are_too_large",
            needs: &[Need::Ours, Need::Openssl],
            run: keys::too_large,
        },
        Case {
            name: "hostile::silent_clients_of_the_brokers_port",
            needs: &[Need::Ours, Need::Openssl],
            run: brokers::silent,
        },
        Case { name: "hostile::trusted_proxies_say_who_calls", needs: &[], run: trusted_proxy },
        Case { name: "hostile::other_proxies_are_refused", needs: &[], run: other_proxy },
        Case { name: "hostile::pq_key_exchange_can_be_required", needs: &[Need::Openssl], run: pq_required },
    ]
}

/// Where attackers come from: limits are by address, and the honest come from 127.0.0.1.
const ATTACKER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 66);

/// More than one address may have in handshakes.
const SILENT: usize = 400;

const HOST: &str = "spiffe://example.org/host";
const WORKLOAD: &str = "spiffe://example.org/w";

fn attacker(port: u16) -> Result<TcpStream> {
    let failed = |error| Error::doing("attacker's socket", error);
    let fd = socket(AddressFamily::INET, SocketType::STREAM, None).map_err(failed)?;
    bind(&fd, &SocketAddrV4::new(ATTACKER, 0)).map_err(failed)?;
    connect(&fd, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, port)).map_err(failed)?;
    Ok(fd.into())
}

fn unix(path: &Path) -> Result<UnixStream> {
    UnixStream::connect(path).map_err(|error| Error::doing(path.display(), error))
}

/// A node joins, an entry is made, a workload is served.
fn everything_works(site: &Site) -> Result<spire_testkit::Daemon> {
    let agent = site.join(HOST)?;
    site.entry(HOST, WORKLOAD, &own_uid(), &[])?;
    site.wait_identities(&[WORKLOAD])?;
    Ok(agent)
}

/// The first octets of a ClientHello, of which the rest never comes.
const HALF_HELLO: &[u8] = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03";

/// An HTTP/2 preface and half a header block.
const HALF_REQUEST: &[u8] =
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\0\0\x0a\x01\0\0\0\0\x01\x83\x86\x04\x0f/test";

fn silent() -> Outcome {
    let site = Site::new()?;
    let _server = site.start_server()?;
    let mut held = Vec::new();
    for n in 0..SILENT {
        let mut connection = attacker(site.server.port)?;
        if n % 2 == 0 {
            // The server may have closed it already, which is as good.
            let _ = connection.write_all(HALF_HELLO);
        }
        held.push(connection);
    }
    let mut held_unix = Vec::new();
    for n in 0..SILENT {
        let mut connection = unix(&site.server.socket())?;
        if n % 2 == 0 {
            let _ = connection.write_all(HALF_REQUEST);
        }
        held_unix.push(connection);
    }
    let agent = everything_works(&site)?;
    for n in 0..SILENT {
        let mut connection = unix(&site.agent.socket())?;
        if n % 2 == 0 {
            let _ = connection.write_all(HALF_REQUEST);
        }
        held_unix.push(connection);
    }
    site.wait_identities(&[WORKLOAD])?;
    site.cli(&["healthcheck"])?;
    drop(agent);
    Ok(())
}

fn floods() -> Outcome {
    let site = Site::new()?;
    let mut server = site.start_server()?;
    let mut agent = everything_works(&site)?;
    let port = site.server.port;
    let sockets = [site.server.socket(), site.agent.socket()];
    thread::scope(|scope| -> Result<()> {
        let tcp = scope.spawn(move || {
            for n in 0..1500u32 {
                let Ok(mut connection) = attacker(port) else { continue };
                let junk = if n % 3 == 0 { vec![0xff; 4096] } else { [HALF_HELLO, &[0; 5000]].concat() };
                let _ = connection.write_all(&junk);
            }
        });
        let floods = sockets.each_ref().map(|path| {
            scope.spawn(move || {
                for n in 0..1500u32 {
                    let Ok(mut connection) = unix(path) else { continue };
                    let junk = if n % 3 == 0 {
                        b"GET / HTTP/1.1\r\n\r\n".repeat(200)
                    } else {
                        HALF_REQUEST.repeat(50)
                    };
                    let _ = connection.write_all(&junk);
                }
            })
        });
        site.wait_identities(&[WORKLOAD])?;
        site.cli(&["entry", "count"])?;
        for flood in floods.into_iter().chain([tcp]) {
            flood.join().map_err(|_| Error::new("a flood ended early"))?;
        }
        Ok(())
    })?;
    site.wait_identities(&[WORKLOAD])?;
    site.cli(&["agent", "list"])?;
    if !server.is_running() || !agent.is_running() {
        return Err(Error::new("one of them ended").into());
    }
    Ok(())
}

/// Forwards connections to the server with `header` before what each client says, for as long as the test runs.
fn proxy(port: u16, header: &'static [u8]) -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(|e| Error::doing("proxy", e))?;
    let address = listener.local_addr().map_err(|e| Error::doing("proxy", e))?;
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let Ok(mut server) = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port))) else {
                continue;
            };
            let _ = server.write_all(header);
            let (Ok(from_client), Ok(from_server)) = (client.try_clone(), server.try_clone()) else {
                continue;
            };
            thread::spawn(move || copy(from_client, server));
            thread::spawn(move || copy(from_server, client));
        }
    });
    Ok(address.port())
}

fn copy(mut from: TcpStream, mut to: TcpStream) {
    let _ = std::io::copy(&mut from, &mut to);
    let _ = to.shutdown(std::net::Shutdown::Both);
}

const HEADER: &[u8] = b"PROXY TCP4 10.9.8.7 127.0.0.1 4711 8081\r\n";

fn trusted_proxy() -> Outcome {
    let mut site = Site::new()?;
    site.server.lines.push("proxy_protocol_trusted_cidrs = [\"127.0.0.0/8\"]".to_owned());
    site.server.lines.push("audit_log_enabled = true".to_owned());
    let server = site.start_server()?;
    server.wait_for(&["PROXY protocol enabled on TCP listener", "trusted_cidrs="], SOON)?;
    let direct = site.agent.server_port;
    site.agent.server_port = proxy(direct, HEADER)?;
    let _agent = everything_works(&site)?;
    server.wait_for(&["Agent attestation request completed", "10.9.8.7:4711"], SOON)?;
    server.wait_for(&["API accessed", "method=PostStatus", "caller_addr=\"10.9.8.7:4711\""], SOON)?;
    Ok(())
}

fn other_proxy() -> Outcome {
    let mut site = Site::new()?;
    site.server.lines.push("proxy_protocol_trusted_cidrs = [\"10.0.0.0/8\"]".to_owned());
    let server = site.start_server()?;
    let direct = site.agent.server_port;
    let mut refused =
        TcpStream::connect((Ipv4Addr::LOCALHOST, direct)).map_err(|e| Error::doing("connect", e))?;
    refused.write_all(HEADER).map_err(|e| Error::doing("header", e))?;
    let mut answer = Vec::new();
    // Reset or closed, without a word of TLS.
    let _ = refused.read_to_end(&mut answer);
    if answer.first() == Some(&22) {
        return Err(Error::new("a handshake with who may not say a header").into());
    }
    drop(everything_works(&site)?);
    drop(server);
    Ok(())
}

fn pq_required() -> Outcome {
    let mut site = Site::new()?;
    for lines in [&mut site.server.lines, &mut site.agent.lines] {
        lines.retain(|line| !line.starts_with("experimental"));
        lines.push("experimental { require_pq_kem = true }".to_owned());
    }
    let _server = site.start_server()?;
    let _agent = everything_works(&site)?;
    let connect = format!("127.0.0.1:{}", site.server.port);
    let classic = Run::new("openssl")
        .args(&["s_client", "-connect", &connect, "-groups", "X25519:P-256", "-alpn", "h2"])
        .input("")
        .output()?;
    if classic.code == 0 || !classic.to_string().contains("handshake failure") {
        return Err(Error::new(format!("a classic key exchange must be refused: {classic}")).into());
    }
    Ok(())
}
