//! Where the token of a login comes from.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;
use trunkline_proto::Code;

use crate::{Error, Reason};

type Answer = Pin<Box<dyn Future<Output = Result<String, String>> + Send>>;
type Ask = dyn Fn() -> Answer + Send + Sync;

/// Proof of being a user: a JWT that is known beforehand, or somebody to ask for one whenever one is needed. The
/// default is an empty token, for gateways whose authentication is open.
///
/// ```
/// use trunkline_client::Token;
///
/// let known: Token = "eyJhbGciOi…".into();
/// let asked = Token::provider(|| async { std::fs::read_to_string("/run/secrets/chat-token") });
/// ```
#[derive(Clone)]
pub struct Token(Source);

#[derive(Clone)]
enum Source {
    Known(String),
    Asked(Arc<Ask>),
}

impl Token {
    /// Asks `provide` for a token before each login, and again in time before the token of a session expires: then the
    /// session is given the new one (RENEW). The client asks once at a time and waits for the answer no longer than
    /// [`crate::Config::connect_timeout`].
    ///
    /// A provider that fails is asked again: by the next attempt to log in, or after a part of the time that is left.
    pub fn provider<Provide, Answered, Failed>(provide: Provide) -> Self
    where
        Provide: Fn() -> Answered + Send + Sync + 'static,
        Answered: Future<Output = Result<String, Failed>> + Send + 'static,
        Failed: fmt::Display,
    {
        Self(Source::Asked(Arc::new(move || {
            let answer = provide();
            Box::pin(async move { answer.await.map_err(|failed| failed.to_string()) })
        })))
    }

    /// Whether there may be one, as against none at all.
    pub(crate) fn may_be_some(&self) -> bool {
        !matches!(&self.0, Source::Known(token) if token.is_empty())
    }

    /// Whether asking again may bring another token.
    pub(crate) fn may_change(&self) -> bool {
        matches!(self.0, Source::Asked(_))
    }

    /// The token to use now.
    pub(crate) fn get(&self, limit: Duration) -> Pin<Box<dyn Future<Output = Result<String, Error>> + Send>> {
        let answer = match &self.0 {
            Source::Known(token) => {
                let token = token.clone();
                return Box::pin(async move { Ok(token) });
            }
            Source::Asked(ask) => ask(),
        };
        Box::pin(async move {
            let why = match timeout(limit, answer).await {
                Ok(Ok(token)) => return Ok(token),
                Ok(Err(why)) => why,
                Err(_elapsed) => format!("there was none within {limit:?}"),
            };
            Err(Error::Token(why))
        })
    }
}

impl Default for Token {
    fn default() -> Self {
        Self(Source::Known(String::new()))
    }
}

impl From<String> for Token {
    fn from(token: String) -> Self {
        Self(Source::Known(token))
    }
}

impl From<&str> for Token {
    fn from(token: &str) -> Self {
        token.to_owned().into()
    }
}

impl fmt::Debug for Token {
    /// A token is a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &self.0 {
            Source::Known(token) if token.is_empty() => "none",
            Source::Known(_) => "set",
            Source::Asked(_) => "asked for",
        })
    }
}

/// The tokens of one client: where they come from, which one is in force, and which one was refused.
#[derive(Debug)]
pub(crate) struct Credentials {
    source: Token,
    limit: Duration,
    /// That of the latest login or renewal. Never shown.
    current: Secret,
    refused: Option<(Secret, Reason)>,
}

/// A token, hidden from debug output.
#[derive(Clone, PartialEq, Eq)]
struct Secret(String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("hidden")
    }
}

impl Credentials {
    pub(crate) fn new(source: Token, limit: Duration) -> Self {
        Self { source, limit, current: Secret(String::new()), refused: None }
    }

    pub(crate) fn may_change(&self) -> bool {
        self.source.may_change()
    }

    /// Asks for a token; nothing of this client is borrowed meanwhile.
    pub(crate) fn ask(&self) -> Pin<Box<dyn Future<Output = Result<String, Error>> + Send>> {
        self.source.get(self.limit)
    }

    /// Whether the gateway has this token already.
    pub(crate) fn is_current(&self, token: &str) -> bool {
        self.current.0 == token
    }

    /// The gateway is given this token from now on.
    pub(crate) fn set_current(&mut self, token: String) {
        self.current = Secret(token);
    }

    /// The gateway took the current token.
    pub(crate) fn accepted(&mut self) {
        self.refused = None;
    }

    /// Whether connecting again can help after this reason. After 6 bad credentials it can where there is somebody to
    /// ask for another token; that is tried once.
    pub(crate) fn may_go_on_after(&mut self, reason: &Reason) -> bool {
        if reason.allows_reconnect() {
            return true;
        }
        let is_about_the_token = matches!(reason, Reason::Bye { code, .. } if *code == Code::BadCredentials.as_u16());
        let may_try = is_about_the_token && self.may_change() && self.refused.is_none();
        if may_try {
            self.refused = Some((self.current.clone(), reason.clone()));
        }
        may_try
    }

    /// Why it is pointless to try this token, if it is the one that was refused.
    pub(crate) fn why_pointless(&self, token: &str) -> Option<Reason> {
        let (refused, reason) = self.refused.as_ref()?;
        (refused.0 == token).then(|| reason.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    #[tokio::test(start_paused = true)]
    async fn a_provider_is_asked_each_time_and_its_failures_are_told() {
        let count = Arc::new(std::sync::atomic::AtomicU32::new(0));
        let counted = count.clone();
        let token = Token::provider(move || {
            let number = counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            async move {
                match number {
                    0 => Ok("first".to_owned()),
                    1 => Err("the issuer is down"),
                    _ => std::future::pending().await,
                }
            }
        });
        assert_eq!(token.get(LIMIT).await.expect("a token"), "first");
        assert!(matches!(token.get(LIMIT).await, Err(Error::Token(why)) if why == "the issuer is down"));
        assert!(matches!(token.get(LIMIT).await, Err(Error::Token(why)) if why.contains("within 10s")));
        assert_eq!(count.load(std::sync::atomic::Ordering::Relaxed), 3);
    }

    #[test]
    fn debug_output_shows_no_token() {
        let mut credentials = Credentials::new("hush".into(), LIMIT);
        credentials.set_current("hush".into());
        let provider = Token::provider(|| async { Ok::<_, String>("hush".into()) });
        let shown = format!("{credentials:?} {provider:?}");
        assert!(!shown.contains("hush"), "{shown}");
    }

    #[test]
    fn a_refused_token_is_not_tried_twice_and_another_one_once() {
        let expired = Reason::Bye { code: 6, text: "the token has expired".into() };
        let mut known = Credentials::new("known".into(), LIMIT);
        known.set_current("known".into());
        assert!(!known.may_go_on_after(&expired));

        let mut asked = Credentials::new(Token::provider(|| async { Ok::<_, String>(String::new()) }), LIMIT);
        asked.set_current("one".into());
        assert!(asked.may_go_on_after(&expired));
        assert_eq!((asked.why_pointless("one"), asked.why_pointless("two")), (Some(expired.clone()), None));
        asked.set_current("two".into());
        assert!(!asked.may_go_on_after(&expired), "two in a row");
        let kicked = Reason::Bye { code: 15, text: String::new() };
        assert!(!asked.may_go_on_after(&kicked) && asked.may_go_on_after(&Reason::ServerClosed));
        asked.accepted();
        assert!(asked.may_go_on_after(&expired));
    }
}
