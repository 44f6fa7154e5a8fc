//! Figures of the server.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use spire_wire::api::server::entry::v1 as entry;
use spire_wire::api::server::entry::v1::entry_client::EntryClient;
use spire_wire::api::server::svid::v1 as svid;
use spire_wire::api::server::svid::v1::svid_client::SvidClient;

use crate::Set;
use crate::api::{self, AgentSide, AttestedAgent, MESSAGE_MAX};
use crate::figure::{Figure, median};
use crate::measure::{Names, operations};
use crate::process::Site;

/// Start to ready and memory of an idle server.
pub(crate) async fn start(set: Set) -> Result<Vec<Figure>> {
    let mut starts = Vec::new();
    let site = Site::new(set)?;
    // The first start makes keys and the database; what users wait for is every start.
    for _ in 0..3 {
        starts.push(site.server().await?.started_in.as_secs_f64() * 1e3);
    }
    let server = site.server().await?;
    tokio::time::sleep(Duration::from_secs(5)).await;
    Ok(vec![
        Figure::new("server start to ready", "ms", median(&starts)),
        Figure::new("server memory, idle", "KiB", server.memory()?),
    ])
}

/// Minting by an admin.
pub(crate) async fn mint(set: Set) -> Result<Vec<Figure>> {
    let site = Site::new(set)?;
    let server = site.server().await?;
    let channel = api::unix(&site.server_socket());
    let csrs: Vec<Bytes> = (0..64)
        .map(|n| Ok(api::csr(Some(&format!("spiffe://example.org/minted/{n}")))?.1))
        .collect::<Result<_>>()?;
    let names =
        Names { cpu: "mint X.509-SVID", rate: "mint X.509-SVID, rate", latency: "mint X.509-SVID, latency" };
    let mut figures = operations(names, &server, 4000, 1, 4, |n| {
        let (mut client, csr) = (SvidClient::new(channel.clone()), csrs[n % csrs.len()].clone());
        async move {
            let request = svid::MintX509svidRequest { csr, ttl: 0 };
            client.mint_x509svid(request).await?.into_inner().svid.context("no SVID")?;
            Ok(())
        }
    })
    .await?;
    let names =
        Names { cpu: "mint JWT-SVID", rate: "mint JWT-SVID, rate", latency: "mint JWT-SVID, latency" };
    figures.extend(
        operations(names, &server, 8000, 1, 4, |n| {
            let mut client = SvidClient::new(channel.clone());
            async move {
                let request = svid::MintJwtsvidRequest {
                    id: Some(api::id(&format!("/minted/{}", n % 64))),
                    audience: vec!["bench".into()],
                    ttl: 0,
                };
                client.mint_jwtsvid(request).await?.into_inner().svid.context("no SVID")?;
                Ok(())
            }
        })
        .await?,
    );
    Ok(figures)
}

/// Creation in batches of 50, and listing.
pub(crate) async fn entries(set: Set) -> Result<Vec<Figure>> {
    const BATCH: usize = 50;
    let site = Site::new(set)?;
    let server = site.server().await?;
    let channel = api::unix(&site.server_socket());
    let names = Names {
        cpu: "create entry (batch of 50)",
        rate: "create entry, rate",
        latency: "create 50 entries, latency",
    };
    let mut figures = operations(names, &server, 100, BATCH, 2, |n| {
        let channel = channel.clone();
        async move {
            let entries = (0..BATCH)
                .map(|m| {
                    let own = format!("path:/bench/{n}/{m}");
                    api::new_entry("/group", &format!("/workload/{n}/{m}"), &["uid:4711", &own])
                })
                .collect();
            api::create_entries(&channel, entries).await?;
            Ok(())
        }
    })
    .await?;
    let names = Names {
        cpu: "list entry (pages of 500)",
        rate: "list entry, rate",
        latency: "list 500 entries, latency",
    };
    figures.extend(
        operations(names, &server, 100, 500, 1, |_| {
            let mut client = EntryClient::new(channel.clone()).max_decoding_message_size(MESSAGE_MAX);
            async move {
                let request = entry::ListEntriesRequest { page_size: 500, ..Default::default() };
                let page = client.list_entries(request).await?.into_inner();
                ensure!(page.entries.len() == 500, "a page of {}", page.entries.len());
                Ok(())
            }
        })
        .await?,
    );
    Ok(figures)
}

/// Attestation by join token, each on a connection of its own as agents do.
pub(crate) async fn attest(set: Set) -> Result<Vec<Figure>> {
    const AGENTS: usize = 1000;
    let site = Site::new(set)?;
    let server = site.server().await?;
    let channel = api::unix(&site.server_socket());
    let side = AgentSide::new(&channel, site.port).await?;
    let mut tokens = Vec::new();
    for _ in 0..AGENTS + AGENTS / 10 {
        tokens.push(api::join_token(&channel).await?);
    }
    let (_, csr) = api::csr(None)?;
    let names = Names { cpu: "attest by join token", rate: "attest, rate", latency: "attest, latency" };
    operations(names, &server, AGENTS, 1, 2, |n| {
        let (side, token, csr) = (&side, tokens[n].clone(), csr.clone());
        async move { side.attest(token, csr).await.map(|_| ()) }
    })
    .await
}

