//! The handshake, by rustls. This is the only file that knows a connection of rustls, which has another interface with
//! each version.
//!
//! It is fed one record at a time: a KeyUpdate in the same step as the client's Finished would be taken by rustls,
//! which then has other keys than the secrets caught, and owes an answer that is lost with it.

use super::acceptor::{ALPN_HTTP, ALPN_NATIVE, Acceptor};
use super::alert::Alert;
use super::keys::Session;
use super::record::{SEALED_MAX, whole_record};
use super::secrets::{CLIENT_LABEL, SERVER_LABEL, Secret, secrets_of};
use super::suite::{Suite, Version};
use super::validity::Outline;
use rustls::pki_types::UnixTime;
use rustls::server::UnbufferedServerConnection;
use rustls::time_provider::TimeProvider;
use rustls::unbuffered::{ConnectionState, EncodeError, UnbufferedStatus};
use rustls::{AlertDescription, Error, HandshakeKind, KeyLog, PeerIncompatible, ProtocolVersion};
use std::cell::RefCell;
use std::fmt;
use std::time::Duration;

/// What a handshake takes of memory while it lasts, besides what has come of its records: measured at most 8.2 KB while
/// a step is under way, and half of that between two of them.
pub(crate) const HANDSHAKE_BYTES: usize = 5 << 10;
/// Bytes kept of a handshake's records that are not whole, or of a message that is not: one record of the greatest
/// length, and what may come with its end.
const PENDING_MAX: usize = SEALED_MAX + 4_096;
/// How a certificate names the user whose it is.
const USER_URI: &str = "urn:trunkline:user:";

/// Where a handshake stands.
#[derive(Debug)]
pub(crate) enum Progress {
    /// It goes on when more has come.
    Waits,
    /// It is over. What is left of the input is for the keys.
    Done(Box<Established>),
    /// The peer ended it.
    Closed,
    /// It failed. What the peer is told is in the output.
    Failed(Failure),
}

/// Why a handshake failed.
#[derive(Debug)]
pub(crate) struct Failure {
    /// What was said about it.
    pub(crate) alert: Alert,
    /// Whether the peer said it, not this side.
    pub(crate) by_peer: bool,
}

/// What a handshake has led to.
#[derive(Debug)]
pub(crate) struct Established {
    pub(crate) session: Session,
    pub(crate) version: Version,
    pub(crate) suite: Suite,
    /// It went on with the secrets of an earlier one.
    pub(crate) resumed: bool,
    /// Both sides have agreed on HTTP.
    pub(crate) http: bool,
    /// The user whom the client's certificate names, and the last second in which that holds.
    pub(crate) certified: Option<(u64, u64)>,
}

/// A handshake that has not come to its end.
pub(crate) struct Handshake {
    conn: Option<UnbufferedServerConnection>,
    /// Bytes at the front of the input that rustls has seen and keeps there.
    seen: usize,
    rx_secret: Secret,
    tx_secret: Secret,
    /// This side has sent something.
    spoke: bool,
    /// The number of a client of the simulator.
    #[cfg(test)]
    toy: Option<u64>,
}

impl fmt::Debug for Handshake {
    /// Without secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handshake").field("seen", &self.seen).field("spoke", &self.spoke).finish_non_exhaustive()
    }
}

/// What rustls is told, and tells, beside its interface while it takes a step.
#[derive(Default)]
struct Step {
    now_s: u64,
    rx_secret: Secret,
    tx_secret: Secret,
}

thread_local! {
    static STEP: RefCell<Step> = RefCell::default();
}

/// Seconds since the Unix epoch in the step under way.
pub(super) fn step_now_s() -> u64 {
    STEP.with_borrow(|step| step.now_s)
}

/// The clock of the step under way.
#[derive(Debug)]
pub(super) struct StepClock;

impl TimeProvider for StepClock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_secs(step_now_s())))
    }
}

/// Catches the traffic secrets of TLS 1.3, from which later keys follow.
#[derive(Debug)]
pub(super) struct CatchSecrets;

impl KeyLog for CatchSecrets {
    fn log(&self, label: &str, _client_random: &[u8], secret: &[u8]) {
        STEP.with_borrow_mut(|step| match label {
            CLIENT_LABEL => step.rx_secret.put(secret),
            SERVER_LABEL => step.tx_secret.put(secret),
            _ => {}
        });
    }

    fn will_log(&self, label: &str) -> bool {
        matches!(label, CLIENT_LABEL | SERVER_LABEL)
    }
}

