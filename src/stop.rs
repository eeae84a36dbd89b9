//! Two ways to stop, as one value that is passed around and never a global.

use tokio_util::sync::CancellationToken;

/// The reasons to stop. *Soft*: begin nothing new, finish what is begun. *Hard*: leave what is
/// begun and give it back. A hard stop implies a soft one.
#[derive(Debug, Clone, Default)]
pub struct Stop {
    soft: CancellationToken,
    hard: CancellationToken,
}

impl Stop {
    /// A stop that nobody has asked for yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks to finish what is begun and then stop.
    pub fn ask(&self) {
        self.soft.cancel();
    }

    /// Asks to stop now.
    pub fn force(&self) {
        self.soft.cancel();
        self.hard.cancel();
    }

    /// Whether anybody asked.
    pub fn is_asked(&self) -> bool {
        self.soft.is_cancelled()
    }

    /// Whether stopping now was asked for.
    pub fn is_forced(&self) -> bool {
        self.hard.is_cancelled()
    }

    /// Completes when a stop of either sort was asked for.
    pub async fn asked(&self) {
        self.soft.cancelled().await;
    }

    /// Completes when stopping now was asked for.
    pub async fn forced(&self) {
        self.hard.cancelled().await;
    }
}
