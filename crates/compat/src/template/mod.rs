//! Imitates Go's `text/template` with the functions of sprig that SPIRE allows in `agent_path_template`
//! (pkg/common/agentpathtemplate): pipelines, variables, `if`, `range`, `with`, `define`, `block`, trim markers and
//! Go's `printf`.
//!
//! Templates come from the operator, but what they are executed on comes from nodes. So an execution is bounded in
//! steps, in depth and in the length of every text.

mod ast;
mod builtins;
mod exec;
mod lexer;
mod number;
mod parser;
mod printf;
mod sprig;
#[cfg(test)]
mod tests;
mod value;

use std::collections::{BTreeMap, BTreeSet};

pub use value::{Dict, Elem, List, Struct, Value};

/// The name that errors show, the reference's.
const NAME: &str = "agent-path";

/// The longest text that a template, or a function in it, makes. A SPIFFE ID has 2,048 bytes; the room above is for
/// what a pipeline cuts down again.
const TEXT_MAX: usize = 64 * 1024;

/// How deep parentheses, blocks and templates may nest; each takes a frame of our stack or more.
const DEPTH_MAX: usize = 64;

/// Why a text is no template, in Go's words: `template: agent-path:<line>: <reason>`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("template: {NAME}:{line}: {reason}")]
pub struct ParseError {
    /// The line, from 1.
    pub line: usize,
    /// What is wrong.
    pub reason: String,
}

/// Why an execution failed, in Go's words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("template: {NAME}:{line}:{column}: executing {} at <{at}>: {reason}", crate::quote::quote(template))]
pub struct ExecError {
    /// The line, from 1.
    pub line: usize,
    /// The column in bytes, from 0.
    pub column: usize,
    /// The template that was executed; another than `agent-path` where one is defined in it.
    pub template: String,
    /// What was executed.
    pub at: String,
    /// What is wrong.
    pub reason: String,
}

/// A parsed template.
#[derive(Clone, Debug)]
pub struct Template {
    text: String,
    main: ast::Block,
    defined: BTreeMap<String, ast::Block>,
    names: BTreeSet<String>,
}

impl Template {
    /// Parses a template. Functions that the reference knows and we do not are refused here, as unknown ones are.
    ///
    /// # Errors
    /// [`ParseError`] with Go's text.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        parser::parse(text)
    }

    /// Executes the template on `data`, which is the first `.` and `$`. A field or key that is not there is an
    /// error (Go's option `missingkey=error`).
    ///
    /// # Errors
    /// [`ExecError`] with Go's text.
    pub fn execute(&self, data: &Value) -> Result<String, ExecError> {
        exec::execute(self, data)
    }

    /// The names of all fields and methods that the template mentions, whatever they are of.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(String::as_str)
    }
}
