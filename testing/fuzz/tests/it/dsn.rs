//! Connection strings of databases, which operators write.

use spire_fuzz::input_or_changed;
use spire_store::dsn::libpq::{ConnectionString, Surroundings, password_of};
use spire_store::dsn::mysql::{Address, Dsn};

const PAIRS: &[u8] =
    b"host=a,,b port=1,2,3 user='u \\'x' password = s\\ p dbname=d sslmode=verify-ca search_path='x'";
const URL: &[u8] =
    b"postgres://u%40:p%20w@[::1]:5432/a%2Fb?sslmode=require&hostaddr=127.0.0.1&connect_timeout=5";
const SERVICE: &[u8] = b"service=mine";
const MYSQL: &[u8] =
    b"u:p@ss@tcp([::1]:3306)/d%62?parseTime=true&tls=skip-verify&timeout=1s&charset=utf8mb4,utf8&x=%27y%27";
const SOCKET: &[u8] = b"u@unix(/run/m.sock)/d?maxAllowedPacket=0&tls=preferred";

#[test]
fn libpq() {
    let around = Surroundings {
        variables: vec![("HOME".to_owned(), "/home/u".to_owned()), ("PGPORT".to_owned(), "6000".to_owned())],
        account: "u".to_owned(),
    };
    bolero::check!().for_each(|input: &[u8]| {
        let text = input_or_changed(&[PAIRS, URL, SERVICE], input);
        let Ok(text) = std::str::from_utf8(&text) else { return };
        // The service file is what the input says, too.
        let file = |_: &str| Ok(format!("[mine]\n{text}\n[next]"));
        let Ok(parsed) = ConnectionString::parse(text, &around, file) else { return };
        assert!(!parsed.hosts.is_empty() && parsed.hosts.len() <= text.len() + 1);
        for host in &parsed.hosts {
            assert!(!host.name.is_empty());
            let _ = password_of(text, host, &parsed.database, &parsed.user);
        }
    });
}

#[test]
fn mysql() {
    bolero::check!().for_each(|input: &[u8]| {
        let text = input_or_changed(&[MYSQL, SOCKET], input);
        let Ok(text) = std::str::from_utf8(&text) else { return };
        let Ok(dsn) = Dsn::parse(text) else { return };
        assert!(text.is_empty() || text.contains('/'));
        match dsn.address {
            Address::Tcp { host, .. } => assert!(!host.is_empty()),
            Address::Unix(path) => assert!(!path.is_empty()),
            Address::Other(network, address) => assert!(!network.is_empty() && !address.is_empty()),
        }
    });
}
