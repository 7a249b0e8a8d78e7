//! The kinds of frame.

/// Bytes of the header of a short kind; also the length of the shortest frame.
pub const HEADER_SHORT: usize = 8;

/// Bytes of the header of a long kind.
pub const HEADER_LONG: usize = 32;

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident = $number:literal, $name:literal, $header_len:ident;)*) => {
        /// What a frame is for. Numbers from 0x80 up come from the server.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum Kind {
            $($(#[$doc])* $kind = $number,)*
        }

        impl Kind {
            /// Every kind, by rising number.
            pub const ALL: &[Kind] = &[$(Kind::$kind),*];

            /// The name in the protocol description, such as `GROUP_SEND`; also fit for a metric label.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Kind::$kind => $name,)*
                }
            }
        }

        /// The kind of each number. A load, where a match over two runs of numbers costs an indirect jump a frame.
        static KINDS: [Option<Kind>; 256] = {
            let mut kinds = [None; 256];
            $(kinds[Kind::$kind as usize] = Some(Kind::$kind);)*
            kinds
        };

        /// The length of header of each kind, by number; a load for the same reason.
        static HEADER_LENS: [u8; 256] = {
            let mut lens = [0; 256];
            $(lens[Kind::$kind as usize] = $header_len as u8;)*
            lens
        };
    };
}

