//! Programs that get the identities of others: delegates on the admin socket, brokers on theirs, and those that read
//! files of an SVIDStore. What SPIRE has too is asked of SPIRE's agent in the same way, where its programs are there.

use std::path::PathBuf;
use std::sync::Arc;

use prost::Message;
use spire_core::pki::{Certificate, LocalKey, pem};
use spire_core::spiffe::{SpiffeId, TrustDomain};
use spire_net::grpc::{tcp_channel, unix_channel};
use spire_net::tls::{Identity, TlsClient, TlsPolicy, TlsUnixConnector, TrustSource, UnixConnector};
use spire_testkit::{Daemon, Run, place, wait};
use spire_wire::api::agent::delegatedidentity::v1 as delegated;
use spire_wire::api::types;
use spire_wire::broker;
use tempfile::TempDir;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use crate::harness::programs::{self, Programs};
use crate::harness::site::{answers, own_uid, text};
use crate::harness::{Case, Need, Outcome, SOON, Site};

pub(crate) fn cases() -> Vec<Case> {
    use Need::{Ours, Reference};
    vec![
        Case { name: "delegate::identities_of_others", needs: &[], run: || identities_of_others(None) },
        Case {
            name: "delegate::identities_of_others_of_spire",
            needs: &[Reference],
            run: || identities_of_others(programs::reference()),
        },
        Case { name: "delegate::broker", needs: &[], run: || brokers(None) },
        Case {
            name: "delegate::broker_of_spire",
            needs: &[Reference],
            run: || brokers(programs::reference()),
        },
        Case { name: "delegate::stored_on_disk", needs: &[Ours], run: stored_on_disk },
    ]
}

pub(crate) const NODE: &str = "spiffe://example.org/node";
pub(crate) const DELEGATE: &str = "spiffe://example.org/delegate";
pub(crate) const PID: &str = "type.googleapis.com/spiffe.broker.WorkloadPIDReference";
pub(crate) const OBJECT: &str = "type.googleapis.com/spiffe.broker.KubernetesObjectReference";

/// A site whose agent has further sockets, in a folder of their own as they must be.
pub(crate) struct Setup {
    pub(crate) site: Site,
    sockets: TempDir,
    pub(crate) port: u16,
    _server: Daemon,
    pub(crate) agent: Daemon,
}

impl Setup {
    /// With the agent of these programs, or the one under test, and an entry for whoever runs the tests.
    fn start(programs: Option<&'static Programs>) -> Result<Self, libtest_mimic::Failed> {
        Self::start_with(programs, |_| Ok(()))
    }

    /// As [`Self::start`], of a site that was prepared.
    pub(crate) fn start_with(
        programs: Option<&'static Programs>,
        prepare: impl FnOnce(&mut Site) -> Outcome,
    ) -> Result<Self, libtest_mimic::Failed> {
        let mut site = Site::with_default_intervals()?;
        // The digest of a large program takes long.
        site.agent.unix.push_str("\n            workload_size_limit = -1");
        prepare(&mut site)?;
        if let Some(programs) = programs {
            site.agent_programs = programs;
        }
        let (sockets, port) = (place::folder()?, place::port()?);
        let path = |name: &str| sockets.path().join(name).display().to_string();
        let experimental = "experimental {\n cache_reload_interval = \"1s\"\n events_based_cache = true\n }";
        site.server.lines.push(experimental.to_owned());
        site.agent.lines.extend([
            format!("admin_socket_path = \"{}\"", path("admin/api.sock")),
            format!("authorized_delegates = [\"{DELEGATE}\"]"),
            format!(
                "experimental {{\n sync_interval = \"1s\"\n broker {{\n socket_path = \"{}\"\n bind_address = \
                 \"127.0.0.1:{port}\"\n brokers = [{{ id = \"{DELEGATE}\", allowed_reference_types = [{{ type_url = \
                 \"{PID}\" }}, {{ type_url = \"{OBJECT}\", allow_over_tcp = true }}] }}]\n }}\n }}",
                path("broker/api.sock")
            ),
        ]);
        let server = site.start_server()?;
        let agent = site.join(NODE)?;
        let mut setup = Self { site, sockets, port, _server: server, agent };
        setup.all_sockets_answer()?;
        setup.site.entry(NODE, DELEGATE, &own_uid(), &[])?;
        setup.site.wait_identities(&[DELEGATE])?;
        Ok(setup)
    }

