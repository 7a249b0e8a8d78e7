//! The handshake of a mesh connection: each side proves that it knows the cluster's secret, and both agree where the
//! stream goes on.
//!
//! ```text
//! dialer                                   acceptor
//!   Hello(versions, nonce, name)    ──▶
//!                                   ◀──    Hello(versions, nonce, name)
//!   Proof(mac)                      ──▶                                    the dialer knows the secret
//!                                   ◀──    Proof(mac)                      the acceptor knows it too
//!   Accept(incarnation, link,
//!          stream, expected, mac)   ──▶
//!                                   ◀──    Accept(the same of its own, mac)
//! ```
//!
//! Invariants:
//! - Before the other side has proved itself, a side tells its name, its versions and its nonce, and nothing else. A
//!   refusal tells no more.
//! - Every mac covers a label, the phase, the role of its sender, the version chosen and both Hellos whole; that of an
//!   Accept also both sides' incarnation, link and place in the stream, as far as they have been told. So none can be
//!   reflected, replayed or moved.
//! - Macs are compared in constant time.
//!
//! - From version 5 on the nonces are public keys of X25519, and what follows the handshake is sealed ([`exchange`],
//!   [`seal`](super::seal)).
//!
//! The machines do no I/O: bytes come in, bytes to be sent are appended to `out`. After an error `out` holds a refusal
//! to be sent before the connection is closed. The layout of Hello and Refuse never changes, so that any two versions
//! can tell each other apart.

mod error;
mod exchange;
mod secrets;
#[cfg(test)]
mod tests;

pub(crate) use error::{HandshakeError, SecretError, refusal};
pub use exchange::MeshEncryption;
pub(crate) use secrets::Known;
pub use secrets::Secrets;

use super::seal::Sealing;
use super::wire::{HANDSHAKE_BYTES_MAX, HELLO_BYTES_MAX, HandshakeFrame, MAC_BYTES, MeshViolation, NONCE_BYTES, Step};
use exchange::Exchange;
use hmac::{Hmac, Mac};
use sha2::Sha256;
use std::fmt;
use std::sync::Arc;

/// How long a handshake may take.
pub(crate) const DEADLINE_MS_DEFAULT: u64 = 5_000;

/// How long each step of it may take on the side that is dialed: whoever dials has nothing to wait for.
pub(crate) const STEP_MS_MAX: u64 = 2_000;

/// Shortest secret: half the output of SHA-256, below which guessing the secret is easier than forging a mac of half
/// length.
pub(crate) const SECRET_BYTES_MIN: usize = 16;
/// Longest secret, so that a wrong file is noticed.
pub(crate) const SECRET_BYTES_MAX: usize = 1_024;

/// What every mac begins with.
const LABEL: &[u8] = b"trunkline mesh handshake 1\0";

/// The secret all nodes of a cluster share.
#[derive(Clone)]
pub struct ClusterSecret(Hmac<Sha256>);

impl ClusterSecret {
    /// # Errors
    /// A secret of less than [`SECRET_BYTES_MIN`] or more than [`SECRET_BYTES_MAX`] bytes.
    pub(crate) fn new(secret: &[u8]) -> Result<Self, SecretError> {
        let length = secret.len();
        if length < SECRET_BYTES_MIN {
            return Err(SecretError::TooShort { length });
        }
        if length > SECRET_BYTES_MAX {
            return Err(SecretError::TooLong { length });
        }
        let mac = Hmac::new_from_slice(secret).map_err(|_| SecretError::TooLong { length })?;
        Ok(ClusterSecret(mac))
    }
}

impl fmt::Debug for ClusterSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClusterSecret(…)")
    }
}

/// The versions of the mesh protocol a node speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Versions {
    pub min: u16,
    pub max: u16,
}

impl Versions {
    /// What this code speaks.
    pub(crate) const OWN: Versions = Versions { min: super::wire::VERSION_MIN, max: super::wire::VERSION_MAX };

