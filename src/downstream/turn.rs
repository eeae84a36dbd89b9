//! Whose turn it is: who was parked and is let go is told apart from who has just come.
//!
//! A kind written in Rust calls a dependency through [`Dependency::guard`](super::Dependency::guard),
//! which learns nothing of the request; so this goes along with the task that works it.

use std::{
    cell::Cell,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

tokio::task_local! {
    static COMING: Cell<Option<Coming>>;
}

/// A request that was let go and has not called its dependency yet. Counted as long as it lives.
#[derive(Debug)]
pub(crate) struct Coming {
    dependency: String,
    count: Arc<AtomicUsize>,
}

impl Coming {
    pub(super) fn new(dependency: &str, count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Relaxed);
        Self { dependency: dependency.to_owned(), count: Arc::clone(count) }
    }
}

impl Drop for Coming {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Relaxed);
    }
}

/// Runs the work of a request that was let go.
pub(crate) async fn let_go<T>(coming: Option<Coming>, work: impl Future<Output = T>) -> T {
    COMING.scope(Cell::new(coming), work).await
}

/// Where the task that asks was let go for this dependency, and has not called it before.
pub(super) fn arrives(dependency: &str) -> Option<Coming> {
    let arrived = COMING.try_with(|cell| {
        let coming = cell.take();
        let (here, elsewhere) = match coming {
            Some(coming) if coming.dependency == dependency => (Some(coming), None),
            other => (None, other),
        };
        cell.set(elsewhere);
        here
    });
    arrived.ok().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_is_let_go_arrives_once_and_where_it_was_parked() {
        let count = Arc::default();
        let coming = Coming::new("bank", &count);
        assert!(arrives("bank").is_none(), "nobody was let go here");
        let_go(Some(coming), async {
            assert!(arrives("mailer").is_none());
            assert_eq!(count.load(Relaxed), 1);
            drop(arrives("bank"));
            assert_eq!((arrives("bank").is_some(), count.load(Relaxed)), (false, 0));
        })
        .await;
        let_go(Some(Coming::new("bank", &count)), async {}).await;
        assert_eq!(count.load(Relaxed), 0, "it never called");
    }
}
