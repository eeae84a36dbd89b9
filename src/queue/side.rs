//! The second connection: for publishing and for looking, opened when it is first needed.
//!
//! RabbitMQ stops reading from connections that publish while it is short of memory or disk, and
//! lapin then stops writing on them, acknowledgements included; so nothing is published on the
//! connection that consumes. <https://www.rabbitmq.com/docs/connection-blocked>

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use lapin::{Channel, options::ConfirmSelectOptions};
use tokio::sync::Mutex;

use super::{
    Settings,
    link::{Dialer, Link, within},
    trouble::Trouble,
};

/// After a failure to connect, this long everybody gets the same answer without a new attempt.
const PATIENCE: Duration = Duration::from_secs(1);

pub(super) struct Side {
    pub(super) settings: Arc<Settings>,
    state: Mutex<State>,
}

struct State {
    dialer: Dialer,
    link: Option<Link>,
    failed: Option<(Instant, Trouble)>,
}

impl Side {
    pub(super) fn new(settings: Arc<Settings>, name: String) -> Result<Self, Trouble> {
        let dialer = Dialer::new(&settings, name)?;
        Ok(Self { settings, state: Mutex::new(State { dialer, link: None, failed: None }) })
    }

    /// A fresh channel, with publisher confirms where wanted; connects if need be.
    pub(super) async fn channel(&self, confirms: bool) -> Result<Channel, Trouble> {
        let mut state = self.state.lock().await;
        if let Some((at, trouble)) = &state.failed
            && at.elapsed() < PATIENCE
        {
            return Err(trouble.clone());
        }
        let opened = self.open(&mut state, confirms).await;
        state.failed = opened.as_ref().err().map(|trouble| (Instant::now(), trouble.clone()));
        opened
    }

    async fn open(&self, state: &mut State, confirms: bool) -> Result<Channel, Trouble> {
        if let Some(dead) = state.link.take_if(|link| !link.connection.status().connected()) {
            drop(dead);
        }
        if state.link.is_none() {
            state.link = Some(state.dialer.dial(&self.settings).await?);
        }
        let Some(link) = &state.link else { return Err(Trouble::timeout("connecting")) };
        let opened = link.channel(&self.settings).await;
        let Ok(channel) = opened else {
            // Also a connection that claims to be well is of no use if it opens no channel.
            state.link = None;
            return opened;
        };
        if confirms {
            let select = channel.confirm_select(ConfirmSelectOptions::default());
            within(self.settings.operation_timeout, "asking for publisher confirms", select)
                .await?;
        }
        Ok(channel)
    }

    /// Closes the connection, if there is one; true when the broker agreed in time.
    pub(super) async fn close(&self, at_most: Duration) -> bool {
        let Ok(mut state) = tokio::time::timeout(at_most, self.state.lock()).await else {
            return false;
        };
        match state.link.take() {
            Some(link) => link.close(at_most).await,
            None => true,
        }
    }
}
