//! Requests as a policy sees them: what Go's `encoding/json` makes of the structs that protoc-gen-go generates, since
//! that is what the reference hands its engine and what policies are written for.
//!
//! So names are those of the .proto files, fields with their zero value are absent, enums are numbers, bytes are base64, a
//! wrapper such as `BoolValue` is an object with `value`; and a oneof is a field with the name of the Go field
//! (`BundleEndpointProfile`), null where nothing is set.

use std::collections::{BTreeMap, HashMap};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use prost::Message as _;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, FieldDescriptorProto, FileDescriptorSet};
use regorus::Value;
use spire_ports::policy::Undecided;

/// Values that one request may have. The engine keeps each in an allocation of its own, about 100 octets, while two
/// octets of a message can make one. A batch of 10,000 entries fits.
const PARTS_MAX: usize = 250_000;

/// Nesting of messages; no request has more than four.
const DEPTH_MAX: usize = 16;

/// The request messages of the server's methods.
pub(crate) struct Requests {
    /// Index into `messages` by full method.
    methods: HashMap<String, usize>,
    messages: Vec<Message>,
}

#[derive(Default)]
struct Message {
    /// By field number.
    fields: BTreeMap<u32, Field>,
    /// Names of the Go fields of its oneofs, by index.
    oneofs: Vec<Value>,
}

struct Field {
    key: Value,
    kind: Kind,
    presence: Presence,
}

#[derive(Clone, Copy, PartialEq)]
enum Presence {
    /// Absent when zero.
    Implicit,
    /// Absent when it was not sent.
    Explicit,
    Repeated,
    /// Of the oneof with this index.
    OneOf(usize),
}

#[derive(Clone, Copy)]
enum Kind {
    Bool,
    Int,
    Uint,
    Text,
    Bytes,
    Message(usize),
    /// No request has one; a test says so.
    Other,
}

/// A field as it was sent.
enum Sent<'a> {
    Varint(u64),
    Bytes(&'a [u8]),
    Other,
}

