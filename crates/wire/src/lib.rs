//! Protobuf messages and services, generated from `proto/` and checked in.
//!
//! `cargo xtask codegen` writes `src/generated/`, and `cargo xtask tidy` fails when it is stale. A build
//! therefore needs no protobuf compiler and no build script. Modules follow what a package is for, not
//! its name: see each module for the package.
//!
//! - A `bytes` field is [`bytes::Bytes`]: decoding shares the received buffer.
//! - A map is a `BTreeMap`, so that equal messages have equal bytes and can be compared encoded.
//! - Well-known types are those of `prost-types`; wrappers are `Option<bool>` and the like, `Empty` is `()`.
//! - A message that holds a key, a token or an attestation payload prints without it (`redact.rs`).
//! - A service `Foo` has `foo_client::FooClient` over any tonic channel and `foo_server::{Foo, FooServer}`.
//!
//! Wire types live at the edges: conversions from and to the model stand with their users, never here.

mod redact;

/// Declares a module for each generated file, with the lints that generated code cannot satisfy.
macro_rules! generated {
    ($($(#[$doc:meta])* $name:ident = $file:literal;)*) => {$(
        $(#[$doc])*
        #[allow(
            missing_docs, unreachable_pub, unused_qualifications, clippy::all, clippy::too_many_lines,
            reason = "generated: its comments are those of the .proto file"
        )]
        pub mod $name {
            include!(concat!("generated/", $file, ".rs"));
        }
    )*};
}

/// Descriptors of the services on the agent's workload socket (Workload API, SDS, health, reflection), with
/// their imports: an encoded `google.protobuf.FileDescriptorSet`, dependencies first. File names are the
/// reference's, since reflection shows them.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!("generated/workload_socket.descriptors.bin");

/// Descriptors of the services on the agent's admin and broker sockets, with their imports: an encoded
/// `google.protobuf.FileDescriptorSet`, dependencies first.
pub const AGENT_SOCKETS_DESCRIPTORS: &[u8] = include_bytes!("generated/agent_sockets.descriptors.bin");

/// Descriptors of the services on the server's sockets, with their imports: an encoded
/// `google.protobuf.FileDescriptorSet`. A policy that a user gives sees requests through it.
pub const SERVER_API_DESCRIPTORS: &[u8] = include_bytes!("generated/server_api.descriptors.bin");

/// The APIs of server and agent (spire-api-sdk).
pub mod api {
    generated! {
        /// What several services speak of: ids, selectors, entries, bundles, SVIDs (`spire.api.types`).
        types = "spire.api.types";
    }

    /// The server's services.
    pub mod server {
        /// Nodes: attestation, renewal and administration.
        pub mod agent {
            generated! {
                /// `spire.api.server.agent.v1`
                v1 = "spire.api.server.agent.v1";
            }
        }
        /// The server's own bundle and federated ones.
        pub mod bundle {
            generated! {
                /// `spire.api.server.bundle.v1`
                v1 = "spire.api.server.bundle.v1";
            }
        }
        /// The server's own state.
        pub mod debug {
            generated! {
                /// `spire.api.server.debug.v1`
                v1 = "spire.api.server.debug.v1";
            }
        }
        /// Registration entries.
        pub mod entry {
            generated! {
                /// `spire.api.server.entry.v1`
                v1 = "spire.api.server.entry.v1";
            }
        }
        /// The server's signing authorities.
        pub mod localauthority {
            generated! {
                /// `spire.api.server.localauthority.v1`
                v1 = "spire.api.server.localauthority.v1";
            }
        }
        /// The server's log level.
        pub mod logger {
            generated! {
                /// `spire.api.server.logger.v1`
                v1 = "spire.api.server.logger.v1";
            }
        }
        /// Signing.
        pub mod svid {
            generated! {
                /// `spire.api.server.svid.v1`
                v1 = "spire.api.server.svid.v1";
            }
        }
        /// Federation relationships.
        pub mod trustdomain {
            generated! {
                /// `spire.api.server.trustdomain.v1`
                v1 = "spire.api.server.trustdomain.v1";
            }
        }
    }

    /// The agent's services on its admin socket.
    pub mod agent {
        /// The agent's own state.
        pub mod debug {
            generated! {
                /// `spire.agent.debug.v1`: the package lacks `api`, as the reference's does.
                v1 = "spire.agent.debug.v1";
            }
        }
        /// SVIDs of other workloads for a trusted delegate.
        pub mod delegatedidentity {
            generated! {
                /// `spire.api.agent.delegatedidentity.v1`
                v1 = "spire.api.agent.delegatedidentity.v1";
            }
        }
        /// The agent's log level.
        pub mod logger {
            generated! {
                /// `spire.api.agent.logger.v1`
                v1 = "spire.api.agent.logger.v1";
            }
        }
    }
}

generated! {
    /// The SPIFFE Workload API: service `SpiffeWorkloadAPI`, without a package.
    workload = "workload";
    /// The SPIFFE Broker API (`spiffe.broker`).
    broker = "spiffe.broker";
    /// `grpc.health.v1`
    health = "grpc.health.v1";
    /// Statuses with typed details, as the `grpc-status-details-bin` trailer carries them (`google.rpc`).
    rpc = "google.rpc";
}

/// gRPC server reflection, in the two versions that clients ask for.
pub mod reflection {
    generated! {
        /// `grpc.reflection.v1`
        v1 = "grpc.reflection.v1";
        /// `grpc.reflection.v1alpha`
        v1alpha = "grpc.reflection.v1alpha";
    }
}