    /// The highest version both speak.
    pub(crate) fn common(self, other: Versions) -> Option<u16> {
        let version = self.max.min(other.max);
        (version >= self.min.max(other.min)).then_some(version)
    }
}

/// This node, as it shows itself to others.
#[derive(Clone, Debug)]
pub struct Identity {
    pub name: String,
    pub incarnation: u64,
    pub versions: Versions,
}

/// Where a side is in the stream of a link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ResumeState {
    /// The stream; 0 for none.
    pub(crate) stream: u64,
    /// Sequence number of the next record the side expects.
    pub(crate) expected: u64,
}

/// The result of a handshake, the same on both sides but for whose it tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Established {
    pub(crate) peer: String,
    pub(crate) peer_incarnation: u64,
    pub(crate) version: u16,
    pub(crate) link: u16,
    /// The stream agreed on, and what the peer expects in it: for [`Link::connected`](super::link::Link::connected).
    pub(crate) resume: ResumeState,
}

/// Who speaks; part of every mac.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
enum Role {
    Dialer = 1,
    Acceptor = 2,
}

/// What a mac proves; part of every mac.
#[derive(Clone, Copy)]
#[repr(u8)]
enum Phase {
    Proof = 1,
    Accept = 2,
    /// It proves nothing: what comes of it is kept, and goes into the keys.
    Keys = 3,
}

/// What both sides have said in the open.
#[derive(Debug, Default)]
struct Transcript {
    version: u16,
    dialer_hello: Vec<u8>,
    acceptor_hello: Vec<u8>,
}

impl Transcript {
    /// The Hellos carry their lengths, and the numbers have fixed ones, so no two transcripts give the same bytes.
    fn mac(&self, secret: &ClusterSecret, phase: Phase, role: Role, accepts: &[[u8; ACCEPT_NUMBERS]]) -> Hmac<Sha256> {
        let mut mac = secret.0.clone();
        mac.update(LABEL);
        mac.update(&[phase as u8, role as u8]);
        mac.update(&self.version.to_be_bytes());
        mac.update(&self.dialer_hello);
        mac.update(&self.acceptor_hello);
        accepts.iter().for_each(|numbers| mac.update(numbers));
        mac
    }

    fn sign(
        &self,
        secret: &ClusterSecret,
        phase: Phase,
        role: Role,
        accepts: &[[u8; ACCEPT_NUMBERS]],
    ) -> [u8; MAC_BYTES] {
        self.mac(secret, phase, role, accepts).finalize().into_bytes().into()
    }

    /// What the keys of the connection are drawn with.
    fn salt(&self, secret: &Hmac<Sha256>) -> [u8; MAC_BYTES] {
        let secret = ClusterSecret(secret.clone());
        self.sign(&secret, Phase::Keys, Role::Dialer, &[])
    }

    /// What the dialer's Hello has for a nonce.
    fn dialer_nonce(&self) -> Option<[u8; NONCE_BYTES]> {
        nonce_of(&self.dialer_hello)
    }

    fn acceptor_nonce(&self) -> Option<[u8; NONCE_BYTES]> {
        nonce_of(&self.acceptor_hello)
    }

    /// In constant time.
    fn verify(
        &self,
        secret: &ClusterSecret,
        phase: Phase,
        role: Role,
        accepts: &[[u8; ACCEPT_NUMBERS]],
        mac: &[u8; MAC_BYTES],
    ) -> Result<(), HandshakeError> {
        self.mac(secret, phase, role, accepts).verify_slice(mac).map_err(|_| HandshakeError::WrongSecret)
    }
}

fn nonce_of(hello: &[u8]) -> Option<[u8; NONCE_BYTES]> {
    match parse(hello) {
        Ok(HandshakeFrame::Hello { nonce, .. }) => Some(*nonce),
        _ => None,
    }
}

/// Bytes of the numbers of an Accept.
const ACCEPT_NUMBERS: usize = 26;

