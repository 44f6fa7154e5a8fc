//! Executes templates (text/template/exec.go).

use std::rc::Rc;

use super::ast::{Block, Branch, Command, Kind, Node, Operand, Pipe, Pos};
use super::builtins::{self, Function, Type};
use super::{DEPTH_MAX, ExecError, NAME, TEXT_MAX, Template, Value, printf, sprig};
use crate::quote::quote;

type Result<T> = std::result::Result<T, ExecError>;

/// How many nodes, calls and iterations an execution may take. A path needs tens.
const STEPS_MAX: u32 = 10_000;

/// How many values a list or dictionary may hold, those inside its elements included.
const WEIGHT_MAX: usize = 10_000;

/// How deep lists and dictionaries may nest: printing, comparing and freeing them takes our stack.
const NESTING_MAX: usize = 32;

/// What a block did to the loop around it.
#[derive(PartialEq, Eq)]
enum Flow {
    On,
    Break,
    Continue,
}

pub(super) fn execute(template: &Template, data: &Value) -> Result<String> {
    let mut run = Run {
        template,
        name: NAME,
        variables: vec![("$".to_owned(), data.clone())],
        out: String::new(),
        steps: STEPS_MAX,
        depth: 0,
        at: At::Nothing,
    };
    run.block(data, &template.main)?;
    Ok(run.out)
}