    /// Starts the agent again, with what its configuration says now.
    pub(crate) fn restart(&mut self) -> Outcome {
        self.agent.stop()?;
        self.agent = self.site.start_agent(&[])?;
        self.all_sockets_answer()
    }

    /// SPIRE's agent makes its sockets in no order: that of the workloads may be there before the others are.
    fn all_sockets_answer(&mut self) -> Outcome {
        for socket in [self.admin_socket(), self.broker_socket()] {
            answers(&mut self.agent, &socket)?;
        }
        Ok(())
    }

    fn broker_socket(&self) -> PathBuf {
        self.sockets.path().join("broker/api.sock")
    }

    fn admin_socket(&self) -> PathBuf {
        self.sockets.path().join("admin/api.sock")
    }

    fn delegated(&self) -> delegated::delegated_identity_client::DelegatedIdentityClient<Channel> {
        let channel = unix_channel(UnixConnector::new(self.admin_socket()));
        delegated::delegated_identity_client::DelegatedIdentityClient::new(channel)
    }

    /// An agent's command on the admin socket.
    fn admin(&self, args: &[&str]) -> Result<String, spire_testkit::Error> {
        let socket = self.admin_socket();
        let run = Run::new(self.site.agent_programs.agent()).args(args).args(&["-socketPath", text(&socket)]);
        Ok(run.within(self.site.folder()).success()?.stdout)
    }
}

fn selectors(values: &[&str]) -> Vec<types::Selector> {
    let one = |value: &&str| types::Selector { r#type: "docker".to_owned(), value: (*value).to_owned() };
    values.iter().map(one).collect()
}

fn paths(answer: &delegated::SubscribeToX509sviDsResponse) -> Vec<String> {
    let ids = answer.x509_svids.iter().filter_map(|svid| svid.x509_svid.as_ref()?.id.as_ref());
    ids.map(|id| id.path.clone()).collect()
}

pub(crate) fn told(status: &Status) -> (Code, &str) {
    (status.code(), status.message())
}

pub(crate) fn block_on<T>(work: impl Future<Output = T>) -> std::io::Result<T> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work))
}

fn identities_of_others(programs: Option<&'static Programs>) -> Outcome {
    let mut setup = Setup::start(programs)?;
    ask_all_of_admins(&setup)?;

    // Without its right the same caller gets nothing.
    setup.site.agent.lines.retain(|line| !line.starts_with("authorized_delegates"));
    setup.restart()?;
    let status = block_on(async {
        let request = delegated::SubscribeToX509BundlesRequest {};
        setup.delegated().subscribe_to_x509_bundles(request).await.err()
    })?;
    let status = status.ok_or("it was answered")?;
    let denied = (Code::PermissionDenied, "caller not configured as an authorized delegate");
    assert_eq!(told(&status), denied);
    Ok(())
}

/// Calls of all services of the admin socket.
pub(crate) fn ask_all_of_admins(setup: &Setup) -> Outcome {
    setup.site.entry(NODE, "spiffe://example.org/web", "docker:label:app:web", &[])?;
    setup.agent.wait_for(&["spiffe://example.org/web"], SOON)?;
    block_on(follow_others(setup))??;

    assert_eq!(place::mode(&setup.admin_socket())?, 0o770);
    let shown = setup.admin(&["debug", "getinfo"])?;
    for part in ["Agent Debug Info", "Uptime", "spiffe://example.org/spire/agent/join_token/"] {
        assert!(shown.contains(part), "{part} is not in\n{shown}");
    }
    let level =
        |text: &str| text.split_whitespace().filter(|word| ["debug", "warning"].contains(word)).count();
    assert_eq!(level(&setup.admin(&["logger", "set", "-level", "warning"])?), 2, "level and launch level");
    assert!(setup.admin(&["logger", "get"])?.contains("warning"));
    assert!(!setup.admin(&["logger", "reset"])?.contains("warning"));
    Ok(())
}

