//! The tree back to HCL text, laid out as the reference's printer does it, because external plugins
//! receive their `plugin_data` as this text.
//!
//! Comments that belong to no entry are dropped, as they are there when a part of a file is printed.

use super::ast::{Item, List, Literal, Node, Object, Pos, Syntax, TokenKind};
use super::scanner::RESERVED;

/// Prints entries as the top level of a file, without a final newline unless a heredoc ends it: that cannot be read again
/// without one, which the reference's text is not either.
pub(super) fn print_items(items: &[Item], syntax: Syntax) -> String {
    let printer = Printer { json: syntax == Syntax::Json };
    let mut out = String::new();
    for (index, item) in items.iter().enumerate() {
        out.push_str(&printer.item(item));
        if let Some(next) = items.get(index + 1) {
            out.push('\n');
            let adjacent = printer.line(item_pos(next)) == printer.line(item_pos(item)) + 1;
            if !(adjacent && is_empty_block(next) && is_empty_block(item)) {
                out.push('\n');
            }
        }
    }
    if items.last().is_some_and(is_heredoc) {
        out.push('\n');
    }
    unindent(&out)
}

/// Prints one value.
pub(super) fn print_node(node: &Node, syntax: Syntax) -> String {
    unindent(&Printer { json: syntax == Syntax::Json }.node(node))
}

struct Printer {
    /// Trees from JSON have no positions for the reference, so nothing there counts as adjacent.
    json: bool,
}

fn item_pos(item: &Item) -> Pos {
    item.keys.first().map(|key| key.pos).unwrap_or_default()
}

/// Whether the item has a comment that can stand behind its value. Nothing may stand behind the marker that ends a
/// heredoc: the reference prints the comment there and its text cannot be read again, so ours loses the comment.
fn takes_comment(item: &Item) -> bool {
    !is_heredoc(item) && !item.line_comment.is_empty()
}

fn is_heredoc(item: &Item) -> bool {
    matches!(&item.value, Node::Literal(literal) if literal.token.kind == TokenKind::Heredoc)
}

fn is_empty_block(item: &Item) -> bool {
    item.lead_comment.is_empty()
        && item.assign.is_none()
        && matches!(&item.value, Node::Object(object) if object.items.is_empty())
}

impl Printer {
    fn line(&self, pos: Pos) -> u32 {
        if self.json { 0 } else { pos.line }
    }

    fn node(&self, node: &Node) -> String {
        match node {
            Node::Literal(literal) => self.literal(literal),
            Node::List(list) => self.list(list),
            Node::Object(object) => self.object(object),
        }
    }

    fn literal(&self, literal: &Literal) -> String {
        let text = &literal.token.text;
        match literal.token.kind {
            TokenKind::Heredoc => keep_indent(text.strip_suffix('\n').unwrap_or(text)),
            TokenKind::String if text.contains('\n') => keep_indent(text),
            _ => text.clone(),
        }
    }

    fn item(&self, item: &Item) -> String {
        let mut out = String::new();
        push_lines(&mut out, &item.lead_comment);
        let same_line = self.line(item.value.pos()) == self.line(item_pos(item));
        if !same_line {
            push_lines(&mut out, &item.line_comment);
        }
        for key in &item.keys {
            out.push_str(&key.text);
            out.push(' ');
        }
        if item.assign.is_some() && item.keys.len() == 1 {
            out.push_str("= ");
        }
        out.push_str(&self.node(&item.value));
        if same_line && takes_comment(item) {
            out.push(' ');
            out.extend(item.line_comment.iter().map(String::as_str));
        }
        out
    }

    fn object(&self, object: &Object) -> String {
        let items = &object.items;
        let mut out = String::from("{");
        if !items.is_empty() {
            out.push('\n');
        }
        let mut index = 0;
        // The item that was looked at last and did not fit into an aligned group.
        let mut printed: Option<(usize, String)> = None;
        while index < items.len() {
            let start = index;
            let aligned = self.aligned_run(items, &mut index, &mut printed);
            if start != 0 {
                out.push('\n');
            }
            if aligned {
                out.push_str(&indent(&self.aligned(&items[start..index])));
            } else {
                let text = match printed.take() {
                    Some((at, text)) if at == index => text,
                    _ => self.item(&items[index]),
                };
                out.push_str(&indent(&text));
                index += 1;
            }
            out.push('\n');
        }
        out.push('}');
        out
    }

    /// Moves `index` past the entries from it on that stand on adjacent lines and take one line each;
    /// returns whether there are any.
    fn aligned_run(&self, items: &[Item], index: &mut usize, printed: &mut Option<(usize, String)>) -> bool {
        let start = *index;
        while *index < items.len() && items.len() > 1 {
            let item = &items[*index];
            let text = match printed.take() {
                Some((at, text)) if at == *index => text,
                _ => self.item(item),
            };
            let lines = text.bytes().filter(|byte| *byte == b'\n').count() + 1;
            *printed = Some((*index, text));
            // Two lines are an entry with one line of comment above it.
            if lines > 2 {
                break;
            }
            let line = self.line(item_pos(item));
            let next = items.get(*index + 1).map_or(0, |next| self.line(item_pos(next)));
            let previous =
                index.checked_sub(1).and_then(|at| items.get(at)).map_or(0, |item| self.line(item_pos(item)));
            if line + 1 == next {
                *index += 1;
            } else if i64::from(line) - 1 == i64::from(previous) {
                *index += 1;
                break;
            } else {
                break;
            }
        }
        *index > start
    }

