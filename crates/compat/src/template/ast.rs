//! Parsed templates, and how Go prints the parts that stand in errors (text/template/parse/node.go).

use std::fmt;

/// The nodes between two delimiters.
pub(super) type Block = Vec<Node>;

/// Where in the text something begins, in bytes.
pub(super) type Pos = usize;

#[derive(Clone, Debug)]
pub(super) enum Node {
    Text(String),
    Action(Pipe),
    If(Branch),
    With(Branch),
    Range(Branch),
    Template { pos: Pos, name: String, pipe: Option<Pipe> },
    Break,
    Continue,
}

#[derive(Clone, Debug)]
pub(super) struct Branch {
    pub(super) pipe: Pipe,
    pub(super) then: Block,
    pub(super) otherwise: Option<Block>,
}

#[derive(Clone, Debug)]
pub(super) struct Pipe {
    pub(super) pos: Pos,
    /// Variables that get the value.
    pub(super) declared: Vec<String>,
    /// Whether they are there already.
    pub(super) assign: bool,
    /// At least one, except where a parse failed.
    pub(super) commands: Vec<Command>,
}

#[derive(Clone, Debug)]
pub(super) struct Command {
    pub(super) pos: Pos,
    /// At least one.
    pub(super) args: Vec<Operand>,
}

#[derive(Clone, Debug)]
pub(super) struct Operand {
    pub(super) pos: Pos,
    pub(super) kind: Kind,
}

#[derive(Clone, Debug)]
pub(super) enum Kind {
    Dot,
    Nil,
    Bool(bool),
    Number(super::number::Number),
    /// As written, and what it says.
    Str(String, String),
    /// `.a.b`
    Field(Vec<String>),
    /// `$x.a.b`; the first is the variable with its dollar sign.
    Variable(Vec<String>),
    /// A function.
    Identifier(String),
    Pipe(Box<Pipe>),
    /// `(pipeline).a.b`
    Chain(Box<Operand>, Vec<String>),
}

impl Node {
    /// Whether there is nothing in it that makes output (parse.IsEmptyTree).
    pub(super) fn is_empty(&self) -> bool {
        matches!(self, Self::Text(text) if text.trim().is_empty())
    }
}

impl fmt::Display for Pipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, variable) in self.declared.iter().enumerate() {
            write!(f, "{}{variable}", if index > 0 { ", " } else { "" })?;
        }
        if !self.declared.is_empty() {
            f.write_str(if self.assign { " = " } else { " := " })?;
        }
        for (index, command) in self.commands.iter().enumerate() {
            write!(f, "{}{command}", if index > 0 { " | " } else { "" })?;
        }
        Ok(())
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, arg) in self.args.iter().enumerate() {
            write!(f, "{}{arg}", if index > 0 { " " } else { "" })?;
        }
        Ok(())
    }
}

impl fmt::Display for Operand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            Kind::Dot => f.write_str("."),
            Kind::Nil => f.write_str("nil"),
            Kind::Bool(value) => write!(f, "{value}"),
            Kind::Number(number) => f.write_str(&number.text),
            Kind::Str(written, _) => f.write_str(written),
            Kind::Field(names) => names.iter().try_for_each(|name| write!(f, ".{name}")),
            Kind::Variable(names) => f.write_str(&names.join(".")),
            Kind::Identifier(name) => f.write_str(name),
            Kind::Pipe(pipe) => write!(f, "({pipe})"),
            Kind::Chain(operand, names) => {
                write!(f, "{operand}")?;
                names.iter().try_for_each(|name| write!(f, ".{name}"))
            }
        }
    }
}