impl Handshake {
    /// Of a connection that has just been accepted; `None` when rustls will not have it, which only a fault of this
    /// program can cause.
    pub(crate) fn new(acceptor: &Acceptor) -> Option<Self> {
        let conn = UnbufferedServerConnection::new(acceptor.config.clone()).ok()?;
        Some(Handshake {
            conn: Some(conn),
            seen: 0,
            rx_secret: Secret::default(),
            tx_secret: Secret::default(),
            spoke: false,
            #[cfg(test)]
            toy: None,
        })
    }

    /// A step of the simulator's handshake; `None` if it is another one.
    #[cfg(test)]
    fn toy_step(&mut self, input: &mut Vec<u8>, out: &mut Vec<u8>) -> Option<Progress> {
        use super::toy;
        let length = whole_record(input).ok()??;
        let Some(number) = self.toy else {
            self.toy = Some(toy::number(&input[..length])?);
            self.spoke = true;
            input.drain(..length);
            out.extend(toy::answer());
            return Some(Progress::Waits);
        };
        let well = input[..length] == toy::finished();
        input.drain(..length);
        let failure = Failure { alert: Alert::UnexpectedMessage, by_peer: false };
        Some(if well { Progress::Done(Box::new(toy::established(number))) } else { Progress::Failed(failure) })
    }

    /// Whether the peer has been sent anything; until then it understands an alert in clear.
    pub(crate) fn has_spoken(&self) -> bool {
        self.spoke
    }

    /// Whether a step has something to do with this input, which is what has come and was not taken. An error is one
    /// too.
    pub(crate) fn has_something(&self, input: &[u8]) -> bool {
        input.len() > PENDING_MAX || !matches!(whole_record(&input[self.seen.min(input.len())..]), Ok(None))
    }

    /// Takes what it can of the input, which it may change, and appends to `out` what is to be sent. `now_s`: seconds
    /// since the Unix epoch.
    pub(crate) fn step(&mut self, input: &mut Vec<u8>, out: &mut Vec<u8>, now_s: u64) -> Progress {
        #[cfg(test)]
        if let Some(progress) = self.toy_step(input, out) {
            return progress;
        }
        STEP.with_borrow_mut(|step| {
            step.now_s = now_s;
            step.rx_secret = std::mem::take(&mut self.rx_secret);
            step.tx_secret = std::mem::take(&mut self.tx_secret);
        });
        let before = out.len();
        let advanced = self.advance(input, out);
        STEP.with_borrow_mut(|step| {
            self.rx_secret = std::mem::take(&mut step.rx_secret);
            self.tx_secret = std::mem::take(&mut step.tx_secret);
        });
        let progress = match advanced {
            Ok(Stop::Waits) => Progress::Waits,
            Ok(Stop::Closed) => Progress::Closed,
            Ok(Stop::Finished) => match self.finish() {
                Some(established) => Progress::Done(Box::new(established)),
                None => Progress::Failed(Failure { alert: Alert::InternalError, by_peer: false }),
            },
            Err(failed) => Progress::Failed(self.fail(failed, out, before)),
        };
        self.spoke |= out.len() > before;
        progress
    }

    /// Feeds rustls one record after the other, until it is finished or wants more.
    fn advance(&mut self, input: &mut Vec<u8>, out: &mut Vec<u8>) -> Result<Stop, Failed> {
        loop {
            let conn = self.conn.as_mut().ok_or(Failed::Alert(Alert::InternalError))?;
            let UnbufferedStatus { discard, state, .. } = conn.process_tls_records(&mut input[..self.seen]);
            let next = match state.map_err(Failed::Rustls)? {
                ConnectionState::EncodeTlsData(mut data) => {
                    encode(&mut data, out)?;
                    Next::Again
                }
                ConnectionState::TransmitTlsData(data) => {
                    data.done();
                    Next::Again
                }
                // Data may be sent to a client before that has proved that it has the keys. Here it is not.
                ConnectionState::BlockedHandshake | ConnectionState::WriteTraffic(_) => Next::Feed,
                ConnectionState::PeerClosed | ConnectionState::Closed => Next::Stop,
                _ => return Err(Failed::Alert(Alert::UnexpectedMessage)),
            };
            input.drain(..discard.min(input.len()));
            self.seen = self.seen.saturating_sub(discard);
            match next {
                Next::Again => {}
                Next::Stop => return Ok(Stop::Closed),
                Next::Feed if !conn.is_handshaking() && !conn.wants_write() => return Ok(Stop::Finished),
                Next::Feed => match whole_record(&input[self.seen..]).map_err(Failed::Alert)? {
                    Some(length) => self.seen += length,
                    None if input.len() > PENDING_MAX => return Err(Failed::Alert(Alert::RecordOverflow)),
                    None => return Ok(Stop::Waits),
                },
            }
        }
    }

