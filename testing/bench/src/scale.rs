//! A server with 50,000 entries.

use std::time::Duration;

use anyhow::Result;

use crate::Set;
use crate::api;
use crate::figure::Figure;
use crate::measure::to_f64;
use crate::process::Site;

const ENTRIES: usize = 50_000;

/// CPU while nobody asks anything, and memory of an entry.
pub(crate) async fn fifty_thousand(set: Set) -> Result<Vec<Figure>> {
    const BATCH: usize = 200;
    const IDLE: Duration = Duration::from_secs(30);
    let site = Site::new(set)?;
    let empty = {
        let server = site.server().await?;
        let socket = api::unix(&site.server_socket());
        for batch in 0..ENTRIES / BATCH {
            let entries = (0..BATCH)
                .map(|n| {
                    let own = format!("path:/opt/workload-{batch}-{n}");
                    api::new_entry(
                        &format!("/group/{}", batch % 50),
                        &format!("/ns/{batch}/sa/{n}"),
                        &["uid:1000", &own],
                    )
                })
                .collect();
            api::create_entries(&socket, entries).await?;
        }
        drop(server);
        let other = Site::new(site.set())?;
        let server = other.server().await?;
        tokio::time::sleep(Duration::from_secs(5)).await;
        server.memory()?
    };
    // A start with all entries there: no garbage of their creation.
    let server = site.server().await?;
    let started = server.started_in;
    tokio::time::sleep(Duration::from_secs(10)).await;
    let (memory, cpu) = (server.memory()?, server.cpu()?);
    tokio::time::sleep(IDLE).await;
    let idle = server.cpu()?.saturating_sub(cpu);
    Ok(vec![
        Figure::new("start with 50,000 entries", "ms", started.as_secs_f64() * 1e3),
        Figure::new("memory of an entry at 50,000", "bytes", (memory - empty) * 1024.0 / to_f64(ENTRIES)),
        Figure::new(
            "CPU while idle with 50,000 entries",
            "% core",
            idle.as_secs_f64() / IDLE.as_secs_f64() * 100.0,
        ),
    ])
}
