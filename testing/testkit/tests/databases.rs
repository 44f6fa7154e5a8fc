//! The servers of `testkit::database` do what tests of stores rely on. Where a server is missing its tests are ignored,
//! and fail with `CI=true`.

use std::process::ExitCode;
use std::time::Duration;

use libtest_mimic::{Arguments, Failed, Trial};
use spire_testkit::database::{Mariadb, Options, Postgres};
use spire_testkit::wait;

type Outcome = Result<(), Failed>;

const SOON: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    let args = Arguments::from_args();
    let due = std::env::var("CI").is_ok_and(|value| value == "true");
    let root = rustix::process::getuid().is_root();
    let trial = |name: &'static str, run: fn() -> Outcome, missing: Option<String>| match missing {
        None => Trial::test(name, run),
        Some(why) => Trial::test(name, move || Err(why.into())).with_ignored_flag(!due),
    };
    let disk = |missing: Option<String>| missing.or_else(|| (!root).then(|| "not root".to_owned()));
    let trials = vec![
        trial("postgres_survives", postgres_survives, Postgres::missing()),
        trial("postgres_is_copied", postgres_is_copied, Postgres::missing()),
        trial("postgres_fills_its_disk", postgres_fills_its_disk, disk(Postgres::missing())),
        trial("mariadb_survives", mariadb_survives, Mariadb::missing()),
        trial("mariadb_fills_its_disk", mariadb_fills_its_disk, disk(Mariadb::missing())),
    ];
    libtest_mimic::run(&args, trials).exit_code()
}

fn postgres_survives() -> Outcome {
    let options = Options { client_certificate: true, ..Options::default() };
    let mut server = Postgres::start(&options)?;
    let string = server.database("first")?;
    assert!(string.contains("sslmode=verify-full"), "{string}");
    server.sql("first", "CREATE TABLE t (n int); INSERT INTO t VALUES (7)")?;
    server.kill()?;
    assert!(server.sql("first", "SELECT n FROM t").is_err());
    server.restart()?;
    assert_eq!(server.sql("first", "SELECT n FROM t")?, "7\n");
    server.stop()?;
    server.restart()?;
    server.pause();
    server.resume();
    assert_eq!(server.sql("first", "SHOW ssl")?, "on\n");
    Ok(())
}

fn postgres_is_copied() -> Outcome {
    let server = Postgres::start(&Options::default())?;
    server.database("d")?;
    let mut replica = server.replica()?;
    server.sql("d", "CREATE TABLE t (n int); INSERT INTO t VALUES (1)")?;
    wait::until("row on the replica", SOON, || {
        replica.sql("d", "SELECT n FROM t").ok().filter(|rows| rows == "1\n")
    })?;
    assert!(replica.sql("d", "INSERT INTO t VALUES (2)").is_err());
    replica.lag(true)?;
    server.sql("d", "INSERT INTO t VALUES (2)")?;
    assert_eq!(replica.sql("d", "SELECT count(*) FROM t")?, "1\n");
    replica.lag(false)?;
    wait::until("row on the replica", SOON, || {
        replica.sql("d", "SELECT count(*) FROM t").ok().filter(|rows| rows == "2\n")
    })?;
    replica.kill()?;
    replica.restart()?;
    assert_eq!(replica.sql("d", "SELECT count(*) FROM t")?, "2\n");
    Ok(())
}

/// Fills the file system below a server's data until nothing fits.
fn fill(folder: &std::path::Path) -> std::io::Result<std::path::PathBuf> {
    let path = folder.join("filler");
    let mut file = std::fs::File::create(&path)?;
    // It ends with the error that it is there for.
    let _ = std::io::copy(&mut std::io::repeat(0), &mut file);
    Ok(path)
}

fn postgres_fills_its_disk() -> Outcome {
    let server = Postgres::start(&Options { disk: Some(200 << 20), ..Options::default() })?;
    server.database("d")?;
    server.sql("d", "CREATE TABLE t (b text)")?;
    let filler = fill(&server.inside())?;
    let insert = "INSERT INTO t SELECT repeat(md5(random()::text), 50) FROM generate_series(1, 20000)";
    let error = server.sql("d", insert).unwrap_err().to_string();
    assert!(error.contains("No space left") || error.contains("server closed"), "{error}");
    std::fs::remove_file(filler)?;
    wait::until("write after there is room", SOON, || server.sql("d", "INSERT INTO t VALUES ('x')").ok())?;
    Ok(())
}

fn mariadb_survives() -> Outcome {
    let options = Options { client_certificate: true, ..Options::default() };
    let mut server = Mariadb::start(&options)?;
    let string = server.database("first")?;
    assert!(string.ends_with("/first?parseTime=true"), "{string}");
    server.sql("first", "CREATE TABLE t (n int); INSERT INTO t VALUES (7)")?;
    server.kill()?;
    assert!(server.sql("first", "SELECT n FROM t").is_err());
    server.restart()?;
    assert_eq!(server.sql("first", "SELECT n FROM t")?, "7\n");
    server.stop()?;
    server.restart()?;
    server.pause();
    server.resume();
    assert_eq!(server.sql("first", "SELECT @@have_ssl")?, "YES\n");
    Ok(())
}

fn mariadb_fills_its_disk() -> Outcome {
    let mut server = Mariadb::start(&Options { disk: Some(300 << 20), ..Options::default() })?;
    server.database("d")?;
    server.sql(
        "d",
        "CREATE TABLE t (n int AUTO_INCREMENT PRIMARY KEY, b longblob); INSERT INTO t (b) VALUES ('a')",
    )?;
    let filler = fill(&server.inside())?;
    let insert = "INSERT INTO t (b) SELECT repeat('x', 60000) FROM seq_1_to_2000";
    assert!(server.sql("d", insert).is_err());
    std::fs::remove_file(filler)?;
    if !server.is_running() {
        server.restart()?;
    }
    wait::until("write after there is room", SOON, || {
        server.sql("d", "INSERT INTO t (b) VALUES ('b')").ok()
    })?;
    assert_eq!(server.sql("d", "SELECT count(*) FROM t")?, "2\n");
    Ok(())
}