    /// Has rustls say to the peer what was wrong, or says it. `before`: where the output of this step begins.
    fn fail(&mut self, failed: Failed, out: &mut Vec<u8>, before: usize) -> Failure {
        let failure = failed.told();
        if let (Failed::Rustls(_), Some(conn)) = (&failed, &mut self.conn) {
            // What was queued before the error, and the alert behind it. As long as there is some, rustls looks at no
            // input; then it would, and panic where that is less than it has seen.
            while conn.wants_write() {
                let Ok(ConnectionState::EncodeTlsData(mut data)) = conn.process_tls_records(&mut []).state else {
                    break;
                };
                if encode(&mut data, out).is_err() {
                    break;
                }
            }
        }
        if !self.spoke && !failure.by_peer && before == out.len() {
            // Of some errors rustls says nothing.
            out.extend_from_slice(&failure.alert.clear_record());
        }
        self.conn = None;
        failure
    }

    /// Takes the keys out of rustls and drops it.
    fn finish(&mut self) -> Option<Established> {
        let conn = self.conn.take()?;
        let version = match conn.protocol_version()? {
            ProtocolVersion::TLSv1_2 => Version::Tls12,
            ProtocolVersion::TLSv1_3 => Version::Tls13,
            _ => return None,
        };
        let resumed = conn.handshake_kind() == Some(HandshakeKind::Resumed);
        let (native, http) = (conn.alpn_protocol() == Some(ALPN_NATIVE), conn.alpn_protocol() == Some(ALPN_HTTP));
        let certified = conn.peer_certificates().and_then(|chain| certified(chain.first()?));
        let (secrets, _) = conn.dangerous_into_kernel_connection().ok()?;
        let (suite, rx) = secrets_of(secrets.rx, version, &self.rx_secret)?;
        let (_, tx) = secrets_of(secrets.tx, version, &self.tx_secret)?;
        let session = Session::new(version, suite, native, &rx, &tx);
        Some(Established { session, version, suite, resumed, http, certified })
    }
}

/// Why feeding rustls stopped.
enum Stop {
    Waits,
    Closed,
    Finished,
}

/// What to do after a state of rustls.
enum Next {
    Again,
    Feed,
    Stop,
}

enum Failed {
    Rustls(Error),
    Alert(Alert),
}

impl Failed {
    fn told(&self) -> Failure {
        let error = match self {
            Failed::Rustls(error) => error,
            Failed::Alert(alert) => return Failure { alert: *alert, by_peer: false },
        };
        let alert = match error {
            Error::AlertReceived(alert) => return Failure { alert: Alert::of((*alert).into()), by_peer: true },
            Error::NoApplicationProtocol => Alert::NoApplicationProtocol,
            Error::NoCertificatesPresented => Alert::CertificateRequired,
            Error::InvalidCertificate(error) => Alert::of(AlertDescription::from(error.clone()).into()),
            Error::PeerIncompatible(
                PeerIncompatible::Tls12NotOffered
                | PeerIncompatible::Tls12NotOfferedOrEnabled
                | PeerIncompatible::Tls13RequiredForQuic
                | PeerIncompatible::SupportedVersionsExtensionRequired,
            ) => Alert::ProtocolVersion,
            Error::PeerIncompatible(_) => Alert::HandshakeFailure,
            Error::PeerMisbehaved(_) => Alert::IllegalParameter,
            Error::InappropriateMessage { .. } | Error::InappropriateHandshakeMessage { .. } => {
                Alert::UnexpectedMessage
            }
            Error::InvalidMessage(_) => Alert::DecodeError,
            Error::DecryptError => Alert::BadRecordMac,
            Error::PeerSentOversizedRecord => Alert::RecordOverflow,
            _ => Alert::InternalError,
        };
        Failure { alert, by_peer: false }
    }
}

/// Appends what rustls has to send.
fn encode<Data>(data: &mut rustls::unbuffered::EncodeTlsData<'_, Data>, out: &mut Vec<u8>) -> Result<(), Failed> {
    let from = out.len();
    if let Err(EncodeError::InsufficientSize(size)) = data.encode(&mut []) {
        out.resize(from + size.required_size, 0);
        if data.encode(&mut out[from..]).is_err() {
            return Err(Failed::Alert(Alert::InternalError));
        }
    }
    Ok(())
}

/// The user a client's certificate names, and the last second in which it holds.
fn certified(certificate: &rustls::pki_types::CertificateDer<'_>) -> Option<(u64, u64)> {
    let parsed = webpki::EndEntityCert::try_from(certificate).ok()?;
    let mut users = parsed.valid_uri_names().filter_map(|uri| uri.strip_prefix(USER_URI)?.parse::<u64>().ok());
    let user = users.next().filter(|user| *user != 0)?;
    Some((user, Outline::of(certificate)?.not_after_s))
}