async fn follow_others(setup: &Setup) -> Outcome {
    let mut client = setup.delegated();
    let ask =
        |values: &[&str], pid| delegated::SubscribeToX509sviDsRequest { selectors: selectors(values), pid };
    let mut stream = client.subscribe_to_x509svi_ds(ask(&["label:app:web"], 0)).await?.into_inner();
    let first = stream.message().await?.ok_or("the stream ended")?;
    assert_eq!(paths(&first), ["/web"]);
    let key = LocalKey::from_pkcs8(&first.x509_svids[0].x509_svid_key)?;
    let chain = &first.x509_svids[0].x509_svid.as_ref().ok_or("no SVID")?.cert_chain;
    assert_eq!(Certificate::from_der(chain[0].clone())?.spki_der(), &key.public_key().spki()[..]);

    let site = &setup.site;
    site.entry(NODE, "spiffe://example.org/web2", "docker:label:app:web", &[])?;
    let mut found = Vec::new();
    while found.len() < 2 {
        found = paths(&stream.message().await?.ok_or("the stream ended")?);
    }
    found.sort_unstable();
    assert_eq!(found, ["/web", "/web2"]);

    let pid = i32::try_from(std::process::id())?;
    let mut own = client.subscribe_to_x509svi_ds(ask(&[], pid)).await?.into_inner();
    assert_eq!(paths(&own.message().await?.ok_or("the stream ended")?), ["/delegate"]);
    let status = client.subscribe_to_x509svi_ds(ask(&["x"], pid)).await.err().ok_or("it was answered")?;
    let text = "must provide either selectors or non-zero PID, but not both";
    assert_eq!(told(&status), (Code::InvalidArgument, text));

    let fetch = |audience: &[&str], value: &str| delegated::FetchJwtsviDsRequest {
        audience: audience.iter().map(|text| (*text).to_owned()).collect(),
        selectors: selectors(&[value]),
        pid: 0,
    };
    let svids = client.fetch_jwtsvi_ds(fetch(&["a"], "label:app:web")).await?.into_inner().svids;
    assert_eq!(svids.len(), 2);
    let status = client.fetch_jwtsvi_ds(fetch(&["a"], "label:app:x")).await.err().ok_or("it was answered")?;
    assert_eq!(told(&status), (Code::PermissionDenied, "no identity issued"));
    let status = client.fetch_jwtsvi_ds(fetch(&[], "label:app:web")).await.err().ok_or("it was answered")?;
    assert_eq!(told(&status), (Code::InvalidArgument, "audience must be specified"));

    let request = delegated::SubscribeToX509BundlesRequest {};
    let mut bundles = client.subscribe_to_x509_bundles(request).await?.into_inner();
    let bundles = bundles.message().await?.ok_or("the stream ended")?.ca_certificates;
    assert_eq!(bundles.keys().collect::<Vec<_>>(), ["spiffe://example.org"]);
    let request = delegated::SubscribeToJwtBundlesRequest {};
    let mut bundles = client.subscribe_to_jwt_bundles(request).await?.into_inner();
    let bundles = bundles.message().await?.ok_or("the stream ended")?.bundles;
    let document: serde_json::Value = serde_json::from_slice(&bundles["spiffe://example.org"])?;
    assert!(document["keys"][0]["kid"].is_string(), "{document}");
    Ok(())
}

/// The authorities of one trust domain.
#[derive(Debug)]
struct Bundle(Arc<[Certificate]>);

impl TrustSource for Bundle {
    fn authorities(&self, _: &TrustDomain) -> Option<Arc<[Certificate]>> {
        Some(Arc::clone(&self.0))
    }
}

pub(crate) type Secured = InterceptedService<Channel, fn(Request<()>) -> Result<Request<()>, Status>>;

pub(crate) fn secure(mut request: Request<()>) -> Result<Request<()>, Status> {
    request.metadata_mut().insert("broker.spiffe.io", tonic::metadata::MetadataValue::from_static("true"));
    Ok(request)
}

pub(crate) fn reference(type_url: &str, message: &impl Message) -> Option<broker::WorkloadReference> {
    let any = prost_types::Any { type_url: type_url.to_owned(), value: message.encode_to_vec() };
    Some(broker::WorkloadReference { reference: Some(any) })
}

