//! Why a handshake failed. Every text names the fix, because an operator reads it in the log.

use super::{SECRET_BYTES_MAX, SECRET_BYTES_MIN, Versions};
use crate::mesh::wire::{HELLO_BYTES_MAX, HandshakeFrame, MeshViolation, REFUSE_TEXT_BYTES_MAX};
use std::fmt;

/// A secret that cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SecretError {
    TooShort { length: usize },
    TooLong { length: usize },
}

impl fmt::Display for SecretError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (length, what) = match self {
            SecretError::TooShort { length } => (length, "short"),
            SecretError::TooLong { length } => (length, "long"),
        };
        write!(
            f,
            "the cluster secret has {length} bytes, which is too {what}: put {SECRET_BYTES_MIN} to {SECRET_BYTES_MAX} \
             random bytes into the file named by --cluster-secret-file, the same on every node"
        )
    }
}

impl std::error::Error for SecretError {}

/// Why there is no link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HandshakeError {
    /// The other side's mac is not what the secret gives.
    WrongSecret,
    /// No version is spoken by both.
    Version { own: Versions, theirs: Versions },
    /// The other side has this node's name.
    OwnName { name: String },
    /// Another node answered than the one that was dialed, or a node dialed that is no member.
    UnexpectedName { expected: String, name: String },
    /// A node that is not in the view dialed.
    UnknownName { name: String },
    /// The node whose name sorts first dials, and this was not it.
    WrongDirection { dialer: String, acceptor: String },
    /// A link with this number is not between these two nodes.
    UnknownLink { link: u16, links: u16 },
    /// A later life of that node has been seen.
    StaleIncarnation { name: String, known: u64, incarnation: u64 },
    /// The node that was dialed is in a later life than the view has.
    LaterIncarnation { name: String, known: u64, incarnation: u64 },
    /// What came is not the mesh protocol.
    NotMesh,
    /// The first frame is longer than any Hello.
    HelloTooLong { length: u32 },
    /// A frame that breaks the protocol.
    Malformed(MeshViolation),
    /// A frame that does not belong here.
    OutOfTurn,
    /// All places for handshakes were taken, and others came first.
    GaveWay,
    /// The handshake took too long.
    Silent { after_ms: u64 },
    /// The other side has refused, for this reason and with this text.
    Refused { code: u16, text: String },
}

impl HandshakeError {
    /// The number in a Refuse.
    pub(crate) const fn code(&self) -> u16 {
        match self {
            HandshakeError::WrongSecret => 1,
            HandshakeError::Version { .. } => 2,
            HandshakeError::OwnName { .. } => 3,
            HandshakeError::UnexpectedName { .. } => 4,
            HandshakeError::StaleIncarnation { .. } => 5,
            HandshakeError::NotMesh => 6,
            HandshakeError::HelloTooLong { .. } => 7,
            HandshakeError::Malformed(_) => 8,
            HandshakeError::OutOfTurn => 9,
            HandshakeError::Silent { .. } => 10,
            HandshakeError::WrongDirection { .. } => 11,
            HandshakeError::UnknownName { .. } => 12,
            HandshakeError::UnknownLink { .. } => 13,
            HandshakeError::LaterIncarnation { .. } => 14,
            HandshakeError::GaveWay => 15,
            HandshakeError::Refused { code, .. } => *code,
        }
    }

    /// A name for the reason, fit for a metric label.
    pub(crate) const fn label(&self) -> &'static str {
        match self {
            HandshakeError::WrongSecret => "wrong_secret",
            HandshakeError::Version { .. } => "version",
            HandshakeError::OwnName { .. } => "own_name",
            HandshakeError::UnexpectedName { .. } => "unexpected_name",
            HandshakeError::StaleIncarnation { .. } => "stale_incarnation",
            HandshakeError::LaterIncarnation { .. } => "later_incarnation",
            HandshakeError::NotMesh => "not_mesh",
            HandshakeError::HelloTooLong { .. } => "hello_too_long",
            HandshakeError::Malformed(_) => "malformed",
            HandshakeError::OutOfTurn => "out_of_turn",
            HandshakeError::GaveWay => "gave_way",
            HandshakeError::Silent { .. } => "silent",
            HandshakeError::WrongDirection { .. } => "wrong_direction",
            HandshakeError::UnknownName { .. } => "unknown_name",
            HandshakeError::UnknownLink { .. } => "unknown_link",
            HandshakeError::Refused { .. } => "refused",
        }
    }

    /// From a Refuse, whose text may come from anybody: what does not belong on a line of a log is taken out.
    pub(super) fn refused(code: u16, text: &[u8]) -> Self {
        let text = String::from_utf8_lossy(text);
        let text = text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect();
        HandshakeError::Refused { code, text }
    }
}

