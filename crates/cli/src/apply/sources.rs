//! The files of desired state, read twice: once to find every mistake before anything is changed, once to apply.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use spire_compat::errno::path_error;
use spire_wire::api::types;

use super::content::{Digest, digest, key};
use super::desired;
use super::document::{Flaw, Items, Kind, Position, Syntax};
use super::owner::Owner;
use crate::env::Env;
use crate::failure::Failure;
use crate::files;

/// Mistakes that are shown at once.
const FLAWS_MAX: usize = 20;

/// Files to apply, in the order of their names.
pub(super) struct Sources(Vec<Source>);

struct Source {
    /// As the user knows it.
    name: String,
    syntax: Syntax,
    contents: Contents,
}

enum Contents {
    /// A file, and what it was when it was first read.
    File(PathBuf, Stamp),
    Memory(Vec<u8>),
}

type Stamp = (u64, u64, u64, i64, i64);

/// Where an item stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    file: u32,
    at: Position,
}

/// What a first look found.
#[derive(Default)]
pub(super) struct Survey {
    /// How many entries there are.
    pub(super) entries: u64,
    /// All relationships.
    pub(super) relationships: Vec<(types::FederationRelationship, Place)>,
    /// Digests of the IDs of all entries that have one, sorted.
    pub(super) ids: Vec<Digest>,
}

impl Sources {
    /// These files and folders; `-` is standard input. Of a folder, the files in it (not below) whose name says YAML or
    /// JSON and does not start with a dot.
    pub(super) fn open(env: &mut Env, paths: &[String]) -> Result<Self, Failure> {
        let mut sources = Vec::new();
        for path in paths {
            if path == "-" {
                let text = files::read_stdin(env)?;
                let syntax = Syntax::of_text(&text);
                sources.push(Source {
                    name: "standard input".to_owned(),
                    syntax,
                    contents: Contents::Memory(text),
                });
                continue;
            }
            let located = env.locate(path);
            let metadata = fs::metadata(&located).map_err(|e| Failure::new(path_error("stat", path, &e)))?;
            if !metadata.is_dir() {
                let syntax = Syntax::of_name(path).unwrap_or(Syntax::Yaml);
                let contents = Contents::File(located, stamp(&metadata));
                sources.push(Source { name: path.clone(), syntax, contents });
                continue;
            }
            let before = sources.len();
            sources.extend(folder(path, &located)?);
            if sources.len() == before {
                return Err(Failure::new(format!("{path}: no file in it is YAML or JSON by its name")));
            }
        }
        Ok(Self(sources))
    }

    /// What a folder holds, as one number that changes when a file does. For a folder that does not change meanwhile.
    pub(super) fn fingerprint(&self) -> Result<Digest, Failure> {
        use aws_lc_rs::digest::{Context, SHA256};
        let mut hash = Context::new(&SHA256);
        let mut buffer = vec![0; 64 << 10];
        for source in &self.0 {
            hash.update(&source.name.len().to_be_bytes());
            hash.update(source.name.as_bytes());
            let mut read = source.reader()?;
            let mut length = 0_u64;
            loop {
                match read.read(&mut buffer) {
                    Ok(0) => break,
                    Ok(count) => {
                        hash.update(buffer.get(..count).unwrap_or_default());
                        length += count as u64;
                    }
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(Failure::new(path_error("read", &source.name, &error))),
                }
            }
            hash.update(&length.to_be_bytes());
        }
        let half = hash.finish().as_ref().first_chunk().copied().unwrap_or_default();
        Ok(Digest::from_be_bytes(half))
    }

    /// `file:line:column`.
    pub(super) fn place(&self, place: Place) -> String {
        let name = self.0.get(place.file as usize).map_or("", |source| source.name.as_str());
        format!("{name}:{}", place.at)
    }

    /// Reads all files and checks what can be checked without the server. The error is all that is wrong, a line each.
    pub(super) fn survey(&self, owner: Option<&Owner>) -> Result<Survey, Failure> {
        let mut survey = Survey::default();
        let mut flaws: Vec<String> = Vec::new();
        let mut ids: Vec<(Digest, Place)> = Vec::new();
        let mut keys = ids.clone();
        let mut entries = self.items();
        while flaws.len() < FLAWS_MAX {
            match entries.next() {
                Ok(None) => break,
                Err(Trouble::Fatal(failure)) => return Err(failure),
                Err(Trouble::Flaw(text)) => flaws.push(text),
                Ok(Some((place, Item::Relationship(relationship)))) => {
                    survey.relationships.push((*relationship, place));
                }
                Ok(Some((place, Item::Entry(mut entry)))) => {
                    survey.entries += 1;
                    keys.push((key(&entry), place));
                    if let Err(text) = own(&mut entry, owner) {
                        flaws.push(format!("{}: {text}", self.place(place)));
                    } else if !entry.id.is_empty() {
                        ids.push((digest(&entry.id), place));
                    }
                }
            }
        }
        let mut names: Vec<_> = survey
            .relationships
            .iter()
            .map(|(relationship, place)| (digest(&relationship.trust_domain), *place))
            .collect();
        let told = [
            (&mut keys, "the SPIFFE ID, parent and selectors are those of the entry at"),
            (&mut ids, "the entry ID is that of the entry at"),
            (&mut names, "the trust domain is that of the relationship at"),
        ];
        for (all, text) in told {
            all.sort_unstable();
            for (first, second) in
                all.iter().zip(all.iter().skip(1)).filter(|(first, second)| first.0 == second.0)
            {
                if flaws.len() < FLAWS_MAX {
                    flaws.push(format!("{}: {text} {}", self.place(second.1), self.place(first.1)));
                }
            }
        }
        if !flaws.is_empty() {
            return Err(Failure::new(format!("nothing was changed:\n{}", flaws.join("\n"))));
        }
        survey.ids = ids.into_iter().map(|(id, _)| id).collect();
        Ok(survey)
    }

