//! The part of MySQL's client protocol that a store needs: logging in, with TLS or without, commands, and prepared
//! statements (docs/adr/0013-a-mysql-client-of-our-own.md; MySQL Internals: client/server protocol).

mod auth;
pub(crate) mod fuzzing;
mod packet;
mod rows;

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::time::Duration;

use spire_net::tls::TlsClient;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};

use crate::fault::Sql;

use auth::{Login, Method};
use packet::{MALFORMED, PIECE_MAX, Reader, framed, push_string};
use rows::{Column, execution, row};
pub(super) use rows::{Field, Moment, Value};

/// `utf8mb4_general_ci`: what texts are sent in.
const CHARSET: u8 = 45;

/// How many prepared statements a connection keeps: more than this crate has texts in common use.
const STATEMENTS: usize = 256;

/// How many columns an answer has at most: what a table may have.
const COLUMNS_MAX: u64 = 4096;

/// How many times a server may ask for another method before it is not believed to end.
const ROUNDS_MAX: usize = 8;

mod can {
    pub(super) const LONG_PASSWORD: u32 = 1;
    pub(super) const FOUND_ROWS: u32 = 1 << 1;
    pub(super) const LONG_FLAG: u32 = 1 << 2;
    pub(super) const CONNECT_WITH_DB: u32 = 1 << 3;
    pub(super) const PROTOCOL_41: u32 = 1 << 9;
    pub(super) const TLS: u32 = 1 << 11;
    pub(super) const TRANSACTIONS: u32 = 1 << 13;
    pub(super) const SECURE_CONNECTION: u32 = 1 << 15;
    pub(super) const MULTI_STATEMENTS: u32 = 1 << 16;
    pub(super) const MULTI_RESULTS: u32 = 1 << 17;
    pub(super) const PLUGIN_AUTH: u32 = 1 << 19;
    pub(super) const CONNECT_ATTRS: u32 = 1 << 20;
    pub(super) const LENGTH_OF_AUTH: u32 = 1 << 21;
}

/// A flag of an answer that another follows.
const MORE_RESULTS: u16 = 8;

/// Why something failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// The server refused.
    #[error("{0}")]
    Server(Refusal),
    /// The connection broke.
    #[error("{0}")]
    Io(io::Error),
    /// The server is no MySQL that we know, or asks for what is not allowed.
    #[error("{0}")]
    Protocol(&'static str),
    /// TLS is wanted, and the server has none.
    #[error("TLS requested but server does not support TLS")]
    NoTls,
    /// Nothing was heard for too long.
    #[error("the database does not answer")]
    Silent,
}

/// What the server says is wrong, as the reference's driver prints it (MySQLError).
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) code: u16,
    state: String,
    message: String,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.state.as_str() {
            "" => write!(f, "Error {}: {}", self.code, self.message),
            state => write!(f, "Error {} ({state}): {}", self.code, self.message),
        }
    }
}

/// What a new connection needs to know.
pub(super) struct Greeting<'a> {
    pub(super) user: &'a str,
    pub(super) password: &'a str,
    pub(super) database: &'a str,
    pub(super) cleartext: bool,
    pub(super) native: bool,
    pub(super) attributes: Vec<(String, String)>,
    /// TLS and the name of the host; without, plain text.
    pub(super) tls: Option<(TlsClient, &'a str)>,
    /// Whether the stream never leaves this machine.
    pub(super) local: bool,
    /// Whether plain text will do where the server has no TLS.
    pub(super) fallback: bool,
    /// The longest answer that is taken, in octets.
    pub(super) packet_max: usize,
    /// How long the server may be silent.
    pub(super) silence: Duration,
}

/// A stream of octets, with TLS or without.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A connection.
pub(super) struct Client {
    stream: BufReader<Box<dyn Stream>>,
    sequence: u8,
    packet_max: usize,
    silence: Duration,
    statements: HashMap<Box<str>, u32>,
}

/// What a statement did.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Effect {
    pub(super) touched: u64,
    pub(super) id: u64,
}

/// The beginning of an answer.
enum Answer {
    Done(Effect, u16),
    Columns(Vec<Column>),
}

