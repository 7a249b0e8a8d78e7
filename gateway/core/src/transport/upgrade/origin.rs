//! Which pages may connect. A browser says in `Origin` where a page is from (RFC 6454); without this check any page
//! that a user opens could talk, as that user, to a gateway that the browser can reach, one on the user's own machine
//! among them.

use super::Rules;
use std::net::IpAddr;

/// Whether pages of `origin` are served by who was asked as `host`: they are its own, or are listed. Programs send no
/// `Origin`, or whatever they like; tokens are what keeps them out.
pub(super) fn is_served(origin: &[u8], host: &[u8], rules: &Rules) -> bool {
    let named = |listed: &String| listed == "*" || listed.as_bytes().eq_ignore_ascii_case(origin);
    let own = is_own(origin, host) && (!rules.loopback_names || is_loopback_name(host));
    own || rules.origins.iter().any(named)
}

/// Whether nobody can lead this name of a host, which may have a port, to another place than the browser's own machine.
fn is_loopback_name(host: &[u8]) -> bool {
    let Ok(host) = std::str::from_utf8(host) else { return false };
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split_once(']').map_or("", |(address, _)| address),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    let address = name.parse().is_ok_and(|address: IpAddr| address.to_canonical().is_loopback());
    address || name.eq_ignore_ascii_case("localhost")
}

/// Whether the page is of the host that was asked. The scheme is not compared: what ends TLS in front of a gateway
/// changes it.
fn is_own(origin: &[u8], host: &[u8]) -> bool {
    let (page, port) = if let Some(page) = strip_prefix(origin, b"https://") {
        (page, &b":443"[..])
    } else if let Some(page) = strip_prefix(origin, b"http://") {
        (page, &b":80"[..])
    } else {
        // That of a sandboxed page is `null`, that of an extension has a scheme of its own.
        return false;
    };
    // A port that the scheme implies may be left out of either.
    let short = |name: &'_ [u8]| name.strip_suffix(port).unwrap_or(name).to_ascii_lowercase();
    !page.is_empty() && short(page) == short(host)
}

fn strip_prefix<'a>(bytes: &'a [u8], prefix: &[u8]) -> Option<&'a [u8]> {
    let (front, rest) = bytes.split_at_checked(prefix.len())?;
    front.eq_ignore_ascii_case(prefix).then_some(rest)
}
