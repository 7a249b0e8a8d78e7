//! A client's handshake, by rustls, of which nothing but the keys is kept: a connection of rustls takes ten kilobytes,
//! and its keys 144 bytes, so that a million clients fit beside their gateway.

use std::cell::RefCell;

use rustls::{
    KeyLog, ProtocolVersion,
    client::{ClientConnectionData, UnbufferedClientConnection},
    kernel::KernelConnection,
    unbuffered::{ConnectionState, EncodeError, EncodeTlsData, UnbufferedStatus},
};
use trunkline_tls::{
    keys::Session,
    record::whole_record,
    secrets::{CLIENT_LABEL, SERVER_LABEL, Secret, secrets_of},
    suite::Version,
};

use super::TlsClient;

/// Type of the message that holds a ticket (RFC 8446, section 4).
const NEW_SESSION_TICKET: u8 = 4;
/// Type and length in front of each message of a handshake.
const MESSAGE_HEAD_BYTES: usize = 4;

/// Where a handshake stands.
#[derive(Debug)]
pub(crate) enum Progress {
    /// It goes on when more has come.
    Waits,
    /// It is over. What is left of the input is for these keys.
    Done(Session, Option<Box<TicketTaker>>),
}

/// What is left of rustls until the server's ticket has come, where clients collect tickets.
pub(crate) struct TicketTaker(KernelConnection<ClientConnectionData>);

impl std::fmt::Debug for TicketTaker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TicketTaker")
    }
}

impl TicketTaker {
    /// Has rustls keep the ticket of a message that [`is_ticket`].
    pub(crate) fn take(&mut self, message: &[u8]) {
        // One that rustls does not like is not kept, and the next handshake is a full one, which the gateway counts.
        let _ = self.0.handle_new_session_ticket(&message[MESSAGE_HEAD_BYTES..]);
    }
}

/// Whether what a record of a handshake holds is a whole ticket.
pub(crate) fn is_ticket(content: &[u8]) -> bool {
    let [NEW_SESSION_TICKET, a, b, c, body @ ..] = content else { return false };
    u32::from_be_bytes([0, *a, *b, *c]) as usize == body.len()
}

/// A handshake under way.
pub(crate) struct Handshake {
    conn: Option<UnbufferedClientConnection>,
    keeps_tickets: bool,
    /// Bytes at the front of the input that rustls has seen and keeps there.
    seen: usize,
    caught: Caught,
}

impl std::fmt::Debug for Handshake {
    /// Without what rustls does not show.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handshake").field("seen", &self.seen).finish_non_exhaustive()
    }
}

/// Secrets that rustls has told.
#[derive(Debug, Default)]
struct Caught {
    client: Secret,
    server: Secret,
}

thread_local! {
    /// The secrets of the handshake that takes a step.
    static CAUGHT: RefCell<Caught> = RefCell::default();
}

/// Catches the secrets from which later keys follow.
#[derive(Debug)]
pub(super) struct CatchSecrets;

impl KeyLog for CatchSecrets {
    fn log(&self, label: &str, _client_random: &[u8], secret: &[u8]) {
        CAUGHT.with_borrow_mut(|caught| match label {
            CLIENT_LABEL => caught.client.put(secret),
            SERVER_LABEL => caught.server.put(secret),
            _ => {}
        });
    }

    fn will_log(&self, label: &str) -> bool {
        matches!(label, CLIENT_LABEL | SERVER_LABEL)
    }
}

impl Handshake {
    /// One that has not begun. Errors: rustls does not like its configuration.
    pub(crate) fn new(client: &TlsClient) -> Result<Handshake, String> {
        let (config, name) = client.of_rustls();
        let conn = UnbufferedClientConnection::new(config, name).map_err(|error| error.to_string())?;
        let keeps_tickets = client.keeps_tickets();
        Ok(Handshake { conn: Some(conn), keeps_tickets, seen: 0, caught: Caught::default() })
    }

    /// Takes what it can of the input and appends to `out` what is to be sent. Errors: why it has failed.
    pub(crate) fn step(&mut self, input: &mut Vec<u8>, out: &mut Vec<u8>) -> Result<Progress, String> {
        CAUGHT.with_borrow_mut(|caught| *caught = std::mem::take(&mut self.caught));
        let is_over = self.advance(input, out);
        CAUGHT.with_borrow_mut(|caught| self.caught = std::mem::take(caught));
        if !is_over? {
            return Ok(Progress::Waits);
        }
        self.finish().ok_or_else(|| "the handshake left no keys".to_owned())
    }

    /// Feeds rustls one record after the other: a ticket in the same step as the server's Finished would be taken by
    /// it, and then its keys would be ahead of the records. Returns whether the handshake is over.
    fn advance(&mut self, input: &mut Vec<u8>, out: &mut Vec<u8>) -> Result<bool, String> {
        loop {
            let conn = self.conn.as_mut().ok_or("the handshake has ended")?;
            let UnbufferedStatus { discard, state, .. } = conn.process_tls_records(&mut input[..self.seen]);
            let feed = match state.map_err(|error| format!("the handshake failed: {error}"))? {
                ConnectionState::EncodeTlsData(mut data) => {
                    encode(&mut data, out)?;
                    false
                }
                ConnectionState::TransmitTlsData(data) => {
                    data.done();
                    false
                }
                ConnectionState::BlockedHandshake | ConnectionState::WriteTraffic(_) => true,
                _ => return Err("the server ended the handshake".to_owned()),
            };
            input.drain(..discard.min(input.len()));
            self.seen = self.seen.saturating_sub(discard);
            if !feed {
                continue;
            }
            if !conn.is_handshaking() && !conn.wants_write() {
                return Ok(true);
            }
            match whole_record(&input[self.seen..]).map_err(|alert| format!("no record: {}", alert.label()))? {
                Some(length) => self.seen += length,
                None => return Ok(false),
            }
        }
    }

    fn finish(&mut self) -> Option<Progress> {
        let conn = self.conn.take()?;
        let version = match conn.protocol_version()? {
            ProtocolVersion::TLSv1_2 => Version::Tls12,
            ProtocolVersion::TLSv1_3 => Version::Tls13,
            _ => return None,
        };
        let (secrets, kernel) = conn.dangerous_into_kernel_connection().ok()?;
        let (suite, rx) = secrets_of(secrets.rx, version, &self.caught.server)?;
        let (_, tx) = secrets_of(secrets.tx, version, &self.caught.client)?;
        let session = Session::new(version, suite, false, &rx, &tx);
        Some(Progress::Done(session, self.keeps_tickets.then(|| Box::new(TicketTaker(kernel)))))
    }
}

fn encode<Data>(data: &mut EncodeTlsData<'_, Data>, out: &mut Vec<u8>) -> Result<(), String> {
    let from = out.len();
    if let Err(EncodeError::InsufficientSize(size)) = data.encode(&mut []) {
        out.resize(from + size.required_size, 0);
        data.encode(&mut out[from..]).map_err(|error| error.to_string())?;
    }
    Ok(())
}