/// What is being executed, for errors.
#[derive(Clone, Copy)]
enum At<'t> {
    Nothing,
    Pipe(&'t Pipe),
    Command(&'t Command),
    Operand(&'t Operand),
    Template(Pos, &'t str, Option<&'t Pipe>),
}

struct Run<'t> {
    template: &'t Template,
    /// The template that is executed now.
    name: &'t str,
    variables: Vec<(String, Value)>,
    out: String,
    steps: u32,
    depth: usize,
    at: At<'t>,
}

impl<'t> Run<'t> {
    fn error(&self, reason: impl Into<String>) -> ExecError {
        let (pos, at) = match self.at {
            At::Nothing => (0, String::new()),
            At::Pipe(pipe) => (pipe.pos, pipe.to_string()),
            At::Command(command) => (command.pos, command.to_string()),
            At::Operand(operand) => (operand.pos, operand.to_string()),
            At::Template(pos, name, pipe) => {
                let pipe = pipe.map(|pipe| format!(" {pipe}")).unwrap_or_default();
                (pos, format!("{{{{template {}{pipe}}}}}", quote(name)))
            }
        };
        let before = self.template.text.get(..pos).unwrap_or_default();
        let line = 1 + before.matches('\n').count();
        let column = before.len() - before.rfind('\n').map_or(0, |newline| newline + 1);
        ExecError { line, column, template: self.name.to_owned(), at, reason: reason.into() }
    }

    fn step(&mut self) -> Result<()> {
        self.steps = self.steps.checked_sub(1).ok_or_else(|| self.error("the template takes too long"))?;
        Ok(())
    }

    fn write(&mut self, text: &str) -> Result<()> {
        if self.out.len() + text.len() > TEXT_MAX {
            return Err(self.error(format!("the result is longer than {TEXT_MAX} bytes")));
        }
        self.out.push_str(text);
        Ok(())
    }

    fn block(&mut self, dot: &Value, block: &'t Block) -> Result<Flow> {
        for node in block {
            self.step()?;
            match node {
                Node::Text(text) => self.write(text)?,
                Node::Action(pipe) => {
                    let value = self.pipeline(dot, pipe)?;
                    if pipe.declared.is_empty() {
                        let text = match &value {
                            Value::Nil => "<no value>".to_owned(),
                            value => printf::print(std::slice::from_ref(value)),
                        };
                        self.at = At::Pipe(pipe);
                        self.write(&text)?;
                    }
                }
                Node::If(branch) => match self.branch(dot, branch, false)? {
                    Flow::On => {}
                    flow => return Ok(flow),
                },
                Node::With(branch) => match self.branch(dot, branch, true)? {
                    Flow::On => {}
                    flow => return Ok(flow),
                },
                Node::Range(branch) => match self.range(dot, branch)? {
                    Flow::On => {}
                    flow => return Ok(flow),
                },
                Node::Template { pos, name, pipe } => self.call_template(dot, *pos, name, pipe.as_ref())?,
                Node::Break => return Ok(Flow::Break),
                Node::Continue => return Ok(Flow::Continue),
            }
        }
        Ok(Flow::On)
    }

    fn branch(&mut self, dot: &Value, branch: &'t Branch, with: bool) -> Result<Flow> {
        let variables = self.variables.len();
        let value = self.pipeline(dot, &branch.pipe)?;
        let flow = if value.is_true() {
            self.block(if with { &value } else { dot }, &branch.then)
        } else if let Some(otherwise) = &branch.otherwise {
            self.block(dot, otherwise)
        } else {
            Ok(Flow::On)
        };
        self.variables.truncate(variables);
        flow
    }

    fn range(&mut self, dot: &Value, branch: &'t Branch) -> Result<Flow> {
        let variables = self.variables.len();
        let value = self.pipeline(dot, &branch.pipe)?;
        let mut ran = false;
        let mut flow = Flow::On;
        if let Some(count) = integer(&value) {
            if branch.pipe.declared.len() > 1 {
                let reason =
                    format!("can't use {} to iterate over more than one variable", printf::print(&[value]));
                return Err(self.error(reason));
            }
            // Numbers are made as they are needed: there may be many.
            let mut at: u64 = 0;
            while at < count && flow != Flow::Break {
                let element = match &value {
                    Value::Uint(_) => Value::Uint(at),
                    _ => Value::Int(i64::try_from(at).unwrap_or(i64::MAX)),
                };
                flow = self.iteration(branch, Value::Nil, element)?;
                at += 1;
                ran = true;
            }
        } else {
            let Some(elements) = elements(&value) else {
                let reason = format!("range can't iterate over {}", printf::print(&[value]));
                return Err(self.error(reason));
            };
            for (key, element) in elements {
                flow = self.iteration(branch, key, element)?;
                ran = true;
                if flow == Flow::Break {
                    break;
                }
            }
        }
        let mut flow = Flow::On;
        if let (false, Some(otherwise)) = (ran, &branch.otherwise) {
            // A break or continue in here belongs to the loop around this one; the reference stops this one
            // only, which is the same: nothing follows in it.
            flow = self.block(dot, otherwise)?;
            if flow == Flow::Break {
                flow = Flow::On;
            }
        }
        self.variables.truncate(variables);
        Ok(flow)
    }

    fn iteration(&mut self, branch: &'t Branch, key: Value, element: Value) -> Result<Flow> {
        self.step()?;
        let mark = self.variables.len();
        let pipe = &branch.pipe;
        match (pipe.declared.as_slice(), pipe.assign) {
            ([one], true) => self.assign(one, element.clone())?,
            ([first, second, ..], true) => {
                self.assign(first, key)?;
                self.assign(second, element.clone())?;
            }
            ([_], false) => self.set_top(1, element.clone()),
            ([_, _, ..], false) => {
                self.set_top(1, element.clone());
                self.set_top(2, key);
            }
            ([], _) => {}
        }
        let flow = self.block(&element, &branch.then);
        self.variables.truncate(mark);
        flow
    }

    fn set_top(&mut self, from_top: usize, value: Value) {
        if let Some(index) = self.variables.len().checked_sub(from_top) {
            self.variables[index].1 = value;
        }
    }

    fn assign(&mut self, name: &str, value: Value) -> Result<()> {
        match self.variables.iter_mut().rev().find(|(variable, _)| variable == name) {
            Some((_, variable)) => {
                *variable = value;
                Ok(())
            }
            None => Err(self.error(format!("undefined variable: {name}"))),
        }
    }

    fn call_template(&mut self, dot: &Value, pos: Pos, name: &'t str, pipe: Option<&'t Pipe>) -> Result<()> {
        self.at = At::Template(pos, name, pipe);
        let template = self.template;
        let block = match template.defined.get(name) {
            Some(block) => block,
            None if name == NAME => &template.main,
            None => return Err(self.error(format!("template {} not defined", quote(name)))),
        };
        if self.depth == DEPTH_MAX {
            return Err(self.error(format!("exceeded maximum template depth ({DEPTH_MAX})")));
        }
        let dot = match pipe {
            Some(pipe) => self.pipeline(dot, pipe)?,
            None => Value::Nil,
        };
        let variables = std::mem::replace(&mut self.variables, vec![("$".to_owned(), dot.clone())]);
        let around = std::mem::replace(&mut self.name, name);
        self.depth += 1;
        self.block(&dot, block)?;
        self.depth -= 1;
        self.name = around;
        self.variables = variables;
        Ok(())
    }

    fn pipeline(&mut self, dot: &Value, pipe: &'t Pipe) -> Result<Value> {
        self.at = At::Pipe(pipe);
        let mut value = None;
        for command in &pipe.commands {
            value = Some(self.command(dot, command, value)?);
        }
        let value = value.unwrap_or(Value::Nil);
        for variable in &pipe.declared {
            if pipe.assign {
                self.assign(variable, value.clone())?;
            } else {
                self.variables.push((variable.clone(), value.clone()));
            }
        }
        Ok(value)
    }

    /// Executes a command. `last` is what the command before it in the pipeline made, its last argument.
    fn command(&mut self, dot: &Value, command: &'t Command, last: Option<Value>) -> Result<Value> {
        let (first, args) =
            command.args.split_first().unwrap_or_else(|| unreachable!("a command has a word"));
        match &first.kind {
            Kind::Field(_) | Kind::Variable(_) | Kind::Chain(..) => {
                return self.fields(dot, first, !args.is_empty() || last.is_some());
            }
            Kind::Identifier(name) => {
                return self.function(dot, first, name, At::Command(command), args, last);
            }
            _ => {}
        }
        if !matches!(first.kind, Kind::Pipe(_)) {
            self.at = At::Operand(first);
        }
        if !args.is_empty() || last.is_some() {
            return Err(self.error(format!("can't give argument to non-function {first}")));
        }
        if matches!(first.kind, Kind::Nil) {
            return Err(self.error("nil is not a command"));
        }
        self.any(dot, first)
    }

    /// The value of an operand where any type will do.
    fn any(&mut self, dot: &Value, operand: &'t Operand) -> Result<Value> {
        match &operand.kind {
            Kind::Pipe(pipe) => self.pipeline(dot, pipe),
            Kind::Identifier(name) => self.function(dot, operand, name, At::Operand(operand), &[], None),
            Kind::Field(_) | Kind::Variable(_) | Kind::Chain(..) => self.fields(dot, operand, false),
            kind => {
                self.at = At::Operand(operand);
                Ok(match kind {
                    Kind::Dot => dot.clone(),
                    Kind::Bool(value) => Value::Bool(*value),
                    Kind::Str(_, text) => Value::str(text),
                    Kind::Number(number) => match number.ideal() {
                        Ok(value) => value,
                        Err(reason) => return Err(self.error(reason)),
                    },
                    _ => Value::Nil,
                })
            }
        }
    }

    /// A field, a variable with its fields, or the fields of a pipeline's value.
    fn fields(&mut self, dot: &Value, operand: &'t Operand, has_args: bool) -> Result<Value> {
        self.at = At::Operand(operand);
        let (mut value, names) = match &operand.kind {
            Kind::Field(names) => (dot.clone(), names.as_slice()),
            Kind::Variable(names) => {
                let (name, fields) =
                    names.split_first().unwrap_or_else(|| unreachable!("a variable has a name"));
                let found = self.variables.iter().rev().find(|(variable, _)| variable == name);
                let Some((_, value)) = found else {
                    return Err(self.error(format!("undefined variable: {name}")));
                };
                if fields.is_empty() && has_args {
                    return Err(self.error(format!("can't give argument to non-function {operand}")));
                }
                (value.clone(), fields)
            }
            Kind::Chain(inner, names) => {
                if matches!(inner.kind, Kind::Nil) {
                    return Err(self.error(format!("indirection through explicit nil in {operand}")));
                }
                (self.any(dot, inner)?, names.as_slice())
            }
            _ => return self.any(dot, operand),
        };
        for (index, name) in names.iter().enumerate() {
            let has_args = has_args && index + 1 == names.len();
            value = self.field(&value, name, has_args)?;
        }
        Ok(value)
    }

    fn field(&self, receiver: &Value, name: &str, has_args: bool) -> Result<Value> {
        let missing = || self.error(format!("map has no entry for key {}", quote(name)));
        let not_method = || self.error(format!("{name} is not a method but has arguments"));
        match receiver {
            Value::Nil => Err(self.error(format!("nil data; no entry for key {}", quote(name)))),
            Value::Dict(_) | Value::StringMap(_) if has_args => Err(not_method()),
            Value::Dict(dict) => dict.borrow().get(name).cloned().ok_or_else(missing),
            Value::StringMap(map) => map.get(name).map(Value::str).ok_or_else(missing),
            Value::Struct(object) => {
                let named = |list: &[(&str, Value)]| {
                    list.iter().find(|(known, _)| *known == name).map(|(_, value)| value.clone())
                };
                if let Some(value) = named(&object.methods) {
                    if has_args {
                        let reason = format!("{name} with arguments is not built");
                        return Err(self.error(reason));
                    }
                    return Ok(value);
                }
                if let (Some(text), "String", false) = (&object.text, name, has_args) {
                    return Ok(Value::str(text));
                }
                match named(&object.fields) {
                    Some(_) if has_args => {
                        let reason = format!("{name} has arguments but cannot be invoked as function");
                        Err(self.error(reason))
                    }
                    Some(value) => Ok(value),
                    None => Err(self.no_field(receiver, name)),
                }
            }
            _ => Err(self.no_field(receiver, name)),
        }
    }

    fn no_field(&self, receiver: &Value, name: &str) -> ExecError {
        self.error(format!("can't evaluate field {name} in type {}", receiver.type_name()))
    }

    /// Calls a function. `whole` is what an error of the function itself names.
    fn function(
        &mut self,
        dot: &Value,
        operand: &'t Operand,
        name: &str,
        whole: At<'t>,
        args: &'t [Operand],
        last: Option<Value>,
    ) -> Result<Value> {
        self.at = At::Operand(operand);
        self.step()?;
        let function = match sprig::find(name).or_else(|| builtins::find(name)) {
            Some(function) => function,
            None => return Err(self.error(format!("{} is not a defined function", quote(name)))),
        };
        let count = args.len() + usize::from(last.is_some());
        let fixed = function.params.len();
        if function.rest.is_some() {
            if count < fixed {
                let got = args.len();
                let reason = format!("wrong number of args for {name}: want at least {fixed} got {got}");
                return Err(self.error(reason));
            }
        } else if count != fixed {
            return Err(self.error(format!("wrong number of args for {name}: want {fixed} got {count}")));
        }
        if matches!(name, "and" | "or") {
            return self.and_or(dot, name == "or", args, last);
        }
        let mut values = Vec::with_capacity(count);
        for (index, arg) in args.iter().enumerate() {
            values.push(self.arg(dot, type_of(function, index), arg)?);
        }
        if let Some(last) = last {
            let expected = type_of(function, args.len());
            values.push(self.checked(last, expected)?);
        }
        let result = (function.call)(&values).and_then(|value| match &value {
            Value::Str(text) if text.len() > TEXT_MAX => Err(too_long()),
            Value::List(_) | Value::Dict(_) if value.weight(NESTING_MAX).is_none_or(|it| it > WEIGHT_MAX) => {
                if let Value::Dict(dict) = &value {
                    // It may hold itself, and would then never be freed.
                    dict.borrow_mut().clear();
                }
                Err("the result holds too much".to_owned())
            }
            _ => Ok(value),
        });
        result.map_err(|reason| {
            self.at = whole;
            self.error(format!("error calling {name}: {reason}"))
        })
    }

    fn and_or(
        &mut self,
        dot: &Value,
        stop_at: bool,
        args: &'t [Operand],
        last: Option<Value>,
    ) -> Result<Value> {
        let mut value = Value::Nil;
        for arg in args {
            value = self.arg(dot, Type::Any, arg)?;
            if value.is_true() == stop_at {
                return Ok(value);
            }
        }
        Ok(last.unwrap_or(value))
    }

    /// An argument of a function that wants a type.
    fn arg(&mut self, dot: &Value, expected: Type, operand: &'t Operand) -> Result<Value> {
        self.at = At::Operand(operand);
        match &operand.kind {
            Kind::Nil if expected.can_be_nil() => Ok(Value::Nil),
            Kind::Nil => Err(self.error(format!("cannot assign nil to {}", expected.name()))),
            Kind::Bool(_) | Kind::Number(_) | Kind::Str(..) => self.literal(dot, expected, operand),
            _ => {
                let value = self.any(dot, operand)?;
                self.checked(value, expected)
            }
        }
    }

    fn literal(&mut self, dot: &Value, expected: Type, operand: &'t Operand) -> Result<Value> {
        match (expected, &operand.kind) {
            (Type::Any, _) | (Type::Str, Kind::Str(..)) | (Type::Bool, Kind::Bool(_)) => {
                self.any(dot, operand)
            }
            (Type::Int, Kind::Number(number)) if number.int.is_some() => {
                Ok(Value::Int(number.int.unwrap_or_default()))
            }
            (Type::Dict, _) => {
                Err(self.error(format!("can't handle {operand} for arg of type {}", expected.name())))
            }
            _ => {
                let what = if expected == Type::Int { "integer" } else { expected.name() };
                Err(self.error(format!("expected {what}; found {operand}")))
            }
        }
    }

    fn checked(&self, value: Value, expected: Type) -> Result<Value> {
        match (expected, &value) {
            (Type::Any, _)
            | (Type::Str, Value::Str(_))
            | (Type::Int, Value::Int(_))
            | (Type::Bool, Value::Bool(_))
            | (Type::Dict, Value::Dict(_) | Value::Nil) => Ok(value),
            (_, Value::Nil) => Err(self.error(format!("invalid value; expected {}", expected.name()))),
            _ => Err(self.error(format!(
                "wrong type for value; expected {}; got {}",
                expected.name(),
                value.type_name()
            ))),
        }
    }
}

/// What is said of a text that grew beyond [`TEXT_MAX`].
pub(super) fn too_long() -> String {
    format!("the result is longer than {TEXT_MAX} bytes")
}

fn type_of(function: &Function, index: usize) -> Type {
    function.params.get(index).copied().or(function.rest).unwrap_or(Type::Any)
}

/// How often a range over a number runs.
fn integer(value: &Value) -> Option<u64> {
    match value {
        Value::Int(count) => Some(u64::try_from(*count).unwrap_or(0)),
        Value::Uint(count) => Some(*count),
        _ => None,
    }
}

/// What a range goes over; maps by key.
fn elements(value: &Value) -> Option<Vec<(Value, Value)>> {
    let numbered = |items: Rc<[Value]>| {
        let index = (0..).map(Value::Int);
        index.zip(items.iter().cloned()).collect()
    };
    Some(match value {
        Value::Nil => Vec::new(),
        Value::List(_) | Value::Bytes(_) => numbered(value.items()?),
        Value::Dict(dict) => {
            dict.borrow().iter().map(|(key, value)| (Value::str(key), value.clone())).collect()
        }
        Value::StringMap(map) => {
            map.iter().map(|(key, value)| (Value::str(key), Value::str(value))).collect()
        }
        _ => return None,
    })
}

impl super::number::Number {
    /// The type that a constant has where nothing else says.
    fn ideal(&self) -> std::result::Result<Value, String> {
        let is_hex = self.text.starts_with("0x") || self.text.starts_with("0X");
        let is_char = self.text.starts_with('\'');
        match (self.float, self.int) {
            (Some(float), _) if !is_hex && !is_char && self.text.contains(['.', 'e', 'E', 'p', 'P']) => {
                Ok(Value::Float(float))
            }
            (_, Some(int)) => Ok(Value::Int(int)),
            _ => Err(format!("{} overflows int", self.text)),
        }
    }
}
