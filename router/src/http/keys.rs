//! Keys of the HTTP API: who may do what.
//!
//! A key is `tlk_<id>_<64 hexadecimal digits>`, of which the file holds the SHA-256 alone. Instead of that a line may
//! hold the public key of whoever signs tokens (JWT), or neither, for certificates that name it. The file is TOML with
//! one line for each:
//!
//! ```toml
//! ops = { sha256 = "…", scopes = ["kick", "drain", "users:read"] }
//! shop = { sha256 = "…", scopes = ["push:user"], services = [7, 8], pushes_per_sec = 50 }
//! idp = { ed25519 = "MCowBQYDK2VwAyEA…", audience = "trunkline", scopes = ["push:user", "users:read"] }
//! ```

use super::jwt::{self, Issuer};
use rand::TryRng;
use rand::rngs::SysRng;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::hint::black_box;
use std::io::{self, Read};
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

/// What every key begins with.
const PREFIX: &str = "tlk_";
/// Random bytes of a key.
const SECRET_BYTES: usize = 32;
/// Longest id of a key.
const ID_BYTES_MAX: usize = 32;
/// The highest rate that a line may name.
const PUSHES_PER_SEC_MAX: u32 = 10_000_000;
/// Longest file of keys: some hundreds of them.
const FILE_BYTES_MAX: u64 = 64 << 10;

/// What a key may do. Some are for services that are not there yet, so that their keys can be made beforehand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Push to users.
    PushUser,
    /// Push to groups.
    PushGroup,
    /// Push to everybody.
    PushAll,
    /// Call services.
    Call,
    /// Serve the service of this number.
    Serve(u16),
    /// Read where users are, what leads there, and the accounts.
    UsersRead,
    /// End sessions.
    Kick,
    /// Drain a node, and call that off.
    Drain,
    /// Have a node read its configuration again.
    Reload,
    /// Change items.
    ItemsWrite,
    /// Read items.
    ItemsRead,
    /// Change services and their instances.
    ServicesWrite,
    /// Read the metrics.
    MetricsRead,
    /// Read the nodes, their load and their ring.
    NodesRead,
    /// Make accounts.
    AccountsWrite,
    /// Ask where a user is to log in.
    Login,
}

/// Every scope without a number, by its word.
const WORDS: [(&str, Scope); 15] = [
    ("push:user", Scope::PushUser),
    ("push:group", Scope::PushGroup),
    ("push:all", Scope::PushAll),
    ("call", Scope::Call),
    ("users:read", Scope::UsersRead),
    ("kick", Scope::Kick),
    ("drain", Scope::Drain),
    ("reload", Scope::Reload),
    ("items:write", Scope::ItemsWrite),
    ("items:read", Scope::ItemsRead),
    ("services:write", Scope::ServicesWrite),
    ("metrics:read", Scope::MetricsRead),
    ("nodes:read", Scope::NodesRead),
    ("accounts:write", Scope::AccountsWrite),
    ("login", Scope::Login),
];

impl Scope {
    /// Every scope that has no number.
    pub fn all() -> impl Iterator<Item = Scope> {
        WORDS.into_iter().map(|(_, scope)| scope)
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Scope::Serve(number) = self {
            return write!(f, "serve:{number}");
        }
        let word = WORDS.iter().find(|(_, scope)| scope == self).map_or("", |(word, _)| word);
        f.write_str(word)
    }
}

/// What is no scope.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoScope(String);

impl fmt::Display for NoScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<&str> = WORDS.iter().map(|(word, _)| *word).collect();
        write!(f, "{:?} is no scope; there are {} and serve:<number of a service>", self.0, words.join(", "))
    }
}

impl std::error::Error for NoScope {}

impl FromStr for Scope {
    type Err = NoScope;

    fn from_str(text: &str) -> Result<Self, NoScope> {
        if let Some((_, scope)) = WORDS.iter().find(|(word, _)| *word == text) {
            return Ok(*scope);
        }
        let number = text.strip_prefix("serve:").filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()));
        match number.and_then(|digits| digits.parse().ok()) {
            Some(number @ 1..) => Ok(Scope::Serve(number)),
            _ => Err(NoScope(text.to_owned())),
        }
    }
}

/// The keys that are accepted.
#[derive(Debug, Clone, Default)]
pub struct ApiKeys(BTreeMap<String, ApiKey>);

/// What bounds a key besides its scopes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeyLimits {
    /// The services that it may push as and change; `None` for all.
    pub services: Option<Arc<[u16]>>,
    /// Pushes by HTTP in a second on the average, 1 to 10,000,000; `None` for as many as any key may.
    pub pushes_per_sec: Option<u32>,
}

impl KeyLimits {
    /// Whether it may push as this service, and change it.
    #[must_use]
    pub fn may_use(&self, service: u16) -> bool {
        self.services.as_ref().is_none_or(|services| services.contains(&service))
    }
}

