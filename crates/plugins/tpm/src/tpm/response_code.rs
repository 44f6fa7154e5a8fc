//! What a TPM answers instead of a result (TPM_RC, part 2, section 6.6), with texts in the form of the reference's
//! library: which argument, the number, and what it means.

use std::fmt;

/// A response code that is not success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ResponseCode(pub(crate) u32);

impl ResponseCode {
    /// Whether the same command may be sent again: TPM_RC_RETRY, TPM_RC_YIELDED and TPM_RC_TESTING.
    pub(crate) fn is_retry(self) -> bool {
        matches!(self.0, 0x922 | 0x908 | 0x90a)
    }
}

/// Errors that speak of no argument (TPM_RC_VER1).
const GENERAL: &[(u32, &str)] = &[
    (0x00, "TPM not initialized by TPM2_Startup or already initialized"),
    (0x01, "commands not being accepted because of a TPM failure"),
    (0x20, "the command is disabled"),
    (0x25, "authorization session is missing"),
    (0x2f, "authValue or authPolicy is not available for selected entity"),
    (0x30, "a TPM2_Startup is required"),
    (0x42, "command size is inconsistent with its contents"),
    (0x43, "command code not supported"),
    (0x44, "size of the authorization area is wrong"),
    (0x46, "NV offset+size is out of range"),
    (0x48, "NV access locked"),
    (0x49, "NV access authorization fails"),
    (0x4a, "NV index is not initialized"),
    (0x53, "some function needs testing"),
];

/// Errors of an argument (TPM_RC_FMT1).
const ARGUMENT: &[(u32, &str)] = &[
    (0x01, "asymmetric algorithm not supported or not correct"),
    (0x02, "inconsistent attributes"),
    (0x03, "hash algorithm not supported or not appropriate"),
    (0x04, "value is out of range or is not correct for the context"),
    (0x05, "hierarchy is not enabled or is not correct for the use"),
    (0x07, "key size is not supported"),
    (0x0a, "the type of the value is not appropriate for the use"),
    (0x0b, "the handle is not correct for the use"),
    (0x0e, "the authorization HMAC check failed and DA counter incremented"),
    (0x12, "unsupported or incompatible scheme"),
    (0x15, "structure is the wrong size"),
    (0x16, "unsupported symmetric algorithm or key size"),
    (0x1a, "not enough octets in the input buffer"),
    (0x1c, "key fields are not compatible with the selected use"),
    (0x1d, "a policy check failed"),
    (0x1f, "integrity check failed"),
    (0x20, "invalid ticket"),
    (0x22, "authorization failure without DA implications"),
    (0x23, "the policy has expired"),
    (0x25, "public and sensitive portions of an object are not bound to each other"),
    (0x26, "curve not supported"),
    (0x27, "point is not on the required curve"),
];

/// Failures that pass (TPM_RC_WARN).
const WARNING: &[(u32, &str)] = &[
    (0x02, "out of memory for object contexts"),
    (0x03, "out of memory for session contexts"),
    (0x04, "out of shared object/session memory"),
    (0x05, "out of session handles"),
    (0x06, "out of object handles"),
    (0x07, "bad locality"),
    (0x08, "the TPM has suspended the command, which may be retried"),
    (0x09, "the command was canceled"),
    (0x0a, "TPM is performing self-tests"),
    (0x10, "the 1st handle references a transient object or session that is not loaded"),
    (0x11, "the 2nd handle references a transient object or session that is not loaded"),
    (0x18, "the 1st authorization session is not loaded"),
    (0x19, "the 2nd authorization session is not loaded"),
    (0x20, "the TPM limits how often NV is accessed"),
    (0x21, "the TPM is in dictionary attack lockout mode"),
    (0x22, "the TPM was not able to start the command"),
    (0x23, "NV is not accessible at the moment"),
];

fn text(table: &'static [(u32, &'static str)], code: u32) -> &'static str {
    table.iter().find(|(number, _)| *number == code).map_or("unknown error code", |(_, text)| text)
}

impl fmt::Display for ResponseCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let code = self.0;
        if code & 0x180 == 0 {
            return write!(f, "response status 0x{code:x}");
        }
        if code & 0x80 == 0 {
            let number = code & 0x7f;
            return match (code & 0x400, code & 0x800) {
                (0, 0) => write!(f, "error code 0x{number:x} : {}", text(GENERAL, number)),
                (0, _) => write!(f, "warning code 0x{number:x} : {}", text(WARNING, number)),
                _ => write!(f, "vendor error code 0x{code:x}"),
            };
        }
        let number = code & 0x3f;
        let (what, index) = match (code & 0x40, code & 0x800) {
            (0, 0) => ("handle", code >> 8 & 0x7),
            (0, _) => ("session", code >> 8 & 0x7),
            _ => ("parameter", code >> 8 & 0xf),
        };
        write!(f, "{what} {index}, error code 0x{number:x} : {}", text(ARGUMENT, number))
    }
}

impl std::error::Error for ResponseCode {}
