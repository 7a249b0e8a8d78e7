//! The life of a client: a session, a wait, a login, a session, until something final happens.

use tokio::time::{Duration, Instant, sleep};

use crate::login::{Advice, Failure, Link, login};
use crate::session::{Ended, run_session};
use crate::state::State;
use crate::{Config, Dial, Error, Event, Reason};

/// A session this long proves that the gateway is well, and the waits begin from the shortest again. A gateway that accepts
/// every login and drops it at once is not met with a storm.
const STABLE: Duration = Duration::from_secs(10);

/// How often a first login follows a redirection before it gives up.
const REDIRECTS_MAX: usize = 4;

/// The first login. It follows redirections but does not try again: the caller should hear at once what is wrong.
pub(crate) async fn first_login<D: Dial>(dial: &mut D, config: &Config) -> Result<Link<D::Stream>, Error> {
    let mut addr = config.addr.clone();
    let mut redirects = 0;
    loop {
        match login(dial, &addr, config, &[]).await {
            Ok(link) => return Ok(link),
            Err(Failure { error, advice }) => match advice.redirect {
                Some(redirect) if redirects < REDIRECTS_MAX && allows_retry(&error) => {
                    redirects += 1;
                    addr = redirect;
                }
                _ => return Err(error),
            },
        }
    }
}

fn allows_retry(error: &Error) -> bool {
    final_reason(error).is_none()
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
pub(crate) async fn run<D: Dial>(mut dial: D, config: Config, mut state: State, first: Link<D::Stream>) {
    let mut link = first;
    let mut attempt = 0;
    let reason = loop {
        let resume = std::mem::take(&mut link.resume);
        let began = Instant::now();
        let Ended { reason, advice } = run_session(link, &mut state).await;
        state.go_offline();
        if !reason.allows_reconnect() {
            break reason;
        }
        if began.elapsed() >= STABLE {
            attempt = 0;
        }
        match reconnect(&mut dial, &config, &mut state, &resume, &mut attempt, reason, advice).await {
            Ok(again) => link = again,
            Err(reason) => break reason,
        }
        state.go_online(&link.info);
        let resumed = link.resumed;
        state.tell(Event::Reconnected { resumed });
    };
    state.finish(reason).await;
}

/// Waits and logs in until it works, or the reason is final.
async fn reconnect<D: Dial>(
    dial: &mut D,
    config: &Config,
    state: &mut State,
    resume: &[u8],
    attempt: &mut u32,
    reason: Reason,
    mut advice: Advice,
) -> Result<Link<D::Stream>, Reason> {
    let mut lost = Some(reason);
    loop {
        // The wait asked for is added to the own one, whose random part keeps clients apart that heard the same number.
        let delay = advice.after + config.backoff.delay(*attempt, rand::random());
        *attempt = attempt.saturating_add(1);
        if let Some(reason) = lost.take() {
            let retry_in = Some(delay);
            state.tell(Event::Disconnected { reason, retry_in });
        }
        let addr = advice.redirect.as_deref().unwrap_or(&config.addr);
        let next_login = async {
            sleep(delay).await;
            login(dial, addr, config, resume).await
        };
        let outcome = tokio::select! {
            outcome = next_login => outcome,
            () = state.serve_offline() => return Err(Reason::LoggedOut),
        };
        match outcome {
            Ok(link) => return Ok(link),
            Err(failure) => {
                if let Some(reason) = final_reason(&failure.error) {
                    return Err(reason);
                }
                // A redirection is tried once: without a new one the next attempt goes to the configured address.
                advice = failure.advice;
            }
        }
    }
}
