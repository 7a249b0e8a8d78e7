//! Bounds of a store.

/// What a user's full log does with the next message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenFull {
    /// Refuses it.
    Refuse,
    /// Drops the oldest, which raises the floor: devices that had not got them are told `truncated`.
    DropOldest,
}

/// Bounds of a store. Sizes are bytes, times milliseconds.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Messages of one user.
    pub user_messages_max: u32,
    /// Bytes of one user's messages, each with [`Record::OVERHEAD_BYTES`](crate::Record::OVERHEAD_BYTES); at most 1
    /// GiB.
    pub user_bytes_max: u32,
    /// What a full log does.
    pub when_full: WhenFull,
    /// A message older than this is dropped, whoever has not got it.
    pub message_age_ms_max: u64,
    /// A device unseen for longer is forgotten: no login, no ACK and no [`Request::Seen`](crate::Request::Seen).
    pub device_unseen_ms_max: u64,
    /// Registered devices of one user. One more takes the place of the one unseen for longest.
    pub devices_per_user_max: u16,
    /// Files of the store in all. While runs are merged, the result is on disk beside them.
    pub store_bytes_max: u64,
    /// Bytes of one payload.
    pub payload_bytes_max: u32,
    /// The last messages of a log among which a retry looks for itself.
    pub retry_window: u32,
    /// Messages of one page.
    pub page_max: u32,
    /// Bytes of the write-ahead log at which it is moved into a table.
    pub log_bytes_max: u64,
    /// Memory that recent messages may take, until they are moved into a table.
    pub recent_bytes_max: u64,
    /// Logs from this key on are somebody's books: bound by neither number, nor bytes, nor age. None unless told
    /// otherwise.
    pub books_from: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            user_messages_max: 10_000,
            user_bytes_max: 16 << 20,
            when_full: WhenFull::Refuse,
            message_age_ms_max: 30 * DAY_MS,
            device_unseen_ms_max: 30 * DAY_MS,
            devices_per_user_max: 32,
            store_bytes_max: 16 << 30,
            payload_bytes_max: 1 << 20,
            retry_window: 64,
            page_max: 1_000,
            log_bytes_max: 64 << 20,
            recent_bytes_max: 64 << 20,
            books_from: u64::MAX,
        }
    }
}

const DAY_MS: u64 = 24 * 3_600 * 1_000;

impl Limits {
    /// Whether a log is bound by neither number, nor bytes, nor age.
    pub(crate) fn is_book(&self, key: u64) -> bool {
        key >= self.books_from
    }

    /// What has to go from a full log of so many messages and bytes before another one of `more` bytes comes. A
    /// sixty-fourth of the limit goes besides, or each message to a full log would have to look for the oldest.
    pub(crate) fn excess(&self, messages: u64, bytes: u64, more: u64) -> Amount {
        let spare = |max: u32| u64::from(max - max / 64);
        Amount {
            messages: (messages + 1).saturating_sub(spare(self.user_messages_max)),
            bytes: (bytes + more).saturating_sub(spare(self.user_bytes_max)),
        }
    }
}

/// A number of messages and their bytes, as in the limits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Amount {
    pub(crate) messages: u64,
    pub(crate) bytes: u64,
}

impl Amount {
    pub(crate) fn add(&mut self, bytes: usize) {
        self.messages += 1;
        self.bytes += bytes as u64;
    }
}
