//! What the driver makes of connection strings and variables, and properties.

use std::io;

use proptest::prelude::*;

use super::*;

const SERVICES: &str =
    "# services\n[other]\nhost=x\n[ mine ]\nhost = s.example.org\n\n#port=1\ndbname=db\n[last]\n";

fn around(variables: &[(&str, &str)]) -> Surroundings {
    Surroundings {
        variables: variables.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
        account: "me".to_owned(),
    }
}

fn parse_with(text: &str, variables: &[(&str, &str)]) -> Result<ConnectionString> {
    ConnectionString::parse(text, &around(variables), |path| match path {
        "/home/me/.pg_service.conf" | "/services" => Ok(SERVICES.to_owned()),
        _ => Err(io::ErrorKind::NotFound.into()),
    })
}

fn parse(text: &str) -> Result<ConnectionString> {
    parse_with(text, &[])
}

fn ok(text: &str) -> ConnectionString {
    parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// `name|address|port,…`
fn hosts(parsed: &ConnectionString) -> String {
    let host = |host: &Host| {
        let address = host.address.map(|address| address.to_string()).unwrap_or_default();
        format!("{}|{address}|{}", host.name, host.port)
    };
    parsed.hosts.iter().map(host).collect::<Vec<_>>().join(",")
}

#[test]
fn pairs_are_read_as_libpq_does() {
    for (text, database, user, password) in [
        ("dbname=hello user=goodbye", "hello", "goodbye", ""),
        ("dbname=hello user=goodbye  ", "hello", "goodbye", ""),
        ("dbname = hello user=goodbye", "hello", "goodbye", ""),
        ("dbname=hello user =goodbye", "hello", "goodbye", ""),
        ("dbname=hello user= goodbye", "hello", "goodbye", ""),
        ("password='correct horse battery staple'", "", "me", "correct horse battery staple"),
        ("dbname=データベース password=パスワード", "データベース", "me", "パスワード"),
        ("user='' dbname=hello", "hello", "", ""),
        ("dbname=hello user=   ", "hello", "", ""),
        ("user= password=foo", "", "password=foo", ""),
        (r"user=a\ \'\\b", "", r"a '\b", ""),
        (r"user='a \'b'", "", "a 'b", ""),
        ("user=a user=b", "", "b", ""),
        ("database=db", "db", "me", ""),
        ("", "", "me", ""),
        (
            "postgres://username:top%20secret@hostname.remote:1234/database",
            "database",
            "username",
            "top secret",
        ),
        ("postgresql://localhost/a%2Fb?user=u", "a/b", "u", ""),
        (r"postgres://u:a%27%5Cb@h/", "", "u", r"a'\b"),
        ("postgres://", "", "me", ""),
    ] {
        let parsed = ok(text);
        assert_eq!(
            (parsed.database.as_str(), parsed.user.as_str(), parsed.password.expose()),
            (database, user, password),
            "{text}"
        );
    }
}

#[test]
fn hosts_are_matched_with_addresses_and_ports() {
    for (text, expected) in [
        ("", "localhost||5432"),
        ("port=1 host=example.com", "example.com||1"),
        ("host=''", "localhost||5432"),
        ("host=a,,b port=1,,2", "a||1,localhost||5432,b||2"),
        ("host=a,b port=7", "a||7,b||7"),
        ("host=a port=7,8", "a||7"),
        ("hostaddr=127.1.2.3", "127.1.2.3|127.1.2.3|5432"),
        ("host=a hostaddr=::1", "a|::1|5432"),
        ("host=a,,c hostaddr=1.1.1.1,,2.2.2.2", "a|1.1.1.1|5432,localhost||5432,c|2.2.2.2|5432"),
        ("hostaddr=127.2.2.2,127.3.3.3", "127.2.2.2|127.2.2.2|5432,127.3.3.3|127.3.3.3|5432"),
        ("postgres://[::1]:1234", "::1||1234"),
        ("postgres://[::1]/db", "::1||5432"),
        ("postgres://pqgo@a,b/pqgo?port=1,2", "a||1,b||2"),
        ("postgres://a/db?host=b&host=c", "b||5432"),
    ] {
        assert_eq!(hosts(&ok(text)), expected, "{text}");
    }
    let socket = |text: &str| ok(text).hosts[0].socket();
    assert_eq!(socket("host=/run/pg/ port=1").as_deref(), Some("/run/pg/.s.PGSQL.1"));
    assert_eq!(socket("host=@pg").as_deref(), Some("@pg/.s.PGSQL.5432"));
    assert_eq!(socket("host=pg"), None);
    assert_eq!(socket("host=/run/pg hostaddr=::1"), None);
}

#[test]
fn the_environment_is_below_the_string_and_a_service_above_it() {
    let env: &[(&str, &str)] =
        &[("PGHOST", "e1,e2"), ("PGPORT", "9"), ("PGUSER", "eu"), ("HOME", "/home/me"), ("X", "")];
    let parsed = parse_with("dbname=d", env).unwrap();
    assert_eq!((hosts(&parsed).as_str(), parsed.user.as_str()), ("e1||9,e2||9", "eu"));
    let parsed = parse_with("host=h user=u", env).unwrap();
    assert_eq!((hosts(&parsed).as_str(), parsed.user.as_str()), ("h||9", "u"));
    let parsed = parse_with("host=h service=mine", env).unwrap();
    assert_eq!((hosts(&parsed).as_str(), parsed.database.as_str()), ("s.example.org||9", "db"));
    let parsed = parse_with("", &[("PGSERVICE", "mine"), ("PGSERVICEFILE", "/services")]).unwrap();
    assert_eq!(hosts(&parsed), "s.example.org||5432");
    assert_eq!(parse_with("", &[("USER", "login")]).unwrap().user, "login");
    assert_eq!(parse_with("", &[("USER", "")]).unwrap().user, "me");
}

#[test]
fn protection_is_what_the_mode_says() {
    let mode = |text: &str| ok(text).ssl.mode;
    assert_eq!(mode(""), SslMode::Require);
    assert_eq!(mode("sslmode=disable"), SslMode::Disable);
    assert_eq!(mode("sslmode=verify-ca"), SslMode::VerifyCa);
    assert_eq!(mode("postgres://h/db?sslmode=verify-full"), SslMode::VerifyFull);
    assert_eq!(mode("host=/run sslmode=require"), SslMode::Disable);
    assert_eq!(mode("sslrootcert=system"), SslMode::VerifyFull);
    let ssl = ok(
        "sslcert=c sslkey=k sslrootcert=r sslsni=0 sslnegotiation=direct ssl_min_protocol_version=TLSv1.3",
    )
    .ssl;
    assert!(ssl.direct && !ssl.sni && ok("").ssl.sni);
    assert_eq!((ssl.certificate.as_str(), ssl.key.as_str(), ssl.root.as_str()), ("c", "k", "r"));
    assert_eq!(ssl.version_min, "TLSv1.3");
    let shown = format!("{:?}", ok("sslinline=yes sslkey=SECRET"));
    assert!(!shown.contains("SECRET"), "{shown}");
}

#[test]
fn what_else_a_string_may_say_is_kept() {
    let parsed = ok(
        "connect_timeout=5 search_path='a, b' fallback_application_name=f target_session_attrs=read-write \
         load_balance_hosts=random options='-c x=y' client_encoding=utf-8 datestyle='ISO, MDY' tz=UTC",
    );
    assert_eq!(parsed.connect_timeout, Some(Duration::from_secs(5)));
    assert_eq!(parsed.parameters, BTreeMap::from([("search_path".to_owned(), "a, b".to_owned())]));
    assert_eq!((parsed.application_name.as_str(), parsed.options.as_str()), ("f", "-c x=y"));
    assert_eq!((parsed.target, parsed.shuffled), (Target::ReadWrite, true));
    assert_eq!(ok("connect_timeout=-1").connect_timeout, None);
    assert_eq!(ok("application_name='' fallback_application_name=f").application_name, "");
    assert_eq!(ok("postgres://u:pw@h:1/db?opt=val").parameters["opt"], "val");
}

#[test]
fn what_is_wrong_is_said_as_the_driver_does() {
    for (text, reason) in [
        (r"user=x\", "missing character after backslash"),
        (
            "postgre://marko@internet",
            r#"missing "=" after "postgre://marko@internet" in connection info string"#,
        ),
        ("dbname user=goodbye", r#"missing "=" after "dbname" in connection info string"#),
        ("user=foo blah   ", r#"missing "=" after "blah" in connection info string"#),
        ("dbname=hello user='unterminated", "unterminated quoted string literal in connection string"),
        (
            "sslinline=lol",
            r#"pq: wrong value for "sslinline": strconv.ParseBool: parsing "lol": invalid syntax"#,
        ),
        (
            "connect_timeout=5s",
            r#"pq: wrong value for "connect_timeout": strconv.ParseInt: parsing "5s": invalid syntax"#,
        ),
        ("port=''", r#"pq: wrong value for "port": strconv.ParseUint: parsing "": invalid syntax"#),
        ("port=+1", r#"pq: wrong value for "port": strconv.ParseUint: parsing "+1": invalid syntax"#),
        (
            "port=70000",
            r#"pq: wrong value for "port": strconv.ParseUint: parsing "70000": value out of range"#,
        ),
        ("hostaddr=1.1.1.1,lol", r#"pq: wrong value for "hostaddr": ParseAddr("lol"): unable to parse IP"#),
        (
            "sslmode=sslmeharder",
            r#"pq: wrong value for "sslmode": "sslmeharder" is not supported; supported values are disable, allow, prefer, require, verify-full, or verify-ca"#,
        ),
        (
            "sslnegotiation=x",
            r#"pq: wrong value for "sslnegotiation": "x" is not supported; supported values are postgres, or direct"#,
        ),
        ("host=a,,b port=1,2", "pq: could not match 2 port numbers to 3 hosts"),
        ("host=a,b,c hostaddr=1.1.1.1,2.2.2.2", "pq: could not match 3 host names to 2 hostaddr values"),
        ("host=a hostaddr=1.1.1.1,2.2.2.2", "pq: could not match 1 host names to 2 hostaddr values"),
        (
            "min_protocol_version=3.2",
            r#"pq: min_protocol_version "3.2" cannot be greater than max_protocol_version "3.0""#,
        ),
        (
            "client_encoding=SQL_ASCII",
            r#"pq: unsupported client_encoding "SQL_ASCII": must be absent or "UTF8""#,
        ),
        ("datestyle='ISO, YDM'", r#"pq: unsupported datestyle "ISO, YDM": must be absent or "ISO, MDY""#),
        (
            "sslrootcert=system sslmode=require",
            r#"pq: weak sslmode "require" may not be used with sslrootcert=system (use "verify-full")"#,
        ),
        (
            "sslnegotiation=direct sslmode=prefer",
            r#"pq: weak sslmode "prefer" may not be used with sslnegotiation=direct (use "require", "verify-ca", or "verify-full")"#,
        ),
        ("service=x", r#"pq: service file "" not found"#),
        ("postgres://u:secret@h:port/db", r#"parse "postgres://xxxxx": invalid port"#),
        ("postgres://%2Ftmp/db", r#"parse "postgres://%2Ftmp/db": invalid URL escape"#),
    ] {
        assert_eq!(parse(text).unwrap_err().to_string(), reason, "{text}");
    }
    for (name, value, reason) in [
        ("PGPORT", "5s", r#"pq: wrong value for $PGPORT: strconv.ParseUint: parsing "5s": invalid syntax"#),
        ("PGREALM", "x", "pq: environment variable $PGREALM is not supported"),
        (
            "PGKRBSRVNAME",
            "x",
            "pq: environment variable $PGKRBSRVNAME is not supported as Kerberos is not enabled",
        ),
        ("PGSERVICE", "x", r#"pq: definition of service "x" not found"#),
    ] {
        let error = parse_with("", &[(name, value), ("HOME", "/home/me")]).unwrap_err();
        assert_eq!(error.to_string(), reason);
    }
}

#[test]
fn password_files_are_searched_from_the_top() {
    let file = "# comment\nh:5432:db:u:first\n*:*:*:u:a\\:b\\\\c\nlocalhost:*:*:*:local\nbroken:line\n";
    let of = |text: &str, user: &str| {
        let host = ok(text).hosts.remove(0);
        password_of(file, &host, "db", user).map(|password| password.expose().to_owned())
    };
    assert_eq!(of("host=h", "u").as_deref(), Some("first"));
    assert_eq!(of("host=h port=1", "u").as_deref(), Some("a:b\\c"));
    assert_eq!(of("host=/run/pg", "w").as_deref(), Some("local"));
    assert_eq!(of("host=h", "w"), None);
}

proptest! {
    /// Any value survives quoting.
    #[test]
    fn quoted_values_are_read_back(password in ".{0,20}", parameter in ".{0,20}") {
        let quoted = |text: &str| text.replace('\\', "\\\\").replace('\'', "\\'");
        let text = format!("password='{}' x = '{}'", quoted(&password), quoted(&parameter));
        let parsed = parse(&text).unwrap();
        prop_assert_eq!(parsed.password.expose(), &password);
        prop_assert_eq!(&parsed.parameters["x"], &parameter);
    }

    #[test]
    fn escaped_urls_are_read_back(user in ".{1,10}", password in ".{1,12}", database in ".{1,10}") {
        let escaped = |text: &str| text.bytes().map(|byte| format!("%{byte:02x}")).collect::<String>();
        let text = format!("postgres://{}:{}@h:1/{}", escaped(&user), escaped(&password), escaped(&database));
        let parsed = parse(&text).unwrap();
        prop_assert_eq!(parsed.password.expose(), &password);
        prop_assert_eq!((parsed.user, parsed.database), (user, database));
    }

    #[test]
    fn errors_of_urls_do_not_tell_the_password(password in "[A-Z]{6}[/?#:@%]?[A-Z]{6}", broken in "[a-z%:\\[ =]{0,8}") {
        let text = format!("postgres://u:{password}@h:{broken}/db?sslmode={broken}");
        if let Err(error) = parse(&text) {
            let error = error.to_string();
            for part in password.split(['/', '?', '#', ':', '@', '%']) {
                prop_assert!(!error.contains(part), "{text}: {error}");
            }
        }
    }
}
