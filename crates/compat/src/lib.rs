//! What imitates Go, in quarantine: the flag syntax, durations, time and quoting formats, `os.Expand`, HCL1,
//! regular expressions and templates.
//!
//! Users' configuration files, scripts and logs depend on how Go's standard library and HashiCorp's HCL1
//! read and print things. Each module here names what it imitates, and nothing outside this crate needs to
//! know those rules.

pub mod config;
pub mod duration;
pub mod errno;
pub mod expand;
pub mod files;
pub mod flag;
pub mod gotime;
pub mod hcl;
pub mod quote;
pub mod regexp;
pub mod template;
pub mod url;
