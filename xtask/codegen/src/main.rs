//! `cargo xtask codegen`: Rust from our .proto files, without protoc and without a build script.
//!
//! The result is checked in, so that what depends on it waits for no protobuf compiler, and a change of a message shows in
//! review. `--check` generates to memory and compares; the test does the same. A program of its own, since few who run
//! `cargo xtask` need the compiler, and building that takes longer than building all else of it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use prost_build::{Config, Module};
use protox::prost_reflect::prost_types::FileDescriptorProto;

/// Where generated files stand, below the workspace.
const OUT: &str = "crates/wire/src/generated";
/// Where our .proto files stand, below the workspace.
const PROTO: &str = "crates/wire/proto";
/// The Workload API's file has no package, and clients that reflect know it by this bare name.
const WORKLOAD: &str = "workload.proto";
const WORKLOAD_FOLDER: &str = "spiffe/workload";
/// Descriptors of what the agent's workload socket serves by reflection.
const DESCRIPTORS: &str = "workload_socket.descriptors.bin";
const DESCRIBED: &[&str] = &[
    WORKLOAD,
    "grpc/health/v1/health.proto",
    "grpc/reflection/v1/reflection.proto",
    "grpc/reflection/v1alpha/reflection.proto",
    "envoy/service/secret/v3/sds.proto",
    "spire/explain/v1/explain.proto",
    // The details of a status without an identity.
    "google/rpc/error_details.proto",
    // What its answers carry as Any, for clients that print it.
    "envoy/extensions/transport_sockets/tls/v3/secret.proto",
    "envoy/extensions/transport_sockets/tls/v3/tls_spiffe_validator_config.proto",
];
/// Descriptors of what the agent's admin and broker sockets serve by reflection.
const AGENT_DESCRIPTORS: &str = "agent_sockets.descriptors.bin";
const AGENT_DESCRIBED: &[&str] = &[
    "spire/api/agent/debug/v1/debug.proto",
    "spire/api/agent/delegatedidentity/v1/delegatedidentity.proto",
    "spire/api/agent/logger/v1/logger.proto",
    "spiffe/broker/api.proto",
    "spire/explain/v1/explain.proto",
    "grpc/health/v1/health.proto",
    "grpc/reflection/v1/reflection.proto",
    "grpc/reflection/v1alpha/reflection.proto",
];
/// Descriptors of the server's services, for policies that look into requests.
const SERVER_DESCRIPTORS: &str = "server_api.descriptors.bin";
const SERVER_SERVICES: &[&str] =
    &["agent", "bundle", "debug", "entry", "localauthority", "logger", "svid", "trustdomain"];
/// Messages that hold a private key, a token or an attestation payload. `crates/wire/src/redact.rs` writes
/// their `Debug`, so that logging a message can never print one.
const SECRET: &[&str] = &[
    ".X509SVID",
    ".JWTSVID",
    ".WITSVID",
    ".ValidateJWTSVIDRequest",
    ".spiffe.broker.X509SVID",
    ".spiffe.broker.JWTSVID",
    ".spire.api.types.AttestationData",
    ".spire.api.types.JWTSVID",
    ".spire.api.types.JoinToken",
    ".spire.api.types.WITSVID",
    ".envoy.config.core.v3.DataSource",
    ".spire.api.agent.delegatedidentity.v1.X509SVIDWithKey",
    ".spire.api.server.agent.v1.CreateJoinTokenRequest",
    ".spire.common.AttestationData",
    ".spire.hostservice.server.identityprovider.v1.X509Identity",
    ".spire.plugin.agent.nodeattestor.v1.PayloadOrChallengeResponse",
    ".spire.plugin.agent.svidstore.v1.X509SVID",
    ".spire.plugin.server.nodeattestor.v1.AttestRequest",
    ".spire.service.common.config.v1.ConfigureRequest",
    ".spire.service.common.config.v1.ValidateRequest",
];
/// Packages that others refer to, with the module of `spire_wire` that they are in.
const SHARED: &[(&str, &str)] = &[
    ("google.rpc", "crate::rpc"),
    ("spire.api.types", "crate::api::types"),
    ("spire.plugin.types", "crate::plugin::types"),
];

/// The generated files by name.
type Files = BTreeMap<String, Vec<u8>>;

#[expect(clippy::print_stderr, reason = "a development command talks to its user")]
fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Writes the generated files, or with `--check` fails with the names of those that differ.
fn run(args: &[String]) -> Result<()> {
    let root = workspace_root()?;
    match args {
        [] => write(&root),
        [flag] if flag == "--check" => match stale(&root)?.as_slice() {
            [] => Ok(()),
            stale => bail!("not what `cargo xtask codegen` makes:\n  {}", stale.join("\n  ")),
        },
        _ => bail!("usage: cargo xtask codegen [--check]"),
    }
}

/// The folder of the workspace's Cargo.toml, two above this crate's. Cargo says it at run time.
fn workspace_root() -> Result<PathBuf> {
    let manifest = std::env::var("CARGO_MANIFEST_DIR").context("run it as `cargo xtask codegen`")?;
    let root = Path::new(&manifest).ancestors().nth(2).context("not inside a workspace")?;
    Ok(root.to_path_buf())
}

