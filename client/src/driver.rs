//! The life of a client: a session, a wait, a login, a session, until something final happens.

use tokio::time::{Duration, Instant, sleep};

use trunkline_proto::Code;

use crate::addrs::AddressBook;
use crate::login::{Advice, Failure, Link, login};
use crate::session::{Ended, run_session};
use crate::state::State;
use crate::token::Credentials;
use crate::{Config, Dial, Error, Event, Reason, random};

/// A session this long proves that the gateway is well, and the waits begin from the shortest again. A gateway that
/// accepts every login and drops it at once is not met with a storm.
const STABLE: Duration = Duration::from_secs(10);

/// How often a provider may give the token that was just refused, before the client ends: with the usual waits for half
/// a minute to a minute, for an issuer that is late.
const STALE_TOKENS_MAX: u32 = 8;

/// What a client needs on its way to a gateway.
#[derive(Debug)]
pub(crate) struct Route {
    book: AddressBook,
    credentials: Credentials,
}

/// The first login. Each address is tried once, and redirections are followed: the caller should hear at once what is
/// wrong.
pub(crate) async fn first_login<D: Dial>(dial: &mut D, config: &Config) -> Result<(Link<D::Stream>, Route), Error> {
    let mut book = AddressBook::new(&config.addrs);
    let mut credentials = Credentials::new(config.token.clone(), config.connect_timeout);
    let token = credentials.ask().await?;
    loop {
        let addr = book.next();
        match login(dial, &addr, config, &token, &config.resume).await {
            Ok(link) => {
                book.worked(&addr);
                credentials.set_current(token);
                return Ok((link, Route { book, credentials }));
            }
            Err(Failure { error, advice }) => {
                if final_reason(&error).is_some() {
                    return Err(error);
                }
                book.failed(&addr);
                if let Some(redirect) = &advice.redirect {
                    book.redirected(redirect);
                }
                if book.all_tried() {
                    return Err(error);
                }
            }
        }
    }
}

/// The reason that ends a client whose login failed with `error`, if it must end.
fn final_reason(error: &Error) -> Option<Reason> {
    match error {
        Error::LoginRefused { code, text } => {
            let (code, text) = (*code, text.clone());
            Some(Reason::Bye { code, text }).filter(|reason| !reason.allows_reconnect())
        }
        _ => None,
    }
}

/// Runs until the end, beginning with a connection that is logged in.
pub(crate) async fn run<D: Dial>(dial: D, config: Config, mut state: State, route: Route, first: Link<D::Stream>) {
    let shared = state.shared.clone();
    let reason = tokio::select! {
        reason = live(dial, config, &mut state, route, first) => reason,
        never = shared.unsettled.expire() => match never {},
    };
    state.finish(reason).await;
}

/// Session after session; returns why there is none any more.
async fn live<D: Dial>(
    mut dial: D,
    config: Config,
    state: &mut State,
    mut route: Route,
    first: Link<D::Stream>,
) -> Reason {
    let mut link = first;
    let mut attempt = 0;
    loop {
        let began = Instant::now();
        let addr = link.info.addr.clone();
        let Ended { reason, advice } = run_session(link, config.user, &mut route.credentials, state).await;
        let advice = advice.given_by(&addr);
        state.go_offline();
        if !route.credentials.may_go_on_after(&reason) {
            return reason;
        }
        if began.elapsed() >= STABLE {
            attempt = 0;
            route.book.settled();
        }
        if wants_clients_elsewhere(&reason) {
            route.book.leave_last();
        }
        match reconnect(&mut dial, &config, state, &mut attempt, &mut route, reason, advice).await {
            Ok(again) => link = again,
            Err(reason) => return reason,
        }
        state.go_online(&link.info, &link.resume);
        let resumed = link.info.resumed;
        state.tell(Event::Reconnected { resumed });
    }
}

/// Whether the gateway is not the one to come back to first: it drains, is no home of this user, or is overloaded.
fn wants_clients_elsewhere(reason: &Reason) -> bool {
    let Reason::Bye { code, .. } = reason else {
        return false;
    };
    matches!(Code::from_u16(*code), Some(Code::Draining | Code::Moved | Code::Overloaded))
}

/// Waits and logs in until it works, or the reason is final. Each attempt is for one address, and the waits grow over
/// all of them.
async fn reconnect<D: Dial>(
    dial: &mut D,
    config: &Config,
    state: &mut State,
    attempt: &mut u32,
    route: &mut Route,
    reason: Reason,
    mut advice: Advice,
) -> Result<Link<D::Stream>, Reason> {
    let mut lost = Some(reason);
    // What went wrong at the latest attempt, and how many there have been.
    let mut failed: Option<String> = None;
    let mut failures = 0;
    let mut stale = 0;
    let shared = state.shared.clone();
    loop {
        // The wait asked for is added to the own one, whose random part keeps clients apart that heard the same number.
        let delay = advice.after + config.backoff.delay(*attempt, random::share());
        *attempt = attempt.saturating_add(1);
        if let Some(reason) = lost.take() {
            let retry_in = Some(delay);
            state.tell(Event::Disconnected { reason, retry_in });
        }
        if let Some(why) = failed.take() {
            failures += 1;
            state.outlet.push_if_idle(Event::ReconnectFailed { attempt: failures, why, retry_in: delay });
        }
        if let Some(redirect) = &advice.redirect {
            route.book.redirected(redirect);
        }
        let next_login = async {
            sleep(delay).await;
            // Without a token there is nothing to try an address with: it keeps its turn.
            let token = route.credentials.ask().await.map_err(|error| (None, Attempt::Failed(error.into())))?;
            if let Some(reason) = route.credentials.why_pointless(&token) {
                return Err((None, Attempt::Pointless(reason)));
            }
            route.credentials.set_current(token.clone());
            let addr = route.book.next();
            let link = login(dial, &addr, config, &token, &shared.resume()).await;
            link.map(|link| (addr.clone(), link)).map_err(|failure| (Some(addr), Attempt::Failed(failure)))
        };
        let outcome = tokio::select! {
            outcome = next_login => outcome,
            () = state.serve_offline() => return Err(Reason::LoggedOut),
        };
        match outcome {
            Ok((addr, link)) => {
                route.book.worked(&addr);
                route.credentials.accepted();
                return Ok(link);
            }
            Err((_, Attempt::Pointless(reason))) => {
                stale += 1;
                if stale == STALE_TOKENS_MAX {
                    return Err(reason);
                }
                failed = Some(format!("there is no other token yet than the one refused: {reason}"));
                advice = Advice::default();
            }
            Err((addr, Attempt::Failed(failure))) => {
                if let Some(reason) = final_reason(&failure.error)
                    && !route.credentials.may_go_on_after(&reason)
                {
                    return Err(reason);
                }
                if let Some(addr) = addr {
                    route.book.failed(&addr);
                }
                failed = Some(failure.error.to_string());
                // A redirection is tried once: without a new one the next attempt goes on with the addresses known.
                advice = failure.advice;
            }
        }
    }
}

/// What became of an attempt that did not work.
enum Attempt {
    Failed(Failure),
    /// The only token there is has been refused.
    Pointless(Reason),
}
