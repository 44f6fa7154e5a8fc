//! `entry delete`.

use spire_compat::flag::FlagSet;
use spire_compat::quote::quote;
use spire_wire::api::server::entry::v1::entry_client::EntryClient;
use spire_wire::api::server::entry::v1::{BatchDeleteEntryRequest, BatchDeleteEntryResponse};

use crate::call::{ApiCommand, Call, running};
use crate::env::Env;
use crate::failure::{Failure, code_name};
use crate::files::read_or_stdin;
use crate::input::{self, Object};

pub(super) const DELETE: ApiCommand = ApiCommand {
    path: "entry delete",
    name: "entry delete",
    synopsis: "Deletes registration entries",
    flags,
    run: running!(run),
};

fn flags(flags: FlagSet) -> FlagSet {
    flags.string("entryID", "", "The Registration Entry ID of the record to delete.").string(
        "file",
        "",
        "Path to a file containing a JSON structure for batch deletion (optional). If set to '-', read from stdin.",
    )
}

async fn run(call: &mut Call<'_>) -> Result<(), Failure> {
    let file = call.flags.string("file").to_owned();
    let ids = match (file.as_str(), call.flags.string("entryID")) {
        ("", "") => return Err(Failure::new("an entry ID is required")),
        ("", id) => vec![id.to_owned()],
        (file, _) => {
            let value = input::parse(&read_or_stdin(call.env, file)?)?;
            Object::root(&value, "entryv1.BatchDeleteEntryRequest")?.texts("ids")?
        }
    };
    let request = BatchDeleteEntryRequest { ids };
    let response = EntryClient::new(call.channel.clone()).batch_delete_entry(request).await?.into_inner();
    call.print(&response, print)
}

fn print(env: &mut Env, response: &BatchDeleteEntryResponse) -> Result<(), Failure> {
    let is_done = |r: &&_| -> bool {
        let r: &spire_wire::api::server::entry::v1::batch_delete_entry_response::Result = r;
        r.status.as_ref().is_none_or(|s| s.code == 0)
    };
    let (done, failed): (Vec<_>, Vec<_>) = response.results.iter().partition(is_done);
    for result in &done {
        env.out(format_args!("Deleted entry with ID: {}\n", result.id));
    }
    if !done.is_empty() {
        env.out("\n\n");
    }
    for result in &failed {
        let status = result.status.clone().unwrap_or_default();
        let (code, message) = (code_name(status.code), quote(&status.message));
        env.err(format_args!(
            "Failed to delete entry with ID {} (code: {code}, msg: {message})\n",
            result.id
        ));
    }
    // The reference ends these lines without a newline.
    if failed.is_empty() {
        env.out(format_args!("Deleted {} entries successfully", done.len()));
        return Ok(());
    }
    env.out("\n\n");
    if done.is_empty() {
        env.out(format_args!("Failed to delete {} entries", failed.len()));
    } else {
        let (done, failed) = (done.len(), failed.len());
        env.out(format_args!("Deleted {done} entries successfully, but failed to delete {failed} entries"));
    }
    Err(Failure::new("failed to delete one or more entries"))
}
