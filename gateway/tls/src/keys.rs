//! What a connection keeps of TLS once its handshake is over: for each direction a traffic secret, the key, the
//! initialization vector and the number of the next record, and eight bytes of facts.

use crate::suite::{IV_BYTES, KEY_BYTES_MAX, SECRET_BYTES_MAX, Suite, Version, expand_label};
use aws_lc_rs::aead::{LessSafeKey, Nonce, UnboundKey};
use std::fmt;
use zeroize::Zeroize;

/// Keys of both directions. With TLS 1.2 there are no secrets, and their place is empty.
pub struct Keys<const SECRET: usize, const KEY: usize> {
    rx_secret: [u8; SECRET],
    tx_secret: [u8; SECRET],
    rx_key: [u8; KEY],
    tx_key: [u8; KEY],
    rx_iv: [u8; IV_BYTES],
    tx_iv: [u8; IV_BYTES],
    rx_sequence: u64,
    tx_sequence: u64,
    facts: Facts,
}

/// With AES-128-GCM.
pub type Aes128Keys = Keys<32, 16>;
/// With ChaCha20-Poly1305.
pub type ChaCha20Keys = Keys<32, 32>;
/// With AES-256-GCM.
pub type Aes256Keys = Keys<48, 32>;

const _: () = assert!(size_of::<Aes128Keys>() == 144);
const _: () = assert!(size_of::<ChaCha20Keys>() == 176);
const _: () = assert!(size_of::<Aes256Keys>() == 208);

/// Bytes that the keys of a connection take at most.
pub const KEYS_BYTES_MAX: usize = size_of::<Aes256Keys>();

/// Small facts about a connection's records.
#[derive(Clone, Copy, Debug, Default)]
pub struct Facts {
    flags: u8,
    /// Records without data that came one after the other.
    pub empties: u8,
    /// Messages that cost something, KeyUpdate and attempts to renegotiate, that came in `minute`.
    pub updates: u8,
    /// Bytes that have come of a KeyUpdate of which the rest has not.
    pub of_update: u8,
    /// The minute in which they came, by any clock.
    pub minute: u32,
}

impl Facts {
    /// The version is 1.2.
    pub const TLS12: u8 = 1;
    /// A KeyUpdate is to be sent before anything else.
    pub const OWES_UPDATE: u8 = 2;
    /// A warning is to be sent that there is no renegotiation.
    pub const OWES_WARNING: u8 = 4;
    /// The application protocol agreed on is the native one.
    pub const NATIVE: u8 = 8;

    /// Whether a flag is set.
    pub fn has(self, flag: u8) -> bool {
        self.flags & flag != 0
    }
    /// Sets a flag.
    pub fn set(&mut self, flag: u8) {
        self.flags |= flag;
    }
    /// Clears a flag.
    pub fn clear(&mut self, flag: u8) {
        self.flags &= !flag;
    }

    /// The version.
    pub fn version(self) -> Version {
        if self.has(Facts::TLS12) { Version::Tls12 } else { Version::Tls13 }
    }

    /// Whether something has to be sent that is in no outbox.
    pub fn owes(self) -> bool {
        self.has(Facts::OWES_UPDATE) || self.has(Facts::OWES_WARNING)
    }

    /// Whether both sides have agreed on native frames.
    pub fn is_native(self) -> bool {
        self.has(Facts::NATIVE)
    }
}

/// One direction of a connection.
pub struct Half<'a> {
    secret: &'a mut [u8],
    key: &'a mut [u8],
    /// Its initialization vector.
    pub iv: &'a mut [u8; IV_BYTES],
    /// Number of the next record under this key.
    pub sequence: &'a mut u64,
}

impl Half<'_> {
    /// The key as the cipher wants it. Expanding it takes 0.2 µs, less than it costs to keep it: on a quiet connection
    /// it would not be in any cache.
    pub fn cipher(&self, suite: Suite) -> LessSafeKey {
        LessSafeKey::new(UnboundKey::new(suite.algorithm(), self.key).expect("a key has the length of its suite"))
    }

    /// The nonce of the next record: the initialization vector, and over its end the number of the record (RFC 8446,
    /// section 5.3).
    pub fn nonce(&self) -> [u8; IV_BYTES] {
        let mut nonce = *self.iv;
        nonce.iter_mut().skip(IV_BYTES - 8).zip(self.sequence.to_be_bytes()).for_each(|(byte, number)| *byte ^= number);
        nonce
    }

    /// Goes on with the next generation of keys (RFC 8446, section 7.2).
    pub fn update(&mut self, suite: Suite) {
        let mut next = [0; SECRET_BYTES_MAX];
        let next_bytes = &mut next[..suite.secret_bytes()];
        expand_label(suite, self.secret, "traffic upd", next_bytes);
        self.secret.copy_from_slice(next_bytes);
        next.zeroize();
        expand_label(suite, self.secret, "key", self.key);
        expand_label(suite, self.secret, "iv", self.iv);
        *self.sequence = 0;
    }
}

/// A nonce, which the caller never uses again with the same key.
pub fn nonce(bytes: [u8; IV_BYTES]) -> Nonce {
    Nonce::assume_unique_for_key(bytes)
}