/// An object with these members.
pub(crate) fn object<const N: usize>(members: [(&'static str, Value); N]) -> Value {
    BTreeMap::from(members.map(|(key, value)| (Value::from(key), value))).into()
}

impl Requests {
    /// Those of the descriptors that `spire-wire` carries; they are generated and tested, so they can be read.
    pub(crate) fn of_server() -> Self {
        let set = FileDescriptorSet::decode(spire_wire::SERVER_API_DESCRIPTORS).unwrap_or_default();
        let mut declared: Vec<(String, &DescriptorProto)> = Vec::new();
        for file in &set.file {
            for message in &file.message_type {
                declare(&format!(".{}", file.package()), message, &mut declared);
            }
        }
        let index: HashMap<&str, usize> =
            declared.iter().enumerate().map(|(n, (name, _))| (name.as_str(), n)).collect();
        let messages = declared.iter().map(|(_, message)| Message::of(message, &index)).collect();
        let mut methods = HashMap::new();
        for file in &set.file {
            for service in &file.service {
                for method in &service.method {
                    let full = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                    methods.extend(index.get(method.input_type()).map(|message| (full, *message)));
                }
            }
        }
        Self { methods, messages }
    }

    /// A request of a method, from its encoding.
    pub(crate) fn value(&self, full_method: &str, message: &[u8]) -> Result<Value, Undecided> {
        let known = self.methods.get(full_method);
        let index = *known.ok_or_else(|| Undecided::Malformed(format!("unknown method {full_method}")))?;
        Reader { messages: &self.messages, left: PARTS_MAX }.object(index, message, DEPTH_MAX)
    }

    #[cfg(test)]
    pub(crate) fn unsupported(&self) -> Vec<String> {
        let mut reached: Vec<usize> = self.methods.values().copied().collect();
        let mut found = Vec::new();
        let mut next = 0;
        while let Some(message) = reached.get(next).and_then(|n| self.messages.get(*n)) {
            for field in message.fields.values() {
                match field.kind {
                    Kind::Message(n) if !reached.contains(&n) => reached.push(n),
                    Kind::Other => found.push(field.key.to_string()),
                    _ => {}
                }
            }
            next += 1;
        }
        found
    }
}

fn declare<'a>(scope: &str, message: &'a DescriptorProto, declared: &mut Vec<(String, &'a DescriptorProto)>) {
    let full = format!("{scope}.{}", message.name());
    for nested in &message.nested_type {
        declare(&full, nested, declared);
    }
    declared.push((full, message));
}

impl Message {
    fn of(descriptor: &DescriptorProto, index: &HashMap<&str, usize>) -> Self {
        let fields = descriptor.field.iter().filter_map(|field| {
            let number = u32::try_from(field.number()).ok()?;
            Some((number, Field::of(field, index)))
        });
        let oneofs = descriptor.oneof_decl.iter().map(|oneof| go_name(oneof.name()).into());
        let mut message = Self { fields: fields.collect(), oneofs: oneofs.collect() };
        // The oneofs of `optional` fields come last and are none for Go.
        let real = message.fields.values().filter_map(|field| match field.presence {
            Presence::OneOf(n) => Some(n + 1),
            _ => None,
        });
        let count = real.max().unwrap_or(0);
        message.oneofs.truncate(count);
        message
    }
}

impl Field {
    fn of(descriptor: &FieldDescriptorProto, index: &HashMap<&str, usize>) -> Self {
        let kind = match descriptor.r#type() {
            Type::Bool => Kind::Bool,
            Type::Int32 | Type::Int64 | Type::Enum => Kind::Int,
            Type::Uint32 | Type::Uint64 => Kind::Uint,
            Type::String => Kind::Text,
            Type::Bytes => Kind::Bytes,
            Type::Message => index.get(descriptor.type_name()).map_or(Kind::Other, |n| Kind::Message(*n)),
            _ => Kind::Other,
        };
        let oneof = descriptor.oneof_index.and_then(|n| usize::try_from(n).ok());
        let presence = match (descriptor.label(), oneof) {
            (Label::Repeated, _) => Presence::Repeated,
            _ if descriptor.proto3_optional() => Presence::Explicit,
            (_, Some(n)) => Presence::OneOf(n),
            _ if matches!(kind, Kind::Message(_)) => Presence::Explicit,
            _ => Presence::Implicit,
        };
        let key = match presence {
            Presence::OneOf(_) => go_name(descriptor.name()).into(),
            _ => descriptor.name().into(),
        };
        Self { key, kind, presence }
    }
}

/// The Go name of a field (protoc-gen-go, strs.GoCamelCase), as far as the names that there are need it: underscores go and
/// what follows them is a capital letter.
fn go_name(name: &str) -> String {
    let words = name.split('_');
    words
        .flat_map(|word| {
            let mut letters = word.chars();
            letters.next().map(|first| first.to_ascii_uppercase()).into_iter().chain(letters)
        })
        .collect()
}

/// Reads one request. It only gets what the server's own decoder took and wrote again, so both see the same.
struct Reader<'a> {
    messages: &'a [Message],
    /// Values that may still be made.
    left: usize,
}

