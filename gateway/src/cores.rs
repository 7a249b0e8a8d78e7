//! Which cores the shards run on: of those that the process may use, those that no other gateway on the host has.
//!
//! Two gateways under one quota, or on one host without any, would otherwise pin their shards to the same first cores
//! and leave the others idle. A claim is an abstract Unix socket with the core's number in its name: the kernel lets
//! one process have it, and takes it back however that process ends. Network namespaces have claims of their own.

use core_affinity::CoreId;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

/// Cores for the shards, and the claims on them.
#[derive(Debug)]
pub(crate) struct Cores {
    /// The cores, as many as were asked for and the process may use; empty where the system does not tell.
    pub(crate) ids: Vec<CoreId>,
    /// Held for as long as the shards run.
    _claims: Vec<UnixListener>,
}

impl Cores {
    /// Claims up to `count` of the cores that this process may use. Where others have claimed too many of them, some
    /// are shared.
    pub(crate) fn claim(count: usize) -> Self {
        Cores::claim_of(core_affinity::get_core_ids().unwrap_or_default(), count, "trunkline-core")
    }

    fn claim_of(allowed: Vec<CoreId>, count: usize, prefix: &str) -> Self {
        let (mut ids, mut shared, mut claims) = (Vec::new(), Vec::new(), Vec::new());
        for core in allowed {
            let claim = (ids.len() < count).then(|| claim(prefix, core)).flatten();
            match claim {
                Some(claim) => {
                    claims.push(claim);
                    ids.push(core);
                }
                None => shared.push(core),
            }
        }
        let missing = count.saturating_sub(ids.len());
        ids.extend(shared.into_iter().take(missing));
        ids.sort_unstable();
        Cores { ids, _claims: claims }
    }
}

/// The claim on a core; `None` if another process has it, or the system has no such sockets.
fn claim(prefix: &str, core: CoreId) -> Option<UnixListener> {
    let address = SocketAddr::from_abstract_name(format!("{prefix}-{}", core.id)).ok()?;
    UnixListener::bind_addr(&address).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cores(ids: std::ops::Range<usize>) -> Vec<CoreId> {
        ids.map(|id| CoreId { id }).collect()
    }

    #[test]
    fn two_gateways_have_cores_of_their_own_while_there_are_enough() {
        let prefix = &format!("trunkline-test-{}", std::process::id());
        let first = Cores::claim_of(cores(0..4), 2, prefix);
        assert_eq!(first.ids, cores(0..2));
        let second = Cores::claim_of(cores(0..4), 1, prefix);
        assert_eq!(second.ids, cores(2..3));
        let third = Cores::claim_of(cores(0..4), 2, prefix);
        assert_eq!(third.ids, [CoreId { id: 0 }, CoreId { id: 3 }], "one of its own, and one that is shared");
        drop(first);
        assert_eq!(Cores::claim_of(cores(0..4), 2, prefix).ids, cores(0..2), "a claim ends with its holder");
    }

    #[test]
    fn no_more_cores_than_there_are() {
        let prefix = &format!("trunkline-test-few-{}", std::process::id());
        assert_eq!(Cores::claim_of(cores(0..2), 8, prefix).ids, cores(0..2));
        assert!(Cores::claim_of(Vec::new(), 8, prefix).ids.is_empty());
    }
}
