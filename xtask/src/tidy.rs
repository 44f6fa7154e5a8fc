//! `cargo xtask tidy`: what the compiler and clippy do not check. It prints every finding, then fails.

mod bounds;
mod keys;
mod source;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{codegen, layers};

/// Runs every check over the workspace at `root`.
///
/// # Errors
/// A check has findings, or could not run.
pub(crate) fn run(root: &Path, args: &[String]) -> Result<()> {
    if !args.is_empty() {
        bail!("usage: cargo xtask tidy");
    }
    check(root)?;
    codegen(root, &["--check".to_owned()])
}

/// The same but for generated code, which is what a test of `xtask/codegen` looks at.
///
/// # Errors
/// A check has findings, or could not run.
pub(crate) fn check(root: &Path) -> Result<()> {
    let mut findings = layers::violations(&layers::crates(&metadata(root)?, root)?);
    let files = rust_files(root)?;
    for path in &files {
        let text = std::fs::read_to_string(root.join(path)).with_context(|| format!("read {path}"))?;
        findings.extend(source::findings(path, &text));
    }
    findings.extend(keys::findings(root, &files)?);
    findings.extend(bounds::findings(root)?);
    findings.extend(parity(root)?);
    if findings.is_empty() {
        return Ok(());
    }
    bail!("tidy:\n  {}\n{} findings", findings.join("\n  "), findings.len())
}

fn metadata(root: &Path) -> Result<serde_json::Value> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(root)
        .output()
        .context("start cargo metadata")?;
    if !output.status.success() {
        bail!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// Our Rust files below the workspace, with forward slashes, in order. Generated ones are left out.
fn rust_files(root: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let mut pending: Vec<PathBuf> =
        ["bin", "crates", "testing", "xtask"].map(|folder| root.join(folder)).to_vec();
    while let Some(folder) = pending.pop() {
        if !folder.is_dir() {
            continue;
        }
        for entry in std::fs::read_dir(&folder).with_context(|| format!("read {}", folder.display()))? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() {
                if name != "generated" && name != "target" && !name.starts_with('.') {
                    pending.push(path);
                }
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path.strip_prefix(root)?.to_string_lossy().replace('\\', "/"));
            }
        }
    }
    found.sort();
    Ok(found)
}

/// PARITY.md must speak of every list of the contract and of every family (first column) in it. The contract is a
/// set of tables of SPIRE's features that is kept outside the repository, in `../shared`; a clone without it skips
/// this check (CONTRIBUTING.md).
fn parity(root: &Path) -> Result<Vec<String>> {
    let contract = root.join("../shared/contract");
    if !contract.is_dir() {
        return Ok(Vec::new());
    }
    let Ok(parity) = std::fs::read_to_string(root.join("PARITY.md")) else {
        return Ok(vec!["PARITY.md: missing".to_owned()]);
    };
    let mut findings = Vec::new();
    for entry in std::fs::read_dir(&contract).context("read the contract")? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "tsv") {
            let list = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let rows = std::fs::read_to_string(&path).with_context(|| format!("read {list}"))?;
            findings.extend(missing_families(&list, &rows, &parity));
        }
    }
    findings.sort();
    Ok(findings)
}

/// A line for each family of `rows` that `parity` does not name.
fn missing_families(list: &str, rows: &str, parity: &str) -> Vec<String> {
    let mut families: Vec<&str> = rows
        .lines()
        .skip(1)
        .filter_map(|row| row.split('\t').next())
        .filter(|family| !family.is_empty())
        .collect();
    families.sort_unstable();
    families.dedup();
    families
        .into_iter()
        .filter(|family| !parity.contains(family))
        .map(|family| format!("PARITY.md: no row for {family} ({list})"))
        .collect()
}

#[cfg(test)]
mod tests {
    //! Checks that need no workspace.
    use super::*;

    #[test]
    fn a_family_that_parity_does_not_name_is_found() {
        let rows = "plugin\tselector\nunix\tunix:uid:<uid>\nunix\tunix:gid:<gid>\ndocker\tdocker:label\n";
        assert_eq!(
            missing_families("selectors.tsv", rows, "| unix | works |"),
            ["PARITY.md: no row for docker (selectors.tsv)"]
        );
        assert_eq!(missing_families("selectors.tsv", rows, "| unix, docker |"), Vec::<String>::new());
    }
}
