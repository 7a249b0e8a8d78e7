//! An event: its types, its bytes on the way and in the log, and what a receiver gets.

use super::LANES;
use crate::reason::CloseReason;
use serde_json::{Map, Value, json};
use trunkline_proto::{Outcome, SERVICE_USERS};
use trunkline_router_core::hash::user_hash;

macro_rules! event_kinds {
    ($($(#[$doc:meta])* $name:ident => $text:literal;)*) => {
        /// What happened.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum EventKind { $($(#[$doc])* $name,)* }

        impl EventKind {
            /// All of them, in the order of their numbers, which stand in logs: new ones come last.
            pub const ALL: &[EventKind] = &[$(EventKind::$name,)*];

            /// The type as receivers and the configuration have it.
            pub const fn text(self) -> &'static str {
                match self { $(EventKind::$name => $text,)* }
            }
        }
    };
}

event_kinds! {
    /// Events were lost, or could not be delivered.
    Gap => "events.gap";
    /// A user has a session, and had none.
    UserOnline => "user.online";
    /// A user has had no session for a while.
    UserOffline => "user.offline";
    /// A session has begun.
    SessionLogin => "session.login";
    /// A session has ended.
    SessionLogout => "session.logout";
    /// A client has sent a message to a user.
    MessageSent => "message.sent";
    /// The store has a message for a user.
    MessageStored => "message.stored";
    /// It is known what became of a push by HTTP.
    PushOutcome => "push.outcome";
    /// A node of the cluster has gone without a word.
    NodeLost => "node.lost";
    /// This node has begun to serve.
    NodeStarted => "node.started";
}

/// Number of types.
pub const KINDS: usize = EventKind::ALL.len();

impl EventKind {
    pub fn from_u8(number: u8) -> Option<Self> {
        EventKind::ALL.get(usize::from(number)).copied()
    }
}

/// A set of types.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wants(u16);

const _: () = assert!(KINDS <= 16);

impl Wants {
    /// Those of a pattern: a type, the first word of types and `.*`, or `*`. `None` if there is none like that.
    pub fn of(pattern: &str) -> Option<Self> {
        let fits = |kind: &EventKind| match pattern.strip_suffix('*') {
            Some("") => true,
            Some(start) => start.ends_with('.') && kind.text().starts_with(start),
            None => kind.text() == pattern,
        };
        let bits = EventKind::ALL.iter().filter(|kind| fits(kind)).fold(0, |bits, kind| bits | 1 << *kind as u8);
        (bits != 0).then_some(Wants(bits))
    }

    /// Both.
    #[must_use]
    pub const fn or(self, other: Wants) -> Wants {
        Wants(self.0 | other.0)
    }

    /// Whether a type is among them.
    #[inline]
    pub const fn has(self, kind: EventKind) -> bool {
        self.0 >> kind as u8 & 1 == 1
    }
}

/// What happened. Which fields mean something depends on the type; the others are 0 or empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event<'a> {
    pub kind: EventKind,
    /// A reason, an outcome, flags, or of a gap the type that is missing.
    pub aux: u16,
    /// Bytes of a payload.
    pub size: u32,
    /// When, milliseconds since the Unix epoch.
    pub time_ms: u64,
    /// Whose event it is: that decides the lane. Of a gap, the lane.
    pub user: u64,
    /// Another user or a service; of a user who went, since when, milliseconds since the Unix epoch.
    pub peer: u64,
    /// A message or a session; of a gap, how many.
    pub id: u64,
    /// A position in an inbox; of a gap, the time of the first that is missing.
    pub stamp: u64,
    pub device: &'a str,
    pub class: &'a str,
    /// Where somebody is, or what a node is called.
    pub place: &'a str,
}

/// Bytes of an event without its texts.
const HEAD_BYTES: usize = 4 + 1 + 1 + 2 + 4 + 5 * 8;
/// Longest text.
const TEXT_BYTES_MAX: usize = 255;
/// Bytes of the longest event.
pub const EVENT_BYTES_MAX: usize = HEAD_BYTES + 3 * (1 + TEXT_BYTES_MAX);
/// Bytes of an event without texts.
pub const EVENT_BYTES_LEAST: usize = HEAD_BYTES + 3;

