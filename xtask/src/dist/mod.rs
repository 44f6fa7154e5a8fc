//! `cargo xtask dist`: the release tarball, in the layout that SPIRE's users know.
//!
//! `spire-<version>/bin/{spire-server,spire-agent,oidc-discovery-provider,spire}`, `conf/*/*.conf`, licence and read-me. The same
//! source, and profile if one is given, give the same bytes: paths are remapped, times are the last commit's, owners and
//! order are fixed.

mod build;
pub(crate) mod profile;

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::report;

const BINARIES: &[&str] = &["spire-server", "spire-agent", "oidc-discovery-provider", "spire"];

/// Writes `dist/spire-<version>-linux-<arch>-glibc.tar.gz` and its SHA-256.
pub(crate) fn run(root: &Path, args: &[String]) -> Result<()> {
    let profile = match args {
        [] => None,
        [flag, file] if flag == "-profile" => Some(Path::new(file)),
        _ => bail!("usage: cargo xtask dist [-profile FILE]"),
    };
    let version = env!("CARGO_PKG_VERSION");
    let name = format!("spire-{version}");
    let built = build::release(root, BINARIES, profile)?;
    let dist = root.join("dist");
    let tree = dist.join(&name);
    if tree.exists() {
        std::fs::remove_dir_all(&tree)?;
    }
    std::fs::create_dir_all(tree.join("bin"))?;
    for binary in BINARIES {
        let from = built.join(binary);
        let to = tree.join("bin").join(binary);
        std::fs::copy(&from, &to).with_context(|| from.display().to_string())?;
        check_hardening(&to)?;
        report(&format!("{binary}: {} KiB", std::fs::metadata(&to)?.len() / 1024));
    }
    for side in ["server", "agent", "oidc-discovery-provider"] {
        copy_folder(&root.join("conf").join(side), &tree.join("conf").join(side))?;
    }
    for file in ["LICENSE", "README.md", "CHANGELOG.md"] {
        std::fs::copy(root.join(file), tree.join(file))?;
    }
    let tarball = dist.join(format!("{name}-linux-{}-glibc.tar.gz", std::env::consts::ARCH));
    pack(root, &dist, &name, &tarball)?;
    let size = std::fs::metadata(&tarball)?.len();
    report(&format!("{}: {:.1} MiB", tarball.display(), mebibytes(size)));
    output(Command::new("sha256sum").arg(tarball.file_name().unwrap_or_default()).current_dir(&dist))
        .and_then(|sum| Ok(std::fs::write(tarball.with_extension("gz.sha256"), sum)?))
}

#[expect(clippy::cast_precision_loss, reason = "a size for a person to read")]
fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn commit_time(root: &Path) -> Result<String> {
    let time = output(Command::new("git").args(["log", "-1", "--format=%ct"]).current_dir(root))?;
    Ok(time.trim().to_owned())
}

/// A position-independent executable whose relocations are read-only once it runs.
fn check_hardening(binary: &Path) -> Result<()> {
    let headers = output(Command::new("readelf").args(["-W", "-h", "-l", "-d"]).arg(binary))?;
    for (what, needle) in [("PIE", "DYN ("), ("RELRO", "GNU_RELRO"), ("immediate binding", "NOW")] {
        if !headers.contains(needle) {
            bail!("{} lacks {what}", binary.display());
        }
    }
    Ok(())
}

fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from).with_context(|| from.display().to_string())? {
        let entry = entry?;
        std::fs::copy(entry.path(), to.join(entry.file_name()))?;
    }
    Ok(())
}

/// Packs with fixed order, owner, mode and time, so that equal trees give equal bytes.
fn pack(root: &Path, dist: &Path, name: &str, tarball: &Path) -> Result<()> {
    let tar = tarball.with_extension("");
    output(
        Command::new("tar")
            .current_dir(dist)
            .args([
                "--sort=name",
                "--owner=0",
                "--group=0",
                "--numeric-owner",
                "--mode=u+rw,go+r,go-w",
                "--format=ustar",
            ])
            .arg(format!("--mtime=@{}", commit_time(root)?))
            .arg("-cf")
            .arg(&tar)
            .arg(name),
    )?;
    output(Command::new("gzip").args(["-9", "-n", "-f"]).arg(&tar))?;
    Ok(())
}

fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("starting {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
