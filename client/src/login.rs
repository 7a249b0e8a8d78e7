//! From an address to a logged-in connection.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncWriteExt, ReadHalf, WriteHalf, split};
use tokio::time::timeout;
use trunkline_proto::prost::Message as _;
use trunkline_proto::{
    Bye, FRAME_BYTES_MAX_DEFAULT, FRAME_BYTES_MAX_FLOOR, FRAME_BYTES_MAX_LIMIT, Frame, Kind, Login, LoginOk, VERSION,
    encode_message,
};

use crate::addrs::{is_address, redirected_from};
use crate::inbound::Inbound;
use crate::{Config, Dial, Error, Reason, Resume, SessionInfo};

/// Heartbeat where the gateway names none.
const HEARTBEAT_SECS_DEFAULT: u32 = 30;
/// Longest heartbeat believed; a dead server must be noticed on the same day.
const HEARTBEAT_SECS_MAX: u32 = 3_600;
/// Longest life of a token believed: it is renewed before, if it lasts longer.
const TOKEN_LEFT_MAX: Duration = Duration::from_secs(365 * 24 * 3_600);
/// Longest wait the gateway can ask for: a nonsense value must not keep a client away for weeks.
const RECONNECT_AFTER_MAX: Duration = Duration::from_secs(3_600);
/// Longest wait an HTTP server can ask for: it may be a proxy, which knows nothing of the other addresses.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);

/// A logged-in connection.
#[derive(Debug)]
pub(crate) struct Link<S> {
    pub(crate) reader: ReadHalf<S>,
    pub(crate) writer: WriteHalf<S>,
    /// May already hold frames that came behind LOGIN_OK.
    pub(crate) inbound: Inbound,
    pub(crate) info: SessionInfo,
    /// Ticket to go on with this session on the next connection; empty where nothing is kept for this device.
    pub(crate) resume: Vec<u8>,
    /// How long the session's token lasts; `None` when the session does not end with it.
    pub(crate) token_left: Option<Duration>,
}

/// What the gateway wants a client to do after BYE.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Advice {
    pub(crate) after: Duration,
    pub(crate) redirect: Option<String>,
}

impl Advice {
    fn of(bye: &Bye) -> Self {
        Self {
            after: Duration::from_millis(bye.reconnect_after_ms.into()).min(RECONNECT_AFTER_MAX),
            // What is no address at all is not worth an attempt.
            redirect: Some(&bye.redirect).filter(|addr| is_address(addr)).cloned(),
        }
    }

    /// As it is meant by the gateway at this address.
    pub(crate) fn given_by(mut self, addr: &str) -> Self {
        self.redirect = self.redirect.map(|redirect| redirected_from(addr, &redirect));
        self
    }

    /// Where no connection could be made: what a server has said of when to come again.
    pub(crate) fn of_failed_dial(error: &io::Error) -> Self {
        let after = crate::retry_after::retry_after(error).unwrap_or_default().min(RETRY_AFTER_MAX);
        Self { after, redirect: None }
    }
}

/// Reads a BYE: its number, the gateway's words, its advice. A body that cannot be read costs the latter two only: the
/// number in the header says the most.
pub(crate) fn read_bye(frame: &Frame<'_>) -> (u16, String, Advice) {
    let bye = Bye::decode(frame.body).unwrap_or_default();
    let advice = Advice::of(&bye);
    (frame.aux, bye.text, advice)
}

/// A login that failed, and what the gateway advises.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) error: Error,
    pub(crate) advice: Advice,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let advice = Advice::default();
        Self { error, advice }
    }
}

/// How long the token of a LOGIN_OK lasts, told by the gateway's clock alone; `None` when the session does not end with
/// it.
pub(crate) fn token_left(answer: &LoginOk) -> Option<Duration> {
    let left = Duration::from_millis(answer.expires_ms.saturating_sub(answer.time_ms));
    (answer.expires_ms != 0).then(|| left.min(TOKEN_LEFT_MAX))
}

/// Connects to `addr` and logs in.
pub(crate) async fn login<D: Dial>(
    dial: &mut D,
    addr: &str,
    config: &Config,
    token: &str,
    resume: &Resume,
) -> Result<Link<D::Stream>, Failure> {
    let timed_out = || Error::Timeout { addr: addr.to_owned(), waited: config.connect_timeout };
    let stream =
        timeout(config.connect_timeout, dial.dial(addr)).await.map_err(|_elapsed| timed_out())?.map_err(|source| {
            let advice = Advice::of_failed_dial(&source);
            Failure { error: Error::Connect { addr: addr.to_owned(), source }, advice }
        })?;
    timeout(config.connect_timeout, handshake(stream, addr, config, token, resume))
        .await
        .map_err(|_elapsed| timed_out())?
        .map_err(|Failure { error, advice }| Failure { error, advice: advice.given_by(addr) })
}

/// A connection that broke while the answer to LOGIN was waited for.
fn cut_off(addr: &str, error: io::Error) -> Error {
    let is_nonsense = error.kind() == io::ErrorKind::InvalidData;
    match Reason::of(error) {
        Reason::Bye { code, text } => Error::LoginRefused { code, text },
        reason if is_nonsense => Error::Protocol(reason.to_string()),
        _ => Error::LoginCut { addr: addr.to_owned() },
    }
}

