//! The process's umask: nothing that a daemon writes is for the world, and its group may not write.

use rustix::fs::Mode;
use rustix::process::umask;

/// What a daemon takes away at least (SPIRE `cmd/spire-server/cli/run`, `pkg/common/cli`: the same for both daemons).
const AT_LEAST: u32 = 0o027;

/// Tightens the umask to at least `0027`; returns the text for a warning if that changed it.
///
/// The umask can only be read by setting it, so this belongs at the start, before threads make files.
pub fn tighten() -> Option<String> {
    let strict = Mode::from_raw_mode(AT_LEAST);
    let current = umask(strict);
    let wanted = current | strict;
    umask(wanted);
    (current != wanted).then(|| {
        format!("Current umask {:04o} is too permissive; setting umask {:04o}", current.bits(), wanted.bits())
    })
}