impl Client {
    /// Logs in.
    pub(super) async fn connect(
        stream: impl Stream + 'static,
        greeting: &Greeting<'_>,
    ) -> Result<Self, Failure> {
        let mut client = Self {
            stream: BufReader::new(Box::new(stream)),
            sequence: 0,
            packet_max: greeting.packet_max,
            silence: greeting.silence,
            statements: HashMap::new(),
        };
        let hello = client.receive().await?;
        let hello = Hello::read(&hello)?;
        let mut flags = can::LONG_PASSWORD
            | can::FOUND_ROWS
            | can::LONG_FLAG
            | can::PROTOCOL_41
            | can::TRANSACTIONS
            | can::SECURE_CONNECTION
            | can::MULTI_STATEMENTS
            | can::MULTI_RESULTS
            | can::PLUGIN_AUTH
            | can::LENGTH_OF_AUTH
            | can::CONNECT_ATTRS;
        if !greeting.database.is_empty() {
            flags |= can::CONNECT_WITH_DB;
        }
        flags &= hello.flags | can::LONG_PASSWORD;
        if flags & can::PROTOCOL_41 == 0 || flags & can::PLUGIN_AUTH == 0 {
            return Err(Failure::Protocol("the server speaks an old protocol"));
        }
        let private = match &greeting.tls {
            None => greeting.local,
            Some(_) if hello.flags & can::TLS == 0 && greeting.fallback => false,
            Some(_) if hello.flags & can::TLS == 0 => return Err(Failure::NoTls),
            Some((tls, host)) => {
                flags |= can::TLS;
                client.send(&opening(flags)).await?;
                client = client.secured(tls, host).await?;
                true
            }
        };
        client.log_in(greeting, &hello, flags, private).await?;
        Ok(client)
    }

    async fn secured(self, tls: &TlsClient, host: &str) -> Result<Self, Failure> {
        // What came in plain text behind the server's hello is not believed.
        if !self.stream.buffer().is_empty() {
            return Err(MALFORMED);
        }
        let stream = self.stream.into_inner();
        let stream = tls.handshake(host, stream).await.map_err(Failure::Io)?;
        Ok(Self { stream: BufReader::new(Box::new(stream)), ..self })
    }

    async fn log_in(
        &mut self,
        greeting: &Greeting<'_>,
        hello: &Hello,
        flags: u32,
        private: bool,
    ) -> Result<(), Failure> {
        let login = Login {
            password: greeting.password.as_bytes(),
            private,
            cleartext: greeting.cleartext,
            native: greeting.native,
        };
        // A method that we do not have is replaced by one that we do; the server may insist.
        let (mut method, name) = match Method::named(&hello.method) {
            Ok(method) => (method, hello.method.as_slice()),
            Err(_) => (Method::Native, b"mysql_native_password".as_slice()),
        };
        let mut challenge = hello.challenge.clone();
        let answer = match method.answer(&login, &challenge) {
            // Nothing of what is not allowed is sent before the server insists.
            Err(_) => Vec::new(),
            Ok(_) if matches!(method, Method::Clear) => Vec::new(),
            Ok(answer) => answer,
        };
        let mut out = opening(flags);
        out.extend_from_slice(greeting.user.as_bytes());
        out.push(0);
        push_string(&mut out, &answer);
        if flags & can::CONNECT_WITH_DB != 0 {
            out.extend_from_slice(greeting.database.as_bytes());
            out.push(0);
        }
        out.extend_from_slice(name);
        out.push(0);
        if flags & can::CONNECT_ATTRS != 0 {
            let mut attributes = Vec::new();
            for (key, value) in &greeting.attributes {
                push_string(&mut attributes, key.as_bytes());
                push_string(&mut attributes, value.as_bytes());
            }
            push_string(&mut out, &attributes);
        }
        self.send(&out).await?;
        for _ in 0..ROUNDS_MAX {
            let payload = self.receive().await?;
            let mut reader = Reader(&payload);
            match reader.u8()? {
                0x00 => return Ok(()),
                0xfe => {
                    let name = reader.until_zero();
                    if name.is_empty() {
                        return Err(Failure::Protocol("this user requires old password authentication"));
                    }
                    method = Method::named(name)?;
                    challenge = without_zero(reader.rest()).to_vec();
                    let answer = method.answer(&login, &challenge)?;
                    self.send(&answer).await?;
                }
                0x01 => self.more(&method, &login, &challenge, reader.rest()).await?,
                _ => return Err(MALFORMED),
            }
        }
        Err(Failure::Protocol("the server does not come to an end of the login"))
    }

    /// Goes on where a method has more than one message.
    async fn more(
        &mut self,
        method: &Method,
        login: &Login<'_>,
        challenge: &[u8],
        said: &[u8],
    ) -> Result<(), Failure> {
        match (method, said) {
            // It knew the password.
            (Method::CachingSha2, [3]) => Ok(()),
            (Method::CachingSha2, [4]) if login.private => self.send(&auth::terminated(login.password)).await,
            // Asks for the server's key.
            (Method::CachingSha2, [4]) => self.send(&[2]).await,
            (Method::CachingSha2 | Method::Sha256, key) if key.starts_with(b"-----BEGIN") => {
                let hidden = auth::encrypted(login.password, challenge, key)?;
                self.send(&hidden).await
            }
            _ => Err(MALFORMED),
        }
    }