/// The names, below the workspace, of generated files that are missing, changed or too many.
fn stale(root: &Path) -> Result<Vec<String>> {
    let mut expected = generate(root)?;
    let mut stale = Vec::new();
    for name in existing(root)? {
        let found =
            std::fs::read(root.join(OUT).join(&name)).with_context(|| format!("read {OUT}/{name}"))?;
        if expected.remove(&name).is_none_or(|bytes| bytes != found) {
            stale.push(format!("{OUT}/{name}"));
        }
    }
    stale.extend(expected.into_keys().map(|name| format!("{OUT}/{name}")));
    stale.sort();
    Ok(stale)
}

fn write(root: &Path) -> Result<()> {
    let files = generate(root)?;
    let folder = root.join(OUT);
    std::fs::create_dir_all(&folder).with_context(|| format!("create {OUT}"))?;
    for name in existing(root)? {
        if !files.contains_key(&name) {
            std::fs::remove_file(folder.join(&name)).with_context(|| format!("remove {OUT}/{name}"))?;
        }
    }
    for (name, bytes) in files {
        let path = folder.join(&name);
        // An unchanged file keeps its time, so that cargo does not build the crate again.
        if std::fs::read(&path).is_ok_and(|found| found == bytes) {
            continue;
        }
        std::fs::write(&path, bytes).with_context(|| format!("write {OUT}/{name}"))?;
    }
    Ok(())
}

fn existing(root: &Path) -> Result<Vec<String>> {
    let folder = root.join(OUT);
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&folder).with_context(|| format!("read {OUT}"))? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    Ok(names)
}

fn generate(root: &Path) -> Result<Files> {
    let proto = root.join(PROTO);
    let names = proto_names(&proto)?;
    let mut compiler = compiler(&proto)?;
    compiler.include_imports(true).include_source_info(true);
    compiler.open_files(&names).context("compile the .proto files")?;
    let descriptors = compiler.file_descriptor_set().file;

    let shared = descriptors.iter().filter(|file| is_shared(file)).cloned().collect();
    let mut files = rust(config(false), shared)?;
    // The second run needs the shared packages to know their messages, and generates nothing for them.
    files.extend(rust(config(true), descriptors)?);
    files.insert(DESCRIPTORS.to_owned(), described(&proto, DESCRIBED)?);
    files.insert(AGENT_DESCRIPTORS.to_owned(), described(&proto, AGENT_DESCRIBED)?);
    files.insert(SERVER_DESCRIPTORS.to_owned(), described(&proto, &server_files())?);
    Ok(files)
}

fn is_shared(file: &FileDescriptorProto) -> bool {
    SHARED.iter().any(|(package, _)| file.package() == *package)
}

fn compiler(proto: &Path) -> Result<protox::Compiler> {
    Ok(protox::Compiler::new([proto.join(WORKLOAD_FOLDER), proto.to_path_buf()])?)
}

/// What the server's sockets serve beside health.
fn server_files() -> Vec<String> {
    let mut files: Vec<String> =
        SERVER_SERVICES.iter().map(|name| format!("spire/api/server/{name}/v1/{name}.proto")).collect();
    files.extend(["grpc/health/v1/health.proto".to_owned(), "spire/push/v1/push.proto".to_owned()]);
    files
}

/// The descriptor set of files and what they import, without comments.
fn described(proto: &Path, files: &[impl AsRef<Path>]) -> Result<Vec<u8>> {
    let mut compiler = compiler(proto)?;
    compiler.include_imports(true).include_source_info(false);
    compiler.open_files(files)?;
    Ok(compiler.encode_file_descriptor_set())
}

fn rust(mut config: Config, descriptors: Vec<FileDescriptorProto>) -> Result<Files> {
    let requests = descriptors
        .into_iter()
        .map(|file| (Module::from_protobuf_package_name(file.package()), file))
        .collect();
    let modules = config.generate(requests).context("generate Rust")?;
    Ok(modules
        .into_iter()
        .map(|(module, code)| (module.to_file_name_or("workload"), header(&code).into_bytes()))
        .collect())
}

fn header(code: &str) -> String {
    format!("// @generated by `cargo xtask codegen` from crates/wire/proto. Do not edit.\n{code}")
}

/// One configuration for all packages; `refer` makes the shared ones references instead of code.
fn config(refer: bool) -> Config {
    let mut config = Config::new();
    config
        .bytes(["."]) // shares what was received instead of copying it
        .btree_map(["."]) // one order, so that equal messages have equal bytes
        .enable_type_names() // status details travel as google.protobuf.Any
        .type_name_domain(["."], "type.googleapis.com")
        .skip_debug(SECRET)
        .service_generator(
            tonic_prost_build::configure()
                .build_client(true)
                .build_server(true)
                .build_transport(false)
                .service_generator(),
        );
    if refer {
        for (package, module) in SHARED {
            config.extern_path(format!(".{package}"), *module);
        }
    }
    config
}

/// Every .proto file below `folder`, as other files import it, in a fixed order.
fn proto_names(folder: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let mut pending: Vec<PathBuf> = vec![folder.to_path_buf()];
    while let Some(next) = pending.pop() {
        for entry in std::fs::read_dir(&next).with_context(|| format!("read {}", next.display()))? {
            let path = entry?.path();
            if path.is_dir() {
                pending.push(path);
            } else if path.extension().is_some_and(|extension| extension == "proto") {
                let name = path.strip_prefix(folder)?.to_string_lossy().into_owned();
                let bare = name.strip_prefix(WORKLOAD_FOLDER).and_then(|rest| rest.strip_prefix('/'));
                found.push(bare.map_or_else(|| name.clone(), str::to_owned));
            }
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_checked_in_is_what_it_makes() {
        assert_eq!(stale(&workspace_root().unwrap()).unwrap(), Vec::<String>::new());
    }
}