fn accept_numbers(incarnation: u64, link: u16, resume: ResumeState) -> [u8; ACCEPT_NUMBERS] {
    let mut bytes = [0; ACCEPT_NUMBERS];
    bytes[0..8].copy_from_slice(&incarnation.to_be_bytes());
    bytes[8..10].copy_from_slice(&link.to_be_bytes());
    bytes[10..18].copy_from_slice(&resume.stream.to_be_bytes());
    bytes[18..26].copy_from_slice(&resume.expected.to_be_bytes());
    bytes
}

/// What both machines have in common: who we are, the frame that is being read, and the deadline.
#[derive(Debug)]
struct Machine {
    secret: ClusterSecret,
    me: Identity,
    transcript: Transcript,
    /// Drawn with the Hello: who connects and says nothing costs no arithmetic.
    exchange: Exchange,
    /// 32 bytes that were never used before.
    random: [u8; NONCE_BYTES],
    /// The beginning of a frame; never more than [`HANDSHAKE_BYTES_MAX`].
    partial: Vec<u8>,
    deadline_ms: u64,
    patience_ms: u64,
    hello_seen: bool,
}

impl Machine {
    fn new(secret: ClusterSecret, me: Identity, random: &[u8; NONCE_BYTES], now_ms: u64, patience_ms: u64) -> Self {
        let (transcript, partial) = (Transcript::default(), Vec::new());
        let (exchange, random) = (Exchange::default(), *random);
        let deadline_ms = now_ms.saturating_add(patience_ms);
        Machine { secret, me, transcript, exchange, random, partial, deadline_ms, patience_ms, hello_seen: false }
    }

    /// This side's Hello, where the version agreed on will be this one at most.
    fn hello(&mut self, version: u16) -> Vec<u8> {
        let Versions { min, max } = self.me.versions;
        let mut hello = Vec::with_capacity(HANDSHAKE_BYTES_MAX);
        let nonce;
        (self.exchange, nonce) = Exchange::new(version, &self.random);
        let nonce = &nonce;
        HandshakeFrame::Hello { version_min: min, version_max: max, nonce, name: &self.me.name }.encode(&mut hello);
        hello
    }

    /// The keys for what follows, once both sides have proved themselves.
    fn sealing(&self, role: Role) -> Result<Option<Box<Sealing>>, HandshakeError> {
        self.exchange.sealing(&self.transcript, &self.secret.0, role)
    }

    /// Moves bytes from `bytes` until a frame is whole, and returns it as bytes.
    fn frame(&mut self, bytes: &mut &[u8]) -> Result<Option<Vec<u8>>, HandshakeError> {
        loop {
            match HandshakeFrame::decode(&self.partial) {
                Ok(Step::Whole(..)) => return Ok(Some(std::mem::take(&mut self.partial))),
                Ok(Step::Need(_)) if bytes.is_empty() => return Ok(None),
                Ok(Step::Need(need)) => {
                    let missing = need.saturating_sub(self.partial.len()).min(bytes.len());
                    let (piece, rest) = bytes.split_at(missing);
                    self.partial.extend_from_slice(piece);
                    *bytes = rest;
                }
                Err(violation) => return Err(self.blame(violation)),
            }
        }
    }

    /// Garbage in place of the first frame is told from a node that breaks the protocol.
    fn blame(&self, violation: MeshViolation) -> HandshakeError {
        if self.hello_seen {
            return HandshakeError::Malformed(violation);
        }
        match violation {
            // Text and TLS begin with something else than 0, and would be lengths of many megabytes.
            MeshViolation::FrameLength { length, .. } if (HELLO_BYTES_MAX..1 << 24).contains(&(length as usize)) => {
                HandshakeError::HelloTooLong { length }
            }
            MeshViolation::NameUnusable | MeshViolation::VersionRange { .. } => HandshakeError::Malformed(violation),
            _ => HandshakeError::NotMesh,
        }
    }