impl Setup {
    /// TLS with the SVID that a workload got from the agent itself, for the agent.
    pub(crate) fn broker_tls(&self) -> Result<TlsClient, libtest_mimic::Failed> {
        let folder = self.site.path("fetched");
        std::fs::create_dir_all(&folder)?;
        self.site
            .workload(&["api", "fetch", "x509", "-timeout", "20s", "-write", text(&folder)])
            .success()?;
        let read = |name: &str| std::fs::read(folder.join(name));
        let identity = Identity::empty();
        let key = LocalKey::from_pem(&read("svid.0.key")?)?.to_pkcs8()?;
        identity.replace(&pem::certificates(&read("svid.0.pem")?)?, &key)?;
        let trust = Arc::new(Bundle(pem::certificates(&read("bundle.0.pem")?)?.into()));
        let path = self.site.attested_agent()?["id"]["path"].as_str().unwrap_or_default().to_owned();
        let agent = SpiffeId::parse(&format!("spiffe://example.org{path}"))?;
        Ok(TlsClient::spiffe(trust, agent, Some(identity), TlsPolicy::default())?)
    }

    pub(crate) fn broker_channel(&self, tls: TlsClient) -> Channel {
        let unix = UnixConnector::new(self.broker_socket());
        Endpoint::from_static("http://localhost")
            .connect_with_connector_lazy(TlsUnixConnector::new(tls, unix))
    }
}

fn brokers(programs: Option<&'static Programs>) -> Outcome {
    let setup = Setup::start(programs)?;
    let tls = setup.broker_tls()?;
    let workload = setup.site.spawn("workload", &["/bin/sleep".to_owned()], &["600"])?;
    block_on(ask_as_broker(&setup, tls, i32::try_from(workload.pid())?))?
}

