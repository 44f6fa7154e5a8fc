//! Finds the command that the arguments name, as github.com/mitchellh/cli does (v1.1.5, cli.go): groups exist because
//! their commands do, everything about help goes to standard error.

use std::collections::BTreeMap;

use spire_compat::flag::FlagSet;

use crate::completion;
use crate::env::Env;

/// Exit code for words that name no command.
const UNKNOWN_COMMAND: i32 = 127;

/// The text of a group.
const GROUP: &str = "This command is accessed by using one of the subcommands below.";

/// One command.
pub(crate) struct Command<H> {
    /// Its words.
    pub(crate) path: &'static str,
    /// One line for the list of its group.
    pub(crate) synopsis: &'static str,
    /// Whether lists leave it out: an old name.
    pub(crate) hidden: bool,
    /// What follows its usage text when help is asked for. Most commands of the reference return the flag package's
    /// error there, and some nothing.
    pub(crate) after_usage: &'static str,
    /// Its flags.
    pub(crate) flags: FlagSet,
    /// Runs it with what follows its words; gives the exit code.
    pub(crate) act: Act<H>,
}

/// See [`Command::act`].
pub(crate) type Act<H> = Box<dyn FnOnce(&mut Env, H, FlagSet, &[String]) -> i32>;

/// What most commands print after their usage text.
pub(crate) const HELP_REQUESTED: &str = "flag: help requested";

/// A binary: its name, its version and its commands.
pub(crate) struct Program<H> {
    pub(crate) name: &'static str,
    pub(crate) version: String,
    pub(crate) commands: Vec<Command<H>>,
}

/// What the arguments say before any command reads them.
#[derive(Debug, Default, PartialEq, Eq)]
struct Request<'a> {
    help: bool,
    version: bool,
    completion: bool,
    /// Flags in front of the command.
    stray: bool,
    /// The words that name the command; empty for none.
    words: String,
    arguments: &'a [String],
}

impl<H> Program<H> {
    /// Runs what `arguments` (without the binary's name) say, and gives the exit code.
    pub(crate) fn run(self, env: &mut Env, hooks: H, arguments: &[String]) -> i32 {
        let code = self.dispatched(env, hooks, arguments);
        env.flush();
        code
    }

    fn dispatched(mut self, env: &mut Env, hooks: H, arguments: &[String]) -> i32 {
        if !env.variable("COMP_LINE").is_empty() {
            let fitting = self.completions(env.variable("COMP_LINE"), env.variable("COMP_POINT"));
            env.out(fitting);
            return 0;
        }
        let request = self.read(arguments);
        if request.version {
            env.err(format_args!("{}\n", self.version));
            return 0;
        }
        if request.help && request.words.is_empty() {
            env.err(format_args!("{}\n", self.top_help()));
            return 0;
        }
        if request.completion {
            env.err(format_args!(
                "Error: installing shell completion is not supported; in bash, use: complete -C /path/to/{0} {0}\n",
                self.name
            ));
            return 1;
        }
        let position = self.commands.iter().position(|c| c.path == request.words);
        if position.is_none() && !self.is_group(&request.words) {
            env.err(format_args!("{}\n", self.top_help()));
            return UNKNOWN_COMMAND;
        }
        if request.help {
            self.command_help(env, &request.words);
            return 0;
        }
        if request.stray {
            env.err(
                "Invalid flags before the subcommand. If these flags are for\n\
                 the subcommand, please put them after the subcommand.\n\n",
            );
            self.command_help(env, &request.words);
            return 1;
        }
        match position {
            Some(position) => {
                let command = self.commands.swap_remove(position);
                (command.act)(env, hooks, command.flags, request.arguments)
            }
            None => {
                self.command_help(env, &request.words);
                1
            }
        }
    }