/// Whose key that is, and what it may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    /// The id of the key; of a token that of its line, `:` and its `sub`.
    pub(super) id: String,
    pub(super) scopes: Vec<Scope>,
    pub(super) limits: KeyLimits,
}

/// How somebody shows that a line is his.
#[derive(Debug, Clone)]
enum Proof {
    /// By a key with this SHA-256.
    Key([u8; 32]),
    /// By a token that this one has signed.
    Token(Issuer),
    /// By a certificate alone.
    Certificate,
}

/// One of them.
#[derive(Debug, Clone)]
struct ApiKey {
    proof: Proof,
    scopes: Vec<Scope>,
    limits: KeyLimits,
}

/// What a line of the file says.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    sha256: Option<String>,
    ed25519: Option<String>,
    audience: Option<String>,
    scopes: Vec<String>,
    services: Option<Vec<u16>>,
    pushes_per_sec: Option<u32>,
}

impl Line {
    fn proof(&self) -> Result<Proof, String> {
        match (&self.sha256, &self.ed25519) {
            (Some(_), Some(_)) => Err("it has sha256 and ed25519: it is a key, or signs tokens".to_owned()),
            (_, None) if self.audience.is_some() => Err("audience is for lines with ed25519".to_owned()),
            (Some(digits), None) => from_hex(digits)
                .map(Proof::Key)
                .ok_or_else(|| "its sha256 has to be 64 hexadecimal digits, as gateway api-key prints them".to_owned()),
            (None, Some(text)) => Issuer::new(text, self.audience.clone()).map(Proof::Token),
            (None, None) => Ok(Proof::Certificate),
        }
    }

    fn limits(&self) -> Result<KeyLimits, String> {
        let services = self.services.as_deref();
        if services.is_some_and(|services| services.is_empty() || services.contains(&0)) {
            return Err("its services have to be numbers from 1 to 65535, one at least".to_owned());
        }
        if self.pushes_per_sec.is_some_and(|rate| !(1..=PUSHES_PER_SEC_MAX).contains(&rate)) {
            return Err(format!("its pushes_per_sec has to be a number from 1 to {PUSHES_PER_SEC_MAX}"));
        }
        Ok(KeyLimits { services: services.map(Into::into), pushes_per_sec: self.pushes_per_sec })
    }
}

/// Why a file of keys cannot be used. It names what is wrong, not the file.
#[derive(Debug)]
pub enum ApiKeysError {
    /// It cannot be read.
    Read(io::Error),
    /// It is longer than any file of keys.
    TooLong,
    /// It is not what such a file is; says where and why.
    Syntax(String),
    /// A line of it makes no sense; holds the key's id and why.
    Key(String, String),
    /// It holds no key, so nobody could do anything.
    Empty,
}

impl fmt::Display for ApiKeysError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ApiKeysError::Read(error) => write!(f, "{error}"),
            ApiKeysError::TooLong => write!(f, "it is longer than {FILE_BYTES_MAX} bytes, so it is no file of keys"),
            ApiKeysError::Syntax(error) => write!(f, "{error}"),
            ApiKeysError::Key(id, error) => write!(f, "key {id:?}: {error}"),
            ApiKeysError::Empty => f.write_str("it holds no key; gateway api-key makes one and prints its line"),
        }
    }
}

impl std::error::Error for ApiKeysError {}

impl ApiKeys {
    /// Reads a file of keys.
    ///
    /// # Errors
    /// When it cannot be read or used. The text does not name the file.
    pub fn load(path: &Path) -> Result<Self, ApiKeysError> {
        let mut bytes = Vec::new();
        // One byte more than is allowed: the length that a device or a pipe claims says nothing.
        let file = File::open(path).map_err(ApiKeysError::Read)?;
        file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(ApiKeysError::Read)?;
        if bytes.len() as u64 > FILE_BYTES_MAX {
            return Err(ApiKeysError::TooLong);
        }
        let text = String::from_utf8(bytes).map_err(|_| ApiKeysError::Syntax("it is not UTF-8 text".to_owned()))?;
        Self::parse(&text)
    }