/// As much of a text as fits.
fn cut(text: &str) -> &str {
    let mut end = text.len().min(TEXT_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

impl<'a> Event<'a> {
    /// One about a user or a node, of which nothing else is said yet.
    pub fn new(kind: EventKind, time_ms: u64, user: u64) -> Self {
        Event { kind, aux: 0, size: 0, time_ms, user, peer: 0, id: 0, stamp: 0, device: "", class: "", place: "" }
    }

    /// The lane it goes by.
    pub fn lane(&self) -> usize {
        match self.kind {
            EventKind::Gap => self.user as usize % LANES,
            _ => lane_of(self.user),
        }
    }

    pub fn encoded_len(&self) -> usize {
        let texts = [self.device, self.class, self.place];
        HEAD_BYTES + texts.iter().map(|text| 1 + cut(text).len()).sum::<usize>()
    }

    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&(self.encoded_len() as u32).to_le_bytes());
        out.extend_from_slice(&[self.kind as u8, 0]);
        out.extend_from_slice(&self.aux.to_le_bytes());
        out.extend_from_slice(&self.size.to_le_bytes());
        for number in [self.time_ms, self.user, self.peer, self.id, self.stamp] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        for text in [self.device, self.class, self.place] {
            let text = cut(text);
            out.push(text.len() as u8);
            out.extend_from_slice(text.as_bytes());
        }
    }

    /// The first event of these bytes, and how many are its own. `None` for what is none, as in a file that somebody
    /// has changed.
    pub fn decode(bytes: &'a [u8]) -> Option<(Self, usize)> {
        let half = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let word = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
        let len = half(0)? as usize;
        let own = bytes.get(..len)?;
        let mut rest = own.get(HEAD_BYTES..)?;
        let mut text = || {
            let (len, behind) = rest.split_first()?;
            let (text, behind) = behind.split_at_checked(usize::from(*len))?;
            rest = behind;
            std::str::from_utf8(text).ok()
        };
        let (device, class, place) = (text()?, text()?, text()?);
        let event = Event {
            kind: EventKind::from_u8(own[4])?,
            aux: u16::from_le_bytes([own[6], own[7]]),
            size: half(8)?,
            time_ms: word(12)?,
            user: word(20)?,
            peer: word(28)?,
            id: word(36)?,
            stamp: word(44)?,
            device,
            class,
            place,
        };
        Some((event, len))
    }

    /// As a CloudEvent with this id, from this node. Numbers that may be beyond 2^53 are texts.
    pub fn to_json(self, id: &str, node: &str) -> Value {
        let mut data = Map::new();
        let mut put = |key: &str, value: Value| drop(data.insert(key.to_owned(), value));
        let number = |number: u64| Value::String(number.to_string());
        let device = |put: &mut dyn FnMut(&str, Value)| {
            put("session", number(self.id));
            put("device", self.device.into());
            if !self.class.is_empty() {
                put("device_class", self.class.into());
            }
        };
        let sender = |put: &mut dyn FnMut(&str, Value)| match self.peer.checked_sub(SERVICE_USERS) {
            Some(service) => put("service", service.into()),
            None => put("from", number(self.peer)),
        };
        let mut subject = self.user.to_string();
        match self.kind {
            EventKind::Gap => {
                subject = format!("lane {}", self.user);
                put("count", number(self.id));
                put("from", rfc3339(self.stamp).into());
                put("to", rfc3339(self.time_ms).into());
                put("lane", self.user.into());
                put("type", EventKind::from_u8(self.aux as u8).map_or("", EventKind::text).into());
            }
            EventKind::UserOnline => put("user", number(self.user)),
            EventKind::UserOffline => {
                put("user", number(self.user));
                put("since", rfc3339(self.peer).into());
            }
            EventKind::SessionLogin | EventKind::SessionLogout => {
                put("user", number(self.user));
                device(&mut put);
                if !self.place.is_empty() {
                    put("address", self.place.into());
                }
                if self.kind == EventKind::SessionLogout {
                    let reason = CloseReason::ALL.get(usize::from(self.aux));
                    put("reason", reason.map_or("", |reason| reason.label()).into());
                }
            }
            EventKind::MessageSent => {
                put("from", number(self.user));
                put("to", number(self.peer));
                put("id", number(self.id));
                put("bytes", self.size.into());
                put("ack", (self.aux != 0).into());
            }
            EventKind::MessageStored => {
                put("to", number(self.user));
                sender(&mut put);
                put("id", number(self.id));
                put("position", number(self.stamp));
                put("bytes", self.size.into());
            }
            EventKind::PushOutcome => {
                put("user", number(self.user));
                put("id", number(self.id));
                let outcome = Outcome::from_u16(self.aux);
                put("outcome", outcome.map_or("", outcome_text).into());
            }
            EventKind::NodeLost | EventKind::NodeStarted => {
                let name = if self.kind == EventKind::NodeLost { self.place } else { node };
                subject = name.to_owned();
                put("node", name.into());
            }
        }
        json!({
            "specversion": "1.0",
            "id": id,
            "source": format!("/nodes/{node}"),
            "type": self.kind.text(),
            "subject": subject,
            "time": rfc3339(self.time_ms),
            "datacontenttype": "application/json",
            "data": data,
        })
    }
}