    /// What the other side's Hello has to be, on either side. Returns the name in it.
    fn check_hello(&mut self, frame: &HandshakeFrame<'_>) -> Result<String, HandshakeError> {
        let HandshakeFrame::Hello { version_min, version_max, name, .. } = *frame else {
            return Err(unexpected(frame));
        };
        self.hello_seen = true;
        let theirs = Versions { min: version_min, max: version_max };
        let own = self.me.versions;
        self.transcript.version = own.common(theirs).ok_or(HandshakeError::Version { own, theirs })?;
        if name == self.me.name {
            return Err(HandshakeError::OwnName { name: name.into() });
        }
        Ok(name.into())
    }

    fn is_expired(&self, now_ms: u64) -> Option<HandshakeError> {
        (now_ms >= self.deadline_ms).then_some(HandshakeError::Silent { after_ms: self.patience_ms })
    }
}

/// What a frame out of turn comes to.
fn unexpected(frame: &HandshakeFrame<'_>) -> HandshakeError {
    match *frame {
        HandshakeFrame::Refuse { code, text } => HandshakeError::refused(code, text),
        _ => HandshakeError::OutOfTurn,
    }
}

/// The whole frame in `bytes`, which [`Machine::frame`] has returned.
fn parse(bytes: &[u8]) -> Result<HandshakeFrame<'_>, HandshakeError> {
    match HandshakeFrame::decode(bytes)? {
        Step::Whole(frame, _) => Ok(frame),
        Step::Need(_) => Err(HandshakeError::OutOfTurn),
    }
}

fn check_incarnation(name: &str, known: u64, incarnation: u64) -> Result<(), HandshakeError> {
    if incarnation < known {
        return Err(HandshakeError::StaleIncarnation { name: name.into(), known, incarnation });
    }
    Ok(())
}

/// How far a dialer is.
#[derive(Debug)]
enum Dialing {
    Hello,
    Proof,
    Accept { own: [u8; ACCEPT_NUMBERS] },
    Ended,
}

/// What a dialer knows of the link it dials.
#[derive(Clone, Debug)]
pub struct Dial {
    /// The node that has to answer.
    pub peer: String,
    /// The highest incarnation known of that node; 0 for none.
    pub peer_incarnation_known: u64,
    pub link: u16,
    /// Taken from the link after its former connection has ended.
    pub resume: ResumeState,
}

/// What came out of some bytes at a dialer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DialerStep {
    /// More bytes are needed.
    More,
    /// The link is up. The first `consumed` bytes of those given were the handshake's; the rest is the link's.
    Done { established: Established, consumed: usize },
}

/// The side that dials.
#[derive(Debug)]
pub struct Dialer {
    machine: Machine,
    dial: Dial,
    state: Dialing,
}

impl Dialer {
    /// Begins: appends the Hello to `out`. `random` is 32 bytes that were never used before.
    pub fn new(
        secret: ClusterSecret,
        me: Identity,
        dial: Dial,
        random: &[u8; NONCE_BYTES],
        now_ms: u64,
        patience_ms: u64,
        out: &mut Vec<u8>,
    ) -> Self {
        let mut machine = Machine::new(secret, me, random, now_ms, patience_ms);
        machine.transcript.dialer_hello = machine.hello(machine.me.versions.max);
        out.extend_from_slice(&machine.transcript.dialer_hello);
        Dialer { machine, dial, state: Dialing::Hello }
    }

    /// The error, once the deadline has passed.
    pub(crate) fn expired(&self, now_ms: u64) -> Option<HandshakeError> {
        self.machine.is_expired(now_ms)
    }

    /// The keys for what follows; `None` if that is in clear. To be asked for when the handshake is done.
    ///
    /// # Errors
    /// What the other side said gives no key.
    pub(crate) fn sealing(&self) -> Result<Option<Box<Sealing>>, HandshakeError> {
        self.machine.sealing(Role::Dialer)
    }