impl Reader<'_> {
    fn object(&mut self, index: usize, mut rest: &[u8], depth: usize) -> Result<Value, Undecided> {
        let messages = self.messages;
        let message = messages.get(index).ok_or_else(|| malformed("unknown type"))?;
        let depth = depth.checked_sub(1).ok_or_else(|| malformed("nested too deep"))?;
        let mut members: BTreeMap<Value, Value> =
            message.oneofs.iter().map(|name| (name.clone(), Value::Null)).collect();
        let mut lists: BTreeMap<u32, Vec<Value>> = BTreeMap::new();
        while !rest.is_empty() {
            let (number, sent) = next(&mut rest)?;
            let Some(field) = message.fields.get(&number) else { continue };
            if field.presence == Presence::Repeated {
                self.elements(field, sent, depth, lists.entry(number).or_default())?;
                continue;
            }
            let Some(value) = self.single(field, sent, depth)? else { continue };
            match field.presence {
                Presence::OneOf(n) => {
                    let name = message.oneofs.get(n).ok_or_else(|| malformed("unknown oneof"))?;
                    let choice = BTreeMap::from([(field.key.clone(), value)]);
                    members.insert(name.clone(), choice.into());
                }
                _ => drop(members.insert(field.key.clone(), value)),
            }
        }
        for (number, list) in lists {
            if let Some(field) = message.fields.get(&number).filter(|_| !list.is_empty()) {
                members.insert(field.key.clone(), list.into());
            }
        }
        Ok(members.into())
    }

    fn single(&mut self, field: &Field, sent: Sent<'_>, depth: usize) -> Result<Option<Value>, Undecided> {
        let is_zero = match &sent {
            Sent::Varint(number) => *number == 0,
            Sent::Bytes(bytes) => bytes.is_empty(),
            Sent::Other => false,
        };
        if is_zero && field.presence == Presence::Implicit {
            return Ok(None);
        }
        self.element(field.kind, sent, depth).map(Some)
    }

    fn elements(
        &mut self,
        field: &Field,
        sent: Sent<'_>,
        depth: usize,
        list: &mut Vec<Value>,
    ) -> Result<(), Undecided> {
        match (field.kind, sent) {
            // Numbers come packed.
            (Kind::Bool | Kind::Int | Kind::Uint, Sent::Bytes(mut packed)) => {
                while !packed.is_empty() {
                    let number = Sent::Varint(varint(&mut packed)?);
                    list.push(self.element(field.kind, number, depth)?);
                }
            }
            (kind, sent) => list.push(self.element(kind, sent, depth)?),
        }
        Ok(())
    }

    fn element(&mut self, kind: Kind, sent: Sent<'_>, depth: usize) -> Result<Value, Undecided> {
        self.left = self.left.checked_sub(1).ok_or(Undecided::TooLarge { max: PARTS_MAX })?;
        match (kind, sent) {
            (Kind::Bool, Sent::Varint(number)) => Ok((number != 0).into()),
            // Negative numbers are sent as 64 bits, whatever their type.
            (Kind::Int, Sent::Varint(number)) => Ok(number.cast_signed().into()),
            (Kind::Uint, Sent::Varint(number)) => Ok(number.into()),
            (Kind::Text, Sent::Bytes(text)) => {
                std::str::from_utf8(text).map(Value::from).map_err(|_| malformed("a string is not UTF-8"))
            }
            (Kind::Bytes, Sent::Bytes(bytes)) => Ok(STANDARD.encode(bytes).into()),
            (Kind::Message(index), Sent::Bytes(message)) => self.object(index, message, depth),
            _ => Err(malformed("a field is of another type")),
        }
    }
}

fn malformed(what: &str) -> Undecided {
    Undecided::Malformed(what.to_owned())
}

/// The next field of a message: its number and what was sent.
fn next<'a>(rest: &mut &'a [u8]) -> Result<(u32, Sent<'a>), Undecided> {
    let key = varint(rest)?;
    let number = u32::try_from(key >> 3).map_err(|_| malformed("a field number is too large"))?;
    let sent = match key & 7 {
        0 => Sent::Varint(varint(rest)?),
        1 => take(rest, 8).map(|_| Sent::Other)?,
        2 => {
            let length = varint(rest)?;
            Sent::Bytes(take(rest, usize::try_from(length).unwrap_or(usize::MAX))?)
        }
        5 => take(rest, 4).map(|_| Sent::Other)?,
        _ => return Err(malformed("a wire type is unknown")),
    };
    Ok((number, sent))
}

fn varint(rest: &mut &[u8]) -> Result<u64, Undecided> {
    prost::encoding::decode_varint(rest).map_err(|error| malformed(&error.to_string()))
}

fn take<'a>(rest: &mut &'a [u8], count: usize) -> Result<&'a [u8], Undecided> {
    let (taken, left) = rest.split_at_checked(count).ok_or_else(|| malformed("a field is cut short"))?;
    *rest = left;
    Ok(taken)
}
