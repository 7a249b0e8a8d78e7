//! The numbers of the protocol description, one by one.

use std::collections::HashSet;

use trunkline_proto::{
    Code, DEVICE_BYTES_MAX, FRAME_BYTES_MAX_DEFAULT, FRAME_BYTES_MAX_FLOOR, FRAME_BYTES_MAX_LIMIT, HEADER_LONG,
    HEADER_SHORT, Kind, Outcome, SERVICE_USERS, VERSION, call_flags, flags,
};

#[test]
fn kinds_have_the_numbers_names_and_headers_of_the_protocol() {
    let table = [
        (0x01, Kind::Login, "LOGIN", 8),
        (0x02, Kind::Ping, "PING", 8),
        (0x03, Kind::Send, "SEND", 32),
        (0x04, Kind::GroupSend, "GROUP_SEND", 32),
        (0x05, Kind::Call, "CALL", 32),
        (0x06, Kind::Ack, "ACK", 32),
        (0x07, Kind::Sync, "SYNC", 8),
        (0x08, Kind::GroupJoin, "GROUP_JOIN", 32),
        (0x09, Kind::GroupLeave, "GROUP_LEAVE", 32),
        (0x0A, Kind::Watch, "WATCH", 8),
        (0x0B, Kind::Unwatch, "UNWATCH", 8),
        (0x0C, Kind::Claim, "CLAIM", 32),
        (0x0D, Kind::Mark, "MARK", 32),
        (0x0E, Kind::Renew, "RENEW", 8),
        (0x0F, Kind::Logout, "LOGOUT", 8),
        (0x20, Kind::Serve, "SERVE", 8),
        (0x21, Kind::Answer, "ANSWER", 32),
        (0x22, Kind::PushTo, "PUSH_TO", 32),
        (0x23, Kind::Window, "WINDOW", 8),
        (0x81, Kind::LoginOk, "LOGIN_OK", 8),
        (0x82, Kind::Pong, "PONG", 8),
        (0x83, Kind::Deliver, "DELIVER", 32),
        (0x84, Kind::GroupDeliver, "GROUP_DELIVER", 32),
        (0x85, Kind::Reply, "REPLY", 32),
        (0x86, Kind::Sent, "SENT", 32),
        (0x87, Kind::Push, "PUSH", 32),
        (0x88, Kind::Bye, "BYE", 8),
        (0x89, Kind::SyncOk, "SYNC_OK", 8),
        (0x8A, Kind::Presence, "PRESENCE", 8),
        (0x8B, Kind::GroupOk, "GROUP_OK", 32),
        (0x8C, Kind::Heads, "HEADS", 8),
        (0x8F, Kind::Error, "ERROR", 32),
        (0xA0, Kind::ServeOk, "SERVE_OK", 8),
        (0xA1, Kind::Request, "REQUEST", 32),
        (0xA2, Kind::Cancel, "CANCEL", 32),
        (0xA3, Kind::Pushed, "PUSHED", 32),
        (0xA4, Kind::Invite, "INVITE", 8),
    ];
    for (number, kind, name, header_len) in table {
        assert_eq!(kind as u8, number);
        assert_eq!(Kind::from_u8(number), Some(kind));
        assert_eq!((kind.name(), kind.header_len()), (name, header_len));
        assert_eq!(kind.from_client(), number < 0x80, "{name}");
    }
    assert_eq!(table.map(|(_, kind, ..)| kind), Kind::ALL);
    let known = (0..=255).filter_map(Kind::from_u8);
    assert!(known.eq(Kind::ALL.iter().copied()));
}

#[test]
fn codes_have_the_numbers_of_the_protocol() {
    let table = [
        (1, Code::MalformedFrame),
        (2, Code::FrameTooLarge),
        (3, Code::UnknownKind),
        (4, Code::NotLoggedIn),
        (5, Code::AlreadyLoggedIn),
        (6, Code::BadCredentials),
        (7, Code::UnsupportedVersion),
        (8, Code::Replaced),
        (9, Code::Idle),
        (10, Code::TooSlow),
        (11, Code::RateLimited),
        (12, Code::Draining),
        (13, Code::Moved),
        (14, Code::Overloaded),
        (15, Code::Kicked),
        (16, Code::Internal),
        (17, Code::UnknownService),
        (18, Code::ServiceUnavailable),
        (19, Code::NotAMember),
        (20, Code::BadRequest),
        (21, Code::Unsupported),
        (22, Code::LimitReached),
        (23, Code::Muted),
        (24, Code::TimedOut),
        (25, Code::OutcomeUnknown),
        (26, Code::NotAllowed),
    ];
    for (number, code) in table {
        assert_eq!(code.as_u16(), number);
        assert_eq!(Code::from_u16(number), Some(code));
    }
    assert_eq!(table.map(|(_, code)| code), Code::ALL);
    let known = (0..=u16::MAX).filter_map(Code::from_u16);
    assert!(known.eq(Code::ALL.iter().copied()));
}

#[test]
fn outcomes_have_the_numbers_of_the_protocol() {
    let table = [
        (0, Outcome::Delivered),
        (1, Outcome::Stored),
        (2, Outcome::OfflineNotStored),
        (3, Outcome::Overloaded),
        (4, Outcome::Denied),
        (5, Outcome::InboxFull),
        (6, Outcome::Accepted),
        (7, Outcome::Expired),
    ];
    for (number, outcome) in table {
        assert_eq!(outcome.as_u16(), number);
        assert_eq!(Outcome::from_u16(number), Some(outcome));
    }
    assert_eq!(table.map(|(_, outcome)| outcome), Outcome::ALL);
    let known = (0..=u16::MAX).filter_map(Outcome::from_u16);
    assert!(known.eq(Outcome::ALL.iter().copied()));
}

#[test]
fn every_code_has_a_short_sentence_of_its_own() {
    let mut seen = HashSet::new();
    for code in Code::ALL {
        let text = code.text();
        assert!(text.ends_with('.') && text.len() <= 80, "{text}");
        assert!(seen.insert(text), "{text} is said twice");
    }
}

#[test]
fn flags_and_limits_have_the_values_of_the_protocol() {
    assert_eq!((flags::ACK, flags::NO_STORE, flags::RETRY), (0x01, 0x02, 0x04));
    assert_eq!(flags::CUMULATIVE, 0x01);
    assert_eq!((flags::AGAIN, flags::REPLAY, flags::SELF), (0x02, 0x04, 0x08));
    assert_eq!((call_flags::SAFE, call_flags::NO_REPLY, call_flags::TRACE), (0x01, 0x02, 0x04));
    assert_eq!((call_flags::MORE, call_flags::NOT_BEGUN), (0x01, 0x02));
    assert_eq!((call_flags::AGAIN, call_flags::HEAD, call_flags::TRACE_BYTES), (0x01, 0x04, 25));
    assert_eq!(SERVICE_USERS, 0xFFFF_FFFF_FFFF_0000);
    assert_eq!((VERSION, DEVICE_BYTES_MAX), (1, 64));
    assert_eq!((HEADER_SHORT, HEADER_LONG), (8, 32));
    assert_eq!(FRAME_BYTES_MAX_FLOOR, 1_024);
    assert_eq!(FRAME_BYTES_MAX_DEFAULT, 65_536);
    assert_eq!(FRAME_BYTES_MAX_LIMIT, 16 * 1_024 * 1_024 - 1);
}