    /// The items of all files.
    pub(super) fn items(&self) -> SourceItems<'_> {
        SourceItems { sources: self, file: 0, open: None }
    }
}

/// Checks that the ID of an entry is one of the owner's, or derives one if the file gives none. Returns whether the file gave one.
pub(super) fn own(entry: &mut types::Entry, owner: Option<&Owner>) -> Result<bool, String> {
    match owner {
        Some(owner) if entry.id.is_empty() => {
            entry.id = owner.derived(key(entry));
            Ok(false)
        }
        Some(owner) if !owner.owns(&entry.id) => {
            let (id, name) = (&entry.id, owner.name());
            Err(format!("the entry ID {id:?} is not one of owner {name:?}: it has to begin with \"{name}.\""))
        }
        _ => Ok(!entry.id.is_empty()),
    }
}

/// An item of a file.
pub(super) enum Item {
    Entry(Box<types::Entry>),
    Relationship(Box<types::FederationRelationship>),
}

/// Why there is no item.
#[derive(Debug)]
pub(super) enum Trouble {
    /// A mistake in a file; what follows may be read.
    Flaw(String),
    Fatal(Failure),
}

/// Items of all files in order.
pub(super) struct SourceItems<'s> {
    sources: &'s Sources,
    file: usize,
    open: Option<Items<'s>>,
}

impl SourceItems<'_> {
    /// The next item; each is read when it is asked for.
    pub(super) fn next(&mut self) -> Result<Option<(Place, Item)>, Trouble> {
        loop {
            let Some(source) = self.sources.0.get(self.file) else { return Ok(None) };
            let open = match &mut self.open {
                Some(open) => open,
                closed => closed.insert(Items::new(source.reader().map_err(Trouble::Fatal)?, source.syntax)),
            };
            let flaw = |flaw: &Flaw| Trouble::Flaw(format!("{}:{flaw}", source.name));
            let (kind, node) = match open.next() {
                Ok(Some(found)) => found,
                ended => {
                    self.open = None;
                    self.file += 1;
                    match ended {
                        // What follows in this file cannot be told from what is broken.
                        Err(error) => return Err(flaw(&error)),
                        Ok(_) => continue,
                    }
                }
            };
            let place = Place { file: u32::try_from(self.file).unwrap_or(u32::MAX), at: node.at };
            let item = match kind {
                Kind::Entry => desired::entry(node).map(|entry| Item::Entry(Box::new(entry))),
                Kind::Relationship => desired::relationship(node).map(|r| Item::Relationship(Box::new(r))),
            };
            return item.map(|item| Some((place, item))).map_err(|error| flaw(&error));
        }
    }
}

impl Source {
    fn reader(&self) -> Result<Box<dyn Read + '_>, Failure> {
        match &self.contents {
            Contents::Memory(text) => Ok(Box::new(text.as_slice())),
            Contents::File(path, known) => {
                let failed = |operation| {
                    move |error: std::io::Error| Failure::new(path_error(operation, &self.name, &error))
                };
                let file = File::open(path).map_err(failed("open"))?;
                if stamp(&file.metadata().map_err(failed("stat"))?) != *known {
                    return Err(Failure::new(format!("{} changed while it was read", self.name)));
                }
                Ok(Box::new(file))
            }
        }
    }
}

/// What changes when a file does, as far as the file system tells.
fn stamp(metadata: &fs::Metadata) -> Stamp {
    (metadata.dev(), metadata.ino(), metadata.size(), metadata.mtime(), metadata.mtime_nsec())
}

/// The files of a folder. Folders below are not looked into: those of a mounted ConfigMap hold older copies.
fn folder(shown: &str, path: &Path) -> Result<Vec<Source>, Failure> {
    let failed = |error: std::io::Error| Failure::new(path_error("open", shown, &error));
    let mut sources = Vec::new();
    for entry in fs::read_dir(path).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let Some(name) = entry.file_name().to_str().map(ToOwned::to_owned) else { continue };
        let Some(syntax) = Syntax::of_name(&name).filter(|_| !name.starts_with('.')) else { continue };
        let shown = files::join(shown, &name);
        // Through links: a ConfigMap's files are some.
        let metadata =
            fs::metadata(entry.path()).map_err(|e| Failure::new(path_error("stat", &shown, &e)))?;
        if metadata.is_file() {
            let contents = Contents::File(entry.path(), stamp(&metadata));
            sources.push(Source { name: shown, syntax, contents });
        }
    }
    sources.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(sources)
}
