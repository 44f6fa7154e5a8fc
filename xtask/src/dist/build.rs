//! Builds of the programs that are released: hardened, optimised as a whole, without paths of this machine.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::{commit_time, output, profile};

/// Builds what is released, by a profile if there is one; returns the folder of the programs.
pub(super) fn release(root: &Path, binaries: &[&str], profile: Option<&Path>) -> Result<PathBuf> {
    let mut flags = Vec::new();
    if let Some(file) = profile {
        let file = std::path::absolute(file)?;
        let order = profile::order(&file);
        if !order.is_file() {
            bail!("{} is not there; `cargo xtask profile` writes it beside the profile", order.display());
        }
        flags.push(format!("-Cprofile-use={}", file.display()));
        // What has run stands side by side: Linux maps sixteen pages around each that is touched.
        flags.push(format!("-Clink-arg=-Wl,--symbol-ordering-file={}", order.display()));
        // Most names of the list were inlined.
        flags.push("-Clink-arg=-Wl,--no-warn-symbol-ordering".to_owned());
    }
    programs(root, binaries, flags)
}

/// Builds programs of the profile `whole` with further flags; returns their folder. A target is named even though it is
/// the host's: so the flags do not reach build scripts and the compiler's own plugins.
pub(super) fn programs(root: &Path, binaries: &[&str], mut flags: Vec<String>) -> Result<PathBuf> {
    let home =
        std::env::var("CARGO_HOME").or_else(|_| std::env::var("HOME").map(|h| format!("{h}/.cargo")))?;
    let target = target_folder(root);
    let triple = host()?;
    // Of several that fit the last one counts: the target folder may lie in the checkout.
    flags.extend([
        format!("--remap-path-prefix={}=.", root.display()),
        format!("--remap-path-prefix={}=target", target.display()),
        format!("--remap-path-prefix={home}=cargo"),
        "-Clink-arg=-Wl,-z,relro,-z,now".to_owned(),
        // Rust's default embeds nothing that changes from build to build but this id.
        "-Clink-arg=-Wl,--build-id=none".to_owned(),
    ]);
    let c_flags = format!(
        "-ffile-prefix-map={home}=cargo -ffile-prefix-map={}=target -fstack-protector-strong",
        target.display()
    );
    let mut build = Command::new(env!("CARGO"));
    build
        .current_dir(root)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
        // C code of dependencies must not carry paths or times either.
        .env("CFLAGS", c_flags)
        .env("SOURCE_DATE_EPOCH", commit_time(root)?)
        .args(["build", "--profile", "whole", "--locked", "--target", &triple]);
    for binary in binaries {
        build.args(["--bin", binary]);
    }
    if !build.status()?.success() {
        bail!("the build failed");
    }
    Ok(target.join(triple).join("whole"))
}

/// Where cargo builds.
pub(super) fn target_folder(root: &Path) -> PathBuf {
    std::env::var("CARGO_TARGET_DIR").map_or_else(|_| root.join("target"), PathBuf::from)
}

/// The target that the compiler builds for by itself.
fn host() -> Result<String> {
    let version = output(Command::new(rustc()).arg("-vV"))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("rustc -vV names no host")?.to_owned())
}

/// The compiler beside the cargo that runs this.
pub(super) fn rustc() -> PathBuf {
    Path::new(env!("CARGO")).with_file_name("rustc")
}
