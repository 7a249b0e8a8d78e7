//! From a configuration to both sides of a client.

use std::sync::Arc;

use tokio::sync::mpsc;

use crate::events::Slot;
use crate::outlet::Outlet;
use crate::state::{Shared, State};
use crate::window::Window;
use crate::{Client, Config, Dial, Error, Events, driver};

/// Room for acknowledgements beyond one for each event in the queue: what an application takes while there is no
/// connection never has to wait.
const TAKEN_SPARE: usize = 16;

impl Client {
    /// Connects over TCP and logs in; with the feature `ws` also through a WebSocket, at addresses that begin with
    /// `ws://`. Later reconnects happen by themselves; this first attempt is made once at each of
    /// [`Config::addrs`], until one takes it, so that wrong addresses or a wrong token are reported and not repeated.
    ///
    /// Must be called within a tokio runtime, which then runs the task that owns the connection.
    ///
    /// # Errors
    /// [`Error::Config`], [`Error::Token`], [`Error::Connect`], [`Error::Timeout`], [`Error::LoginRefused`],
    /// [`Error::LoginCut`], [`Error::Protocol`], of several addresses that of the last one tried; and of
    /// [`Config::outbox`], [`Error::Outbox`] and [`Error::TooManyUnacked`].
    #[cfg(feature = "tcp")]
    pub async fn connect(config: Config) -> Result<(Self, Events), Error> {
        #[cfg(feature = "ws")]
        let dial = crate::Ws::over(crate::Tcp);
        #[cfg(not(feature = "ws"))]
        let dial = crate::Tcp;
        Self::connect_with(config, dial).await
    }

    /// Connects over streams made by `dial`, and logs in. Everything else is as with TCP.
    ///
    /// # Errors
    /// [`Error::Config`], [`Error::Token`], [`Error::Connect`], [`Error::Timeout`], [`Error::LoginRefused`],
    /// [`Error::LoginCut`], [`Error::Protocol`], [`Error::Outbox`], [`Error::TooManyUnacked`].
    pub async fn connect_with<D: Dial>(config: Config, mut dial: D) -> Result<(Self, Events), Error> {
        config.validate().map_err(Error::Config)?;
        let (mut link, route) = driver::first_login(&mut dial, &config).await?;

        let (unacked_max, fate_timeout) = (config.unacked_max, config.fate_timeout);
        let mut resume = config.resume.clone();
        if !link.resume.is_empty() {
            resume.token = std::mem::take(&mut link.resume);
        }
        let shared = Arc::new(Shared::new(unacked_max, config.outbox.clone(), link.info.clone(), resume));
        shared.unsettled.load(fate_timeout, unacked_max)?;
        let (commands, commands_queue) = mpsc::channel(config.send_queue_len);
        let (taken, taken_queue) = mpsc::channel(config.event_queue_len + TAKEN_SPARE);
        let (events, events_queue) = mpsc::channel(config.event_queue_len);
        let client = Self { commands, taken, shared: shared.clone(), unacked_max, fate_timeout };
        let events_handle = Events {
            queue: events_queue,
            client: client.clone(),
            shared: shared.clone(),
            acknowledge: config.acknowledge,
            at_work: None,
            group_at_work: None,
            slot: Slot::default(),
            ended: false,
        };
        let outlet = Outlet::new(events, config.event_wait);
        let window = Window::new(config.dedup_window_len + outlet.len_max());
        let state = State::new(commands_queue, taken_queue, outlet, window, shared);
        tokio::spawn(driver::run(dial, config, state, route, link));
        Ok((client, events_handle))
    }
}
