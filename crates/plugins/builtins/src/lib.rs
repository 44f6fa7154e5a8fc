//! The list of all built-in plugins, with a Cargo feature a technology. The binaries give it to server and
//! agent.

use spire_ports::plugins::catalog::{AgentCatalog, ServerCatalog};

/// The server's built-in plugins.
pub fn server() -> ServerCatalog {
    #[cfg_attr(
        not(any(feature = "local", feature = "k8s", feature = "spire", feature = "tpm")),
        expect(unused_mut, reason = "there is nothing to add then")
    )]
    let mut catalog = ServerCatalog::default();
    #[cfg(feature = "local")]
    spire_plugins_local::register_server(&mut catalog);
    #[cfg(feature = "k8s")]
    spire_plugins_k8s::register_server(&mut catalog);
    #[cfg(feature = "spire")]
    spire_plugins_spire::register_server(&mut catalog);
    #[cfg(feature = "tpm")]
    spire_plugins_tpm::register_server(&mut catalog);
    catalog
}

/// The agent's built-in plugins.
pub fn agent() -> AgentCatalog {
    #[cfg_attr(
        not(any(
            feature = "local",
            feature = "host",
            feature = "docker",
            feature = "k8s",
            feature = "scone",
            feature = "tpm",
            feature = "systemd"
        )),
        expect(unused_mut, reason = "there is nothing to add then")
    )]
    let mut catalog = AgentCatalog::default();
    #[cfg(feature = "local")]
    spire_plugins_local::register_agent(&mut catalog);
    #[cfg(feature = "host")]
    spire_plugins_host::register_agent(&mut catalog);
    #[cfg(feature = "docker")]
    spire_plugins_docker::register_agent(&mut catalog);
    #[cfg(feature = "k8s")]
    spire_plugins_k8s::register_agent(&mut catalog);
    #[cfg(feature = "scone")]
    spire_plugins_scone::register_agent(&mut catalog);
    #[cfg(feature = "tpm")]
    spire_plugins_tpm::register_agent(&mut catalog);
    #[cfg(feature = "systemd")]
    spire_plugins_systemd::register_agent(&mut catalog);
    catalog
}

#[cfg(all(
    test,
    feature = "local",
    feature = "host",
    feature = "docker",
    feature = "k8s",
    feature = "scone",
    feature = "spire",
    feature = "tpm",
    feature = "systemd"
))]
mod tests {
    #[test]
    fn every_plugin_is_listed() {
        let server = super::server();
        assert_eq!(server.key_managers.names().collect::<Vec<_>>(), ["disk", "memory"]);
        assert_eq!(
            server.node_attestors.names().collect::<Vec<_>>(),
            ["http_challenge", "join_token", "k8s_psat", "sshpop", "tpm_devid", "x509pop"]
        );
        assert_eq!(server.upstream_authorities.names().collect::<Vec<_>>(), ["disk", "spire"]);
        assert_eq!(server.credential_composers.names().collect::<Vec<_>>(), ["uniqueid"]);
        let agent = super::agent();
        assert_eq!(agent.key_managers.names().collect::<Vec<_>>(), ["disk", "memory"]);
        assert_eq!(
            agent.node_attestors.names().collect::<Vec<_>>(),
            ["http_challenge", "join_token", "k8s_psat", "sshpop", "tpm_devid", "x509pop"]
        );
        assert_eq!(
            agent.workload_attestors.names().collect::<Vec<_>>(),
            ["docker", "k8s", "slurm", "systemd", "unix"]
        );
        assert_eq!(agent.svid_stores.names().collect::<Vec<_>>(), ["disk", "sconecas_sessionmanager"]);
    }
}
