//! What templates compute with: as much of Go's types as can be told apart in a template.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

/// A dictionary as `dict` makes it, `map[string]interface {}`. Shared: `set` changes it for all who hold it.
pub type Dict = Rc<RefCell<BTreeMap<String, Value>>>;

/// A value.
#[derive(Clone, Debug)]
pub enum Value {
    /// Nothing: an untyped nil, and what Go calls an invalid value.
    Nil,
    /// `bool`
    Bool(bool),
    /// `int`
    Int(i64),
    /// `uint64`
    Uint(u64),
    /// `float64`
    Float(f64),
    /// `string`. Go's may hold any bytes, ours are UTF-8.
    Str(Rc<str>),
    /// `[]byte`
    Bytes(Rc<[u8]>),
    /// A slice of anything else.
    List(List),
    /// `map[string]interface {}`
    Dict(Dict),
    /// `map[string]string`
    StringMap(Rc<BTreeMap<String, String>>),
    /// A struct.
    Struct(Rc<Struct>),
}

/// A slice with the type of its elements.
#[derive(Clone, Debug)]
pub struct List {
    /// What Go says of the elements' type.
    pub elem: Elem,
    /// The elements.
    pub items: Rc<[Value]>,
}

/// The type of a list's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Elem {
    /// `interface {}`
    Any,
    /// `string`
    Str,
    /// `[]interface {}`, of `chunk`
    AnyList,
    /// Another, named as Go does.
    Other(&'static str),
}

