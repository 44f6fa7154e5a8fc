//! What the driver makes of connection strings: its documentation's examples, and properties.

use proptest::prelude::*;

use super::*;

fn tcp(host: &str, port: u16) -> Address {
    Address::Tcp { host: host.to_owned(), port, family: Family::Any }
}

#[test]
fn users_places_and_databases_are_told_apart() {
    let unix = |path: &str| Address::Unix(path.to_owned());
    for (text, user, password, address, database) in [
        (
            "username:password@protocol(address)/dbname?param=value",
            "username",
            "password",
            Address::Other("protocol".into(), "address".into()),
            "dbname",
        ),
        ("user@unix(/path/to/socket)/dbname?charset=utf8", "user", "", unix("/path/to/socket"), "dbname"),
        (
            "user:password@tcp(localhost:5555)/dbname?tls=true",
            "user",
            "password",
            tcp("localhost", 5555),
            "dbname",
        ),
        (
            "user:password@/dbname?allowNativePasswords=false",
            "user",
            "password",
            tcp("127.0.0.1", 3306),
            "dbname",
        ),
        (
            "user:p@ss(word)@tcp([de:ad:be:ef::ca:fe]:80)/dbname?loc=Local",
            "user",
            "p@ss(word)",
            tcp("de:ad:be:ef::ca:fe", 80),
            "dbname",
        ),
        ("/dbname", "", "", tcp("127.0.0.1", 3306), "dbname"),
        ("/dbname%2Fwithslash", "", "", tcp("127.0.0.1", 3306), "dbname/withslash"),
        ("@/", "", "", tcp("127.0.0.1", 3306), ""),
        ("/", "", "", tcp("127.0.0.1", 3306), ""),
        ("", "", "", tcp("127.0.0.1", 3306), ""),
        ("user:p@/ssword@/", "user", "p@/ssword", tcp("127.0.0.1", 3306), ""),
        ("unix/?arg=%2Fsome%2Fpath.ext", "", "", unix("/tmp/mysql.sock"), ""),
        ("tcp(127.0.0.1)/dbname", "", "", tcp("127.0.0.1", 3306), "dbname"),
        ("tcp(de:ad:be:ef::ca:fe)/dbname", "", "", tcp("de:ad:be:ef::ca:fe", 3306), "dbname"),
        ("tcp([::1])/dbname", "", "", tcp("::1", 3306), "dbname"),
        ("u:a:b@tcp(h:1)/d", "u", "a:b", tcp("h", 1), "d"),
    ] {
        let dsn = Dsn::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(
            (dsn.user.as_str(), dsn.password.expose(), &dsn.address, dsn.database.as_str()),
            (user, password, &address, database),
            "{text}"
        );
    }
}

#[test]
fn parameters_are_read() {
    let dsn = Dsn::parse(
        "/db?parseTime=true&charset=utf8mb4,utf8&collation=utf8mb4_unicode_ci&timeout=30s&readTimeout=1m&\
         writeTimeout=0s&maxAllowedPacket=16777216&loc=UTC&rejectReadOnly=1&compress=TRUE&\
         connectionAttributes=program_name%3Aspire&sql_mode=%27ANSI_QUOTES%27&allowNativePasswords=false&x",
    )
    .unwrap();
    assert!(dsn.parse_time && dsn.reject_read_only && dsn.compress && !dsn.native_passwords);
    assert_eq!(dsn.charsets, ["utf8mb4", "utf8"]);
    assert_eq!(dsn.collation, "utf8mb4_unicode_ci");
    assert_eq!(
        (dsn.connect_timeout, dsn.read_timeout, dsn.write_timeout),
        (Some(Duration::from_secs(30)), Some(Duration::from_secs(60)), None)
    );
    assert_eq!((dsn.max_allowed_packet, dsn.location.as_str()), (16_777_216, "UTC"));
    assert_eq!(dsn.connection_attributes, "program_name:spire");
    assert_eq!(dsn.variables, BTreeMap::from([("sql_mode".to_owned(), "'ANSI_QUOTES'".to_owned())]));
}

