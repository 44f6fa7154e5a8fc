//! KeyManager, both sides: keys are files `key-<id>` of the folder.

use spire_core::pki::{HashAlgorithm, KeyType, LocalKey, SignatureAlgorithm};
use spire_plugin_sdk::Status;

use crate::base::{Base, io};

/// A key, as either side tells it.
struct Told {
    key: LocalKey,
    id: String,
    fingerprint: String,
}

fn load(id: &str, der: &[u8]) -> Result<Told, Status> {
    let key = LocalKey::from_pkcs8(der).map_err(|error| Status::internal(error.to_string()))?;
    let digest = HashAlgorithm::Sha256.digest(key.public_key().spki());
    let fingerprint = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(Told { key, id: id.to_owned(), fingerprint })
}

fn generate(base: &Base, id: &str, key_type: i32) -> Result<Told, Status> {
    if id.is_empty() {
        return Err(Status::invalid_argument("key id is required"));
    }
    let key_type = match key_type {
        1 => KeyType::EcP256,
        2 => KeyType::EcP384,
        3 => KeyType::Rsa2048,
        4 => KeyType::Rsa4096,
        _ => return Err(Status::invalid_argument("key type is required")),
    };
    let failed = |error: &dyn std::fmt::Display| Status::internal(error.to_string());
    let key = LocalKey::generate(key_type).map_err(|error| failed(&error))?;
    let der = key.to_pkcs8().map_err(|error| failed(&error))?;
    base.path("key")?;
    base.note(&format!("key-{id}"), &*der);
    load(id, &der)
}

fn find(base: &Base, id: &str) -> Result<Option<Told>, Status> {
    match std::fs::read(base.path(&format!("key-{id}"))?) {
        Ok(der) => load(id, &der).map(Some),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io(error)),
    }
}

fn all(base: &Base) -> Result<Vec<Told>, Status> {
    let folder = base.path("x")?;
    let Some(folder) = folder.parent() else { return Ok(Vec::new()) };
    let mut ids: Vec<String> = std::fs::read_dir(folder)
        .map_err(io)?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.strip_prefix("key-").map(str::to_owned))
        .filter(|id| !id.ends_with(".new"))
        .collect();
    ids.sort();
    ids.iter().filter_map(|id| find(base, id).transpose()).collect()
}

/// Signs a digest with Go's number of its hash.
async fn sign(
    base: &Base,
    id: &str,
    digest: &[u8],
    hash: i32,
    pss: bool,
) -> Result<(Vec<u8>, String), Status> {
    base.obey().await;
    let found = find(base, id)?.ok_or_else(|| Status::not_found(format!("no such key {id:?}")))?;
    let ecdsa = matches!(found.key.public_key().key_type(), Some(KeyType::EcP256 | KeyType::EcP384));
    use SignatureAlgorithm as A;
    let algorithm = match (hash, ecdsa, pss) {
        (5, true, _) => A::EcdsaSha256,
        (6, true, _) => A::EcdsaSha384,
        (7, true, _) => A::EcdsaSha512,
        (5, false, false) => A::RsaPkcs1Sha256,
        (6, false, false) => A::RsaPkcs1Sha384,
        (7, false, false) => A::RsaPkcs1Sha512,
        (5, false, true) => A::RsaPssSha256,
        (6, false, true) => A::RsaPssSha384,
        (7, false, true) => A::RsaPssSha512,
        _ => return Err(Status::invalid_argument(format!("no such hash {hash}"))),
    };
    let signature =
        found.key.sign_digest(algorithm, digest).map_err(|error| Status::internal(error.to_string()))?;
    Ok((signature, found.fingerprint))
}

/// The services of both sides differ in their package only.
macro_rules! side {
    ($side:ident) => {
        pub(crate) mod $side {
            use std::sync::Arc;

            use spire_plugin_sdk::wire::$side::keymanager::v1::key_manager_server::KeyManager;
            use spire_plugin_sdk::wire::$side::keymanager::v1::sign_data_request::SignerOpts;
            use spire_plugin_sdk::wire::$side::keymanager::v1::*;
            use spire_plugin_sdk::{Request, Response, Status, async_trait};

            use super::Told;
            use crate::base::Base;

            pub(crate) struct Keys(pub(crate) Arc<Base>);

            fn told(told: Told) -> PublicKey {
                PublicKey {
                    id: told.id,
                    pkix_data: told.key.public_key().spki().clone(),
                    fingerprint: told.fingerprint,
                    ..PublicKey::default()
                }
            }

            #[async_trait]
            impl KeyManager for Keys {
                async fn generate_key(
                    &self,
                    request: Request<GenerateKeyRequest>,
                ) -> Result<Response<GenerateKeyResponse>, Status> {
                    let request = request.into_inner();
                    let made = super::generate(&self.0, &request.key_id, request.key_type)?;
                    Ok(Response::new(GenerateKeyResponse { public_key: Some(told(made)) }))
                }

                async fn get_public_key(
                    &self,
                    request: Request<GetPublicKeyRequest>,
                ) -> Result<Response<GetPublicKeyResponse>, Status> {
                    let found = super::find(&self.0, &request.into_inner().key_id)?;
                    Ok(Response::new(GetPublicKeyResponse { public_key: found.map(told) }))
                }

                async fn get_public_keys(
                    &self,
                    _: Request<GetPublicKeysRequest>,
                ) -> Result<Response<GetPublicKeysResponse>, Status> {
                    let public_keys = super::all(&self.0)?.into_iter().map(told).collect();
                    Ok(Response::new(GetPublicKeysResponse { public_keys }))
                }

                async fn sign_data(
                    &self,
                    request: Request<SignDataRequest>,
                ) -> Result<Response<SignDataResponse>, Status> {
                    let request = request.into_inner();
                    let (hash, pss) = match request.signer_opts {
                        Some(SignerOpts::HashAlgorithm(hash)) => (hash, false),
                        Some(SignerOpts::PssOptions(options)) => (options.hash_algorithm, true),
                        None => return Err(Status::invalid_argument("signer opts is required")),
                    };
                    let (signature, key_fingerprint) =
                        super::sign(&self.0, &request.key_id, &request.data, hash, pss).await?;
                    Ok(Response::new(SignDataResponse { signature: signature.into(), key_fingerprint }))
                }
            }
        }
    };
}

side!(server);
side!(agent);