    /// Whether the other side has proved that it is the node that was dialed.
    pub fn peer_has_proved(&self) -> bool {
        matches!(self.state, Dialing::Accept { .. })
    }

    /// Takes bytes from the peer; appends what is to be sent.
    ///
    /// # Errors
    /// Whatever ends the handshake; a refusal for the peer is in `out` then.
    pub fn received(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<DialerStep, HandshakeError> {
        let result = self.advance(bytes, out);
        if let Err(error) = &result {
            self.state = Dialing::Ended;
            refusal(error, out);
        }
        result
    }

    fn advance(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<DialerStep, HandshakeError> {
        let mut rest = bytes;
        if matches!(self.state, Dialing::Ended) {
            return Err(HandshakeError::OutOfTurn);
        }
        while let Some(frame) = self.machine.frame(&mut rest)? {
            if let Some(established) = self.frame(&frame, out)? {
                self.state = Dialing::Ended;
                return Ok(DialerStep::Done { established, consumed: bytes.len() - rest.len() });
            }
        }
        Ok(DialerStep::More)
    }

    fn frame(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<Option<Established>, HandshakeError> {
        let Dialer { machine, dial, state } = self;
        let frame = parse(bytes)?;
        match (&*state, &frame) {
            (Dialing::Hello, _) => {
                let name = machine.check_hello(&frame)?;
                if name != dial.peer {
                    return Err(HandshakeError::UnexpectedName { expected: dial.peer.clone(), name });
                }
                machine.transcript.acceptor_hello = bytes.into();
                let mac = machine.transcript.sign(&machine.secret, Phase::Proof, Role::Dialer, &[]);
                HandshakeFrame::Proof { mac: &mac }.encode(out);
                *state = Dialing::Proof;
                Ok(None)
            }
            (Dialing::Proof, HandshakeFrame::Proof { mac }) => {
                machine.transcript.verify(&machine.secret, Phase::Proof, Role::Acceptor, &[], mac)?;
                let (incarnation, link, resume) = (machine.me.incarnation, dial.link, dial.resume);
                let own = accept_numbers(incarnation, link, resume);
                let mac = machine.transcript.sign(&machine.secret, Phase::Accept, Role::Dialer, &[own]);
                let ResumeState { stream, expected } = resume;
                HandshakeFrame::Accept { incarnation, link, stream, expected, mac: &mac }.encode(out);
                *state = Dialing::Accept { own };
                Ok(None)
            }
            (Dialing::Accept { own }, &HandshakeFrame::Accept { incarnation, link, stream, expected, mac }) => {
                let resume = ResumeState { stream, expected };
                let theirs = accept_numbers(incarnation, link, resume);
                machine.transcript.verify(&machine.secret, Phase::Accept, Role::Acceptor, &[*own, theirs], mac)?;
                check_incarnation(&dial.peer, dial.peer_incarnation_known, incarnation)?;
                if link != dial.link || stream == 0 {
                    return Err(HandshakeError::OutOfTurn);
                }
                let (peer, version) = (dial.peer.clone(), machine.transcript.version);
                Ok(Some(Established { peer, peer_incarnation: incarnation, version, link, resume }))
            }
            _ => Err(unexpected(&frame)),
        }
    }
}

/// How far the peer of an acceptor has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Progress {
    /// No Hello has come.
    Nothing,
    /// A Hello has come, which takes no secret.
    Hello,
    /// It has proved that it knows the secret.
    Proved,
}

/// How far an acceptor is.
#[derive(Debug)]
enum Accepting {
    Hello,
    Proof { peer: String },
    Accept { peer: String },
    Claimed { claim: Claim, theirs: [u8; ACCEPT_NUMBERS] },
    Ended,
}

/// A dialer that has proved itself, and what it asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Claim {
    pub(crate) peer: String,
    pub(crate) incarnation: u64,
    pub(crate) link: u16,
    pub(crate) resume: ResumeState,
}

/// What came out of some bytes at an acceptor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum AcceptorStep {
    /// More bytes are needed.
    More,
    /// The dialer has proved itself: to be answered by [`Acceptor::admit`] or [`Acceptor::refuse`], on the shard that
    /// has the link.
    Claimed(Claim),
}