    fn aligned(&self, items: &[Item]) -> String {
        let values: Vec<String> = items.iter().map(|item| self.node(&item.value)).collect();
        let key_width =
            items.iter().filter_map(|item| item.keys.first()).map(|key| key.text.len()).max().unwrap_or(0);
        let value_width = values.iter().map(String::len).max().unwrap_or(0);
        let mut out = String::new();
        for (index, (item, value)) in items.iter().zip(&values).enumerate() {
            if index > 0 {
                out.push('\n');
            }
            push_lines(&mut out, &item.lead_comment);
            for key in &item.keys {
                out.push_str(&key.text);
                push_blanks(&mut out, (key_width + 1).saturating_sub(key.text.len()));
            }
            if item.keys.len() == 1 {
                out.push_str("= ");
            }
            out.push_str(value);
            let same_line = self.line(item.value.pos()) == self.line(item_pos(item));
            if same_line && takes_comment(item) {
                push_blanks(&mut out, value_width - value.len() + 1);
                out.extend(item.line_comment.iter().map(String::as_str));
            }
        }
        out
    }

    fn list(&self, list: &List) -> String {
        if self.fits_one_line(list) {
            return self.one_line_list(list);
        }
        let width = |node: &Node| match node {
            Node::Literal(literal) => literal.token.text.len(),
            _ => 0,
        };
        let longest = list.items.iter().map(width).max().unwrap_or(0);
        let mut out = String::from("[\n");
        let mut after_blank_line = false;
        for (index, node) in list.items.iter().enumerate() {
            let literal = if let Node::Literal(literal) = node { Some(literal) } else { None };
            let lead = literal.map_or(&[][..], |literal| &literal.lead_comment);
            if !lead.is_empty() && !after_blank_line && index != 0 {
                out.push('\n');
            }
            for comment in lead {
                out.push_str(&indent(comment));
                out.push('\n');
            }
            let value = self.node(node);
            out.push_str(&indent(&value));
            if literal.is_some_and(|literal| literal.token.kind == TokenKind::Heredoc) {
                out.push_str("\n  ,");
            } else {
                out.push(',');
            }
            if let Some(literal) = literal
                && !literal.line_comment.is_empty()
            {
                push_blanks(&mut out, 1 + longest.saturating_sub(value.len()));
                out.extend(literal.line_comment.iter().map(String::as_str));
            }
            out.push('\n');
            after_blank_line = !lead.is_empty() && index != list.items.len() - 1;
            if after_blank_line {
                out.push('\n');
            }
        }
        out.push(']');
        out
    }

    fn fits_one_line(&self, list: &List) -> bool {
        list.items.iter().all(|node| match node {
            Node::Literal(literal) => {
                self.line(literal.token.pos) == self.line(list.open)
                    && (literal.token.kind != TokenKind::Heredoc || list.items.len() == 1)
                    && literal.line_comment.is_empty()
            }
            _ => false,
        })
    }

    fn one_line_list(&self, list: &List) -> String {
        let mut out = String::from("[");
        for (index, node) in list.items.iter().enumerate() {
            if index > 0 {
                out.push_str(", ");
            }
            out.push_str(&self.node(node));
            if matches!(node, Node::Literal(literal) if literal.token.kind == TokenKind::Heredoc) {
                out.push('\n');
            }
        }
        out.push(']');
        out
    }
}

fn push_lines(out: &mut String, lines: &[String]) {
    for line in lines {
        out.push_str(line);
        out.push('\n');
    }
}

fn push_blanks(out: &mut String, count: usize) {
    out.extend(std::iter::repeat_n(' ', count));
}

/// Two spaces before every line that is not empty.
fn indent(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 16);
    for line in text.split_inclusive('\n') {
        if line != "\n" {
            out.push_str("  ");
        }
        out.push_str(line);
    }
    out
}

/// Marks the second and later lines, so that [`unindent`] takes away what [`indent`] put before them.
fn keep_indent(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for (index, line) in text.split_inclusive('\n').enumerate() {
        if index > 0 && line != "\n" {
            out.push(RESERVED);
        }
        out.push_str(line);
    }
    out
}

/// Removes every mark with what stands before it on its line.
fn unindent(text: &str) -> String {
    if !text.contains(RESERVED) {
        return text.to_owned();
    }
    let mut out = String::with_capacity(text.len());
    for line in text.split_inclusive('\n') {
        out.push_str(line.rfind(RESERVED).map_or(line, |at| &line[at + RESERVED.len_utf8()..]));
    }
    out
}
