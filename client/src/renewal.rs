//! When the token of a session is renewed.

use std::future;
use std::pin::Pin;
use std::time::Duration;

use tokio::time::Instant;
use trunkline_proto::Code;

use crate::token::Credentials;
use crate::{Error, random};

/// The part of a token's life after which a new one is asked for: from this much …
const FIRST_AT: f64 = 0.6;
/// … to this much more, at random.
const SPREAD: f64 = 0.2;

/// The part of what is left after which a renewal that failed is tried again, likewise.
const AGAIN_AT: f64 = 0.3;

/// Shortest time between two renewals; gateways look at one a second.
const APART_MIN: Duration = Duration::from_secs(2);

type Asked = Pin<Box<dyn Future<Output = Result<String, Error>> + Send>>;

/// The renewal of one session's token. At any time it is either due later, asking for a token, or waiting for the
/// answer to a RENEW: never two at once.
pub(crate) struct Renewal {
    /// When the session ends with its token.
    ends: Option<Instant>,
    /// When to ask for a new one.
    due: Option<Instant>,
    asked: Option<Asked>,
    /// A RENEW has gone and has no answer.
    waits: bool,
    /// Some RENEW has gone, so a LOGIN_OK may come, also one that was given up.
    sent: bool,
}

impl Renewal {
    /// For a token that lasts so long; `None` for ever.
    pub(crate) fn new(left: Option<Duration>, credentials: &Credentials) -> Self {
        let mut renewal = Self { ends: None, due: None, asked: None, waits: false, sent: false };
        renewal.plan(left, credentials);
        renewal
    }

    fn plan(&mut self, left: Option<Duration>, credentials: &Credentials) {
        let now = Instant::now();
        self.ends = left.map(|left| now + left);
        let wait = |left: Duration| left.mul_f64(FIRST_AT + SPREAD * random::share()).max(APART_MIN);
        self.due = left.filter(|_| credentials.may_change()).map(|left| now + wait(left));
    }

    /// When [`Self::begin`] is to be called.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// How long the session has until it ends with its token.
    pub(crate) fn ends_in(&self) -> Duration {
        self.ends.map_or(Duration::ZERO, |ends| ends.saturating_duration_since(Instant::now()))
    }

    /// Begins to ask for a token, if it is time.
    pub(crate) fn begin(&mut self, credentials: &Credentials) {
        if self.due.is_some_and(|due| due <= Instant::now()) {
            self.due = None;
            self.asked = Some(credentials.ask());
        }
    }

    /// The answer, once it was asked for. Cancelling it loses nothing.
    pub(crate) async fn answer(&mut self) -> Result<String, Error> {
        let Some(asked) = &mut self.asked else {
            return future::pending().await;
        };
        let answer = asked.await;
        self.asked = None;
        answer
    }

    /// A RENEW has gone.
    pub(crate) fn sent(&mut self) {
        self.waits = true;
        self.sent = true;
    }

    /// Whether a LOGIN_OK can be the answer to a RENEW.
    pub(crate) fn may_be_confirmed(&self) -> bool {
        self.sent
    }

    /// Whether an ERROR that no message caused can be the answer to the RENEW under way.
    pub(crate) fn may_be_refused_with(&self, code: u16) -> bool {
        let code = Code::from_u16(code);
        let refusal = matches!(
            code,
            Some(
                Code::BadCredentials
                    | Code::UnknownKind
                    | Code::RateLimited
                    | Code::Overloaded
                    | Code::BadRequest
                    | Code::Unsupported
            )
        );
        self.waits && refusal
    }

    /// The session goes on with a token that lasts so long.
    pub(crate) fn confirmed(&mut self, left: Option<Duration>, credentials: &Credentials) {
        self.waits = false;
        self.plan(left, credentials);
    }

    /// It did not work: it is tried again after a part of what is left, while something is.
    pub(crate) fn failed(&mut self) {
        self.waits = false;
        let left = self.ends_in();
        let wait = left.mul_f64(AGAIN_AT + SPREAD * random::share()).max(APART_MIN);
        self.due = (wait < left).then(|| Instant::now() + wait);
    }
}