/// The side that is dialed. It is plain data, so that it can follow its connection to the shard that has the link.
#[derive(Debug)]
pub(crate) struct Acceptor {
    machine: Machine,
    /// Those that the dialer may prove. The one it has proved is the machine's from then on.
    secrets: Arc<[ClusterSecret]>,
    state: Accepting,
    /// When it was first asked for its time in the present state, and that state.
    step: (Progress, u64),
}

impl Acceptor {
    /// Begins; says nothing before it has heard a Hello. `random` is 32 bytes that were never used before.
    pub(crate) fn new(known: Known, me: Identity, random: [u8; NONCE_BYTES], now_ms: u64, patience_ms: u64) -> Self {
        let Known { first, all: secrets } = known;
        let machine = Machine::new(first, me, &random, now_ms, patience_ms);
        Acceptor { machine, secrets, state: Accepting::Hello, step: (Progress::Nothing, now_ms) }
    }

    /// The error, once the deadline has passed, or the peer has not gone on for [`STEP_MS_MAX`]. To be asked for again
    /// and again.
    pub(crate) fn expired(&mut self, now_ms: u64) -> Option<HandshakeError> {
        let progress = self.progress();
        if self.step.0 != progress {
            self.step = (progress, now_ms);
        }
        let stands = progress < Progress::Proved && now_ms >= self.step.1.saturating_add(STEP_MS_MAX);
        let silent = stands.then_some(HandshakeError::Silent { after_ms: STEP_MS_MAX });
        self.machine.is_expired(now_ms).or(silent)
    }

    /// The keys for what follows; `None` if that is in clear. To be asked for when the dialer has been admitted.
    ///
    /// # Errors
    /// What the other side said gives no key.
    pub(crate) fn sealing(&self) -> Result<Option<Box<Sealing>>, HandshakeError> {
        self.machine.sealing(Role::Acceptor)
    }

    /// How far the peer has come.
    pub(crate) fn progress(&self) -> Progress {
        match self.state {
            Accepting::Hello => Progress::Nothing,
            Accepting::Proof { .. } => Progress::Hello,
            Accepting::Accept { .. } | Accepting::Claimed { .. } | Accepting::Ended => Progress::Proved,
        }
    }

