//! `container_id_cgroup_matchers`: patterns of cgroup paths, where `*` stands for any component and `<id>`
//! for the one that is the container's ID (pkg/agent/plugin/workloadattestor/docker/cgroup).

use std::collections::BTreeSet;

use spire_compat::quote::quote;

const ANY: &str = "*";
const ID: &str = "<id>";

/// Patterns of which at most one fits any path.
#[derive(Debug)]
pub(crate) struct Matchers(Vec<Vec<String>>);

impl Matchers {
    /// Refuses patterns without exactly one `<id>`, and such that fit the same path.
    pub(crate) fn parse(patterns: &[String]) -> Result<Self, String> {
        let split: Vec<Vec<String>> =
            patterns.iter().map(|pattern| pattern.split('/').map(str::to_owned).collect()).collect();
        let mut ambiguous = BTreeSet::new();
        for (index, one) in split.iter().enumerate() {
            for (other, pattern) in split.iter().zip(patterns).skip(index + 1) {
                if overlap(one, other) {
                    ambiguous.extend([patterns[index].as_str(), pattern.as_str()]);
                }
            }
        }
        if !ambiguous.is_empty() {
            let ambiguous: Vec<String> = ambiguous.into_iter().map(quote).collect();
            return Err(format!("dockerfinder: patterns must not be ambiguous: [{}]", ambiguous.join(" ")));
        }
        for (components, pattern) in split.iter().zip(patterns) {
            if components.iter().filter(|component| *component == ID).count() != 1 {
                let pattern = quote(pattern);
                return Err(format!(
                    "pattern {pattern} must contain the container id token \"{ID}\" exactly once"
                ));
            }
        }
        Ok(Self(split))
    }

    /// The container that the paths of a process name, if they do.
    pub(crate) fn find(&self, paths: &[&str]) -> Result<Option<String>, String> {
        let mut found: Option<&str> = None;
        for candidate in paths.iter().filter_map(|path| self.find_in(path)) {
            match found {
                None | Some("") => found = Some(candidate),
                Some(known) if known != candidate => {
                    return Err(format!(
                        "workloadattestor/docker: multiple container IDs found in cgroups ({known}, {candidate})"
                    ));
                }
                Some(_) => {}
            }
        }
        match found {
            Some("") => {
                Err("workloadattestor/docker: a pattern matched, but no container id was found".to_owned())
            }
            found => Ok(found.map(str::to_owned)),
        }
    }

    fn find_in<'a>(&self, path: &'a str) -> Option<&'a str> {
        let parts: Vec<&str> = path.split('/').collect();
        self.0.iter().find_map(|pattern| {
            let fits = pattern.len() == parts.len()
                && pattern.iter().zip(&parts).all(|(p, part)| p == ANY || p == ID || p == part);
            let at = pattern.iter().position(|component| component == ID)?;
            fits.then(|| parts[at])
        })
    }
}

/// Whether some path fits both.
fn overlap(one: &[String], other: &[String]) -> bool {
    let free = |component: &String| component == ANY || component == ID;
    one.len() == other.len() && one.iter().zip(other).all(|(a, b)| a == b || free(a) || free(b))
}
