//! Parses templates (text/template/parse/parse.go).

use std::collections::{BTreeMap, BTreeSet};

use super::ast::{Block, Branch, Command, Kind, Node, Operand, Pipe, Pos};
use super::lexer::{Item, Token, lex};
use super::{DEPTH_MAX, NAME, ParseError, Template, builtins, number, sprig};
use crate::quote::quote;

type Result<T> = std::result::Result<T, ParseError>;

/// What ended a block.
enum End {
    End,
    /// At `{{else}}`, or before the `if` or `with` of an `{{else if …}}`.
    Else,
}

pub(super) fn parse(text: &str) -> Result<Template> {
    let mut parser = Parser {
        items: lex(text),
        next: 0,
        furthest: 0,
        action_line: 0,
        depth: 0,
        range_depth: 0,
        variables: vec!["$".to_owned()],
        defined: BTreeMap::new(),
        names: BTreeSet::new(),
    };
    let mut main = Block::new();
    loop {
        while parser.peek().token == Token::Text {
            main.push(Node::Text(parser.take().text));
        }
        match parser.take() {
            Item { token: Token::Eof, .. } => break,
            item if item.token == Token::Left => {
                if parser.peek_past_space().is_keyword("define") {
                    parser.take_past_space();
                    parser.definition()?;
                    continue;
                }
                match parser.action(&item)? {
                    Ok(node) => main.push(node),
                    Err(end) => return Err(parser.error(format!("unexpected {}", end.show()))),
                }
            }
            item => return Err(parser.unexpected(&item, "input")),
        }
    }
    parser.define(NAME.to_owned(), main)?;
    let Parser { mut defined, names, .. } = parser;
    let main = defined.remove(NAME).unwrap_or_default();
    Ok(Template { text: text.to_owned(), main, defined, names })
}

impl End {
    fn show(&self) -> &'static str {
        match self {
            Self::End => "{{end}}",
            Self::Else => "{{else}}",
        }
    }
}

struct Parser {
    /// The last says why there are no more.
    items: Vec<Item>,
    next: usize,
    /// The furthest item that was looked at, whose line errors name.
    furthest: usize,
    /// The line of the action that is being read; 0 outside.
    action_line: usize,
    depth: usize,
    range_depth: usize,
    /// Variables in scope.
    variables: Vec<String>,
    defined: BTreeMap<String, Block>,
    names: BTreeSet<String>,
}

impl Parser {
    fn peek(&mut self) -> &Item {
        let index = self.next.min(self.items.len() - 1);
        self.furthest = self.furthest.max(index);
        &self.items[index]
    }

    fn take(&mut self) -> Item {
        let item = self.peek().clone();
        self.next += 1;
        item
    }

    fn peek_past_space(&mut self) -> &Item {
        while self.peek().token == Token::Space {
            self.next += 1;
        }
        self.peek()
    }

    fn take_past_space(&mut self) -> Item {
        self.peek_past_space();
        self.take()
    }

    fn error(&self, reason: impl Into<String>) -> ParseError {
        ParseError { line: self.items[self.furthest].line, reason: reason.into() }
    }

    fn unexpected(&self, item: &Item, context: &str) -> ParseError {
        if item.token != Token::Error {
            return self.error(format!("unexpected {} in {context}", item.show()));
        }
        let mut reason = item.show();
        if self.action_line != 0 && self.action_line != item.line {
            let what = if reason.ends_with(" action") { "" } else { " in action" };
            reason.push_str(&format!("{what} started at {NAME}:{}", self.action_line));
        }
        self.error(reason)
    }

    fn expect(&mut self, token: Token, context: &str) -> Result<Item> {
        let item = self.take_past_space();
        if item.token == token { Ok(item) } else { Err(self.unexpected(&item, context)) }
    }

    /// `{{define "name"}}…{{end}}`, behind the keyword.
    fn definition(&mut self) -> Result<()> {
        const CONTEXT: &str = "define clause";
        let name = self.expect(Token::Str, CONTEXT)?;
        let name = number::unquote(&name.text).map_err(|reason| self.error(reason))?;
        self.expect(Token::Right, CONTEXT)?;
        let block = self.separate_block(CONTEXT)?;
        self.define(name, block)
    }

