//! `localauthority …` (cmd/spire-server/cli/localauthority, authoritycommon).

use spire_compat::gotime;
use spire_wire::api::server::localauthority::v1 as api;
use spire_wire::api::server::localauthority::v1::AuthorityState;
use spire_wire::api::server::localauthority::v1::local_authority_client::LocalAuthorityClient;

use crate::call::{ApiCommand, Call, Running, running};
use crate::dispatch::Command;
use crate::env::Env;
use crate::failure::{Doing, Failure};

/// The two kinds of authorities, as the texts call them.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    X509,
    Jwt,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::X509 => "X.509",
            Self::Jwt => "JWT",
        }
    }
}

pub(super) fn commands<H: 'static>() -> Vec<Command<H>> {
    let plain = |path, synopsis, run: for<'a> fn(&'a mut Call<'_>) -> Running<'a>| {
        ApiCommand { path, name: path, synopsis, flags: |flags| flags, run }.server()
    };
    let mut commands = vec![
        plain("localauthority x509 show", "Shows the local X.509 authorities", running!(show_x509)),
        plain(
            "localauthority x509 prepare",
            "Prepares a new X.509 authority for use by generating a new key and injecting the resulting CA certificate into the bundle",
            running!(prepare_x509),
        ),
        plain("localauthority jwt show", "Shows the local JWT authorities", running!(show_jwt)),
        plain(
            "localauthority jwt prepare",
            "Prepares a new JWT authority for use by generating a new key and injecting it into the bundle",
            running!(prepare_jwt),
        ),
    ];
    commands.extend(x509().map(ApiCommand::server));
    commands.extend(jwt().map(ApiCommand::server));
    commands
}

fn x509() -> [ApiCommand; 3] {
    [
        ApiCommand {
            path: "localauthority x509 activate",
            name: "localauthority x509 activate",
            synopsis: "Activates a prepared X.509 authority for use, which will cause it to be used for all X.509 signing operations serviced by this server going forward",
            flags: |flags| {
                flags.string("authorityID", "", "The authority ID of the X.509 authority to activate")
            },
            run: running!(activate_x509),
        },
        ApiCommand {
            path: "localauthority x509 taint",
            name: "localauthority x509 taint",
            synopsis: "Marks the previously active X.509 authority as being tainted",
            flags: |flags| {
                flags.string("authorityID", "", "The authority ID of the X.509 authority to taint")
            },
            run: running!(taint_x509),
        },
        ApiCommand {
            path: "localauthority x509 revoke",
            name: "localauthority x509 revoke",
            synopsis: "Revokes the previously active X.509 authority by removing it from the bundle and propagating this update throughout the cluster",
            flags: |flags| {
                flags.string("authorityID", "", "The authority ID of the X.509 authority to revoke")
            },
            run: running!(revoke_x509),
        },
    ]
}

fn jwt() -> [ApiCommand; 3] {
    [
        ApiCommand {
            path: "localauthority jwt activate",
            name: "localauthority jwt activate",
            synopsis: "Activates a prepared JWT authority for use, which will cause it to be used for all JWT signing operations serviced by this server going forward",
            flags: |flags| {
                flags.string("authorityID", "", "The authority ID of the JWT authority to activate")
            },
            run: running!(activate_jwt),
        },
        ApiCommand {
            path: "localauthority jwt taint",
            name: "localauthority jwt taint",
            synopsis: "Marks the previously active JWT authority as being tainted",
            flags: |flags| flags.string("authorityID", "", "The authority ID of the JWT authority to taint"),
            run: running!(taint_jwt),
        },
        ApiCommand {
            path: "localauthority jwt revoke",
            name: "localauthority jwt revoke",
            synopsis: "Revokes the previously active JWT authority by removing it from the bundle and propagating this update throughout the cluster",
            flags: |flags| flags.string("authorityID", "", "The authority ID of the JWT authority to revoke"),
            run: running!(revoke_jwt),
        },
    ]
}

fn client(call: &Call<'_>) -> LocalAuthorityClient<tonic::transport::Channel> {
    LocalAuthorityClient::new(call.channel.clone())
}

fn authority_id(call: &Call<'_>) -> Result<String, Failure> {
    match call.flags.string("authorityID") {
        "" => Err(Failure::new("an authority ID is required")),
        id => Ok(id.to_owned()),
    }
}

