//! The log of events in the Redis Cluster of the nodes, so that they outlive the process and its host. What is written
//! is what [`log`](super::log) writes to files: each piece in the list of a node is such a file, however short.
//!
//! A log has one owner, the process that has opened it last: it has the lease of the node's name. What an earlier life
//! writes after that is refused.

use super::AGE_MS_MAX;
use super::log::{Job, Reading, Recovered, begun, records};
use std::io;
use trunkline_router::redis::{Batches, PlaneError, RedisConfig, StoreSync, Value};

const SOURCE: &str = include_str!("pieces.lua");
/// About so long a piece is at most; a record alone may be longer.
const PIECE_BYTES: usize = 1 << 20;
/// Pieces that are read at a time.
const PAGE: usize = 8;
/// Pieces that are taken off with one write: Redis does nothing else meanwhile.
const GONE_MAX: u64 = 512;
/// The log of a node that does not come back is gone after this time.
const KEPT_MS: u64 = 2 * AGE_MS_MAX;

/// Where events are kept in Redis.
#[derive(Clone, Debug)]
pub struct EventsInRedis {
    /// The Redis Cluster, with TLS set up where that is asked for.
    pub redis: RedisConfig,
    /// When an event counts as kept; `None`: when a replica has it, where each master has one.
    pub sync: Option<StoreSync>,
}

/// The log of a node.
#[derive(Debug)]
pub(super) struct RedisLog {
    batches: Batches,
    sync: StoreSync,
    keys: [String; 3],
    /// By which Redis knows this process.
    owner: String,
    /// What is of an earlier era than this is of no use any more.
    era: u64,
    /// The latest era of which something may be there.
    last_era: u64,
}

fn failed(error: &PlaneError) -> io::Error {
    io::Error::other(error.to_string())
}

fn garbage() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "what Redis has as a log of events makes no sense")
}

impl RedisLog {
    /// Takes the log of a node over, and reads what it holds for webhooks with these keys. What is written first has to
    /// be [`Job::anew`].
    ///
    /// # Errors
    /// When Redis does not work.
    pub(super) async fn open(
        place: &EventsInRedis,
        node: &str,
        owner: u64,
        keys: &[u64],
    ) -> io::Result<(Self, Recovered)> {
        let EventsInRedis { redis, sync } = place;
        let batches = Batches::unconnected(redis, SOURCE, *sync == Some(StoreSync::Aof));
        batches.try_connect().await.map_err(|error| failed(&error))?;
        let default = if batches.fewest_replicas() > 0 { StoreSync::Replica } else { StoreSync::Master };
        let name = format!("tl:events:{{{node}}}");
        let log = RedisLog {
            batches,
            sync: sync.unwrap_or(default),
            keys: [name.clone(), format!("{name}:pieces"), format!("{name}:marks")],
            owner: format!("{owner:016x}"),
            era: 0,
            last_era: 0,
        };
        let owned = vec![log.keys[0].as_str().into(), "owner".into(), log.owner.as_str().into()];
        log.command("HSET", owned).await?;
        let mut reading = Reading::of(keys);
        let mut from = 0;
        loop {
            let page = [from.to_string(), (from + PAGE - 1).to_string()];
            let [first, last] = page.each_ref().map(|at| Value::from(at.as_str()));
            let pieces = log.command("LRANGE", vec![log.keys[1].as_str().into(), first, last]).await?;
            let Value::Array(pieces) = pieces else { return Err(garbage()) };
            for piece in &pieces {
                reading.file(piece.as_bytes().ok_or_else(garbage)?);
            }
            if pieces.len() < PAGE {
                break;
            }
            from += PAGE;
        }
        let newest = log.command("LINDEX", vec![log.keys[2].as_str().into(), "-1".into()]).await?;
        let era = newest.as_string().and_then(|mark| mark.get(..10)?.parse().ok()).unwrap_or(0);
        Ok((RedisLog { era, last_era: era, ..log }, reading.end()))
    }

    async fn command(&self, name: &'static str, args: Vec<Value>) -> io::Result<Value> {
        self.batches.command(name, args).await.map_err(|error| failed(&error))
    }