    /// A block with variables of its own, up to its end.
    fn separate_block(&mut self, context: &str) -> Result<Block> {
        let variables = std::mem::replace(&mut self.variables, vec!["$".to_owned()]);
        let range_depth = std::mem::take(&mut self.range_depth);
        let (block, end) = self.block()?;
        self.variables = variables;
        self.range_depth = range_depth;
        match end {
            End::End => Ok(block),
            end => Err(self.error(format!("unexpected {} in {context}", end.show()))),
        }
    }

    /// Keeps a template. One that is empty gives way to another of its name.
    fn define(&mut self, name: String, block: Block) -> Result<()> {
        let is_empty = |block: &Block| block.iter().all(Node::is_empty);
        match self.defined.get(&name) {
            Some(there) if !is_empty(there) => {
                if !is_empty(&block) {
                    let reason = format!("template: multiple definition of template {}", quote(&name));
                    return Err(self.error(reason));
                }
            }
            _ => {
                self.defined.insert(name, block);
            }
        }
        Ok(())
    }

    /// Nodes up to what ends the block.
    fn block(&mut self) -> Result<(Block, End)> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(self.error("max expression depth exceeded"));
        }
        let mut block = Block::new();
        loop {
            let item = self.take_past_space();
            match item.token {
                Token::Text => block.push(Node::Text(item.text)),
                Token::Left => match self.action(&item)? {
                    Ok(node) => block.push(node),
                    Err(end) => {
                        self.depth -= 1;
                        return Ok((block, end));
                    }
                },
                Token::Eof => return Err(self.error("unexpected EOF")),
                _ => return Err(self.unexpected(&item, "input")),
            }
        }
    }

    /// An action, behind its left delimiter; or what ends the block.
    fn action(&mut self, left: &Item) -> Result<std::result::Result<Node, End>> {
        self.action_line = left.line;
        let node = self.action_inside();
        self.action_line = 0;
        node
    }

    fn action_inside(&mut self) -> Result<std::result::Result<Node, End>> {
        let keyword = self.peek_past_space().clone();
        if keyword.token != Token::Keyword {
            return self.pipeline("command", Token::Right).map(|pipe| Ok(Node::Action(pipe)));
        }
        self.next += 1;
        let node = match keyword.text.as_str() {
            "if" => Node::If(self.branch("if")?),
            "with" => Node::With(self.branch("with")?),
            "range" => Node::Range(self.branch("range")?),
            "block" => self.block_control()?,
            "template" => self.template_control()?,
            "break" => self.loop_control("{{break}}", Node::Break)?,
            "continue" => self.loop_control("{{continue}}", Node::Continue)?,
            "end" => {
                self.expect(Token::Right, "end")?;
                return Ok(Err(End::End));
            }
            "else" => {
                let next = self.peek_past_space();
                if !next.is_keyword("if") && !next.is_keyword("with") {
                    self.expect(Token::Right, "else")?;
                }
                return Ok(Err(End::Else));
            }
            // A definition stands outside of everything.
            _ => return Err(self.unexpected(&keyword, "command")),
        };
        Ok(Ok(node))
    }

    fn loop_control(&mut self, what: &str, node: Node) -> Result<Node> {
        self.expect(Token::Right, what)?;
        if self.range_depth == 0 {
            return Err(self.error(format!("{what} outside {{{{range}}}}")));
        }
        Ok(node)
    }

    fn branch(&mut self, context: &str) -> Result<Branch> {
        let variables = self.variables.len();
        let pipe = self.pipeline(context, Token::Right)?;
        self.range_depth += usize::from(context == "range");
        let (then, end) = self.block()?;
        self.range_depth -= usize::from(context == "range");
        let otherwise = match end {
            End::Else if self.peek().is_keyword(context) && context != "range" => {
                self.take();
                self.depth += 1;
                if self.depth > DEPTH_MAX {
                    return Err(self.error("max expression depth exceeded"));
                }
                let branch = self.branch(context)?;
                self.depth -= 1;
                Some(vec![if context == "if" { Node::If(branch) } else { Node::With(branch) }])
            }
            End::Else => match self.block()? {
                (block, End::End) => Some(block),
                (_, end) => return Err(self.error(format!("expected end; found {}", end.show()))),
            },
            _ => None,
        };
        self.variables.truncate(variables);
        Ok(Branch { pipe, then, otherwise })
    }

    /// `{{block "name" pipeline}}…{{end}}`: a definition, executed where it stands.
    fn block_control(&mut self) -> Result<Node> {
        const CONTEXT: &str = "block clause";
        let (pos, name) = self.template_name(CONTEXT)?;
        let pipe = Some(self.pipeline(CONTEXT, Token::Right)?);
        let block = self.separate_block(CONTEXT)?;
        self.define(name.clone(), block)?;
        Ok(Node::Template { pos, name, pipe })
    }

    fn template_control(&mut self) -> Result<Node> {
        const CONTEXT: &str = "template clause";
        let (pos, name) = self.template_name(CONTEXT)?;
        let pipe = if self.peek_past_space().token == Token::Right {
            self.next += 1;
            None
        } else {
            Some(self.pipeline(CONTEXT, Token::Right)?)
        };
        Ok(Node::Template { pos, name, pipe })
    }

    fn template_name(&mut self, context: &str) -> Result<(Pos, String)> {
        let item = self.expect(Token::Str, context)?;
        let name = number::unquote(&item.text).map_err(|reason| self.error(reason))?;
        Ok((item.pos, name))
    }

    fn pipeline(&mut self, context: &str, end: Token) -> Result<Pipe> {
        let pos = self.peek_past_space().pos;
        let mut pipe = Pipe { pos, declared: Vec::new(), assign: false, commands: Vec::new() };
        self.declarations(&mut pipe, context)?;
        loop {
            let item = self.peek_past_space().clone();
            match item.token {
                token if token == end => {
                    self.next += 1;
                    self.check(&pipe, context)?;
                    return Ok(pipe);
                }
                Token::Bool
                | Token::Character
                | Token::Dot
                | Token::Field
                | Token::Identifier
                | Token::Number
                | Token::Nil
                | Token::Str
                | Token::Variable
                | Token::LeftParen => pipe.commands.push(self.command()?),
                _ => {
                    self.next += 1;
                    return Err(self.unexpected(&item, context));
                }
            }
        }
    }

    /// `$x := `, `$x = `, and in a range `$i, $x := `.
    fn declarations(&mut self, pipe: &mut Pipe, context: &str) -> Result<()> {
        loop {
            if self.peek_past_space().token != Token::Variable {
                return Ok(());
            }
            let start = self.next;
            let variable = self.take().text;
            match self.peek_past_space().token {
                token @ (Token::Assign | Token::Declare) => {
                    pipe.assign = token == Token::Assign;
                    self.next += 1;
                    pipe.declared.push(variable.clone());
                    self.variables.push(variable);
                    return Ok(());
                }
                Token::Comma => {
                    self.next += 1;
                    pipe.declared.push(variable.clone());
                    self.variables.push(variable);
                    if context != "range" || pipe.declared.len() >= 2 {
                        return Err(self.error(format!("too many declarations in {context}")));
                    }
                    match self.peek_past_space().token {
                        Token::Variable | Token::Right | Token::RightParen => {}
                        _ => return Err(self.error("range can only initialize variables")),
                    }
                }
                _ => {
                    self.next = start;
                    return Ok(());
                }
            }
        }
    }

    fn check(&self, pipe: &Pipe, context: &str) -> Result<()> {
        if pipe.commands.is_empty() {
            return Err(self.error(format!("missing value for {context}")));
        }
        for (index, command) in pipe.commands.iter().enumerate().skip(1) {
            if matches!(
                command.args[0].kind,
                Kind::Bool(_) | Kind::Dot | Kind::Nil | Kind::Number(_) | Kind::Str(..)
            ) {
                let stage = index + 1;
                return Err(self.error(format!("non executable command in pipeline stage {stage}")));
            }
        }
        Ok(())
    }

    fn command(&mut self) -> Result<Command> {
        let pos = self.peek_past_space().pos;
        let mut args = Vec::new();
        loop {
            self.peek_past_space();
            args.extend(self.operand()?);
            match self.peek().token {
                Token::Space => self.next += 1,
                Token::Right | Token::RightParen => break,
                Token::Pipe => {
                    self.next += 1;
                    break;
                }
                _ => {
                    let item = self.take();
                    return Err(self.unexpected(&item, "operand"));
                }
            }
        }
        if args.is_empty() {
            return Err(self.error("empty command"));
        }
        Ok(Command { pos, args })
    }

    /// A term with the fields that are taken of it.
    fn operand(&mut self) -> Result<Option<Operand>> {
        let Some(term) = self.term()? else { return Ok(None) };
        let Item { token: Token::Field, pos, .. } = *self.peek() else { return Ok(Some(term)) };
        let mut fields = Vec::new();
        while self.peek().token == Token::Field {
            fields.push(self.field());
        }
        let kind = match term.kind {
            Kind::Field(mut names) => {
                names.append(&mut fields);
                Kind::Field(names)
            }
            Kind::Variable(mut names) => {
                names.append(&mut fields);
                Kind::Variable(names)
            }
            Kind::Bool(_) | Kind::Str(..) | Kind::Number(_) | Kind::Nil | Kind::Dot => {
                let reason = format!("unexpected . after term {}", quote(&term.to_string()));
                return Err(self.error(reason));
            }
            _ => Kind::Chain(Box::new(term), fields),
        };
        Ok(Some(Operand { pos, kind }))
    }

    /// The name of the field that stands here, without its dot.
    fn field(&mut self) -> String {
        let name = self.take().text[1..].to_owned();
        self.names.insert(name.clone());
        name
    }

    fn term(&mut self) -> Result<Option<Operand>> {
        let item = self.peek_past_space().clone();
        let kind = match item.token {
            Token::Field => {
                return Ok(Some(Operand { pos: item.pos, kind: Kind::Field(vec![self.field()]) }));
            }
            Token::Identifier => self.function(&item.text)?,
            Token::Dot => Kind::Dot,
            Token::Nil => Kind::Nil,
            Token::Variable => {
                if !self.variables.contains(&item.text) {
                    return Err(self.error(format!("undefined variable {}", quote(&item.text))));
                }
                Kind::Variable(vec![item.text])
            }
            Token::Bool => Kind::Bool(item.text == "true"),
            Token::Character => number::character(&item.text).map(Kind::Number).map_err(|e| self.error(e))?,
            Token::Number => number::number(&item.text).map(Kind::Number).map_err(|e| self.error(e))?,
            Token::Str => {
                let text = number::unquote(&item.text).map_err(|reason| self.error(reason))?;
                Kind::Str(item.text, text)
            }
            Token::LeftParen => {
                self.next += 1;
                self.depth += 1;
                if self.depth > DEPTH_MAX {
                    return Err(self.error("max expression depth exceeded"));
                }
                let pipe = self.pipeline("parenthesized pipeline", Token::RightParen)?;
                self.depth -= 1;
                // Go's position of such a pipeline is that of what stands in it.
                return Ok(Some(Operand { pos: pipe.pos, kind: Kind::Pipe(Box::new(pipe)) }));
            }
            _ => return Ok(None),
        };
        self.next += 1;
        Ok(Some(Operand { pos: item.pos, kind }))
    }

    fn function(&self, name: &str) -> Result<Kind> {
        if sprig::find(name).is_some() || builtins::find(name).is_some() {
            return Ok(Kind::Identifier(name.to_owned()));
        }
        let reason = match sprig::refused(name) {
            Some(why) => format!("function {} is not built: {why}", quote(name)),
            None => format!("function {} not defined", quote(name)),
        };
        Err(self.error(reason))
    }
}
