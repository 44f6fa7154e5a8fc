//! WorkloadAttestor `slurm`: which job and step of the Slurm workload manager a process belongs to, by its cgroup
//! (pkg/agent/plugin/workloadattestor/slurm).
//!
//! Slurm makes its cgroups (version 2) as `/system.slice/[<node>_]slurmstepd.scope/<job>/step_<step>/…`. The path counts
//! from its start only: no workload can make cgroups below `/system.slice`, but some can make folders of any name below a
//! slice of their own.

use std::io::Read as _;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use spire_compat::errno::path_error;
use spire_compat::quote::quote;
use spire_core::spiffe::Selector;
use spire_ports::plugins::catalog::Configuration;
use spire_ports::plugins::{Error, ErrorKind, PluginType, Result, WorkloadAttestor};

const NAME: &str = "slurm";
/// A process has one cgroup a hierarchy, of which there are about a dozen.
const MAX_CGROUP_BYTES: u64 = 1 << 20;

struct Slurm {
    /// Where `proc` lies.
    root: PathBuf,
}

/// The attestor.
pub(crate) async fn build(_: Configuration) -> Result<Arc<dyn WorkloadAttestor>> {
    Ok(Arc::new(Slurm { root: "/".into() }))
}

/// A job and a step of it, as the cgroup names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Step<'a> {
    job: &'a str,
    step: &'a str,
}

fn failed(kind: ErrorKind, message: impl Into<String>) -> Error {
    Error::new(kind, (PluginType::WorkloadAttestor, NAME), message)
}

#[async_trait]
impl WorkloadAttestor for Slurm {
    fn name(&self) -> &str {
        NAME
    }

    async fn attest(&self, pid: i32) -> Result<Vec<Selector>> {
        // A read of /proc: microseconds.
        let text = self
            .cgroups(pid)
            .map_err(|error| failed(ErrorKind::Internal, format!("unable to obtain cgroups: {error}")))?;
        let paths = paths(&text)
            .map_err(|error| failed(ErrorKind::Internal, format!("unable to obtain cgroups: {error}")))?;
        let Some(Step { job, step }) = find(paths)? else { return Ok(Vec::new()) };
        let job = match job.strip_prefix("job_") {
            Some(number) => format!("job_id:{number}"),
            None => format!("sluid:{job}"),
        };
        [job, format!("step:{step}")]
            .into_iter()
            .map(|value| {
                Selector::new(NAME, value).map_err(|error| failed(ErrorKind::Internal, error.to_string()))
            })
            .collect()
    }
}

impl Slurm {
    fn cgroups(&self, pid: i32) -> std::result::Result<String, String> {
        let path = format!("proc/{pid}/cgroup");
        let mut text = String::new();
        std::fs::File::open(self.root.join(&path))
            .map_err(|error| path_error("open", &path, &error))?
            .take(MAX_CGROUP_BYTES)
            .read_to_string(&mut text)
            .map_err(|error| path_error("read", &path, &error))?;
        Ok(text)
    }
}

/// The paths of lines `hierarchy:controllers:path` (pkg/agent/common/cgroups).
fn paths(text: &str) -> std::result::Result<Vec<&str>, String> {
    text.lines()
        .map(|line| {
            line.splitn(3, ':').nth(2).ok_or_else(|| {
                format!(
                    "invalid cgroup entry, contains {} colon separated fields but expected at least 3: {}",
                    line.split(':').count(),
                    quote(line)
                )
            })
        })
        .collect()
}

/// The only step that the cgroups are of; `None` where they are of none.
fn find(paths: Vec<&str>) -> Result<Option<Step<'_>>> {
    let mut steps = paths.into_iter().filter_map(step_of);
    let Some(first) = steps.next() else { return Ok(None) };
    match steps.find(|other| *other != first) {
        None => Ok(Some(first)),
        Some(other) => Err(failed(
            ErrorKind::FailedPrecondition,
            format!(
                "multiple Slurm jobs found in cgroups ({}/step_{}, {}/step_{})",
                first.job, first.step, other.job, other.step
            ),
        )),
    }
}