/// The keys of a connection, whatever its suite.
pub struct View<'a> {
    /// Their suite.
    pub suite: Suite,
    /// What comes from the peer.
    pub rx: Half<'a>,
    /// What goes to it.
    pub tx: Half<'a>,
    /// Small facts.
    pub facts: &'a mut Facts,
}

impl<const SECRET: usize, const KEY: usize> Keys<SECRET, KEY> {
    /// Nothing but zeros.
    pub fn empty() -> Self {
        Keys {
            rx_secret: [0; SECRET],
            tx_secret: [0; SECRET],
            rx_key: [0; KEY],
            tx_key: [0; KEY],
            rx_iv: [0; IV_BYTES],
            tx_iv: [0; IV_BYTES],
            rx_sequence: 0,
            tx_sequence: 0,
            facts: Facts::default(),
        }
    }

    /// Takes all that others say, field by field: no copy of a key stays on the stack.
    pub fn copy_from(&mut self, other: &Self) {
        self.rx_secret.copy_from_slice(&other.rx_secret);
        self.tx_secret.copy_from_slice(&other.tx_secret);
        self.rx_key.copy_from_slice(&other.rx_key);
        self.tx_key.copy_from_slice(&other.tx_key);
        self.rx_iv.copy_from_slice(&other.rx_iv);
        self.tx_iv.copy_from_slice(&other.tx_iv);
        self.rx_sequence = other.rx_sequence;
        self.tx_sequence = other.tx_sequence;
        self.facts = other.facts;
    }

    fn view(&mut self, suite: Suite) -> View<'_> {
        View {
            suite,
            rx: Half {
                secret: &mut self.rx_secret,
                key: &mut self.rx_key,
                iv: &mut self.rx_iv,
                sequence: &mut self.rx_sequence,
            },
            tx: Half {
                secret: &mut self.tx_secret,
                key: &mut self.tx_key,
                iv: &mut self.tx_iv,
                sequence: &mut self.tx_sequence,
            },
            facts: &mut self.facts,
        }
    }
}

impl Aes128Keys {
    /// They, to work with.
    pub fn of_aes128(&mut self) -> View<'_> {
        self.view(Suite::Aes128)
    }
}

impl ChaCha20Keys {
    /// They, to work with.
    pub fn of_chacha20(&mut self) -> View<'_> {
        self.view(Suite::ChaCha20)
    }
}

impl Aes256Keys {
    /// They, to work with.
    pub fn of_aes256(&mut self) -> View<'_> {
        self.view(Suite::Aes256)
    }
}

impl<const SECRET: usize, const KEY: usize> Zeroize for Keys<SECRET, KEY> {
    fn zeroize(&mut self) {
        self.rx_secret.zeroize();
        self.tx_secret.zeroize();
        self.rx_key.zeroize();
        self.tx_key.zeroize();
        self.rx_iv.zeroize();
        self.tx_iv.zeroize();
    }
}

impl<const SECRET: usize, const KEY: usize> Drop for Keys<SECRET, KEY> {
    fn drop(&mut self) {
        self.zeroize();
    }
}

/// What a handshake leaves for one direction.
pub struct Secrets {
    /// The traffic secret; zeros with TLS 1.2.
    pub secret: [u8; SECRET_BYTES_MAX],
    /// The key.
    pub key: [u8; KEY_BYTES_MAX],
    /// The initialization vector.
    pub iv: [u8; IV_BYTES],
    /// Number of the next record.
    pub sequence: u64,
}

impl Drop for Secrets {
    fn drop(&mut self) {
        self.secret.zeroize();
        self.key.zeroize();
        self.iv.zeroize();
    }
}

/// The keys of a connection on their own: as the handshake gives them, and on their way to another shard.
pub enum Session {
    /// Of a connection with AES-128-GCM.
    Aes128(Box<Aes128Keys>),
    /// With ChaCha20-Poly1305.
    ChaCha20(Box<ChaCha20Keys>),
    /// With AES-256-GCM.
    Aes256(Box<Aes256Keys>),
}

impl Session {
    /// The keys of both directions. `native`: the application protocol agreed on is that of native frames.
    pub fn new(version: Version, suite: Suite, native: bool, rx: &Secrets, tx: &Secrets) -> Self {
        let mut session = match suite {
            Suite::Aes128 => Session::Aes128(Box::new(Keys::empty())),
            Suite::ChaCha20 => Session::ChaCha20(Box::new(Keys::empty())),
            Suite::Aes256 => Session::Aes256(Box::new(Keys::empty())),
        };
        let view = session.view();
        for (half, secrets) in [(view.rx, rx), (view.tx, tx)] {
            half.secret.copy_from_slice(&secrets.secret[..suite.secret_bytes()]);
            half.key.copy_from_slice(&secrets.key[..suite.key_bytes()]);
            *half.iv = secrets.iv;
            *half.sequence = secrets.sequence;
        }
        if version == Version::Tls12 {
            view.facts.set(Facts::TLS12);
        }
        if native {
            view.facts.set(Facts::NATIVE);
        }
        session
    }

    /// Its keys, to work with.
    pub fn view(&mut self) -> View<'_> {
        match self {
            Session::Aes128(keys) => keys.of_aes128(),
            Session::ChaCha20(keys) => keys.of_chacha20(),
            Session::Aes256(keys) => keys.of_aes256(),
        }
    }
}

impl fmt::Debug for Session {
    /// Without the keys.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Session(…)")
    }
}