    /// Reads the text of such a file.
    ///
    /// # Errors
    /// As [`ApiKeys::load`].
    pub fn parse(text: &str) -> Result<Self, ApiKeysError> {
        let lines: BTreeMap<String, Line> =
            toml::from_str(text).map_err(|error| ApiKeysError::Syntax(error.to_string().trim_end().to_owned()))?;
        let mut keys = BTreeMap::new();
        for (id, line) in lines {
            let fault = |error: String| ApiKeysError::Key(id.clone(), error);
            check_id(&id).map_err(fault)?;
            let proof = line.proof().map_err(fault)?;
            let limits = line.limits().map_err(fault)?;
            let scopes: Result<Vec<Scope>, NoScope> = line.scopes.iter().map(|scope| scope.parse()).collect();
            let scopes = scopes.map_err(|error| fault(error.to_string()))?;
            if scopes.is_empty() {
                return Err(fault("it has no scope, so it could do nothing".to_owned()));
            }
            keys.insert(id, ApiKey { proof, scopes, limits });
        }
        if keys.is_empty() { Err(ApiKeysError::Empty) } else { Ok(ApiKeys(keys)) }
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The key or token that this is, and what it may do at that second since the epoch; `None` for what is none of
    /// these. It takes as long for an id that nobody has, and for a secret that is wrong in its last digit.
    pub(super) fn find(&self, credential: &str, now_s: u64) -> Option<Found> {
        let Some(rest) = credential.strip_prefix(PREFIX) else { return self.find_token(credential, now_s) };
        let (id, _) = rest.rsplit_once('_')?;
        let sha256: [u8; 32] = Sha256::digest(credential.as_bytes()).into();
        let found = self.0.get(id).and_then(|key| match &key.proof {
            Proof::Key(sha256) => Some((key, sha256)),
            Proof::Token(_) | Proof::Certificate => None,
        });
        let nobody = [0; 32];
        let expected = found.map_or(&nobody, |(_, sha256)| sha256);
        let differences = sha256.iter().zip(expected).fold(0, |sum, (a, b)| black_box(sum | (a ^ b)));
        found.filter(|_| differences == 0).map(|(key, _)| key.found(id))
    }

    fn find_token(&self, token: &str, now_s: u64) -> Option<Found> {
        let id = jwt::line_of(token)?;
        let key = self.0.get(&id)?;
        let Proof::Token(issuer) = &key.proof else { return None };
        let said = issuer.read(token, now_s)?;
        let (scopes, limits) = said.within(&key.scopes, &key.limits);
        Some(Found { id: format!("{id}:{}", said.subject), scopes, limits })
    }

    /// What the holder of a certificate that names this key may do.
    pub(super) fn of_certificate(&self, id: &str) -> Option<Found> {
        self.0.get(id).filter(|key| !matches!(key.proof, Proof::Token(_))).map(|key| key.found(id))
    }
}

impl ApiKey {
    fn found(&self, id: &str) -> Found {
        Found { id: id.to_owned(), scopes: self.scopes.clone(), limits: self.limits.clone() }
    }
}

fn check_id(id: &str) -> Result<(), String> {
    let usable = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.';
    if (1..=ID_BYTES_MAX).contains(&id.len()) && id.bytes().all(usable) {
        return Ok(());
    }
    Err(format!("an id is 1 to {ID_BYTES_MAX} letters, digits, '-' or '.'"))
}

/// A new key. The secret is in it alone; the file gets the line.
#[derive(Debug)]
pub struct NewKey {
    /// What its holder sends as `Authorization: Bearer …`.
    pub key: String,
    /// Its line of the file.
    pub line: String,
}

impl NewKey {
    /// Makes one.
    ///
    /// # Errors
    /// An id that cannot be one, no scope at all, or a system without random numbers.
    pub fn make(id: &str, scopes: &[Scope]) -> Result<Self, String> {
        check_id(id)?;
        if scopes.is_empty() {
            return Err("a key without a scope could do nothing: name one at least".to_owned());
        }
        let mut secret = [0; SECRET_BYTES];
        SysRng.try_fill_bytes(&mut secret).map_err(|error| format!("no random numbers can be had: {error}"))?;
        let key = format!("{PREFIX}{id}_{}", hex(&secret));
        let words: Vec<String> = scopes.iter().map(|scope| format!("\"{scope}\"")).collect();
        // A point would be read as a table within a table.
        let id = if id.contains('.') { format!("\"{id}\"") } else { id.to_owned() };
        let sha256 = hex(&Sha256::digest(key.as_bytes()));
        let line = format!("{id} = {{ sha256 = \"{sha256}\", scopes = [{}] }}", words.join(", "));
        Ok(NewKey { key, line })
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(digits: &str) -> Option<[u8; 32]> {
    if digits.len() != 64 || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(digits.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_was_made_is_found_with_its_scopes_and_no_other_is() {
        let scopes = [Scope::Kick, Scope::Serve(7), Scope::UsersRead];
        let made = ["ops", "robot-2.eu", "7"].map(|id| NewKey::make(id, &scopes).unwrap());
        let file: String = made.iter().map(|key| format!("{}\n", key.line)).collect();
        let keys = ApiKeys::parse(&file).unwrap();
        assert_eq!(keys.len(), 3);
        for (key, id) in made.iter().zip(["ops", "robot-2.eu", "7"]) {
            let found = keys.find(&key.key, 0).unwrap();
            assert_eq!((found.id.as_str(), &found.scopes[..]), (id, &scopes[..]), "{}", key.line);
            assert_eq!(found.limits, KeyLimits::default());
            assert!(!file.contains(&key.key), "the file has no secrets");
            for at in 0..key.key.len() {
                let mut wrong = key.key.clone().into_bytes();
                wrong[at] = if wrong[at] == b'0' { b'1' } else { b'0' };
                assert_eq!(keys.find(std::str::from_utf8(&wrong).unwrap(), 0), None, "byte {at}");
            }
        }
        for wrong in ["", "tlk_", "tlk_ops_", "tlk_ops", "ops", &made[0].key[1..], &format!("{}0", made[0].key)] {
            assert_eq!(keys.find(wrong, 0), None, "{wrong:?}");
        }
        assert_ne!(NewKey::make("ops", &scopes).unwrap().key, made[0].key);
    }

    #[test]
    fn a_line_may_bound_its_key_to_services_and_to_a_rate() {
        let made = NewKey::make("shop", &[Scope::PushUser]).unwrap();
        let line = made.line.replace(" }", ", services = [7, 9], pushes_per_sec = 50 }");
        let keys = ApiKeys::parse(&format!("{line}\nops = {{ scopes = [\"kick\"], pushes_per_sec = 1 }}")).unwrap();
        let limits = keys.find(&made.key, 0).unwrap().limits;
        assert_eq!(limits.pushes_per_sec, Some(50));
        assert_eq!([6, 7, 8, 9, 10].map(|service| limits.may_use(service)), [false, true, false, true, false]);
        let by_name = keys.of_certificate("ops").unwrap().limits;
        assert!(by_name.pushes_per_sec == Some(1) && by_name.may_use(65_535));
        assert!(KeyLimits::default().may_use(1));
    }

    #[test]
    fn every_scope_is_written_as_it_is_read() {
        for (word, scope) in
            WORDS.into_iter().chain([("serve:1", Scope::Serve(1)), ("serve:65535", Scope::Serve(65_535))])
        {
            assert_eq!((word.parse(), scope.to_string().as_str()), (Ok(scope), word));
        }
        for word in ["", "Kick", "serve", "serve:", "serve:0", "serve:65536", "serve:+1", "users"] {
            let error = word.parse::<Scope>().unwrap_err().to_string();
            assert!(error.contains("users:read") && error.contains("serve:<"), "{error}");
        }
    }

    #[test]
    fn a_file_that_makes_no_sense_is_refused_with_the_reason() {
        let hash = "0".repeat(64);
        let with =
            |id: &str, hash: &str, scopes: &str| format!("{id} = {{ sha256 = \"{hash}\", scopes = [{scopes}] }}\n");
        for (text, hint) in [
            (String::new(), "no key"),
            ("nonsense".to_owned(), "expected"),
            (with("a", &hash, "\"kick\", \"fly\""), "\"fly\" is no scope"),
            (with("a", &hash, ""), "no scope"),
            (with("a", &hash[1..], "\"kick\""), "64 hexadecimal digits"),
            (with("a", &hash.replace('0', "é")[..64], "\"kick\""), "64 hexadecimal digits"),
            (with("a_b", &hash, "\"kick\""), "an id is"),
            (with(&"a".repeat(33), &hash, "\"kick\""), "an id is"),
            (format!("a = {{ sha256 = \"{hash}\", scope = [] }}\n"), "scope"),
            (with("a", &hash, "\"kick\"").repeat(2), "duplicate"),
            ("a = { scopes = [\"kick\"], services = [] }".to_owned(), "one at least"),
            ("a = { scopes = [\"kick\"], services = [0] }".to_owned(), "1 to 65535"),
            ("a = { scopes = [\"kick\"], services = [65536] }".to_owned(), "65536"),
            ("a = { scopes = [\"kick\"], pushes_per_sec = 0 }".to_owned(), "pushes_per_sec"),
            ("a = { scopes = [\"kick\"], ed25519 = \"MCow\" }".to_owned(), "openssl pkey"),
            ("a = { scopes = [\"kick\"], audience = \"b\" }".to_owned(), "lines with ed25519"),
            (format!("a = {{ sha256 = \"{hash}\", ed25519 = \"b\", scopes = [\"kick\"] }}\n"), "or signs tokens"),
        ] {
            let error = ApiKeys::parse(&text).unwrap_err().to_string();
            assert!(error.contains(hint), "{text}: {error}");
        }
        assert!(NewKey::make("a", &[]).unwrap_err().contains("scope"));
        assert!(NewKey::make("a b", &[Scope::Kick]).unwrap_err().contains("an id is"));
        assert!(matches!(ApiKeys::load(Path::new("/dev/zero")), Err(ApiKeysError::TooLong)));
        assert!(matches!(ApiKeys::load(Path::new("/no/such/file")), Err(ApiKeysError::Read(_))));
    }
}