    /// Takes bytes from the peer; appends what is to be sent. A dialer sends nothing between its Accept and ours.
    ///
    /// # Errors
    /// Whatever ends the handshake; a refusal for the peer is in `out` then.
    pub(crate) fn received(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<AcceptorStep, HandshakeError> {
        let result = self.advance(bytes, out);
        if let Err(error) = &result {
            self.state = Accepting::Ended;
            refusal(error, out);
        }
        result
    }

    /// Answers a claim: with the place in the stream that [`Link::answer`](super::link::Link::answer) gives, if the
    /// dialer's incarnation is not older than the highest one known of that node (0 for none).
    ///
    /// # Errors
    /// [`HandshakeError::StaleIncarnation`], or [`HandshakeError::OutOfTurn`] without a claim; a refusal for the peer
    /// is in `out` then.
    pub(crate) fn admit(
        &mut self,
        incarnation_known: u64,
        answer: ResumeState,
        out: &mut Vec<u8>,
    ) -> Result<Established, HandshakeError> {
        let Accepting::Claimed { claim, theirs } = std::mem::replace(&mut self.state, Accepting::Ended) else {
            return Err(self.refuse(HandshakeError::OutOfTurn, out));
        };
        if let Err(error) = check_incarnation(&claim.peer, incarnation_known, claim.incarnation) {
            return Err(self.refuse(error, out));
        }
        let Machine { secret, me, transcript, .. } = &self.machine;
        let own = accept_numbers(me.incarnation, claim.link, answer);
        let mac = transcript.sign(secret, Phase::Accept, Role::Acceptor, &[theirs, own]);
        let ResumeState { stream, expected } = answer;
        let (incarnation, link) = (me.incarnation, claim.link);
        HandshakeFrame::Accept { incarnation, link, stream, expected, mac: &mac }.encode(out);
        let expected = if claim.resume.stream == stream { claim.resume.expected } else { 0 };
        Ok(Established {
            peer: claim.peer,
            peer_incarnation: claim.incarnation,
            version: transcript.version,
            link,
            resume: ResumeState { stream, expected },
        })
    }

    /// Turns the dialer away, as for a name or a link that this node does not know: appends the refusal, and gives the
    /// error back.
    pub(crate) fn refuse(&mut self, error: HandshakeError, out: &mut Vec<u8>) -> HandshakeError {
        self.state = Accepting::Ended;
        refusal(&error, out);
        error
    }

    /// The incarnation this side says it is.
    pub(crate) fn incarnation(&self) -> u64 {
        self.machine.me.incarnation
    }

    /// What the dialer asks for, if it has proved itself and was not answered yet.
    pub(crate) fn claim(&self) -> Option<&Claim> {
        match &self.state {
            Accepting::Claimed { claim, .. } => Some(claim),
            _ => None,
        }
    }

    fn advance(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<AcceptorStep, HandshakeError> {
        let mut rest = bytes;
        if matches!(self.state, Accepting::Ended | Accepting::Claimed { .. }) {
            return Err(HandshakeError::OutOfTurn);
        }
        while let Some(frame) = self.machine.frame(&mut rest)? {
            if let Some(claim) = self.frame(&frame, out)? {
                return if rest.is_empty() { Ok(AcceptorStep::Claimed(claim)) } else { Err(HandshakeError::OutOfTurn) };
            }
        }
        Ok(AcceptorStep::More)
    }

    fn frame(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<Option<Claim>, HandshakeError> {
        let Acceptor { machine, secrets, state, .. } = self;
        let frame = parse(bytes)?;
        match (&mut *state, &frame) {
            (Accepting::Hello, _) => {
                let peer = machine.check_hello(&frame)?;
                if peer > machine.me.name {
                    return Err(HandshakeError::WrongDirection { dialer: peer, acceptor: machine.me.name.clone() });
                }
                machine.transcript.dialer_hello = bytes.into();
                machine.transcript.acceptor_hello = machine.hello(machine.transcript.version);
                out.extend_from_slice(&machine.transcript.acceptor_hello);
                *state = Accepting::Proof { peer };
                Ok(None)
            }
            (Accepting::Proof { peer }, HandshakeFrame::Proof { mac }) => {
                let proves = |secret: &&ClusterSecret| {
                    machine.transcript.verify(secret, Phase::Proof, Role::Dialer, &[], mac).is_ok()
                };
                // It is answered with what it has proved: that one it accepts too.
                machine.secret = secrets.iter().find(proves).ok_or(HandshakeError::WrongSecret)?.clone();
                let mac = machine.transcript.sign(&machine.secret, Phase::Proof, Role::Acceptor, &[]);
                HandshakeFrame::Proof { mac: &mac }.encode(out);
                *state = Accepting::Accept { peer: std::mem::take(peer) };
                Ok(None)
            }
            (Accepting::Accept { peer }, &HandshakeFrame::Accept { incarnation, link, stream, expected, mac }) => {
                let resume = ResumeState { stream, expected };
                let theirs = accept_numbers(incarnation, link, resume);
                machine.transcript.verify(&machine.secret, Phase::Accept, Role::Dialer, &[theirs], mac)?;
                let claim = Claim { peer: std::mem::take(peer), incarnation, link, resume };
                *state = Accepting::Claimed { claim: claim.clone(), theirs };
                Ok(Some(claim))
            }
            _ => Err(unexpected(&frame)),
        }
    }
}
