//! Plugins made with this project's SDK: one program, whose first argument says which plugin it is. They do what the Go
//! plugins beside the end-to-end tests do, so that one set of tests is for both.

mod agent;
mod base;
mod keys;
mod server;
mod upstream;

use std::process::ExitCode;
use std::sync::Arc;

use base::Base;
use spire_plugin_sdk::wire;
use spire_plugin_sdk::{Kind, Plugin};

fn main() -> ExitCode {
    let which = std::env::args().nth(1).unwrap_or_default();
    let with_base = |kind| {
        let plugin = Plugin::new(kind);
        let base = Arc::new(Base::new(plugin.host()));
        let (configure, closing) = (base.clone(), base.clone());
        (plugin.configure(configure).on_close(move || closing.note("closed", "yes")), base)
    };
    match which.as_str() {
        "server-keymanager" => {
            let (plugin, base) = with_base(Kind::KeyManager);
            plugin.service(wire::server::keymanager::v1::key_manager_server::KeyManagerServer::new(
                keys::server::Keys(base),
            ))
        }
        "agent-keymanager" => {
            let (plugin, base) = with_base(Kind::KeyManager);
            plugin.service(wire::agent::keymanager::v1::key_manager_server::KeyManagerServer::new(
                keys::agent::Keys(base),
            ))
        }
        "server-nodeattestor" => {
            let (plugin, base) = with_base(Kind::NodeAttestor);
            plugin.service(wire::server::nodeattestor::v1::node_attestor_server::NodeAttestorServer::new(
                server::NodeAttestor(base),
            ))
        }
        "agent-nodeattestor" => {
            let (plugin, base) = with_base(Kind::NodeAttestor);
            plugin.service(wire::agent::nodeattestor::v1::node_attestor_server::NodeAttestorServer::new(
                agent::NodeAttestor(base),
            ))
        }
        "workloadattestor" => {
            let (plugin, base) = with_base(Kind::WorkloadAttestor);
            plugin.service(
                wire::agent::workloadattestor::v1::workload_attestor_server::WorkloadAttestorServer::new(
                    agent::WorkloadAttestor(base),
                ),
            )
        }
        "svidstore" => {
            let (plugin, base) = with_base(Kind::SvidStore);
            plugin.service(wire::agent::svidstore::v1::svid_store_server::SvidStoreServer::new(
                agent::SvidStore(base),
            ))
        }
        "credentialcomposer" => {
            let (plugin, base) = with_base(Kind::CredentialComposer);
            plugin.service(
                wire::server::credentialcomposer::v1::credential_composer_server::CredentialComposerServer::new(
                    server::CredentialComposer(base),
                ),
            )
        }
        "notifier" => {
            let (plugin, base) = with_base(Kind::Notifier);
            plugin.service(wire::server::notifier::v1::notifier_server::NotifierServer::new(
                server::Notifier(base),
            ))
        }
        "bundlepublisher" => {
            let (plugin, base) = with_base(Kind::BundlePublisher);
            plugin.service(
                wire::server::bundlepublisher::v1::bundle_publisher_server::BundlePublisherServer::new(
                    server::BundlePublisher(base),
                ),
            )
        }
        "upstreamauthority" => {
            let (plugin, base) = with_base(Kind::UpstreamAuthority);
            plugin.service(
                wire::server::upstreamauthority::v1::upstream_authority_server::UpstreamAuthorityServer::new(
                    upstream::UpstreamAuthority(base),
                ),
            )
        }
        _ => return ExitCode::from(2),
    }
    .run()
}
