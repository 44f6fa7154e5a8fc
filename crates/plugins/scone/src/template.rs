//! Session templates: text with placeholders in angle brackets, one of whose lines is the session's name.

/// Spaces before each line of PEM, as YAML wants them below `value: |`.
const INDENT: &str = "\n        ";

/// A session template with a name.
pub(crate) struct Template {
    text: String,
    /// What stands after `name:`, placeholders and all.
    name: String,
}

impl Template {
    /// A template that has a name line: the first that starts with `name:`.
    pub(crate) fn new(text: String) -> Option<Self> {
        let line = text.lines().find_map(|line| line.strip_prefix("name:"))?;
        let name = line.trim().trim_matches('"').trim_matches('\'').to_owned();
        Some(Self { text, name })
    }

    /// The name of the session with these values.
    pub(crate) fn name(&self, values: &[(&str, &str)]) -> String {
        fill(&self.name, values)
    }

    /// Whether the name has this placeholder.
    pub(crate) fn is_named_by(&self, placeholder: &str) -> bool {
        self.name.contains(placeholder)
    }

    /// The session with these values.
    pub(crate) fn fill(&self, values: &[(&str, &str)]) -> String {
        fill(&self.text, values)
    }
}

/// Replaces placeholders in one go, so that no value is looked at for more of them.
fn fill(text: &str, values: &[(&str, &str)]) -> String {
    let mut filled =
        String::with_capacity(text.len() + values.iter().map(|(_, value)| value.len()).sum::<usize>());
    let mut rest = text;
    while let Some(at) = rest.find("<\\") {
        let (before, from) = rest.split_at(at);
        filled.push_str(before);
        match values.iter().find(|(placeholder, _)| from.starts_with(placeholder)) {
            Some((placeholder, value)) => {
                filled.push_str(value);
                rest = &from[placeholder.len()..];
            }
            None => {
                filled.push_str("<\\");
                rest = &from["<\\".len()..];
            }
        }
    }
    filled.push_str(rest);
    filled
}

/// PEM as the templates take it.
pub(crate) fn indented(pem: &str) -> String {
    pem.replace('\n', INDENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_that_is_a_name_names_the_session() {
        let name =
            |text: &str| Template::new(text.to_owned()).map(|template| template.name(&[("<\\a>", "x/y")]));
        assert_eq!(name("version: 3\nname:  <\\a>-injector \r\nname: b"), Some("x/y-injector".to_owned()));
        assert_eq!(name("name: \"<\\a>\""), Some("x/y".to_owned()));
        assert_eq!(name(" name: a\nnames: b"), None);
        assert_eq!(name("name:"), Some(String::new()));
    }

    #[test]
    fn values_are_not_looked_at_for_placeholders() {
        let template = Template::new("name: n\n<\\a><\\b><\\a> <\\c> <".to_owned()).unwrap();
        assert_eq!(template.fill(&[("<\\a>", "<\\b>"), ("<\\b>", "2")]), "name: n\n<\\b>2<\\b> <\\c> <");
        assert_eq!(indented("-a\nb\n"), "-a\n        b\n        ");
    }
}
