//! Nodes with a TPM and a DevID, and servers that trust who made them.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use libtest_mimic::Failed;
use spire_compat::hcl;
use spire_core::pki::{Certificate, PublicKey, pem};
use spire_core::spiffe::TrustDomain;
use spire_ports::plugins::catalog::{AgentCatalog, Configuration, ServerCatalog};
use spire_ports::plugins::{AgentNodeAttestor, NodeAttestor, PluginType};
use spire_testkit::place;
use spire_testkit::swtpm::{DEVID, DevidKey, Manufacturer, Swtpm};
use tempfile::TempDir;

use crate::test_ca::{Ca, Wanted, pem_of};

/// TPMs that were made once; tests run copies, since that is a hundred times faster than making them.
pub(crate) struct Factory {
    folder: TempDir,
    pub(crate) maker: Manufacturer,
    pub(crate) other_maker: Manufacturer,
}

/// Which of the TPMs.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Model {
    /// Two that differ in their seeds only.
    First,
    Second,
    /// One whose manufacturer gave it no certificate.
    Bare,
}

pub(crate) fn factory() -> &'static Factory {
    static FACTORY: OnceLock<Factory> = OnceLock::new();
    FACTORY.get_or_init(|| Factory::new().unwrap())
}

impl Factory {
    fn new() -> spire_testkit::Result<Self> {
        let folder = place::folder()?;
        let maker = Manufacturer::new(&folder.path().join("maker"))?;
        let other_maker = Manufacturer::new(&folder.path().join("other"))?;
        maker.make(&folder.path().join("First"), true)?;
        maker.make(&folder.path().join("Second"), true)?;
        maker.make(&folder.path().join("Bare"), false)?;
        // It makes its keys with its first TPM.
        other_maker.make(&folder.path().join("unused"), true)?;
        Ok(Self { folder, maker, other_maker })
    }
}

/// A node: a running TPM, and the files of a DevID in it.
pub(crate) struct Node {
    pub(crate) tpm: Swtpm,
    pub(crate) key: DevidKey,
    folder: TempDir,
    /// Settings of the agent, one a line.
    pub(crate) settings: Vec<String>,
}

/// How a node is provisioned.
#[derive(Clone, Copy)]
pub(crate) struct Provision<'a> {
    pub(crate) model: Model,
    pub(crate) rsa: bool,
    pub(crate) owner: &'a str,
    pub(crate) endorsement: &'a str,
    pub(crate) password: &'a str,
    pub(crate) attributes: &'a str,
}

impl Provision<'_> {
    pub(crate) const PLAIN: Self =
        Self { model: Model::First, rsa: true, owner: "", endorsement: "", password: "", attributes: DEVID };
}

impl Node {
    /// A node whose DevID `ca` signed.
    pub(crate) fn new(provision: Provision<'_>, ca: &Ca) -> Result<Self, Failed> {
        Self::with_chain(provision, |key| vec![ca.issue(Wanted::leaf("device-1"), key)])
    }

    /// A node whose DevID has the chain that `issue` gives for its key.
    pub(crate) fn with_chain(
        provision: Provision<'_>,
        issue: impl FnOnce(&PublicKey) -> Vec<Certificate>,
    ) -> Result<Self, Failed> {
        let folder = place::folder()?;
        let made = factory().folder.path().join(format!("{:?}", provision.model));
        place::copy_folder(&made, &folder.path().join("state"))?;
        let tpm = Swtpm::start(folder.path())?;
        for (hierarchy, password) in [("o", provision.owner), ("e", provision.endorsement)] {
            if !password.is_empty() {
                tpm.tool("changeauth", &["-c", hierarchy, password])?;
            }
        }
        let key = tpm.make_devid(provision.rsa, provision.owner, provision.password, provision.attributes)?;
        let text = place::read(&key.pem)?;
        let block = pem::blocks(text.as_bytes()).next().ok_or("no public key")?;
        let chain = issue(&PublicKey::from_spki(block.contents)?);
        let certificate = folder.path().join("devid.pem");
        place::write(&certificate, &pem_of(&chain.iter().collect::<Vec<_>>()))?;
        let settings = vec![
            setting("devid_cert_path", &certificate),
            setting("devid_pub_path", &key.public),
            setting("devid_priv_path", &key.private),
            setting("tpm_device_path", &tpm.socket()),
            format!("devid_password = \"{}\"", provision.password),
            format!("owner_hierarchy_password = \"{}\"", provision.owner),
            format!("endorsement_hierarchy_password = \"{}\"", provision.endorsement),
        ];
        Ok(Self { tpm, key, folder, settings })
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The agent's plugin; a setting of `more` replaces the node's.
    pub(crate) async fn agent(&self, more: &[String]) -> Result<Arc<dyn AgentNodeAttestor>, Failed> {
        let mut catalog = AgentCatalog::default();
        spire_plugins_tpm::register_agent(&mut catalog);
        let builtin = catalog.node_attestors.find("tpm_devid").ok_or("not registered")?;
        let key = |line: &str| line.split(' ').next().unwrap_or_default().to_owned();
        let kept = |line: &&String| more.iter().all(|other| key(other) != key(line));
        let data: Vec<&str> = self.settings.iter().filter(kept).chain(more).map(String::as_str).collect();
        let data = data.join("\n");
        Ok((builtin.make)(configuration(&data)).await?)
    }

    /// Fails where a key or session is loaded still.
    pub(crate) fn check_unloaded(&self) -> Result<(), Failed> {
        let loaded = self.tpm.loaded()?;
        if loaded.trim().is_empty() { Ok(()) } else { Err(format!("left in the TPM:\n{loaded}").into()) }
    }
}

pub(crate) fn setting(key: &str, path: &Path) -> String {
    format!("{key} = \"{}\"", path.display())
}

/// The server's plugin, which trusts DevIDs of `ca` in TPMs of `maker`.
pub(crate) async fn server(ca: &Ca, maker: &Manufacturer) -> Result<Arc<dyn NodeAttestor>, Failed> {
    let folder = place::folder()?;
    let roots = folder.path().join("roots.pem");
    place::write(&roots, &pem_of(&[&ca.certificate]))?;
    let mut catalog = ServerCatalog::default();
    spire_plugins_tpm::register_server(&mut catalog);
    let builtin = catalog.node_attestors.find("tpm_devid").ok_or("not registered")?;
    let data = [setting("devid_ca_path", &roots), setting("endorsement_ca_path", &maker.certificate())];
    Ok((builtin.make)(configuration(&data.join("\n"))).await?)
}

fn configuration(data: &str) -> Configuration {
    let trust_domain = TrustDomain::parse("example.org").unwrap();
    let data = hcl::parse(data).unwrap().into();
    Configuration::new((PluginType::NodeAttestor, "tpm_devid"), trust_domain, Some(data))
}

/// Runs an asynchronous test. Its bound is far above what it takes.
pub(crate) fn run(test: impl Future<Output = Result<(), Failed>>) -> Result<(), Failed> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        tokio::time::timeout(Duration::from_secs(120), test).await.map_err(|_| "the test does not end")?
    })
}
