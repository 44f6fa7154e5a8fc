//! Metrics of what not every site has: admin and broker sockets, SVID stores, federation, authorities that are replaced.

use libtest_mimic::Failed;
use spire_testkit::{place, wait};

use super::{Names, compare, missing_of, names, prometheus_section};
use crate::delegate::{DELEGATE, NODE, Setup, ask_all_of_admins, ask_as_broker, block_on};
use crate::federation::{ABROAD, Domain, relate_by};
use crate::harness::peer::Peer;
use crate::harness::programs::{self, Programs};
use crate::harness::site::own_uid;
use crate::harness::{Outcome, SOON, Site};

/// What the script makes an agent emit, with the names of labels beside `host`.
const AGENT: &[&str] = &[
    "agent_svid_rotate status",
    "cache_manager_expiring_svids",
    "cache_manager_expiring_svids_svid_store",
    "cache_manager_outdated_svids",
    "cache_manager_outdated_svids_svid_store",
    "cache_manager_svid_store_process_tainted_x509_svids status",
    "cache_manager_tainted_jwt_svids_workload",
    "cache_manager_tainted_x509_svids_workload",
    "cache_manager_workload_process_tainted_jwt_svids status",
    "cache_manager_workload_process_tainted_x509_svids status",
    "debug_api_connection",
    "debug_api_connections",
    "delegated_identity_api_connection",
    "delegated_identity_api_connections",
    "delegated_identity_api_subscribe_x509_svids_first_update_elapsed_time",
    "logger_api_connection",
    "logger_api_connections",
    "lru_cache_entry_add",
    "lru_cache_entry_remove",
    "lru_cache_entry_update",
    "rpc_debug_get_info status",
    "rpc_delegated_identity_fetch_jwtsvi_ds status",
    "rpc_delegated_identity_subscribe_to_jwt_bundles status",
    "rpc_delegated_identity_subscribe_to_x509_bundles status",
    "rpc_delegated_identity_subscribe_to_x509_svids status",
    "rpc_logger_get_logger status",
    "rpc_logger_reset_log_level status",
    "rpc_logger_set_log_level status",
    "rpc_spiffe_broker_api_fetch_jwtsvid status",
    "rpc_spiffe_broker_api_subscribe_to_x509svid status",
    "store_store_svid_updates status",
];

/// As [`AGENT`], of a server.
const SERVER: &[&str] = &[
    "bundle_manager_fetch_federated_bundle status,trust_domain_id",
    "bundle_manager_update_federated_bundle trust_domain_id",
    "datastore_bundle_jwt_taint status",
    "datastore_bundle_set status",
    "datastore_bundle_x509_taint status",
    "datastore_federation_relationship_create status",
    "datastore_federation_relationship_list status",
    "datastore_registration_entry_delete status",
    "datastore_registration_entry_update status",
    "rpc_entry_v1_entry_batch_delete_entry status",
    "rpc_entry_v1_entry_batch_update_entry status",
    "rpc_localauthority_v1_local_authority_activate_jwt_authority status",
    "rpc_localauthority_v1_local_authority_activate_x509_authority status",
    "rpc_localauthority_v1_local_authority_prepare_jwt_authority status",
    "rpc_localauthority_v1_local_authority_prepare_x509_authority status",
    "rpc_localauthority_v1_local_authority_taint_jwt_authority status",
    "rpc_localauthority_v1_local_authority_taint_x509_authority status",
    "rpc_trustdomain_v1_trust_domain_batch_create_federation_relationship status",
];

/// An SVIDStore: its block in a site's file, and the selector of entries that go there.
struct Store {
    block: fn(&Site) -> spire_testkit::Result<String>,
    selector: &'static str,
}

/// Ours, which is built in.
const DISK: Store = Store {
    block: |site| {
        Ok(format!(
            "    SVIDStore \"disk\" {{\n        plugin_data {{\n            target \"web\" {{\n                \
             directory = \"{}\"\n            }}\n        }}\n    }}\n",
            site.path("stored").display()
        ))
    },
    selector: "disk:target:web",
};

/// One that both implementations take.
const EXTERNAL: Store = Store {
    block: |site| {
        let folder = site.path("box");
        std::fs::create_dir_all(&folder)
            .map_err(|error| spire_testkit::Error::doing(folder.display(), error))?;
        Ok(format!(
            "    SVIDStore \"box\" {{\n        plugin_cmd = \"{}\"\n        plugin_args = [\"svidstore\"]\n        \
             plugin_data {{\n            dir = \"{}\"\n        }}\n    }}\n",
            Peer::GoPlugins.command()?[0],
            folder.display()
        ))
    },
    selector: "box:one",
};

pub(super) fn counted() -> Outcome {
    let missing = missing_of(&names_of(programs::under_test(), &DISK)?, SERVER, AGENT);
    if missing.is_empty() { Ok(()) } else { Err(missing.join("\n").into()) }
}