fn print_state(env: &mut Env, kind: Kind, state: &AuthorityState) {
    env.out(format_args!("  Authority ID: {}\n", state.authority_id));
    env.out(format_args!("  Expires at: {}\n", gotime::string(state.expires_at)));
    match (kind, state.upstream_authority_subject_key_id.as_str()) {
        (Kind::Jwt, _) => {}
        (Kind::X509, "") => env.out("  Upstream authority ID: No upstream authority\n"),
        (Kind::X509, id) => env.out(format_args!("  Upstream authority Subject Key ID: {id}\n")),
    }
}

/// What all commands but `show` print. `done` is `Prepared` and so on.
fn print_one(env: &mut Env, kind: Kind, done: &str, state: Option<&AuthorityState>) -> Result<(), Failure> {
    let name = kind.name();
    env.out(format_args!("{done} {name} authority:\n"));
    let state = state.ok_or_else(|| {
        let done = done.to_lowercase();
        Failure::new(format!("internal error: expected to have {done} {name} authority information"))
    })?;
    print_state(env, kind, state);
    Ok(())
}

#[allow(clippy::unnecessary_wraps, reason = "the shape of a printer")]
fn print_all(env: &mut Env, kind: Kind, states: [&Option<AuthorityState>; 3]) -> Result<(), Failure> {
    let name = kind.name();
    for (i, (slot, state)) in ["Active", "Prepared", "Old"].into_iter().zip(states).enumerate() {
        if i > 0 {
            env.out("\n");
        }
        env.out(format_args!("{slot} {name} authority:\n"));
        match state {
            Some(state) => print_state(env, kind, state),
            None => env.out(format_args!("  No {} {name} authority found\n", slot.to_lowercase())),
        }
    }
    Ok(())
}

async fn show_x509(call: &mut Call<'_>) -> Result<(), Failure> {
    let request = api::GetX509AuthorityStateRequest {};
    let response = client(call)
        .get_x509_authority_state(request)
        .await
        .doing("could not get X.509 authorities")?
        .into_inner();
    call.print(&response, |env, r| print_all(env, Kind::X509, [&r.active, &r.prepared, &r.old]))
}

async fn show_jwt(call: &mut Call<'_>) -> Result<(), Failure> {
    let request = api::GetJwtAuthorityStateRequest {};
    let response = client(call).get_jwt_authority_state(request).await?.into_inner();
    call.print(&response, |env, r| print_all(env, Kind::Jwt, [&r.active, &r.prepared, &r.old]))
}

async fn prepare_x509(call: &mut Call<'_>) -> Result<(), Failure> {
    let request = api::PrepareX509AuthorityRequest {};
    let response = client(call)
        .prepare_x509_authority(request)
        .await
        .doing("could not prepare X.509 authority")?
        .into_inner();
    call.print(&response, |env, r| print_one(env, Kind::X509, "Prepared", r.prepared_authority.as_ref()))
}

async fn prepare_jwt(call: &mut Call<'_>) -> Result<(), Failure> {
    let request = api::PrepareJwtAuthorityRequest {};
    let response = client(call)
        .prepare_jwt_authority(request)
        .await
        .doing("could not prepare JWT authority")?
        .into_inner();
    call.print(&response, |env, r| print_one(env, Kind::Jwt, "Prepared", r.prepared_authority.as_ref()))
}

macro_rules! with_id {
    ($($command:ident: $call:ident($request:ident) gives $field:ident, $kind:ident, $verb:literal, $done:literal;)*) => {$(
        async fn $command(call: &mut Call<'_>) -> Result<(), Failure> {
            let request = api::$request { authority_id: authority_id(call)? };
            let doing = format!("could not {} {} authority", $verb, Kind::$kind.name());
            let response = client(call).$call(request).await.doing(doing)?.into_inner();
            call.print(&response, |env, r| print_one(env, Kind::$kind, $done, r.$field.as_ref()))
        }
    )*};
}

with_id! {
    activate_x509: activate_x509_authority(ActivateX509AuthorityRequest) gives activated_authority, X509, "activate", "Activated";
    taint_x509: taint_x509_authority(TaintX509AuthorityRequest) gives tainted_authority, X509, "taint", "Tainted";
    revoke_x509: revoke_x509_authority(RevokeX509AuthorityRequest) gives revoked_authority, X509, "revoke", "Revoked";
    activate_jwt: activate_jwt_authority(ActivateJwtAuthorityRequest) gives activated_authority, Jwt, "activate", "Activated";
    taint_jwt: taint_jwt_authority(TaintJwtAuthorityRequest) gives tainted_authority, Jwt, "taint", "Tainted";
    revoke_jwt: revoke_jwt_authority(RevokeJwtAuthorityRequest) gives revoked_authority, Jwt, "revoke", "Revoked";
}
