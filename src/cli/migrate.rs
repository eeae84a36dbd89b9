//! `longshore migrate`.

use std::collections::BTreeMap;

use super::Exit;
use crate::{config::Config, ledger::Ledger, pause::Pauses};

pub(super) async fn run(config: Config) -> Exit {
    let schema = config.ledger.schema.clone();
    let migrated =
        match Ledger::open(config.ledger, &BTreeMap::new(), "longshore migrate", Pauses::default())
        {
            Ok(ledger) => ledger.migrate().await,
            Err(error) => Err(error),
        };
    match migrated {
        Ok(applied) if applied.is_empty() => outln!("schema {schema}: up to date"),
        Ok(applied) => outln!("schema {schema}: applied {}", applied.join(", ")),
        Err(error) => {
            eprintln!("longshore: migrating failed: {error}");
            return Exit::Failed;
        }
    }
    Exit::Clean
}
