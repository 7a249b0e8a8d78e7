//! The fields of a request's head, looked up by name.

/// A field came more than once that may come once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Repeated;

/// Fields in their order.
pub(super) struct Fields<'a>(&'a [httparse::Header<'a>]);

impl<'a> Fields<'a> {
    pub(super) fn new(headers: &'a [httparse::Header<'a>]) -> Self {
        Fields(headers)
    }

    /// The values of all fields of this name, without blanks around them.
    pub(super) fn all(&self, name: &str) -> impl Iterator<Item = &'a [u8]> {
        let fields = self.0.iter().filter(move |field| field.name.eq_ignore_ascii_case(name));
        fields.map(|field| field.value.trim_ascii())
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.all(name).next().is_some()
    }

    /// The first of this name.
    pub(super) fn get(&self, name: &str) -> Option<&'a [u8]> {
        self.all(name).next()
    }

    /// The only one of this name, if there is one.
    pub(super) fn get_once(&self, name: &str) -> Result<Option<&'a [u8]>, Repeated> {
        let mut all = self.all(name);
        let first = all.next();
        if all.next().is_some() { Err(Repeated) } else { Ok(first) }
    }

    /// Whether an item is in the lists of this name, whatever its case.
    pub(super) fn lists(&self, name: &str, item: &str) -> bool {
        self.items(name).any(|listed| listed.eq_ignore_ascii_case(item.as_bytes()))
    }

    /// The same, where case counts.
    pub(super) fn lists_exactly(&self, name: &str, item: &str) -> bool {
        self.items(name).any(|listed| listed == item.as_bytes())
    }

    /// The items of all lists of this name.
    pub(super) fn items(&self, name: &str) -> impl Iterator<Item = &'a [u8]> {
        self.all(name).flat_map(|value| value.split(|byte| *byte == b',')).map(<[u8]>::trim_ascii)
    }

    /// The token of `Authorization: Bearer` (RFC 6750). Other schemes are not for the gateway.
    pub(super) fn bearer(&self) -> Option<&'a str> {
        let value = self.get("authorization")?;
        let (scheme, token) = value.split_at_checked("Bearer ".len())?;
        let token = token.trim_ascii();
        let is_bearer = scheme.eq_ignore_ascii_case(b"Bearer ") && !token.is_empty();
        is_bearer.then(|| std::str::from_utf8(token).ok())?
    }

    /// The value of a cookie (RFC 6265, section 4.2), without the quotes it may have. The first counts.
    pub(super) fn cookie(&self, name: &str) -> Option<&'a str> {
        let mut pairs = self.all("cookie").flat_map(|value| value.split(|byte| *byte == b';'));
        let value = pairs.find_map(|pair| {
            let at = pair.iter().position(|byte| *byte == b'=')?;
            (pair[..at].trim_ascii() == name.as_bytes()).then(|| pair[at + 1..].trim_ascii())
        })?;
        let value = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\"")).unwrap_or(value);
        std::str::from_utf8(value).ok().filter(|value| !value.is_empty())
    }
}