/// What the datastore keeps encoded.
pub mod stored {
    generated! {
        /// `spire.common`
        common = "spire.common";
        /// The CA journal (`spire.server.journal`).
        journal = "spire.server.journal";
    }
}

/// External plugins (spire-plugin-sdk), and what they share with their host (hashicorp/go-plugin).
pub mod plugin {
    generated! {
        /// Bundles as plugins see them (`spire.plugin.types`).
        types = "spire.plugin.types";
        /// What go-plugin serves beside a plugin's own services (`plugin`).
        go_plugin = "plugin";
    }

    /// Plugins of servers.
    pub mod server {
        /// Puts the bundle where others find it.
        pub mod bundlepublisher {
            generated! {
                /// `spire.plugin.server.bundlepublisher.v1`
                v1 = "spire.plugin.server.bundlepublisher.v1";
            }
        }
        /// Changes what is about to be signed.
        pub mod credentialcomposer {
            generated! {
                /// `spire.plugin.server.credentialcomposer.v1`
                v1 = "spire.plugin.server.credentialcomposer.v1";
            }
        }
        /// Keeps a server's keys.
        pub mod keymanager {
            generated! {
                /// `spire.plugin.server.keymanager.v1`
                v1 = "spire.plugin.server.keymanager.v1";
            }
        }
        /// Judges the proof of a node.
        pub mod nodeattestor {
            generated! {
                /// `spire.plugin.server.nodeattestor.v1`
                v1 = "spire.plugin.server.nodeattestor.v1";
            }
        }
        /// Hears of the bundle.
        pub mod notifier {
            generated! {
                /// `spire.plugin.server.notifier.v1`
                v1 = "spire.plugin.server.notifier.v1";
            }
        }
        /// Signs the server's CA.
        pub mod upstreamauthority {
            generated! {
                /// `spire.plugin.server.upstreamauthority.v1`
                v1 = "spire.plugin.server.upstreamauthority.v1";
            }
        }
    }

    /// Plugins of agents.
    pub mod agent {
        /// Keeps an agent's keys.
        pub mod keymanager {
            generated! {
                /// `spire.plugin.agent.keymanager.v1`
                v1 = "spire.plugin.agent.keymanager.v1";
            }
        }
        /// Brings the proof of a node.
        pub mod nodeattestor {
            generated! {
                /// `spire.plugin.agent.nodeattestor.v1`
                v1 = "spire.plugin.agent.nodeattestor.v1";
            }
        }
        /// Stores SVIDs elsewhere.
        pub mod svidstore {
            generated! {
                /// `spire.plugin.agent.svidstore.v1`
                v1 = "spire.plugin.agent.svidstore.v1";
            }
        }
        /// Says what is known of a workload.
        pub mod workloadattestor {
            generated! {
                /// `spire.plugin.agent.workloadattestor.v1`
                v1 = "spire.plugin.agent.workloadattestor.v1";
            }
        }
    }

    /// Services that every plugin has.
    pub mod service {
        generated! {
            /// `spire.service.common.config.v1`
            config = "spire.service.common.config.v1";
            /// `spire.service.private.init.v1`
            init = "spire.service.private.init.v1";
        }
    }

    /// Services that plugins may call.
    pub mod host {
        generated! {
            /// `spire.hostservice.server.agentstore.v1`
            agentstore = "spire.hostservice.server.agentstore.v1";
            /// `spire.hostservice.server.identityprovider.v1`
            identityprovider = "spire.hostservice.server.identityprovider.v1";
            /// `spire.hostservice.common.metrics.v1`
            metrics = "spire.hostservice.common.metrics.v1";
        }
    }
}

generated! {
    /// Hints from our server that make our agent sync at once (`spire.push.v1`).
    push = "spire.push.v1";
    /// Why a process gets the identities that it gets, or none (`spire.explain.v1`).
    explain = "spire.explain.v1";
}

/// Envoy's secret discovery service (SDS), version 3. Modules are those of the packages, since their code refers to each
/// other by them.
pub mod envoy {
    /// `envoy.config`
    pub mod config {
        /// What several parts of Envoy's configuration share.
        pub mod core {
            generated! {
                /// `envoy.config.core.v3`
                v3 = "envoy.config.core.v3";
            }
        }
    }
    /// `envoy.type`
    pub mod r#type {
        generated! {
            /// `envoy.type.v3`
            v3 = "envoy.r#type.v3";
        }
    }
    /// `envoy.extensions`
    pub mod extensions {
        /// `envoy.extensions.transport_sockets`
        pub mod transport_sockets {
            /// Certificates and validation contexts.
            pub mod tls {
                generated! {
                    /// `envoy.extensions.transport_sockets.tls.v3`
                    v3 = "envoy.extensions.transport_sockets.tls.v3";
                }
            }
        }
    }
    /// `envoy.service`
    pub mod service {
        /// Requests and responses of all discovery services.
        pub mod discovery {
            generated! {
                /// `envoy.service.discovery.v3`
                v3 = "envoy.service.discovery.v3";
            }
        }
        /// The service.
        pub mod secret {
            generated! {
                /// `envoy.service.secret.v3`
                v3 = "envoy.service.secret.v3";
            }
        }
    }
}

#[cfg(test)]
mod tests;