    /// Writes. Returns the bytes of the whole log. After an error the next job has to be [`Job::anew`]; some of the one
    /// that failed may be there.
    ///
    /// # Errors
    /// When Redis does not work, or too few replicas have what was written, or another process has the log by now.
    pub(super) async fn write(&mut self, job: &Job) -> io::Result<u64> {
        let of_pieces = if job.anew { self.last_era + 1 } else { self.era };
        self.last_era = self.last_era.max(of_pieces);
        let sync = if job.sync || job.anew { self.sync } else { StoreSync::Master };
        let begin = begun(&job.snapshot);
        let mut pieces = pieces(&job.bytes).peekable();
        let (mut bytes, mut more) = (0, false);
        while let Some(piece) = pieces.next() {
            // What came before goes when all that takes its place is there.
            let is_last = pieces.peek().is_none();
            let era = if is_last { of_pieces } else { self.era };
            let piece = [&begin[..], piece].concat();
            let mark = format!("{of_pieces:010}{:020}:{}", job.last_seq, piece.len());
            (bytes, more) = self.call(era, job.done_below, Some((mark, piece)), sync).await?;
        }
        self.era = of_pieces;
        while job.anew && more {
            (bytes, more) = self.call(self.era, job.done_below, None, StoreSync::Master).await?;
        }
        Ok(bytes)
    }

    /// Adds a piece with its mark, and takes off what is of no use any more. Returns the bytes of the log, and whether
    /// more of it could go.
    async fn call(
        &self,
        era: u64,
        done_below: u64,
        piece: Option<(String, Vec<u8>)>,
        sync: StoreSync,
    ) -> io::Result<(u64, bool)> {
        let mut args: Vec<Value> = vec![
            self.owner.as_str().into(),
            format!("{era:010}").into(),
            format!("{done_below:020}").into(),
            GONE_MAX.to_string().into(),
            KEPT_MS.to_string().into(),
        ];
        if let Some((mark, piece)) = piece {
            args.extend([mark.into(), piece[..].into()]);
        }
        let call = self.batches.call(self.keys.each_ref().map(String::as_str), args);
        let outcome = self.batches.run(&[call], sync).await.pop().ok_or_else(garbage)?;
        let (answer, is_confirmed) = outcome.map_err(|error| failed(&error))?;
        let Value::Array(parts) = answer else { return Err(garbage()) };
        let numbers: Vec<u64> = parts.iter().filter_map(Value::as_u64).collect();
        match numbers[..] {
            [0, ..] => Err(io::Error::other("another process has the log of events of this node in Redis by now")),
            [_, _, _] if !is_confirmed => Err(io::Error::other("too few replicas of Redis have it")),
            [_, bytes, more] => Ok((bytes, more == 1)),
            _ => Err(garbage()),
        }
    }

    /// Closes the connections.
    pub(super) fn close(&self) {
        self.batches.close();
    }
}

/// Records in pieces of a bounded length, one at least.
fn pieces(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(bytes);
    std::iter::from_fn(move || {
        let bytes = rest.take()?;
        let mut len = 0;
        for record in records(bytes) {
            if len > 0 && len + record > PIECE_BYTES {
                rest = Some(&bytes[len..]);
                break;
            }
            len += record;
        }
        Some(&bytes[..len])
    })
}

#[cfg(test)]
mod tests {
    use super::super::log::put_done;
    use super::*;

    #[test]
    fn records_are_cut_into_pieces_between_them() {
        let mut bytes = Vec::new();
        (0..100_000).for_each(|seq| put_done(&mut bytes, 1, 2, seq));
        let all: Vec<&[u8]> = pieces(&bytes).collect();
        assert!(all.len() > 1 && all.iter().all(|piece| piece.len() <= PIECE_BYTES));
        assert!(all.iter().all(|piece| records(piece).sum::<usize>() == piece.len()));
        assert_eq!(all.concat(), bytes);
        assert_eq!(pieces(&[]).collect::<Vec<_>>(), [&[] as &[u8]]);
    }
}