impl From<MeshViolation> for HandshakeError {
    fn from(violation: MeshViolation) -> Self {
        HandshakeError::Malformed(violation)
    }
}

impl fmt::Display for HandshakeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HandshakeError::WrongSecret => {
                write!(f, "the cluster secrets differ: give every node the same file with --cluster-secret-file")
            }
            HandshakeError::Version { own, theirs } => write!(
                f,
                "no common version of the mesh protocol (here {} to {}, there {} to {}): upgrade the older node",
                own.min, own.max, theirs.min, theirs.max
            ),
            HandshakeError::OwnName { name } => write!(
                f,
                "both sides are named {name:?}: give each node its own --node, and check that --mesh of another node \
                 does not lead back here"
            ),
            HandshakeError::UnexpectedName { expected, name } => write!(
                f,
                "{name:?} answered in place of {expected:?}: check --mesh of {expected:?}, which has to be an address \
                 of that node alone"
            ),
            HandshakeError::UnknownName { name } => write!(
                f,
                "node {name:?} is not a member here: check that both nodes use the same --redis, then it is let in \
                 with the next view"
            ),
            HandshakeError::WrongDirection { dialer, acceptor } => write!(
                f,
                "{dialer:?} dialed {acceptor:?}, but the node whose name sorts first dials: upgrade both nodes to one \
                 release"
            ),
            HandshakeError::UnknownLink { link, links } => write!(
                f,
                "link {link} was dialed, but {links} are between the two nodes: the views differ; try again when both \
                 know each other's --shards"
            ),
            HandshakeError::StaleIncarnation { name, known, incarnation } => write!(
                f,
                "{name:?} came with incarnation {incarnation}, but {known} is known: an old process still runs, or two \
                 share the name; stop it or give it its own --node"
            ),
            HandshakeError::LaterIncarnation { name, known, incarnation } => write!(
                f,
                "{name:?} has come back as incarnation {incarnation}, but {known} is known here: the link follows with \
                 the next view; if none comes, check that both nodes use the same --redis"
            ),
            HandshakeError::NotMesh => {
                write!(
                    f,
                    "not the mesh protocol: check that only gateways reach this port, and that --mesh is a mesh address"
                )
            }
            HandshakeError::HelloTooLong { length } => write!(
                f,
                "a first frame of {length} bytes, more than {HELLO_BYTES_MAX}: check that the other side is a gateway, \
                 and upgrade it"
            ),
            HandshakeError::Malformed(violation) => write!(f, "{violation}: upgrade both nodes to one release"),
            HandshakeError::OutOfTurn => {
                write!(f, "a frame of the handshake came out of turn: upgrade both nodes to one release")
            }
            HandshakeError::GaveWay => {
                write!(
                    f,
                    "too many connections are in their handshake: see who connects to the mesh port, and let only \
                     gateways reach it"
                )
            }
            HandshakeError::Silent { after_ms } => write!(
                f,
                "no handshake within {after_ms} ms: check that --mesh leads to a gateway and that no firewall holds \
                 its answers back"
            ),
            HandshakeError::Refused { code, text } => write!(f, "the other node refused ({code}): {text}"),
        }
    }
}

impl std::error::Error for HandshakeError {}

/// Appends the refusal that answers an error; nothing where the other side has refused itself or speaks another
/// protocol.
pub(crate) fn refusal(error: &HandshakeError, out: &mut Vec<u8>) {
    if matches!(error, HandshakeError::Refused { .. } | HandshakeError::NotMesh) {
        return;
    }
    // Before it has proved itself, the other side learns no name but this node's own.
    let text = match error {
        HandshakeError::UnexpectedName { .. } => "another node was dialed: check --mesh of each node".into(),
        _ => error.to_string(),
    };
    let end = text.floor_char_boundary(REFUSE_TEXT_BYTES_MAX);
    HandshakeFrame::Refuse { code: error.code(), text: &text.as_bytes()[..end] }.encode(out);
}