async fn handshake<S>(stream: S, addr: &str, config: &Config, token: &str, resume: &Resume) -> Result<Link<S>, Failure>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite,
{
    let (mut reader, mut writer) = split(stream);
    let cut = |_io_error| Error::LoginCut { addr: addr.to_owned() };

    let mut request = Vec::new();
    // `last_stamp` does not say what is missing: what was delivered but not acknowledged lies anywhere below it. The
    // gateway has a cursor of its own for each device, and the window removes what comes twice. It is for the groups.
    let login = Login {
        version: VERSION,
        user: config.user,
        token: token.to_owned(),
        device: config.device.clone(),
        device_class: config.device_class.clone(),
        agent: config.agent.clone(),
        resume: resume.token.clone(),
        last_stamp: resume.login_stamp(),
        heartbeat_secs: config.heartbeat_secs,
        window: config.window(),
        ephemeral: config.ephemeral,
    };
    encode_message(&mut request, Kind::Login, 0, &login);
    writer.write_all(&request).await.map_err(cut)?;
    writer.flush().await.map_err(cut)?;

    let mut inbound = Inbound::new(FRAME_BYTES_MAX_DEFAULT);
    loop {
        if let Some(frame) = inbound.next().map_err(|v| Error::Protocol(v.to_string()))? {
            if let Some(answer) = read_answer(&frame)? {
                let info = session_info(&answer, addr);
                inbound.set_frame_bytes_max(info.frame_bytes_max);
                let token_left = token_left(&answer);
                return Ok(Link { reader, writer, inbound, info, resume: answer.resume, token_left });
            }
        } else if inbound.fill(&mut reader).await.map_err(|error| cut_off(addr, error))? == 0 {
            let addr = addr.to_owned();
            return Err(Error::LoginCut { addr }.into());
        }
    }
}

/// LOGIN_OK, or nothing for a frame of a kind from the future.
fn read_answer(frame: &Frame<'_>) -> Result<Option<LoginOk>, Failure> {
    match frame.known() {
        Some(Kind::LoginOk) => LoginOk::decode(frame.body)
            .map(Some)
            .map_err(|error| Error::Protocol(format!("its LOGIN_OK cannot be read: {error}")).into()),
        Some(Kind::Bye) => {
            let (code, text, advice) = read_bye(frame);
            let error = Error::LoginRefused { code, text };
            Err(Failure { error, advice })
        }
        Some(Kind::Error) => {
            Err(Error::LoginRefused { code: frame.aux, text: String::from_utf8_lossy(frame.body).into_owned() }.into())
        }
        Some(kind) => Err(Error::Protocol(format!("it answered LOGIN with {}", kind.name())).into()),
        None => Ok(None),
    }
}

fn session_info(answer: &LoginOk, addr: &str) -> SessionInfo {
    let heartbeat_secs = match answer.heartbeat_secs {
        0 => HEARTBEAT_SECS_DEFAULT,
        secs => secs.min(HEARTBEAT_SECS_MAX),
    };
    let frame_bytes_max = match answer.max_frame {
        0 => FRAME_BYTES_MAX_DEFAULT,
        bytes => bytes.clamp(FRAME_BYTES_MAX_FLOOR, FRAME_BYTES_MAX_LIMIT),
    };
    SessionInfo {
        addr: addr.to_owned(),
        session: answer.session,
        node: answer.node.clone(),
        shard: answer.shard,
        heartbeat: Duration::from_secs(heartbeat_secs.into()),
        frame_bytes_max,
        expires_ms: answer.expires_ms,
        registered: !answer.resume.is_empty(),
        resumed: answer.resumed,
        pending: answer.pending,
        floor: answer.floor,
        last: answer.last,
        truncated: answer.truncated,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_gateway_says_is_cut_to_what_is_sane() {
        let info = |heartbeat_secs, max_frame| {
            let answer = LoginOk { heartbeat_secs, max_frame, ..LoginOk::default() };
            let info = session_info(&answer, "gateway:1");
            (info.heartbeat.as_secs(), info.frame_bytes_max)
        };
        assert_eq!(info(0, 0), (30, FRAME_BYTES_MAX_DEFAULT));
        assert_eq!(info(u32::MAX, u32::MAX), (3_600, FRAME_BYTES_MAX_LIMIT));
        assert_eq!(info(7, 5), (7, FRAME_BYTES_MAX_FLOOR));

        let advice = |reconnect_after_ms, redirect: &str| {
            Advice::of(&Bye { reconnect_after_ms, redirect: redirect.to_owned(), text: String::new() })
        };
        assert_eq!(advice(u32::MAX, "").after, RECONNECT_AFTER_MAX);
        assert_eq!(advice(0, "b:1").redirect.as_deref(), Some("b:1"));
        for garbage in ["", "b", "http://b:1", "b:1\n", &format!("{}:1", "b".repeat(254))] {
            assert_eq!(advice(0, garbage).redirect, None, "{garbage:?}");
        }

        let left = |time_ms, expires_ms| token_left(&LoginOk { time_ms, expires_ms, ..LoginOk::default() });
        assert_eq!(left(5_000, 0), None);
        assert_eq!(left(5_000, 65_000), Some(Duration::from_secs(60)));
        assert_eq!(left(5_000, 4_000), Some(Duration::ZERO));
        assert_eq!(left(0, u64::MAX), Some(TOKEN_LEFT_MAX));
    }
}