kinds! {
    /// Body [`Login`](crate::Login): the first frame on every connection, once.
    Login = 0x01, "LOGIN", HEADER_SHORT;
    /// Sign of life at any time; `aux` is echoed in [`Kind::Pong`].
    Ping = 0x02, "PING", HEADER_SHORT;
    /// Client to client: `peer` is the recipient, `id` the sender's own message id (never 0), the body is opaque.
    Send = 0x03, "SEND", HEADER_LONG;
    /// Client to group: `peer` is the group, else as [`Kind::Send`].
    GroupSend = 0x04, "GROUP_SEND", HEADER_LONG;
    /// Client to service: `aux` is the service number, `id` the request id.
    Call = 0x05, "CALL", HEADER_LONG;
    /// The client has the message with this `stamp`; `id` and `peer` as delivered. No body. With
    /// [`flags::CUMULATIVE`](crate::flags::CUMULATIVE) all before it too.
    Ack = 0x06, "ACK", HEADER_LONG;
    /// Body [`Sync`](crate::Sync): replay the inbox, or a group, from a position or a time.
    Sync = 0x07, "SYNC", HEADER_SHORT;
    /// Join the group `peer`; `id` comes back in [`Kind::GroupOk`]. No body.
    GroupJoin = 0x08, "GROUP_JOIN", HEADER_LONG;
    /// Leave the group `peer`. No body.
    GroupLeave = 0x09, "GROUP_LEAVE", HEADER_LONG;
    /// Body [`Watch`](crate::Watch): presence of some users, once or until [`Kind::Unwatch`].
    Watch = 0x0A, "WATCH", HEADER_SHORT;
    /// Body [`Watch`](crate::Watch): ends what [`Kind::Watch`] began.
    Unwatch = 0x0B, "UNWATCH", HEADER_SHORT;
    /// Claim `aux` pieces of the item `peer`; `id` is the request id.
    Claim = 0x0C, "CLAIM", HEADER_LONG;
    /// The user has read the group `peer` up to `stamp`. Cumulative, no answer, no body.
    Mark = 0x0D, "MARK", HEADER_LONG;
    /// Body [`Login`](crate::Login) with a new token and the same user: the session lasts as long as that one. Answered
    /// with
    /// [`Kind::LoginOk`], or an error, and then the old token stands.
    Renew = 0x0E, "RENEW", HEADER_SHORT;
    /// The server closes the connection; the session is not resumed.
    Logout = 0x0F, "LOGOUT", HEADER_SHORT;

    /// Body [`Serve`](crate::Serve): the first frame of a worker on the services' port, once.
    Serve = 0x20, "SERVE", HEADER_SHORT;
    /// Worker to gateway: answers [`Kind::Request`] with the same `id`; `aux` is 0 or 256 and up.
    Answer = 0x21, "ANSWER", HEADER_LONG;
    /// Worker to gateway: a message for the user `peer` from the service `aux`; `id` is the service's own.
    PushTo = 0x22, "PUSH_TO", HEADER_LONG;
    /// Worker to gateway: `aux` is the number of requests that this link takes at once; 0 drains it.
    Window = 0x23, "WINDOW", HEADER_SHORT;

    /// Body [`LoginOk`](crate::LoginOk).
    LoginOk = 0x81, "LOGIN_OK", HEADER_SHORT;
    /// Answer to [`Kind::Ping`] with the same `aux`.
    Pong = 0x82, "PONG", HEADER_SHORT;
    /// A message: `peer` is the sender, `id` the sender's id, `stamp` the position in this user's inbox.
    Deliver = 0x83, "DELIVER", HEADER_LONG;
    /// A message to the group `peer`. The body starts with 8 bytes: the sending user, big-endian. So it is 8 bytes
    /// longer than the [`Kind::GroupSend`] it comes from.
    GroupDeliver = 0x84, "GROUP_DELIVER", HEADER_LONG;
    /// Answer to [`Kind::Call`] or [`Kind::Claim`] with the same `id`; `aux` is the status.
    Reply = 0x85, "REPLY", HEADER_LONG;
    /// Fate of a message that carried [`flags::ACK`](crate::flags::ACK): same `id` and `peer`, `aux` is an
    /// [`Outcome`](crate::Outcome).
    Sent = 0x86, "SENT", HEADER_LONG;
    /// Service to client: `aux` is the service number, `id` the service's message id, `stamp` as in [`Kind::Deliver`].
    Push = 0x87, "PUSH", HEADER_LONG;
    /// Body [`Bye`](crate::Bye), `aux` is a [`Code`](crate::Code): the server closes after it.
    Bye = 0x88, "BYE", HEADER_SHORT;
    /// Body [`SyncOk`](crate::SyncOk): the end of one page of replay.
    SyncOk = 0x89, "SYNC_OK", HEADER_SHORT;
    /// Body [`Presence`](crate::Presence).
    Presence = 0x8A, "PRESENCE", HEADER_SHORT;
    /// A join or leave took effect; `id` and `peer` as asked, `stamp` is that of the group's last message.
    GroupOk = 0x8B, "GROUP_OK", HEADER_LONG;
    /// Body [`Heads`](crate::Heads): groups with news that was not sent.
    Heads = 0x8C, "HEADS", HEADER_SHORT;
    /// `aux` is a [`Code`](crate::Code), `id` and `peer` those of the frame that caused it or 0, the body is UTF-8 text
    /// for a person.
    Error = 0x8F, "ERROR", HEADER_LONG;

    /// Body [`ServeOk`](crate::ServeOk): answers [`Kind::Serve`].
    ServeOk = 0xA0, "SERVE_OK", HEADER_SHORT;
    /// Gateway to worker: a [`Kind::Call`] of the user `peer` for the service `aux`; `id` names it on this link,
    /// `stamp` is the `id` that the client gave it.
    Request = 0xA1, "REQUEST", HEADER_LONG;
    /// Gateway to worker: nobody waits for the answer to the request `id` any more. No body.
    Cancel = 0xA2, "CANCEL", HEADER_LONG;
    /// Gateway to worker: the fate of a [`Kind::PushTo`] that carried [`flags::ACK`](crate::flags::ACK): same `id` and
    /// `peer`, `aux` is an [`Outcome`](crate::Outcome).
    Pushed = 0xA3, "PUSHED", HEADER_LONG;
    /// Body [`Invite`](crate::Invite): the first frame on a connection that the gateway has made to a server; answered
    /// with [`Kind::Serve`].
    Invite = 0xA4, "INVITE", HEADER_SHORT;
}

impl Kind {
    /// The kind with this number on the wire, if there is one.
    #[inline]
    pub const fn from_u8(number: u8) -> Option<Kind> {
        KINDS[number as usize]
    }

    /// Bytes before the body: [`HEADER_SHORT`] or [`HEADER_LONG`].
    #[inline]
    pub const fn header_len(self) -> usize {
        HEADER_LENS[self as usize] as usize
    }

    /// Whether clients send it; the others come from the server.
    #[inline]
    pub const fn from_client(self) -> bool {
        (self as u8) < 0x80
    }
}
