//! Where the client of a request is, by what the proxies in front of the node have written into it: `X-Forwarded-For`,
//! or `Forwarded` (RFC 7239).
//!
//! Each proxy adds the address it has the request from behind those that were there, and anybody may send a request
//! with such a field. So only what trusted proxies have added counts: the list is read from its end for as long as the
//! addresses are theirs, and the first other one is the client's.

use super::fields::Fields;
use crate::transport::networks::{Network, trusted};
use std::net::{IpAddr, SocketAddr};

/// The field in which proxies tell it. Only one of the two is read: a proxy that writes one lets the other pass, as
/// the client has made it up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum ForwardedField {
    /// `X-Forwarded-For: 192.0.2.7, 10.0.0.1`.
    #[default]
    XForwardedFor,
    /// `Forwarded: for=192.0.2.7;proto=https, for="[2001:db8::7]:4711"`.
    Forwarded,
}

impl std::fmt::Display for ForwardedField {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            ForwardedField::XForwardedFor => "x-forwarded-for",
            ForwardedField::Forwarded => "forwarded",
        })
    }
}

/// Whose word on the client of a request is taken, and where they write it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Forwarding {
    /// The networks of these proxies.
    pub networks: Vec<Network>,
    /// Also whoever connects to a Unix socket.
    pub unix: bool,
    /// The field they write.
    pub field: ForwardedField,
}

/// What a request says of where its client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// Nothing: it is the proxy's own.
    Nothing,
    /// There.
    At(IpAddr),
    /// A trusted proxy has added what is no address.
    Unreadable,
}

impl Forwarding {
    /// Whether nobody's word is taken.
    pub fn is_empty(&self) -> bool {
        self.networks.is_empty() && !self.unix
    }

    /// Whether that of the peer at this address is; `None` is the other end of a Unix socket.
    pub fn trusts(&self, peer: Option<IpAddr>) -> bool {
        peer.map_or(self.unix, |address| trusted(&self.networks, address))
    }

    /// What a request from a trusted peer says.
    pub(super) fn told(&self, fields: &Fields<'_>) -> Told {
        let addresses = match self.field {
            ForwardedField::XForwardedFor => x_forwarded_for(fields),
            ForwardedField::Forwarded => forwarded(fields),
        };
        let mut told = Told::Nothing;
        for address in addresses.into_iter().rev() {
            match address {
                None => return Told::Unreadable,
                Some(address) => told = Told::At(address),
            }
            if matches!(told, Told::At(address) if !trusted(&self.networks, address)) {
                break;
            }
        }
        told
    }
}

/// The addresses in their order, `None` for what is none. Several fields are one list (RFC 9110, section 5.3).
fn x_forwarded_for(fields: &Fields<'_>) -> Vec<Option<IpAddr>> {
    fields.items("x-forwarded-for").map(node).collect()
}

fn forwarded(fields: &Fields<'_>) -> Vec<Option<IpAddr>> {
    let mut addresses = Vec::new();
    for value in fields.all("forwarded") {
        addresses.extend(split(value, b',').into_iter().map(|element| {
            let mut pairs = split(element, b';').into_iter();
            pairs.find_map(|pair| {
                let at = pair.iter().position(|byte| *byte == b'=')?;
                pair[..at]
                    .trim_ascii()
                    .eq_ignore_ascii_case(b"for")
                    .then(|| node(unquoted(pair[at + 1..].trim_ascii())))
            })?
        }));
    }
    addresses
}

/// The parts between separators that are not within quotes.
fn split(value: &[u8], separator: u8) -> Vec<&[u8]> {
    let (mut parts, mut begin, mut quoted, mut escaped) = (Vec::new(), 0, false, false);
    for (at, &byte) in value.iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            _ if byte == separator && !quoted => {
                parts.push(value[begin..at].trim_ascii());
                begin = at + 1;
            }
            _ => {}
        }
    }
    parts.push(value[begin..].trim_ascii());
    parts
}

fn unquoted(value: &[u8]) -> &[u8] {
    value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\"")).unwrap_or(value)
}