    /// Runs commands as they are and drops what they answer.
    pub(super) async fn command(&mut self, sql: &str) -> Result<(), Failure> {
        self.begin(&[&[3], sql.as_bytes()].concat()).await?;
        loop {
            let status = match self.answer().await? {
                Answer::Done(_, status) => status,
                Answer::Columns(_) => self.rows(|_| Ok(())).await?,
            };
            if status & MORE_RESULTS == 0 {
                return Ok(());
            }
        }
    }

    /// Runs a statement and hands out its rows. One that `recurs` is kept prepared. The inner error is that of `each`, after
    /// which no more rows are handed out; neither are they where it says `false`.
    pub(super) async fn execute(
        &mut self,
        sql: &str,
        recurs: bool,
        values: &[Value],
        each: &mut dyn FnMut(Vec<Field<'_>>) -> Sql<bool>,
    ) -> Result<Sql<Effect>, Failure> {
        let statement = match self.statements.get(sql) {
            Some(statement) => *statement,
            None => self.prepare(sql, recurs).await?,
        };
        self.begin(&execution(statement, values)).await?;
        let outcome = match self.answer().await? {
            Answer::Done(effect, _) => Ok(effect),
            Answer::Columns(columns) => {
                let mut going = Ok(true);
                self.rows(|payload| {
                    let fields = row(payload, &columns)?;
                    if let Ok(true) = going {
                        going = each(fields);
                    }
                    Ok(())
                })
                .await?;
                going.map(|_| Effect::default())
            }
        };
        if !recurs {
            self.close(statement).await?;
        }
        Ok(outcome)
    }

    async fn prepare(&mut self, sql: &str, recurs: bool) -> Result<u32, Failure> {
        self.begin(&[&[0x16], sql.as_bytes()].concat()).await?;
        let payload = self.receive().await?;
        let mut reader = Reader(&payload);
        if reader.u8()? != 0 {
            return Err(MALFORMED);
        }
        let (statement, columns, parameters) = (reader.u32()?, reader.u16()?, reader.u16()?);
        for described in [parameters, columns] {
            for _ in 0..described {
                self.receive().await?;
            }
            if described > 0 {
                // The end of the list.
                self.receive().await?;
            }
        }
        if recurs {
            if self.statements.len() >= STATEMENTS {
                for (_, statement) in std::mem::take(&mut self.statements) {
                    self.close(statement).await?;
                }
            }
            self.statements.insert(sql.into(), statement);
        }
        Ok(statement)
    }

    /// Forgets a statement, which the server does not answer.
    async fn close(&mut self, statement: u32) -> Result<(), Failure> {
        self.begin(&[&[0x19][..], &statement.to_le_bytes()].concat()).await
    }

    async fn answer(&mut self) -> Result<Answer, Failure> {
        let payload = self.receive().await?;
        let mut reader = Reader(&payload);
        match payload.first() {
            Some(0) => {
                reader.u8()?;
                let effect = Effect { touched: reader.length()?, id: reader.length()? };
                Ok(Answer::Done(effect, reader.u16()?))
            }
            Some(0xfb) => Err(Failure::Protocol("the server asks for a file")),
            _ => {
                let count = reader.length()?;
                if count > COLUMNS_MAX {
                    return Err(MALFORMED);
                }
                let mut columns = Vec::new();
                for _ in 0..count {
                    columns.push(Column::read(&self.receive().await?)?);
                }
                self.receive().await?;
                Ok(Answer::Columns(columns))
            }
        }
    }

    /// Hands out rows up to their end, and says its status.
    async fn rows(&mut self, mut each: impl FnMut(&[u8]) -> Result<(), Failure>) -> Result<u16, Failure> {
        loop {
            let payload = self.receive().await?;
            if payload.first() == Some(&0xfe) && payload.len() < 9 {
                let mut reader = Reader(&payload[1..]);
                reader.u16()?;
                return reader.u16();
            }
            each(&payload)?;
        }
    }

    /// Sends a command, which begins to count packets anew.
    async fn begin(&mut self, payload: &[u8]) -> Result<(), Failure> {
        self.sequence = 0;
        self.send(payload).await
    }

    async fn send(&mut self, payload: &[u8]) -> Result<(), Failure> {
        let framed = framed(payload, &mut self.sequence);
        let stream = self.stream.get_mut();
        heard(self.silence, async {
            stream.write_all(&framed).await?;
            stream.flush().await
        })
        .await
    }

    /// The next payload; an error where it is one.
    async fn receive(&mut self) -> Result<Vec<u8>, Failure> {
        let mut payload = Vec::new();
        loop {
            let mut header = [0; 4];
            heard(self.silence, self.stream.read_exact(&mut header)).await?;
            let [a, b, c, sequence] = header;
            if sequence != self.sequence {
                return Err(Failure::Protocol("commands out of sync"));
            }
            self.sequence = sequence.wrapping_add(1);
            let length = usize::from(a) | usize::from(b) << 8 | usize::from(c) << 16;
            if payload.len() + length > self.packet_max {
                return Err(Failure::Protocol(
                    "packet for query is too large. Try adjusting the `Config.MaxAllowedPacket`",
                ));
            }
            // It grows with what arrives, not with what is announced.
            let wanted = payload.len() + length;
            let announced = u64::try_from(length).unwrap_or(0);
            heard(self.silence, (&mut self.stream).take(announced).read_to_end(&mut payload)).await?;
            if payload.len() != wanted {
                return Err(Failure::Io(io::ErrorKind::UnexpectedEof.into()));
            }
            if length < PIECE_MAX {
                break;
            }
        }
        match payload.first() {
            Some(0xff) => Err(Failure::Server(refusal(&payload[1..])?)),
            Some(_) => Ok(payload),
            None => Err(MALFORMED),
        }
    }
}

/// Waits for a piece of an answer, but not for ever.
async fn heard<T>(at_most: Duration, piece: impl Future<Output = io::Result<T>>) -> Result<T, Failure> {
    match tokio::time::timeout(at_most, piece).await {
        Ok(piece) => piece.map_err(Failure::Io),
        Err(_) => Err(Failure::Silent),
    }
}

fn refusal(payload: &[u8]) -> Result<Refusal, Failure> {
    let mut reader = Reader(payload);
    let code = reader.u16()?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    // Before the login there is no state.
    let state = if reader.0.first() == Some(&b'#') { text(&reader.take(6)?[1..]) } else { String::new() };
    Ok(Refusal { code, state, message: text(reader.rest()) })
}

/// What a client says first, with TLS or without.
fn opening(flags: u32) -> Vec<u8> {
    let mut out = flags.to_le_bytes().to_vec();
    // We take any length, and say no more than this of it.
    out.extend_from_slice(&0x4000_0000_u32.to_le_bytes());
    out.push(CHARSET);
    out.extend_from_slice(&[0; 23]);
    out
}

fn without_zero(bytes: &[u8]) -> &[u8] {
    bytes.strip_suffix(&[0]).unwrap_or(bytes)
}

/// What the server says first.
struct Hello {
    flags: u32,
    challenge: Vec<u8>,
    method: Vec<u8>,
}

impl Hello {
    fn read(payload: &[u8]) -> Result<Self, Failure> {
        let mut reader = Reader(payload);
        if reader.u8()? != 10 {
            return Err(Failure::Protocol("the server speaks an unknown protocol"));
        }
        reader.until_zero();
        reader.take(4)?;
        let mut challenge = reader.take(8)?.to_vec();
        reader.take(1)?;
        let mut flags = u32::from(reader.u16()?);
        reader.take(3)?;
        flags |= u32::from(reader.u16()?) << 16;
        let length = usize::from(reader.u8()?);
        reader.take(10)?;
        challenge.extend_from_slice(without_zero(reader.take(length.saturating_sub(8).max(13))?));
        let method = reader.until_zero().to_vec();
        Ok(Self { flags, challenge, method })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hello_is_read() {
        let mut bytes = b"\x0a10.11.6-MariaDB\0\x01\0\0\0AAAAAAAA\0\xfe\xf7\x2d\x02\0\xff\x81\x15".to_vec();
        bytes.extend_from_slice(&[0; 10]);
        bytes.extend_from_slice(b"BBBBBBBBBBBB\0mysql_native_password\0");
        let hello = Hello::read(&bytes).unwrap();
        assert_eq!(hello.challenge, b"AAAAAAAABBBBBBBBBBBB");
        assert_eq!(hello.method, b"mysql_native_password");
        assert_eq!(hello.flags & can::PLUGIN_AUTH, can::PLUGIN_AUTH);
        for cut in 0..60 {
            assert!(Hello::read(&bytes[..cut]).is_err(), "{cut}");
        }
    }

    #[test]
    fn refusals_are_told_as_the_driver_does() {
        let shown = |bytes: &[u8]| refusal(bytes).unwrap().to_string();
        assert_eq!(shown(b"\x26\x04#23000Duplicate entry"), "Error 1062 (23000): Duplicate entry");
        assert_eq!(shown(b"\x10\x04Too many connections"), "Error 1040: Too many connections");
        assert!(refusal(b"\x26").is_err());
    }
}