    fn read<'a>(&self, arguments: &'a [String]) -> Request<'a> {
        let mut request = Request::default();
        let mut named = false;
        for (i, argument) in arguments.iter().enumerate() {
            if argument == "--" {
                break;
            }
            match argument.as_str() {
                "-h" | "-help" | "--help" => {
                    request.help = true;
                    continue;
                }
                "-autocomplete-install"
                | "--autocomplete-install"
                | "-autocomplete-uninstall"
                | "--autocomplete-uninstall" => {
                    request.completion = true;
                    continue;
                }
                "-v" | "-version" | "--version" if !named => {
                    request.version = true;
                    continue;
                }
                _ if named || argument.is_empty() => continue,
                _ if argument.starts_with('-') => {
                    request.stray = true;
                    continue;
                }
                // A name with a blank in it is nobody's.
                _ if argument.contains(' ') => return request,
                _ => {}
            }
            named = true;
            let (words, count) = self.longest(&arguments[i..]);
            request.words = words;
            request.arguments = &arguments[i + count..];
        }
        request
    }

    /// The longest run of words at the start that names a command or a group, and how many words that are; the first
    /// word where none does.
    fn longest(&self, arguments: &[String]) -> (String, usize) {
        let words: Vec<&str> = arguments
            .iter()
            .map(String::as_str)
            .take_while(|a| !a.is_empty() && !a.contains(' ') && !a.starts_with('-'))
            .collect();
        (1..=words.len())
            .rev()
            .map(|n| (words[..n].join(" "), n))
            .find(|(name, _)| self.commands.iter().any(|c| c.path == name) || self.is_group(name))
            .unwrap_or_else(|| (words.first().copied().unwrap_or_default().to_owned(), 1))
    }

    fn is_group(&self, words: &str) -> bool {
        !words.is_empty() && self.commands.iter().any(|c| is_below(c.path, words))
    }

    /// Direct members of a group, or of the binary for an empty prefix: name without the group's, synopsis, command.
    fn members(&self, prefix: &str) -> BTreeMap<&str, Option<&Command<H>>> {
        let mut members = BTreeMap::new();
        for command in self.commands.iter().filter(|c| !c.hidden) {
            let below = match prefix {
                "" => Some(command.path),
                _ => command.path.strip_prefix(prefix).and_then(|rest| rest.strip_prefix(' ')),
            };
            match below
                .and_then(|b| b.split_once(' ').map_or(Some((b, true)), |(first, _)| Some((first, false))))
            {
                Some((name, true)) => {
                    members.insert(name, Some(command));
                }
                Some((name, false)) => {
                    members.entry(name).or_insert(None);
                }
                None => {}
            }
        }
        members
    }

    /// What may stand where a command line is being typed, a line each.
    fn completions(&self, line: &str, point: &str) -> String {
        let Some((words, last)) = completion::typed(line, point) else { return String::new() };
        let mut at = String::new();
        for word in words.into_iter().filter(|word| !word.starts_with('-')) {
            let below = if at.is_empty() { word.to_owned() } else { format!("{at} {word}") };
            if self.is_group(&below) || self.commands.iter().any(|c| c.path == below) {
                at = below;
            }
        }
        let flags: &[&str] =
            if at.is_empty() && last.starts_with('-') { &["-help", "-version"] } else { &[] };
        let members = self.members(&at);
        let fitting = members.keys().chain(flags).filter(|word| word.starts_with(last));
        fitting.map(|word| format!("{word}\n")).collect()
    }

    fn top_help(&self) -> String {
        let mut text = format!(
            "Usage: {} [--version] [--help] <command> [<args>]\n\nAvailable commands are:\n",
            self.name
        );
        text.push_str(&listed(&self.members("")).concat());
        text
    }

    /// Usage texts of a command and of all members of its group, then the list of these. The reference prints a usage
    /// text as soon as it asks a command for its help, which is why they come first.
    fn command_help(&self, env: &mut Env, words: &str) {
        let command = self.commands.iter().find(|c| c.path == words);
        let members = self.members(words);
        for described in command.into_iter().chain(members.values().copied().flatten()) {
            env.err(described.flags.usage());
        }
        let mut text = command.map_or(GROUP, |c| c.after_usage).to_owned();
        if !members.is_empty() {
            text.push_str("\n\nSubcommands:\n");
            text.push_str(listed(&members).concat().trim_end_matches('\n'));
        }
        env.err(format_args!("{text}\n"));
    }
}

fn is_below(path: &str, group: &str) -> bool {
    path.strip_prefix(group).is_some_and(|rest| rest.starts_with(' '))
}

fn listed<H>(members: &BTreeMap<&str, Option<&Command<H>>>) -> Vec<String> {
    let width = members.keys().map(|name| name.len()).max().unwrap_or_default();
    members
        .iter()
        .map(|(name, command)| format!("    {name:width$}    {}\n", command.map_or("", |c| c.synopsis)))
        .collect()
}
