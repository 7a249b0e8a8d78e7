//! The names of the servers that the shards dial, looked up on the services thread.

use crate::metrics::ShardStats;
use crate::services::DialedServers;
use crate::upstream::lookups;
use std::net::SocketAddr;
use std::sync::Arc;

/// Begins to look up all names: each by a task of its own, which ends after its first answer unless the name is to be
/// looked up again and again. The numbers are those of the first shard; of what is counted here this thread is the only
/// writer. Call it within the runtime of the services thread.
pub(crate) fn look_up(servers: &DialedServers, stats: &Arc<ShardStats>) {
    for (at, server) in servers.names() {
        let (name, servers, stats) = (server.authority(), servers.clone(), stats.clone());
        let mut was_left_out = 0;
        let tell = move |addresses: Vec<SocketAddr>| {
            stats.service_lookups_failed.add(u64::from(addresses.is_empty()));
            let left_out = servers.resolved(at, &addresses);
            if left_out > 0 && left_out != was_left_out {
                tracing::warn!(server = name, left_out, "a name stands for more addresses than are dialed");
            }
            was_left_out = left_out;
            true
        };
        tokio::spawn(lookups(server.host.clone(), server.port, server.resolve, tell));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    #[test]
    fn a_name_is_looked_up_and_its_addresses_are_told_to_the_shards() {
        let spec = "7,server=localhost:9000 resolve,server=127.0.0.1:9001".parse().unwrap();
        let servers = DialedServers::new(&[spec], |_| Arc::default());
        let stats = Arc::new(ShardStats::default());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            look_up(&servers, &stats);
            let until = Instant::now() + Duration::from_secs(60);
            while !servers.addresses(0).contains(&"127.0.0.1:9000".parse().unwrap()) {
                assert!(Instant::now() < until, "{:?}", servers.addresses(0));
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        assert_eq!(servers.addresses(1), ["127.0.0.1:9001".parse().unwrap()]);
        assert_eq!(stats.service_lookups_failed.get(), 0);
        runtime.shutdown_background();
    }
}