/// One agent with 1,000 entries: its sync and the signing of its SVIDs.
pub(crate) async fn sync_and_sign(set: Set) -> Result<Vec<Figure>> {
    const ENTRIES: usize = 1000;
    const BATCH: usize = 50;
    let site = Site::new(set)?;
    let server = site.server().await?;
    let channel = api::unix(&site.server_socket());
    let side = AgentSide::new(&channel, site.port).await?;
    let agent = side.join(&channel).await?;
    let mut ids = Vec::new();
    for batch in 0..ENTRIES / 100 {
        let entries = (0..100)
            .map(|n| {
                let path = format!("/w/{batch}/{n}");
                api::new_entry(agent.id.path(), &path, &["uid:4711", &format!("path:{path}")])
            })
            .collect();
        ids.extend(api::create_entries(&channel, entries).await?);
    }
    wait_until_seen(&agent, ENTRIES).await?;
    let names = Names {
        cpu: "sync of an agent with 1,000 entries, all",
        rate: "full sync, rate",
        latency: "full sync, latency",
    };
    let mut figures = operations(names, &server, 500, 1, 1, |_| async {
        let seen = sync(&agent, true).await?;
        ensure!(seen == ENTRIES, "{seen} entries");
        Ok(())
    })
    .await?;
    let names = Names {
        cpu: "sync of an agent with 1,000 entries, unchanged",
        rate: "sync, rate",
        latency: "sync, latency",
    };
    figures.extend(
        operations(names, &server, 2000, 1, 1, |_| async { sync(&agent, false).await.map(|_| ()) }).await?,
    );
    let names = Names {
        cpu: "1,000 entries of an agent in one answer",
        rate: "one answer, rate",
        latency: "one answer, latency",
    };
    figures.extend(
        operations(names, &server, 500, 1, 1, |_| async {
            let seen = at_once(&agent).await?;
            ensure!(seen == ENTRIES, "{seen} entries");
            Ok(())
        })
        .await?,
    );
    let (_, csr) = api::csr(None)?;
    let names = Names {
        cpu: "sign X.509-SVID for an agent (batch of 50)",
        rate: "sign, rate",
        latency: "sign 50, latency",
    };
    figures.extend(
        operations(names, &server, 80, BATCH, 1, |n| {
            let mut client = SvidClient::new(agent.channel.clone());
            let params = (0..BATCH)
                .map(|m| svid::NewX509svidParams {
                    entry_id: ids[(n * BATCH + m) % ENTRIES].clone(),
                    csr: csr.clone(),
                })
                .collect();
            async move {
                let answer =
                    client.batch_new_x509svid(svid::BatchNewX509svidRequest { params }).await?.into_inner();
                ensure!(answer.results.iter().all(|r| r.svid.is_some()), "not all signed");
                Ok(())
            }
        })
        .await?,
    );
    Ok(figures)
}

/// A server may take a while until an agent sees new entries.
async fn wait_until_seen(agent: &AttestedAgent, count: usize) -> Result<()> {
    crate::measure::until("entries to be seen", Duration::from_secs(30), || async {
        sync(agent, true).await.is_ok_and(|seen| seen == count)
    })
    .await?;
    Ok(())
}

/// Fetches all entries as agents do that do not sync (`use_sync_authorized_entries = false`). Returns how many there are.
async fn at_once(agent: &AttestedAgent) -> Result<usize> {
    let mut client = EntryClient::new(agent.channel.clone()).max_decoding_message_size(MESSAGE_MAX);
    let request = entry::GetAuthorizedEntriesRequest { output_mask: Some(api::agent_mask()) };
    Ok(client.get_authorized_entries(request).await?.into_inner().entries.len())
}

/// Syncs as SPIRE's agent does; `all` asks for every entry, else the agent has them already. Returns how many entries
/// the server named or sent.
pub(crate) async fn sync(agent: &AttestedAgent, all: bool) -> Result<usize> {
    let mut client = EntryClient::new(agent.channel.clone()).max_decoding_message_size(MESSAGE_MAX);
    let (send, receive) = tokio::sync::mpsc::channel(4);
    let first = entry::SyncAuthorizedEntriesRequest { output_mask: Some(api::agent_mask()), ids: Vec::new() };
    send.send(first).await?;
    let requests = tokio_stream::wrappers::ReceiverStream::new(receive);
    let mut answers = client.sync_authorized_entries(requests).await?.into_inner();
    let mut ids = Vec::new();
    loop {
        let answer = answers.message().await?.context("stream ended")?;
        if !answer.entries.is_empty() {
            // So few that the server sent them at once.
            return Ok(answer.entries.len());
        }
        ids.extend(answer.entry_revisions.into_iter().map(|r| r.id));
        if !answer.more {
            break;
        }
    }
    if !all {
        return Ok(ids.len());
    }
    let wanted = ids.len();
    send.send(entry::SyncAuthorizedEntriesRequest { output_mask: None, ids }).await?;
    let mut got = 0;
    loop {
        let answer = answers.message().await?.context("stream ended")?;
        got += answer.entries.len();
        if !answer.more || got >= wanted {
            return Ok(got);
        }
    }
}
