//! The datastore suite on SQLite: on a file, and in memory.

use std::sync::Arc;

use spire_ports::datastore::DataStore;
use spire_store::{SqlConfig, SqlStore};

async fn on_file() -> (Arc<dyn DataStore>, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let config = SqlConfig::sqlite(dir.path().join("datastore.sqlite3").to_str().unwrap());
    (Arc::new(SqlStore::open(&config).unwrap()), dir)
}

async fn in_memory() -> (Arc<dyn DataStore>, ()) {
    (Arc::new(SqlStore::open(&SqlConfig::in_memory()).unwrap()), ())
}

mod file {
    spire_ports::datastore_conformance!(super::super::on_file);
}

mod memory {
    spire_ports::datastore_conformance!(super::super::in_memory);
}