pub(crate) async fn ask_as_broker(setup: &Setup, tls: TlsClient, workload: i32) -> Outcome {
    let process = || reference(PID, &broker::WorkloadPidReference { pid: workload });
    let key = broker::KubernetesObjectKey { namespace: "default".to_owned(), name: "web".to_owned() };
    let kind = broker::KubernetesObjectType { plural: "pods".to_owned(), group: "core".to_owned() };
    let object = broker::KubernetesObjectReference { r#type: Some(kind), key: Some(key), uid: String::new() };
    let object = || reference(OBJECT, &object);
    let channel = setup.broker_channel(tls.clone());
    let mut unix: broker::api_client::ApiClient<Secured> =
        broker::api_client::ApiClient::with_interceptor(channel.clone(), secure as fn(_) -> _);

    let request = broker::SubscribeToX509svidRequest { reference: process() };
    let mut stream = unix.subscribe_to_x509svid(request).await?.into_inner();
    let first = stream.message().await?.ok_or("the stream ended")?;
    assert_eq!(first.svids[0].spiffe_id, DELEGATE);
    let key = LocalKey::from_pkcs8(&first.svids[0].x509_svid_key)?;
    let leaf = Certificate::from_der(first.svids[0].x509_svid.clone())?;
    assert_eq!(leaf.spki_der(), &key.public_key().spki()[..]);
    let request = broker::SubscribeToX509BundlesRequest { reference: process() };
    let mut bundles = unix.subscribe_to_x509_bundles(request).await?.into_inner();
    let bundles = bundles.message().await?.ok_or("the stream ended")?.bundles;
    assert_eq!(bundles["spiffe://example.org"], first.svids[0].bundle);
    let request = broker::SubscribeToJwtBundlesRequest { reference: process() };
    let mut bundles = unix.subscribe_to_jwt_bundles(request).await?.into_inner();
    assert!(bundles.message().await?.ok_or("the stream ended")?.bundles.contains_key("spiffe://example.org"));
    let audience = vec!["a".to_owned()];
    let request = broker::FetchJwtsvidRequest { reference: process(), audience, spiffe_id: String::new() };
    assert_eq!(unix.fetch_jwtsvid(request).await?.into_inner().svids[0].spiffe_id, DELEGATE);

    // Over TCP what is allowed there, and nobody has that type here.
    let channel_tcp = tcp_channel("127.0.0.1", setup.port, tls)?;
    let mut tcp: broker::api_client::ApiClient<Secured> =
        broker::api_client::ApiClient::with_interceptor(channel_tcp, secure as fn(_) -> _);
    let ask = |reference| broker::SubscribeToX509svidRequest { reference };
    let status = tcp.subscribe_to_x509svid(ask(process())).await.err().ok_or("it was answered")?;
    let text = format!("reference type \"{PID}\" is not allowed over TCP for broker \"{DELEGATE}\"");
    assert_eq!(told(&status), (Code::PermissionDenied, text.as_str()));
    let status = tcp.subscribe_to_x509svid(ask(object())).await.err().ok_or("it was answered")?;
    assert_eq!(told(&status), (Code::Unimplemented, "no workload attestor handled reference"));
    let status = unix.subscribe_to_x509svid(ask(None)).await.err().ok_or("it was answered")?;
    assert_eq!(told(&status), (Code::InvalidArgument, "workload reference must be provided"));
    let gone = reference(PID, &broker::WorkloadPidReference { pid: i32::MAX });
    let status = unix.subscribe_to_x509svid(ask(gone)).await.err().ok_or("it was answered")?;
    let text =
        "workload attestor \"unix\" failed: rpc error: code = Internal desc = workloadattestor(unix): ";
    assert_eq!(status.code(), Code::Internal, "{status}");
    assert!(status.message().starts_with(text), "{status}");
    let mut bare = broker::api_client::ApiClient::new(channel);
    let status = bare.subscribe_to_x509svid(ask(process())).await.err().ok_or("it was answered")?;
    assert_eq!(told(&status), (Code::InvalidArgument, "security header missing from request"));
    Ok(())
}

fn stored_on_disk() -> Outcome {
    let site = Site::new()?;
    let _server = site.start_server()?;
    let (folder, log) = (site.path("tls/web"), site.path("log"));
    let block = format!(
        "    SVIDStore \"disk\" {{\n        plugin_data {{\n            target \"web\" {{\n                directory = \
         \"{}\"\n                command = [\"/bin/sh\", \"-c\", \"echo $SPIFFE_ID >> {}\"]\n            }}\n        \
         }}\n    }}\n    WorkloadAttestor \"unix\"",
        folder.display(),
        log.display(),
    );
    let file = site.path("agent.conf");
    place::write(&file, &site.agent.text().replace("    WorkloadAttestor \"unix\"", &block))?;
    let token = site.token(NODE)?;
    let args = ["run", "-config", text(&file), "-joinToken", &token];
    let mut agent = Daemon::start("agent", &site.agent_programs.agent(), &args, site.folder())?;
    answers(&mut agent, &site.agent.socket())?;

    let id = "spiffe://example.org/stored";
    let more = ["-storeSVID", "-x509SVIDTTL", "60"];
    let entry = site.entry(NODE, id, "disk:target:web", &more)?;
    agent.wait_for(&["SVID stored successfully", "svid_store=disk"], SOON)?;
    let read = |name: &str| std::fs::read(folder.join(name));
    let leaf = |text: &[u8]| pem::certificates(text).ok().and_then(|chain| chain.into_iter().next());
    let first = leaf(&read("svid.pem")?).ok_or("no certificate")?;
    assert_eq!(first.spiffe_id()?.as_str(), id);
    let key = LocalKey::from_pem(&read("svid_key.pem")?)?;
    assert_eq!(first.spki_der(), &key.public_key().spki()[..]);
    assert!(!pem::certificates(&read("bundle.pem")?)?.is_empty());
    assert_eq!(place::mode(&folder.join("svid_key.pem"))?, 0o600);
    wait::until("the command", SOON, || (place::read(&log).ok()? == format!("{id}\n")).then_some(()))?;

    // Renewed at half of its life, and told again; a reader that opens the folder has a pair that fits.
    wait::until("another certificate", SOON * 2, || {
        let now = rustix::fs::open(&folder, rustix::fs::OFlags::PATH, rustix::fs::Mode::empty()).ok()?;
        let within = |name: &str| {
            let path = format!("/proc/self/fd/{}/{name}", std::os::fd::AsRawFd::as_raw_fd(&now));
            std::fs::read(path).ok()
        };
        let (chain, key) = (within("svid.pem")?, within("svid_key.pem")?);
        let (certificate, key) = (leaf(&chain)?, LocalKey::from_pem(&key).ok()?);
        assert_eq!(certificate.spki_der(), &key.public_key().spki()[..]);
        (certificate.der() != first.der()).then_some(())
    })?;
    wait::until("the command again", SOON, || (place::read(&log).ok()?.lines().count() == 2).then_some(()))?;

    site.cli(&["entry", "delete", "-entryID", &entry])?;
    wait::until("files that are gone", SOON, || (!folder.exists()).then_some(()))?;
    // What the name led to goes after the name.
    wait::until("nothing left", SOON, || {
        (std::fs::read_dir(site.path("tls")).ok()?.count() == 0).then_some(())
    })?;
    assert!(agent.is_running());
    Ok(())
}