pub(super) fn same_names() -> Outcome {
    let reference = programs::theirs()?;
    let ours = names_of(programs::under_test(), &EXTERNAL)?;
    let theirs = names_of(reference, &EXTERNAL)?;
    let only_here = |name: &String| name.starts_with("spire_agent_cache_manager_outdated_svids{");
    let mut wrong = missing_of(&theirs, SERVER, AGENT);
    wrong.retain(|name| !only_here(name));
    wrong.extend(compare(&ours, &theirs));
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n").into()) }
}

/// The metrics of server and agent after everything was done; in time, or what there is.
fn names_of(programs: &'static Programs, store: &Store) -> Result<Names, Failed> {
    let abroad = Domain::new(ABROAD)?;
    let _abroad = abroad.site.start_server()?;
    let ports = (place::port()?, place::port()?);
    let setup = Setup::start_with(Some(programs), |site| {
        site.server_programs = programs;
        site.server.sections = prometheus_section(ports.0, "");
        site.agent.sections = prometheus_section(ports.1, "");
        site.agent.plugins = (store.block)(site)?;
        Ok(())
    })?;
    let site = &setup.site;

    // The bundle that there is to begin with is not the one that the endpoint has.
    let bundle = abroad.bundle_file()?;
    abroad.site.cli(&["localauthority", "x509", "prepare"])?;
    relate_by(site, &abroad, &bundle)?;

    ask_all_of_admins(&setup)?;
    let workload = site.spawn("workload", &["/bin/sleep".to_owned()], &["600"])?;
    let tls = setup.broker_tls()?;
    block_on(ask_as_broker(&setup, tls, i32::try_from(workload.pid())?))??;
    renewed(&setup, store)?;
    for kind in ["x509", "jwt"] {
        tainted(&setup, kind)?;
    }

    let mut last = None;
    // Expected to be there soon; what is not is told by name.
    let _ = wait::until("metrics", SOON * 2, || {
        let found = (names(ports.0)?, names(ports.1)?);
        let is_whole = missing_of(&found, SERVER, AGENT).is_empty();
        last = Some(found);
        is_whole.then_some(())
    });
    last.ok_or_else(|| "no metrics".into())
}

/// Entries of a workload and of a store whose SVIDs are replaced: since the entry changed, and since they grow old.
fn renewed(setup: &Setup, store: &Store) -> Outcome {
    let site = &setup.site;
    let uid = own_uid();
    for (id, selector, more) in [
        ("spiffe://example.org/renewed", uid.as_str(), &[][..]),
        ("spiffe://example.org/stored", store.selector, &["-storeSVID"]),
    ] {
        let entry = site.entry(NODE, id, selector, &[more, &["-x509SVIDTTL", "60"]].concat())?;
        let is_workload = more.is_empty();
        let new_svid = |mark: usize| {
            if is_workload {
                setup.agent.wait_after(mark, &["SVID updated", id], SOON)
            } else {
                setup.agent.wait_after(mark, &["SVID stored successfully", id], SOON)
            }
        };
        new_svid(0)?;
        let mark = setup.agent.mark();
        let base = ["entry", "update", "-entryID", &entry, "-parentID", NODE, "-spiffeID", id, "-selector"];
        site.cli(&[&base[..], &[selector, "-dns", "a.test", "-x509SVIDTTL", "30"], more].concat())?;
        new_svid(mark)?;
        let mark = setup.agent.mark();
        new_svid(mark)?;
        if is_workload {
            site.cli(&["entry", "delete", "-entryID", &entry])?;
        }
    }
    site.wait_identities(&[DELEGATE])?;
    Ok(())
}

/// The active authority is replaced, and what it signed with it.
fn tainted(setup: &Setup, kind: &str) -> Outcome {
    let site = &setup.site;
    site.workload(&["api", "fetch", "jwt", "-audience", "x", "-timeout", "20s"]).success()?;
    let id_of = |state: &str| -> spire_testkit::Result<String> {
        let shown = site.cli_json(&["localauthority", kind, "show"])?;
        Ok(shown[state]["authority_id"].as_str().unwrap_or_default().to_owned())
    };
    let old = id_of("active")?;
    site.cli(&["localauthority", kind, "prepare"])?;
    let new = id_of("prepared")?;
    site.cli(&["localauthority", kind, "activate", "-authorityID", &new])?;
    let mark = setup.agent.mark();
    site.cli(&["localauthority", kind, "taint", "-authorityID", &old])?;
    let said = if kind == "x509" {
        "New tainted X.509 authorities found"
    } else {
        "New tainted JWT authorities found"
    };
    setup.agent.wait_after(mark, &[said], SOON)?;
    Ok(())
}
