//! The members of a mapping, taken out one by one, so that what is left over is what nobody knows.

use super::{Flaw, Node, NodeValue, Position, is_null};

impl Node {
    /// Whether it is null.
    pub(in crate::apply) fn is_null(&self) -> bool {
        matches!(&self.value, NodeValue::Scalar { text, quoted: false } if is_null(text))
    }

    /// The members of a mapping.
    pub(in crate::apply) fn fields(self, what: &'static str) -> Result<Fields, Flaw> {
        match self.value {
            NodeValue::Map(members) => Ok(Fields { what, at: self.at, members }),
            _ => Err(Flaw::new(self.at, format!("{what} is a mapping"))),
        }
    }

    /// The items of a list.
    pub(in crate::apply) fn list(self) -> Result<Vec<Self>, Flaw> {
        match self.value {
            NodeValue::List(items) => Ok(items),
            _ => Err(Flaw::new(self.at, "a list is due here")),
        }
    }

    /// A text. A plain `true` or `null` is none, since who wrote it meant something else; plain numbers are.
    pub(in crate::apply) fn text(self) -> Result<(String, Position), Flaw> {
        match self.value {
            NodeValue::Scalar { text, quoted } if quoted || !(is_null(&text) || boolean(&text).is_some()) => {
                Ok((text, self.at))
            }
            NodeValue::Scalar { .. } => Err(Flaw::new(self.at, "a text is due here; put it into quotes")),
            _ => Err(Flaw::new(self.at, "a text is due here")),
        }
    }

    /// A boolean.
    pub(in crate::apply) fn flag(self) -> Result<bool, Flaw> {
        match &self.value {
            NodeValue::Scalar { text, quoted: false } => boolean(text),
            _ => None,
        }
        .ok_or_else(|| Flaw::new(self.at, "true or false is due here"))
    }

    /// A whole number; also as a text, which is how protobuf's JSON has those of 64 bits.
    pub(in crate::apply) fn number<N: TryFrom<i128>>(self) -> Result<N, Flaw> {
        let number = match &self.value {
            NodeValue::Scalar { text, .. } => text.parse::<i128>().ok(),
            _ => None,
        };
        let number = number.ok_or_else(|| Flaw::new(self.at, "a whole number is due here"))?;
        N::try_from(number).map_err(|_| Flaw::new(self.at, format!("{number} is out of range")))
    }

    /// As a value of JSON; plain scalars as YAML's core schema reads them, as far as bundles need it.
    pub(in crate::apply) fn into_json(self) -> serde_json::Value {
        use serde_json::Value;
        match self.value {
            NodeValue::Scalar { text, quoted: true } => Value::String(text),
            NodeValue::Scalar { text, .. } if is_null(&text) => Value::Null,
            NodeValue::Scalar { text, .. } => match (boolean(&text), serde_json::from_str(&text)) {
                (Some(flag), _) => Value::Bool(flag),
                (None, Ok(number)) => Value::Number(number),
                _ => Value::String(text),
            },
            NodeValue::List(items) => items.into_iter().map(Self::into_json).collect(),
            NodeValue::Map(members) => {
                Value::Object(members.into_iter().map(|(name, _, node)| (name, node.into_json())).collect())
            }
        }
    }
}

fn boolean(text: &str) -> Option<bool> {
    match text {
        "true" | "True" | "TRUE" => Some(true),
        "false" | "False" | "FALSE" => Some(false),
        _ => None,
    }
}

/// Members that were not asked for yet.
pub(in crate::apply) struct Fields {
    what: &'static str,
    pub(in crate::apply) at: Position,
    members: Vec<(String, Position, Node)>,
}

impl Fields {
    /// The member with one of these names, of which there may be one only. Null is as if absent.
    pub(in crate::apply) fn take(&mut self, names: &[&str]) -> Result<Option<Node>, Flaw> {
        let mut found: Option<(String, Node)> = None;
        while let Some(at) = self.members.iter().position(|(name, ..)| names.contains(&name.as_str())) {
            let (name, key_at, node) = self.members.swap_remove(at);
            if let Some((other, _)) = &found {
                let text = format!("{name:?} and {other:?} are the same; one of them is enough");
                return Err(Flaw::new(key_at, text));
            }
            found = Some((name, node));
        }
        Ok(found.map(|(_, node)| node).filter(|node| !node.is_null()))
    }

    /// A member that must be there.
    pub(in crate::apply) fn required(&mut self, names: &[&str]) -> Result<Node, Flaw> {
        let missing = Flaw::new(self.at, format!("{} needs {:?}", self.what, names.first().unwrap_or(&"")));
        self.take(names)?.ok_or(missing)
    }

    /// A text; empty when absent.
    pub(in crate::apply) fn text(&mut self, names: &[&str]) -> Result<String, Flaw> {
        self.take(names)?.map_or(Ok(String::new()), |node| Ok(node.text()?.0))
    }

    /// A boolean; false when absent.
    pub(in crate::apply) fn flag(&mut self, names: &[&str]) -> Result<bool, Flaw> {
        self.take(names)?.map_or(Ok(false), Node::flag)
    }

    /// A number; zero when absent.
    pub(in crate::apply) fn number<N: TryFrom<i128> + Default>(&mut self, names: &[&str]) -> Result<N, Flaw> {
        self.take(names)?.map_or(Ok(N::default()), Node::number)
    }

    /// The items of a list; none when absent.
    pub(in crate::apply) fn list(&mut self, names: &[&str]) -> Result<Vec<Node>, Flaw> {
        self.take(names)?.map_or(Ok(Vec::new()), Node::list)
    }

    /// All must have been taken. The first one in the file that was not is the flaw.
    pub(in crate::apply) fn finish(mut self) -> Result<(), Flaw> {
        self.members.sort_by_key(|(_, at, _)| *at);
        match self.members.first() {
            None => Ok(()),
            Some((name, at, _)) => Err(Flaw::new(*at, format!("unknown key {name:?} of {}", self.what))),
        }
    }
}
