//! Texts of users: configuration, flags, durations, cgroups.

use std::collections::BTreeMap;
use std::rc::Rc;

use spire_compat::duration::GoDuration;
use spire_compat::expand;
use spire_compat::flag::FlagSet;
use spire_compat::hcl;
use spire_compat::template::{Template, Value};
use spire_core::containers::{Container, cgroup_paths};
use spire_fuzz::input_or_changed;

const CONFIG: &[u8] =
    b"server { bind_port = \"8081\" x = [1, \"a\", true] /* c */ }\nplugins { DataStore \"sql\" { \
    plugin_data { a = <<EOF\ntext\nEOF\n } } }\n# end\n";
const JSON: &[u8] = b"{\"server\": {\"bind_port\": 8081, \"list\": [{\"a\": null}, -1.5e3]}}";

#[test]
fn hcl_configuration() {
    bolero::check!().for_each(|input: &[u8]| {
        let text = input_or_changed(&[CONFIG, JSON], input);
        let Ok(document) = hcl::parse_config(&text) else { return };
        let mut body = document.body();
        let _ = (body.take_block("server").map(|_| ()), body.take_string("x"), body.take_fragment("plugins"));
        let _ = (body.unused(), document.locate("server.bind_port"));
    });
}

/// plugin_data goes to plugins as the printer writes it, so what was read must be readable again.
#[test]
fn hcl_printed() {
    bolero::check!().for_each(|input: &[u8]| {
        let text = input_or_changed(&[CONFIG], input);
        let Ok(document) = hcl::parse(&text) else { return };
        let printed = hcl::Fragment::from(document).print();
        assert!(hcl::parse(&printed).is_ok(), "{printed:?}");
    });
}

#[test]
fn go_flags() {
    let set = FlagSet::new("fuzz")
        .string("spiffeID", "", "")
        .bool("admin", false, "")
        .int("ttl", 0, "")
        .strings("selector", "")
        .switch("on", "")
        .duration("wait", GoDuration::from_nanos(1), "");
    bolero::check!().for_each(|input: &[u8]| {
        let line = input_or_changed(
            &[b"-spiffeID x --ttl=-5 -admin=false -selector a:b -wait 1h2m -on -- rest"],
            input,
        );
        let line = String::from_utf8_lossy(&line);
        let arguments: Vec<&str> = line.split(' ').collect();
        if let Ok(parsed) = set.parse(&arguments) {
            assert!(parsed.rest().len() <= arguments.len());
        }
    });
}

#[test]
fn durations_and_variables() {
    bolero::check!().for_each(|input: &[u8]| {
        let text = input_or_changed(&[b"1h2m3.5s4ms5us6ns", b"a $X ${Y} $$ $"], input);
        let Ok(text) = std::str::from_utf8(&text) else { return };
        if let Ok(duration) = text.parse::<GoDuration>() {
            assert_eq!(duration.to_string().parse(), Ok(duration));
        }
        let _ = expand::expand(text, |_| "v".to_owned());
    });
}

#[test]
fn container_of_cgroups() {
    let line = b"0::/kubepods.slice/kubepods-pod2c48913c_b29f_11e7_9350_020968147796.slice/\
        cri-containerd-9bca8d63d5fa610783847915bcff0ecac1273e5b4bed3f6fa1b07350e0135961.scope\n";
    bolero::check!().for_each(|input: &[u8]| {
        let text = input_or_changed(&[line], input);
        let Ok(text) = std::str::from_utf8(&text) else { return };
        for with_pod in [false, true] {
            let _ = (Container::from_cgroups(text, with_pod), Container::from_mountinfo(text, with_pod));
        }
        let _ = cgroup_paths(text);
    });
}

/// A template of the operator on what nodes say, and templates that are none.
#[test]
fn agent_path_template() {
    const TEMPLATE: &[u8] =
        b"{{ range $i, $e := splitList \"/\" .Text }}/{{ $e | upper | trunc 5 }}{{ end }}\
        {{ with .Text }}{{ printf \"%s-%q\" . . | replace \"a\" \"b\" | sha256sum }}{{ else }}x{{ end }}";
    bolero::check!().for_each(|input: &[u8]| {
        let (text, data) = input.split_at(input.len() / 2);
        let text = input_or_changed(&[TEMPLATE], text);
        let Ok(text) = std::str::from_utf8(&text) else { return };
        if let Ok(template) = Template::parse(text) {
            let said = String::from_utf8_lossy(data).into_owned();
            let data = Value::StringMap(Rc::new(BTreeMap::from([("Text".to_owned(), said)])));
            let _ = template.execute(&data);
        }
    });
}
