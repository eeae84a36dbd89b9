//! How many connections the usual worker has: as many as serve it best on this machine, so that
//! nobody is compared with a way that was started badly.

use super::{field::Field, run, way::Way};

/// What is tried.
pub(super) const POOLS: [usize; 4] = [25, 10, 50, 100];

/// Tries each once, keeps the best, and tells all.
pub(super) async fn usual(field: &mut Field, requests: usize) -> anyhow::Result<Vec<(usize, f64)>> {
    let mut tried = Vec::new();
    for pool in POOLS {
        field.pool = pool;
        let run = Box::pin(run::measure(field, Way::Usual, requests)).await?;
        println!("tried           usual         {run}  with {pool} connections");
        tried.push((pool, run.rate));
    }
    field.pool = best(&tried);
    Ok(tried)
}

/// The pool with the highest speed.
pub(super) fn best(tried: &[(usize, f64)]) -> usize {
    let fastest = tried.iter().max_by(|one, other| one.1.total_cmp(&other.1));
    fastest.map_or(POOLS[0], |(pool, _)| *pool)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fastest_is_kept() {
        assert_eq!(best(&[(10, 1.0), (25, 3.0), (50, 2.0)]), 25);
        assert_eq!(best(&[]), POOLS[0]);
    }
}