/// The step of one cgroup.
fn step_of(path: &str) -> Option<Step<'_>> {
    let (scope, rest) = path.strip_prefix("/system.slice/")?.split_once('/')?;
    let (job, rest) = rest.split_once('/')?;
    let step = rest.split('/').next()?.strip_prefix("step_")?;
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    // An identifier of Slurm's own: Crockford's base 32 behind an s.
    let is_sluid = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric());
    let is_job =
        job.strip_prefix("job_").is_some_and(is_number) || job.strip_prefix('s').is_some_and(is_sluid);
    (scope.ends_with("slurmstepd.scope") && is_job && !step.is_empty()).then_some(Step { job, step })
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn attest(cgroups: Option<&str>) -> std::result::Result<Vec<String>, (ErrorKind, String)> {
        let root = tempfile::tempdir().unwrap();
        if let Some(text) = cgroups {
            std::fs::create_dir_all(root.path().join("proc/123")).unwrap();
            std::fs::write(root.path().join("proc/123/cgroup"), text).unwrap();
        }
        let result = Slurm { root: root.path().to_owned() }.attest(123).await;
        match result {
            Ok(selectors) => Ok(selectors.iter().map(ToString::to_string).collect()),
            Err(error) => Err((error.kind, error.message)),
        }
    }

    #[tokio::test]
    async fn jobs_and_steps_are_found_where_slurm_makes_them() {
        let table: [(&str, &[&str]); 14] = [
            (
                "0::/system.slice/slurmstepd.scope/s5K1KKYAYG5D00/step_0/user/task_0\n",
                &["slurm:sluid:s5K1KKYAYG5D00", "slurm:step:0"],
            ),
            (
                "0::/system.slice/slurmstepd.scope/job_3385/step_batch/slurm\n",
                &["slurm:job_id:3385", "slurm:step:batch"],
            ),
            (
                "0::/system.slice/slurmstepd.scope/job_42/step_extern",
                &["slurm:job_id:42", "slurm:step:extern"],
            ),
            (
                "0::/system.slice/n1_slurmstepd.scope/job_1/step_1/slurm\n",
                &["slurm:job_id:1", "slurm:step:1"],
            ),
            // The same one twice.
            (
                "1:cpu:/system.slice/slurmstepd.scope/job_1/step_1/a\n0::/system.slice/slurmstepd.scope/job_1/step_1/b\n",
                &["slurm:job_id:1", "slurm:step:1"],
            ),
            ("", &[]),
            ("0::/system.slice/docker-0123456789abcdef.scope\n", &[]),
            ("0::/user.slice/user-1000.slice/session-3.scope\n", &[]),
            // Made by a workload below a slice of its own.
            ("0::/user.slice/user-1000.slice/user@1000.service/slurmstepd.scope/job_999/step_0\n", &[]),
            ("0::/user.slice/system.slice/slurmstepd.scope/job_999/step_0\n", &[]),
            ("0::/system.slice/x.service/slurmstepd.scope/job_999/step_0\n", &[]),
            ("0::/system.slice/slurmstepd.scope/job_1x/step_0\n", &[]),
            ("0::/system.slice/slurmstepd.scope/job_1/step_/x\n", &[]),
            ("0::/../system.slice/slurmstepd.scope/job_1/step_1\n", &[]),
        ];
        for (cgroups, selectors) in table {
            assert_eq!(attest(Some(cgroups)).await.unwrap(), selectors, "{cgroups}");
        }
    }

    #[tokio::test]
    async fn what_cannot_be_is_told() {
        let two = "1::/system.slice/slurmstepd.scope/job_1/step_0/slurm\n0::/system.slice/slurmstepd.scope/job_2/step_0\n";
        let table = [
            (
                None,
                ErrorKind::Internal,
                "unable to obtain cgroups: open proc/123/cgroup: no such file or directory",
            ),
            (
                Some("0:x\n"),
                ErrorKind::Internal,
                "unable to obtain cgroups: invalid cgroup entry, contains 2 colon separated fields but expected at least 3: \
                 \"0:x\"",
            ),
            (
                Some(two),
                ErrorKind::FailedPrecondition,
                "multiple Slurm jobs found in cgroups (job_1/step_0, job_2/step_0)",
            ),
        ];
        for (cgroups, kind, message) in table {
            assert_eq!(attest(cgroups).await.unwrap_err(), (kind, message.to_owned()));
        }
    }
}