#[test]
fn tls_is_what_its_names_say() {
    for (value, tls, fallback) in [
        ("true", Tls::Verify, false),
        ("1", Tls::Verify, false),
        ("false", Tls::Off, false),
        ("", Tls::Off, false),
        ("skip-verify", Tls::SkipVerify, false),
        ("Skip-Verify", Tls::SkipVerify, false),
        ("preferred", Tls::SkipVerify, true),
        ("true&allowFallbackToPlaintext=true", Tls::Verify, true),
    ] {
        let dsn = Dsn::parse(&format!("/db?tls={value}")).unwrap();
        assert_eq!((dsn.tls, dsn.fallback_to_plaintext), (tls, fallback), "{value}");
    }
}

#[test]
fn what_is_wrong_is_said_as_the_driver_does() {
    for (text, reason) in [
        ("@net(addr/", "invalid DSN: network address not terminated (missing closing brace)"),
        ("@tcp(/", "invalid DSN: network address not terminated (missing closing brace)"),
        ("tcp(/", "invalid DSN: network address not terminated (missing closing brace)"),
        ("(/", "invalid DSN: network address not terminated (missing closing brace)"),
        ("net(addr)//", "invalid DSN: did you forget to escape a param value?"),
        ("User:pass@tcp(1.2.3.4:3306)", "invalid DSN: missing the slash separating the database name"),
        ("net()/", "default addr for network 'net' unknown"),
        ("user:pass@tcp(1.2.3.4:3306)/db?parseTime=maybe", "invalid bool value: maybe"),
        ("/db?tls=custom", "invalid value / unknown config name: custom"),
        ("/db?tls=%zz", "invalid value for TLS config name: invalid URL escape \"%zz\""),
        ("/db?serverPubKey=k", "invalid value / unknown server pub key name: k"),
        ("/db?timeout=5", "time: missing unit in duration \"5\""),
        ("/db?timeTruncate=x", "invalid timeTruncate value: x, error: time: invalid duration \"x\""),
        ("/db?maxAllowedPacket=1k", "strconv.Atoi: parsing \"1k\": invalid syntax"),
        (
            "/db?maxAllowedPacket=99999999999999999999",
            "strconv.Atoi: parsing \"99999999999999999999\": value out of range",
        ),
        ("/d%zz", "invalid dbname \"d%zz\": invalid URL escape \"%zz\""),
        (
            "/db?interpolateParams=true&collation=gbk_bin",
            "invalid DSN: interpolateParams can not be used with unsafe collations",
        ),
        (
            "/db?strict=true",
            "strict mode has been removed. See https://github.com/go-sql-driver/mysql/wiki/strict-mode",
        ),
        ("tcp(h:abc)/db", "address h:abc: unknown port"),
    ] {
        assert_eq!(Dsn::parse(text).unwrap_err().to_string(), reason, "{text}");
    }
}

proptest! {
    /// Passwords may have any character; only the last `@` before the last slash ends them.
    #[test]
    fn what_was_put_together_is_taken_apart(
        user in "[^:/@]{0,8}",
        password in "[^\u{0}]{0,12}",
        host in "[a-z0-9.-]{1,10}",
        port in any::<u16>(),
        database in "[a-z0-9_]{0,8}",
    ) {
        let text = format!("{user}:{password}@tcp({host}:{port})/{database}?parseTime=true");
        let dsn = Dsn::parse(&text).unwrap();
        prop_assert_eq!(&dsn.user, &user);
        prop_assert_eq!(dsn.password.expose(), &password);
        prop_assert_eq!(dsn.address, tcp(&host, port));
        prop_assert_eq!(&dsn.database, &database);
        prop_assert!(dsn.parse_time);
    }

    #[test]
    fn errors_do_not_tell_the_password(password in "[A-Z0-9]{12}", broken in "[a-z(&=%?]{0,10}") {
        let text = format!("user:{password}@tcp(host:1)/db?{broken}&parseTime={broken}");
        if let Err(error) = Dsn::parse(&text) {
            prop_assert!(!error.to_string().contains(&password), "{error}");
        }
    }
}
