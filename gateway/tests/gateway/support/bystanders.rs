//! Users who have nothing to do with what a test does to the gateway, and must not notice it.

use super::client::Client;
use super::gateway::Gateway;
use super::wire::Login;
use std::time::{Duration, Instant};

/// The first bystander's user id; tests use smaller ones.
const USER_FIRST: u64 = 900_001;
/// Enough for several shards to have one.
const BYSTANDERS: u64 = 6;

/// A ring of users, each writing to the next.
pub(crate) struct Bystanders {
    clients: Vec<Client>,
}

impl Bystanders {
    /// Logs them in and lets them talk once.
    pub(crate) fn new(gateway: &Gateway) -> Self {
        Bystanders::with_token(gateway, |_| String::new())
    }

    /// The same where a login needs a token.
    pub(crate) fn with_token(gateway: &Gateway, token: impl Fn(u64) -> String) -> Self {
        let login = |user| Login::of(user).token(&token(user)).heartbeat_secs(600);
        let users = USER_FIRST..USER_FIRST + BYSTANDERS;
        let clients = users.map(|user| Client::login_with(gateway, &login(user)).0).collect::<Vec<_>>();
        let mut bystanders = Bystanders { clients };
        bystanders.talk();
        bystanders
    }

    /// Each sends the next a message with and one without ACK; all must arrive, and nothing else. Returns how long the
    /// slowest exchange took.
    pub(crate) fn talk(&mut self) -> Duration {
        let mut slowest = Duration::ZERO;
        for sender in 0..self.clients.len() {
            let recipient = (sender + 1) % self.clients.len();
            let recipient_user = USER_FIRST + recipient as u64;
            let [from, to] = self.clients.get_disjoint_mut([sender, recipient]).expect("two different bystanders");
            let start = Instant::now();
            from.exchange(to, recipient_user, b"is all well?");
            from.send_barrier(to, recipient_user);
            slowest = slowest.max(start.elapsed());
        }
        slowest
    }

    /// Every bystander gets BYE with this reason.
    pub(crate) fn expect_bye(mut self, reason: u16) {
        for client in &mut self.clients {
            client.expect_bye(reason);
        }
    }
}