/// A Go struct: its fields in order, and the methods without arguments that a template may call.
#[derive(Clone, Debug, Default)]
pub struct Struct {
    /// The type's name with its package, such as `pkix.Name`.
    pub type_name: &'static str,
    /// Fields by name.
    pub fields: Vec<(&'static str, Value)>,
    /// What methods return, by name.
    pub methods: Vec<(&'static str, Value)>,
    /// What `String` returns, for a `fmt.Stringer`.
    pub text: Option<String>,
}

impl Value {
    /// A text.
    pub fn str(text: impl AsRef<str>) -> Self {
        Self::Str(text.as_ref().into())
    }

    /// `[]string`
    pub fn strings<T: AsRef<str>>(texts: impl IntoIterator<Item = T>) -> Self {
        let items = texts.into_iter().map(Self::str).collect();
        Self::List(List { elem: Elem::Str, items })
    }

    /// `[]interface {}`
    pub(super) fn list(items: Vec<Self>) -> Self {
        Self::List(List { elem: Elem::Any, items: items.into() })
    }

    /// `map[string]interface {}`
    pub(super) fn dict(entries: BTreeMap<String, Self>) -> Self {
        Self::Dict(Rc::new(RefCell::new(entries)))
    }

    /// The type as Go prints it.
    pub(super) fn type_name(&self) -> String {
        match self {
            Self::Nil => "<nil>".to_owned(),
            Self::Bool(_) => "bool".to_owned(),
            Self::Int(_) => "int".to_owned(),
            Self::Uint(_) => "uint64".to_owned(),
            Self::Float(_) => "float64".to_owned(),
            Self::Str(_) => "string".to_owned(),
            Self::Bytes(_) => "[]uint8".to_owned(),
            Self::List(list) => format!("[]{}", list.elem.type_name()),
            Self::Dict(_) => "map[string]interface {}".to_owned(),
            Self::StringMap(_) => "map[string]string".to_owned(),
            Self::Struct(object) => object.type_name.to_owned(),
        }
    }

    /// The kind as Go prints it; nothing for nil, of which Go has none.
    pub(super) fn kind(&self) -> Option<&'static str> {
        Some(match self {
            Self::Nil => return None,
            Self::Bool(_) => "bool",
            Self::Int(_) => "int",
            Self::Uint(_) => "uint64",
            Self::Float(_) => "float64",
            Self::Str(_) => "string",
            Self::Bytes(_) | Self::List(_) => "slice",
            Self::Dict(_) | Self::StringMap(_) => "map",
            Self::Struct(_) => "struct",
        })
    }

    /// Whether a condition holds: whatever is neither zero nor empty.
    pub(super) fn is_true(&self) -> bool {
        match self {
            Self::Struct(_) => true,
            other => !other.is_empty(),
        }
    }

    /// Whether this is the zero of its type, or holds nothing.
    pub(super) fn is_empty(&self) -> bool {
        match self {
            Self::Nil => true,
            Self::Bool(value) => !value,
            Self::Int(value) => *value == 0,
            Self::Uint(value) => *value == 0,
            Self::Float(value) => *value == 0.0,
            Self::Struct(_) => false,
            other => other.len() == Some(0),
        }
    }

    /// How many elements, entries or bytes there are, of what can be counted.
    pub(super) fn len(&self) -> Option<usize> {
        Some(match self {
            Self::Str(text) => text.len(),
            Self::Bytes(bytes) => bytes.len(),
            Self::List(list) => list.items.len(),
            Self::Dict(dict) => dict.borrow().len(),
            Self::StringMap(map) => map.len(),
            _ => return None,
        })
    }

    /// How many values this is, itself included; nothing where it nests deeper than `depth`.
    pub(super) fn weight(&self, depth: usize) -> Option<usize> {
        let inner = depth.checked_sub(1)?;
        let mut weight: usize = 1;
        match self {
            Self::List(list) => {
                for item in list.items.iter() {
                    weight = weight.saturating_add(item.weight(inner)?);
                }
            }
            Self::Dict(dict) => {
                for value in dict.borrow().values() {
                    weight = weight.saturating_add(value.weight(inner)?);
                }
            }
            Self::StringMap(map) => weight += map.len(),
            _ => {}
        }
        Some(weight)
    }

    /// The elements of a slice.
    pub(super) fn items(&self) -> Option<Rc<[Self]>> {
        match self {
            Self::List(list) => Some(Rc::clone(&list.items)),
            Self::Bytes(bytes) => Some(bytes.iter().map(|byte| Self::Uint(u64::from(*byte))).collect()),
            _ => None,
        }
    }

    /// A part of a slice, of the same type; the bounds are within it.
    pub(super) fn sub_slice(&self, start: usize, end: usize) -> Option<Self> {
        match self {
            Self::List(list) => {
                let items = list.items.get(start..end)?.to_vec().into();
                Some(Self::List(List { elem: list.elem, items }))
            }
            Self::Bytes(bytes) => Some(Self::Bytes(bytes.get(start..end)?.into())),
            _ => None,
        }
    }

    /// Go's `reflect.DeepEqual`: of the same type and with the same content.
    pub(super) fn deep_equal(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Nil, Self::Nil) => true,
            (Self::Bool(a), Self::Bool(b)) => a == b,
            (Self::Int(a), Self::Int(b)) => a == b,
            (Self::Uint(a), Self::Uint(b)) => a == b,
            (Self::Float(a), Self::Float(b)) => a == b,
            (Self::Str(a), Self::Str(b)) => a == b,
            (Self::Bytes(a), Self::Bytes(b)) => a == b,
            (Self::List(a), Self::List(b)) => {
                a.elem == b.elem
                    && a.items.len() == b.items.len()
                    && a.items.iter().zip(b.items.iter()).all(|(a, b)| a.deep_equal(b))
            }
            (Self::Dict(a), Self::Dict(b)) => {
                let (a, b) = (a.borrow(), b.borrow());
                a.len() == b.len()
                    && a.iter().all(|(key, value)| b.get(key).is_some_and(|other| value.deep_equal(other)))
            }
            (Self::StringMap(a), Self::StringMap(b)) => a == b,
            (Self::Struct(a), Self::Struct(b)) => {
                a.type_name == b.type_name
                    && a.text == b.text
                    && a.fields.len() == b.fields.len()
                    && a.fields.iter().zip(&b.fields).all(|(a, b)| a.1.deep_equal(&b.1))
            }
            _ => false,
        }
    }
}

impl Elem {
    fn type_name(self) -> &'static str {
        match self {
            Self::Any => "interface {}",
            Self::Str => "string",
            Self::AnyList => "[]interface {}",
            Self::Other(name) => name,
        }
    }
}
