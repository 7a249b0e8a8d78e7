//! Where all shards find the [`Auth`] in force, and where another takes its place while the node runs.

use super::Auth;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Lines about refused tokens that the log of a node gets in a second: enough to see what is going on, and not what
/// strangers can fill a disk with. The metric counts all of them.
const LOG_LINES_PER_SEC: u64 = 5;

/// The [`Auth`] in force. Replacing it is for the control thread; shards look through an [`AuthReader`] each and never
/// wait for it.
#[derive(Debug)]
pub struct AuthSwitch {
    /// Grows with each replacement.
    version: AtomicU64,
    auth: Mutex<Arc<Auth>>,
    /// The second of the latest log line in the upper 56 bits, the number of lines in it in the lower 8.
    log_window: AtomicU64,
    log_suppressed: AtomicU64,
}

impl AuthSwitch {
    /// Begins with this one.
    pub fn new(auth: Auth) -> Arc<Self> {
        Arc::new(AuthSwitch {
            version: AtomicU64::new(0),
            auth: Mutex::new(Arc::new(auth)),
            log_window: AtomicU64::new(0),
            log_suppressed: AtomicU64::new(0),
        })
    }

    /// Puts another in its place, for every LOGIN and RENEW from now on. Sessions that are open stay until their token
    /// ends, also those whose key is gone: to end them at once is a kick.
    pub fn replace(&self, auth: Auth) {
        let mut current = self.auth.lock().unwrap_or_else(PoisonError::into_inner);
        *current = Arc::new(auth);
        self.version.fetch_add(1, Ordering::Release);
    }

    /// The one in force.
    pub fn current(&self) -> Arc<Auth> {
        self.auth.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A shard's own view of it.
    pub fn reader(self: &Arc<Self>) -> AuthReader {
        // The version first: at worst the same one is taken once more.
        let version = self.version.load(Ordering::Acquire);
        AuthReader { auth: self.current(), version, switch: self.clone() }
    }
}

/// A shard's view of the [`Auth`] in force.
#[derive(Debug)]
pub struct AuthReader {
    switch: Arc<AuthSwitch>,
    version: u64,
    auth: Arc<Auth>,
}

impl AuthReader {
    /// The one in force; for the moment in which it is being replaced, still the one before. Without a replacement it
    /// costs one load.
    pub fn get(&mut self) -> &Auth {
        let version = self.switch.version.load(Ordering::Acquire);
        if version != self.version
            && let Ok(current) = self.switch.auth.try_lock()
        {
            self.auth = current.clone();
            self.version = version;
        }
        &self.auth
    }

    /// Whether the log may have a line about a refused token at this moment of the monotonic clock: then how many lines
    /// were left out since the one before.
    pub fn may_log(&self, mono_ms: u64) -> Option<u64> {
        let second = mono_ms / 1_000;
        let admitted = self.switch.log_window.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |window| {
            let (at, lines) = (window >> 8, window & 0xFF);
            if second > at { Some(second << 8 | 1) } else { (lines < LOG_LINES_PER_SEC).then_some(window + 1) }
        });
        match admitted {
            Ok(_) => Some(self.switch.log_suppressed.swap(0, Ordering::Relaxed)),
            Err(_) => {
                self.switch.log_suppressed.fetch_add(1, Ordering::Relaxed);
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::{JwtKeys, Refusal, TokenEnd};

    fn jwt() -> Auth {
        Auth::Jwt(Box::new(JwtKeys::default().with_hs256(None, &[7; 32]).expect("long enough")))
    }

    #[test]
    fn a_reader_sees_what_took_the_place_of_the_one_before() {
        let switch = AuthSwitch::new(Auth::Open);
        let mut readers = [switch.reader(), switch.reader()];
        assert_eq!(readers[0].get().check(1, "", 0), Ok(TokenEnd::NEVER));
        switch.replace(jwt());
        for reader in &mut readers {
            assert_eq!(reader.get().check(1, "", 0), Err(Refusal::Missing));
        }
        assert!(matches!(&*switch.current(), Auth::Jwt(_)));
        assert!(matches!(switch.reader().get(), Auth::Jwt(_)));
    }

    #[test]
    fn a_reader_does_not_wait_for_a_replacement_under_way() {
        let switch = AuthSwitch::new(Auth::Open);
        let mut reader = switch.reader();
        switch.replace(jwt());
        let under_way = switch.auth.lock().unwrap();
        assert!(matches!(reader.get(), Auth::Open));
        drop(under_way);
        assert!(matches!(reader.get(), Auth::Jwt(_)));
    }

    #[test]
    fn a_second_has_so_many_lines_and_the_next_one_tells_of_those_left_out() {
        let switch = AuthSwitch::new(Auth::Open);
        let (one, other) = (switch.reader(), switch.reader());
        for _ in 0..LOG_LINES_PER_SEC {
            assert_eq!(one.may_log(500), Some(0));
        }
        for mono_ms in [500, 999] {
            assert_eq!(one.may_log(mono_ms), None);
            assert_eq!(other.may_log(mono_ms), None, "the bound is the node's");
        }
        assert_eq!(other.may_log(1_000), Some(4));
        // Another shard may look at the clock a moment earlier.
        assert_eq!(one.may_log(999), Some(0));
    }
}
