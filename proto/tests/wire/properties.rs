//! What holds for all frames, messages and bytes.

use std::fmt::Debug;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use trunkline_proto::prost::Message;
use trunkline_proto::{
    Bye, Decoder, FRAME_BYTES_MAX_DEFAULT, HEADER_LONG, Header, Kind, Login, LoginOk, Presence, Sync, SyncOk,
    UserState, Watch, decode, encode, encode_message, encoded_len, fuzz,
};

fn any_header() -> impl Strategy<Value = Header> {
    let numbers = any::<(u8, u16, u64, u64, u64)>();
    (select(Kind::ALL), numbers).prop_map(|(kind, (flags, aux, id, peer, stamp))| {
        let long = kind.header_len() == HEADER_LONG;
        let if_long = |field| if long { field } else { 0 };
        Header { kind, flags, aux, id: if_long(id), peer: if_long(peer), stamp: if_long(stamp) }
    })
}

fn any_frames() -> impl Strategy<Value = Vec<(Header, Vec<u8>)>> {
    vec((any_header(), vec(any::<u8>(), 0..300)), 0..20)
}

prop_compose! {
    fn any_login()(
        (version, user, last_stamp, heartbeat_secs) in any::<(u32, u64, u64, u32)>(),
        (window, ephemeral) in any::<(u32, bool)>(),
        (token, device, device_class, agent) in any::<(String, String, String, String)>(),
        resume in vec(any::<u8>(), 0..64),
    ) -> Login {
        Login {
            version, user, token, device, device_class, agent, resume, last_stamp, heartbeat_secs, window, ephemeral,
        }
    }
}

prop_compose! {
    fn any_login_ok()(
        (session, shard, heartbeat_secs, time_ms) in any::<(u64, u32, u32, u64)>(),
        (node, resumed, max_frame, pending, expires_ms) in any::<(String, bool, u32, u64, u64)>(),
        (floor, last, truncated) in any::<(u64, u64, bool)>(),
        resume in vec(any::<u8>(), 0..64),
    ) -> LoginOk {
        LoginOk {
            session, node, shard, heartbeat_secs, time_ms, resume, resumed, max_frame, pending, floor, last, truncated,
            expires_ms,
        }
    }
}

prop_compose! {
    fn any_bye()((reconnect_after_ms, redirect, text) in any::<(u32, String, String)>()) -> Bye {
        Bye { reconnect_after_ms, redirect, text }
    }
}

prop_compose! {
    fn any_sync()((after_stamp, since_ms, limit, group) in any::<(u64, u64, u32, u64)>()) -> Sync {
        Sync { after_stamp, since_ms, limit, group }
    }
}

prop_compose! {
    fn any_sync_ok()(
        (next_stamp, complete, truncated) in any::<(u64, bool, bool)>(),
        (group, floor, last) in any::<(u64, u64, u64)>(),
    ) -> SyncOk {
        SyncOk { next_stamp, complete, truncated, group, floor, last }
    }
}

prop_compose! {
    fn any_watch()(users in vec(any::<u64>(), 0..50), follow in any::<bool>()) -> Watch {
        Watch { users, follow }
    }
}

prop_compose! {
    fn any_user_state()(
        (user, online, since_ms, unknown) in any::<(u64, bool, u64, bool)>(),
        device_classes in vec(any::<String>(), 0..5),
    ) -> UserState {
        UserState { user, online, device_classes, since_ms, unknown }
    }
}

prop_compose! {
    fn any_presence()(users in vec(any_user_state(), 0..10)) -> Presence {
        Presence { users }
    }
}

fn comes_back<M: Message + Default + PartialEq + Debug>(
    kind: Kind,
    aux: u16,
    message: &M,
) -> Result<(), TestCaseError> {
    let mut bytes = Vec::new();
    encode_message(&mut bytes, kind, aux, message);
    prop_assert_eq!(bytes.len(), encoded_len(kind, message.encoded_len()));
    let Ok(Some((frame, consumed))) = decode(&bytes, FRAME_BYTES_MAX_DEFAULT) else {
        return Err(TestCaseError::fail("no whole frame"));
    };
    prop_assert_eq!(consumed, bytes.len());
    prop_assert_eq!((frame.known(), frame.flags, frame.aux), (Some(kind), 0, aux));
    let again = M::decode(frame.body);
    prop_assert_eq!(again.as_ref(), Ok(message));
    Ok(())
}

proptest! {
    #[test]
    fn frames_come_back_as_they_went_in(frames in any_frames()) {
        let mut bytes = Vec::new();
        for (header, body) in &frames {
            encode(&mut bytes, header, body);
        }
        let mut decoder = Decoder::new(&bytes, FRAME_BYTES_MAX_DEFAULT);
        for (header, body) in &frames {
            let Some(Ok(frame)) = decoder.next() else {
                return Err(TestCaseError::fail("a frame is missing"));
            };
            prop_assert_eq!(frame.known(), Some(header.kind));
            prop_assert_eq!((frame.flags, frame.aux), (header.flags, header.aux));
            prop_assert_eq!(
                (frame.id, frame.peer, frame.stamp),
                (header.id, header.peer, header.stamp)
            );
            prop_assert_eq!(frame.body, &body[..]);
        }
        prop_assert_eq!(decoder.next(), None);
        prop_assert_eq!(decoder.consumed(), bytes.len());
    }

    #[test]
    fn control_messages_come_back_as_they_went_in(
        aux in any::<u16>(),
        (login, login_ok, bye) in (any_login(), any_login_ok(), any_bye()),
        (sync, sync_ok) in (any_sync(), any_sync_ok()),
        (watch, presence) in (any_watch(), any_presence()),
    ) {
        comes_back(Kind::Login, aux, &login)?;
        comes_back(Kind::LoginOk, aux, &login_ok)?;
        comes_back(Kind::Bye, aux, &bye)?;
        comes_back(Kind::Sync, aux, &sync)?;
        comes_back(Kind::SyncOk, aux, &sync_ok)?;
        comes_back(Kind::Watch, aux, &watch)?;
        comes_back(Kind::Unwatch, aux, &watch)?;
        comes_back(Kind::Presence, aux, &presence)?;
    }

    #[test]
    fn any_bytes_decode_alike_in_one_piece_and_in_many(bytes in vec(any::<u8>(), 0..500)) {
        fuzz::decode_stream(&bytes);
    }

    /// Damage to good frames reaches further than noise does, which ends at its first length.
    #[test]
    fn damaged_frames_decode_alike_in_one_piece_and_in_many(
        frames in any_frames(),
        pick in any::<[u8; 2]>(),
        damage in vec(any::<(prop::sample::Index, u8)>(), 0..4),
    ) {
        let mut bytes = pick.to_vec();
        for (header, body) in &frames {
            encode(&mut bytes, header, body);
        }
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        fuzz::decode_stream(&bytes);
    }
}
