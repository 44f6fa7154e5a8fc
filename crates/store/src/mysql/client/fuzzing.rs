//! A conversation with a server that says anything, for fuzz targets.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex, split};

use super::{Client, Failure, Field, Greeting, Value};

/// The password of [`converse`], which nobody may hear.
pub const PASSWORD: &str = "the password of this conversation";

/// Octets that are on their way in each direction.
const BUFFERED: usize = 1 << 16;

/// What became of a conversation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Heard {
    /// Whether the server let the client in.
    pub logged_in: bool,
    /// Commands and statements that were answered.
    pub answers: usize,
    /// Rows in the answers.
    pub rows: usize,
    /// Octets of their texts.
    pub octets: usize,
    /// What the client said, as the server got it.
    pub sent: Vec<u8>,
}

/// Logs in without TLS, runs a command and two prepared statements, the second of which is closed. The server says `said` and
/// then ends, whatever it is asked.
pub async fn converse(said: &[u8]) -> Heard {
    let (ours, theirs) = duplex(BUFFERED);
    let (mut from, mut to) = split(theirs);
    let server = async {
        let mut sent = Vec::new();
        let say = async {
            // A client that has heard enough goes away.
            let _ = to.write_all(said).await;
            let _ = to.shutdown().await;
        };
        let _ = tokio::join!(say, from.read_to_end(&mut sent));
        sent
    };
    let client = async {
        let greeting = Greeting {
            user: "u",
            password: PASSWORD,
            database: "d",
            cleartext: false,
            native: true,
            attributes: Vec::new(),
            tls: None,
            local: false,
            fallback: false,
            packet_max: 1 << 20,
            silence: Duration::from_secs(10),
        };
        let mut heard = Heard::default();
        if let Ok(mut client) = Client::connect(ours, &greeting).await {
            heard.logged_in = true;
            // How it ends is the server's business.
            let _ = talk(&mut client, &mut heard).await;
        }
        heard
    };
    let (sent, heard) = tokio::join!(server, client);
    Heard { sent, ..heard }
}

async fn talk(client: &mut Client, heard: &mut Heard) -> Result<(), Failure> {
    client.command("SET x = 1").await?;
    heard.answers += 1;
    for (sql, recurs) in [("SELECT ?", true), ("SELECT 1, ?", false)] {
        let mut each = |fields: Vec<Field<'_>>| {
            heard.rows += 1;
            heard.octets += fields
                .iter()
                .map(|field| match field {
                    Field::Text(bytes) | Field::Blob(bytes) => bytes.len(),
                    Field::Null | Field::Int(_) | Field::Time(_) => 0,
                })
                .sum::<usize>();
            Ok(true)
        };
        // Rows are what is counted, not what they mean.
        let _ = client.execute(sql, recurs, &[Value::Int(7)], &mut each).await?;
        heard.answers += 1;
    }
    Ok(())
}