/// The lane of a user's events.
pub fn lane_of(user: u64) -> usize {
    (user_hash(user) % LANES as u64) as usize
}

fn outcome_text(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Delivered => "delivered",
        Outcome::Stored => "stored",
        Outcome::OfflineNotStored => "offline",
        Outcome::Overloaded => "overloaded",
        Outcome::Accepted => "accepted",
        Outcome::InboxFull => "inbox_full",
        _ => "other",
    }
}

/// A time as RFC 3339 has it, in UTC, to the millisecond.
fn rfc3339(ms: u64) -> String {
    let (days, in_day) = (ms / 86_400_000, ms % 86_400_000);
    // Years are counted from March on, so that the day of February that not all have is the last of its year.
    let since_0000 = days + 719_468;
    let (era, day_of_era) = (since_0000 / 146_097, since_0000 % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute) = (in_day / 3_600_000, in_day / 60_000 % 60);
    let (second, milli) = (in_day / 1_000 % 60, in_day % 1_000);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{milli:03}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_comes_back_as_it_went_and_garbage_is_none() {
        let long = "é".repeat(200);
        let event = Event {
            aux: 7,
            size: 9,
            peer: u64::MAX,
            id: 3,
            stamp: 4,
            device: "phone",
            place: &long,
            ..Event::new(EventKind::SessionLogin, 1, 42)
        };
        let mut bytes = Vec::new();
        event.encode(&mut bytes);
        assert_eq!(bytes.len(), event.encoded_len());
        let (back, len) = Event::decode(&bytes).expect("an event");
        assert_eq!((back, len), (Event { place: cut(&long), ..event }, bytes.len()));
        assert_eq!(back.place.len(), 254, "a text that is too long ends with a whole character");
        for end in 0..bytes.len() {
            assert_eq!(Event::decode(&bytes[..end]), None);
        }
        bytes[4] = 200;
        assert_eq!(Event::decode(&bytes), None);
    }

    #[test]
    fn times_are_those_of_the_calendar() {
        for (ms, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400_001, "2000-02-29T00:00:00.001Z"),
            (1_709_251_199_999, "2024-02-29T23:59:59.999Z"),
            (1_735_689_600_000, "2025-01-01T00:00:00.000Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(rfc3339(ms), text);
        }
    }

    #[test]
    fn a_pattern_is_a_type_a_family_of_them_or_all() {
        let of = |pattern| Wants::of(pattern);
        let users = of("user.*").expect("users");
        assert!(users.has(EventKind::UserOnline) && users.has(EventKind::UserOffline));
        assert!(!users.has(EventKind::SessionLogin));
        assert_eq!((of("user*"), of("use.*"), of("message"), of("")), (None, None, None, None));
        assert!(EventKind::ALL.iter().all(|kind| of("*").is_some_and(|all| all.has(*kind))));
        assert!(of(EventKind::MessageStored.text()).is_some_and(|one| one.has(EventKind::MessageStored)));
    }
}