/// An address as proxies write it: alone, in brackets, or with a port.
fn node(text: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(text).ok()?;
    let in_brackets = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let address = in_brackets.parse().or_else(|_| text.parse().map(|address: SocketAddr| address.ip()));
    address.ok().map(|address: IpAddr| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forwarding(field: ForwardedField) -> Forwarding {
        let networks = ["10.0.0.0/8", "fd00::/8"].map(|text| text.parse().expect("a network"));
        Forwarding { networks: networks.to_vec(), unix: false, field }
    }

    fn told(field: ForwardedField, values: &[(&str, &str)]) -> Told {
        let headers: Vec<_> =
            values.iter().map(|(name, value)| httparse::Header { name, value: value.as_bytes() }).collect();
        forwarding(field).told(&Fields::new(&headers))
    }

    fn at(text: &str) -> Told {
        Told::At(text.parse().expect("an address"))
    }

    #[test]
    fn the_client_is_the_last_address_that_is_no_trusted_proxy() {
        let told = |values: &[&str]| {
            let fields: Vec<_> = values.iter().map(|value| ("X-Forwarded-For", *value)).collect();
            told(ForwardedField::XForwardedFor, &fields)
        };
        assert_eq!(told(&[]), Told::Nothing);
        assert_eq!(told(&["192.0.2.7"]), at("192.0.2.7"));
        // The client has made up what stands in front.
        assert_eq!(told(&["1.1.1.1, 10.9.9.9, 192.0.2.7, 10.0.0.1"]), at("192.0.2.7"));
        assert_eq!(told(&["1.1.1.1, nonsense", "192.0.2.7", "10.0.0.1,fd00::1"]), at("192.0.2.7"));
        // From within.
        assert_eq!(told(&["10.0.0.7, 10.0.0.1"]), at("10.0.0.7"));
        assert_eq!(told(&["2001:db8::7"]), at("2001:db8::7"));
        assert_eq!(told(&["::ffff:192.0.2.7"]), at("192.0.2.7"));
        assert_eq!(told(&["192.0.2.7:4711"]), at("192.0.2.7"));
        assert_eq!(told(&["[2001:db8::7]:4711, 10.0.0.1"]), at("2001:db8::7"));
        for unreadable in ["", "unknown", "192.0.2.7, unknown", "192.0.2.7,, 10.0.0.1", "192.0.2.7, 10.0.0", "ü"] {
            assert_eq!(told(&[unreadable]), Told::Unreadable, "{unreadable}");
        }
        // What was in front of the client is nobody's business.
        assert_eq!(told(&["unknown, 192.0.2.7"]), at("192.0.2.7"));
    }

    #[test]
    fn forwarded_is_read_as_it_is_quoted() {
        let told = |value: &str| told(ForwardedField::Forwarded, &[("forwarded", value)]);
        assert_eq!(told("for=192.0.2.7;proto=https;by=10.0.0.2"), at("192.0.2.7"));
        assert_eq!(told("for=1.1.1.1, For = 192.0.2.7 ; host=\"a,b;for=3.3.3.3\", for=10.0.0.1"), at("192.0.2.7"));
        assert_eq!(told(r#"for="[2001:db8::7]:4711""#), at("2001:db8::7"));
        assert_eq!(told(r#"host="\",";for=192.0.2.7"#), at("192.0.2.7"));
        for unreadable in ["for=_hidden", "for=unknown", "proto=https", "for=\"192.0.2.7", "192.0.2.7"] {
            assert_eq!(told(unreadable), Told::Unreadable, "{unreadable}");
        }
    }

    #[test]
    fn the_other_field_is_not_read() {
        let fields = [("X-Forwarded-For", "1.1.1.1"), ("Forwarded", "for=192.0.2.7")];
        assert_eq!(told(ForwardedField::XForwardedFor, &fields), at("1.1.1.1"));
        assert_eq!(told(ForwardedField::Forwarded, &fields), at("192.0.2.7"));
        assert_eq!(told(ForwardedField::Forwarded, &fields[..1]), Told::Nothing);
    }
}
