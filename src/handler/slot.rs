//! Slots: who works a request holds one, and puts it back while it waits for something else.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The right to work one request.
pub(crate) struct Slot {
    permit: Option<OwnedSemaphorePermit>,
    /// Due work holds one of its share as well.
    due: Option<OwnedSemaphorePermit>,
}

/// Where a slot comes from.
pub(super) struct Slots {
    slots: Arc<Semaphore>,
    due: Option<Arc<Semaphore>>,
}

impl Slot {
    pub(crate) fn new(permit: OwnedSemaphorePermit, due: Option<OwnedSemaphorePermit>) -> Self {
        Self { permit: Some(permit), due }
    }

    /// Gives it up, for a while: others need it more.
    pub(super) fn put_back(&mut self) -> Option<Slots> {
        let slots = Arc::clone(self.permit.take()?.semaphore());
        let due = self.due.take().map(|permit| Arc::clone(permit.semaphore()));
        Some(Slots { slots, due })
    }

    /// Waits for one again.
    pub(super) async fn take_again(&mut self, from: Slots) {
        if let Some(due) = from.due {
            self.due = due.acquire_owned().await.ok();
        }
        self.permit = from.slots.acquire_owned().await.ok();
    }
}
