//! Servers on MariaDB: taken over from another implementation and given back, and beside its servers.

use spire_testkit::database::{Mariadb, Options};

use crate::databases::share;
use crate::harness::turns::{self, Turns};
use crate::harness::{Case, Need, Outcome, Site, programs};

pub(crate) fn cases() -> Vec<Case> {
    const MIXED: &[Need] = &[Need::Mariadb, Need::Ours, Need::Reference];
    vec![
        Case {
            name: "mariadb::servers_share_a_database",
            needs: &[Need::Mariadb, Need::Ours],
            run: two_servers,
        },
        Case { name: "mariadb::beside_the_reference", needs: MIXED, run: beside_theirs },
        Case { name: "mariadb::is_taken_over_and_given_back", needs: MIXED, run: take_over },
    ]
}

fn two_servers() -> Outcome {
    let database = Mariadb::start(&Options::default())?;
    let string = database.database("spire")?;
    share(&Site::on_database("mysql", &string)?, &Site::on_database("mysql", &string)?)
}

fn beside_theirs() -> Outcome {
    let database = Mariadb::start(&Options::default())?;
    let string = database.database("spire")?;
    let (one, mut two) = (Site::on_database("mysql", &string)?, Site::on_database("mysql", &string)?);
    two.server_programs = programs::theirs()?;
    share(&one, &two)
}

fn take_over() -> Outcome {
    let database = Mariadb::start(&Options::default())?;
    Turns::begin(&mut Site::on_database("mysql", &database.database("spire")?)?)?.take()?;
    turns::made_by_ours(&mut Site::on_database("mysql", &database.database("new")?)?, || Ok(()))
}
