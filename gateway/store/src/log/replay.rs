//! Reading the log back.

use super::{BATCH_HEADER_BYTES, BATCH_MAGIC, Change, PAGE_BYTES, SEGMENT_MAGIC, segment_name, segment_number};
use crate::codec::Reader;
use crate::disk::{Disk, File};
use std::io;

/// A segment on disk.
pub(crate) struct Found {
    pub(crate) number: u64,
    pub(crate) bytes: u64,
    /// None if the header is damaged.
    header: Option<Header>,
}

#[derive(Clone, Copy)]
struct Header {
    store_epoch: u64,
    first_batch: u64,
    high: u64,
}

/// What reading the log came to.
#[derive(Debug, Default)]
pub(crate) struct Replayed {
    /// The number of the batch after the last one.
    pub(crate) next_batch: u64,
    /// The highest stamp that headers tell of.
    pub(crate) high: u64,
    pub(crate) batches: u64,
    /// Places where batches are missing that had been durable.
    pub(crate) damages: Vec<String>,
    /// The store's epoch, if there is a segment that tells it.
    pub(crate) store_epoch: Option<u64>,
}

/// The segments on disk, oldest first.
pub(crate) fn segments(disk: &dyn Disk, files: &[(String, u64)]) -> io::Result<Vec<Found>> {
    let mut found = Vec::new();
    for (name, bytes) in files {
        let Some(number) = segment_number(name) else { continue };
        let file = disk.open(name)?;
        found.push(Found { number, bytes: *bytes, header: read_header(&*file, number)? });
    }
    found.sort_unstable_by_key(|segment| segment.number);
    Ok(found)
}

fn read_header(file: &dyn File, number: u64) -> io::Result<Option<Header>> {
    let mut bytes = [0; 8 + 4 * 8 + 4];
    match file.read_at(&mut bytes, 0) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        result => result?,
    }
    let (head, crc) = bytes.split_at(bytes.len() - 4);
    if crc32fast::hash(head).to_le_bytes() != crc {
        return Ok(None);
    }
    if head[..8] != *SEGMENT_MAGIC {
        let text = format!("{} has a format that this version does not know", segment_name(number));
        return Err(io::Error::new(io::ErrorKind::Unsupported, text));
    }
    let mut reader = Reader(&head[8..]);
    let header = (|| {
        let (store_epoch, own, first_batch, high) = (reader.u64()?, reader.u64()?, reader.u64()?, reader.u64()?);
        (own == number).then_some(Header { store_epoch, first_batch, high })
    })();
    Ok(header)
}

/// Reads the segments from number `from` on and tells `take` of each change in its order.
///
/// Bytes that make no sense are the torn end of a segment if nothing that was durable can have come after them: no
/// later batch of the same segment is there, and the next segment begins with the batch that is missing. Everything
/// else is damage: reading goes on behind it, and it is reported.
pub(crate) fn replay(
    disk: &dyn Disk,
    found: &[Found],
    from: u64,
    mut take: impl FnMut(Change),
) -> io::Result<Replayed> {
    let mut replayed = Replayed::default();
    // None until something says at which batch the log begins.
    let mut expected: Option<u64> = None;
    for (at, segment) in found.iter().enumerate() {
        if let Some(header) = segment.header {
            replayed.store_epoch = Some(header.store_epoch);
            replayed.high = replayed.high.max(header.high);
            replayed.next_batch = replayed.next_batch.max(header.first_batch);
        }
        if segment.number < from {
            continue;
        }
        match segment.header {
            Some(Header { first_batch, .. }) => {
                if expected.is_some_and(|expected| expected < first_batch) {
                    replayed.damages.push(format!("{}: batches before it are missing", segment_name(segment.number)));
                }
                expected = Some(first_batch);
            }
            // Nothing is written to a segment before its header is durable.
            None if segment.bytes > PAGE_BYTES as u64 => {
                replayed.damages.push(format!("{}: its header is damaged", segment_name(segment.number)));
            }
            None => continue,
        }
        // Later segments take back what they begin with.
        let later = found[at + 1..].iter().filter_map(|later| later.header);
        let end = later.map(|header| header.first_batch).min().unwrap_or(u64::MAX);
        let file = disk.open(&segment_name(segment.number))?;
        let reading = Reading { file: &*file, segment, end };
        reading.batches(&mut expected, &mut replayed, &mut take)?;
    }
    replayed.next_batch = replayed.next_batch.max(expected.unwrap_or(0)).max(1);
    Ok(replayed)
}

struct Reading<'a> {
    file: &'a dyn File,
    segment: &'a Found,
    /// Batches from this one on count in a later segment.
    end: u64,
}

impl Reading<'_> {
    fn batches(
        &self,
        expected: &mut Option<u64>,
        replayed: &mut Replayed,
        take: &mut impl FnMut(Change),
    ) -> io::Result<()> {
        let mut place = PAGE_BYTES as u64;
        let mut unreadable = None;
        while place < self.segment.bytes {
            let (batch, taken) = self.batch(place)?;
            let here = place;
            place += taken;
            let Some(batch) = batch.filter(|batch| expected.is_none_or(|expected| batch.number >= expected)) else {
                unreadable.get_or_insert(here);
                continue;
            };
            if batch.number >= self.end {
                break;
            }
            if unreadable.is_some() || expected.is_some_and(|expected| batch.number != expected) {
                let from = unreadable.take().unwrap_or(here);
                replayed.damages.push(format!("{}: damaged at {from}", segment_name(self.segment.number)));
            }
            let mut reader = Reader(&batch.body);
            while !reader.0.is_empty() {
                let Some(change) = Change::decode(&mut reader) else {
                    let text = format!("{}: a change at {here} makes no sense", segment_name(self.segment.number));
                    replayed.damages.push(text);
                    break;
                };
                take(change);
            }
            *expected = Some(batch.number + 1);
            replayed.high = replayed.high.max(batch.high);
            replayed.batches += 1;
        }
        Ok(())
    }

    /// The batch at a place, if there is one that is whole, and the bytes to go on after. Where only the header can be
    /// trusted, what is in the body is not taken for batches.
    fn batch(&self, place: u64) -> io::Result<(Option<Batch>, u64)> {
        let mut header = [0; BATCH_HEADER_BYTES];
        let nothing = (None, PAGE_BYTES as u64);
        match self.file.read_at(&mut header, place) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(nothing),
            result => result?,
        }
        let Some((len, number, high, crc)) = self.decode_header(&header) else { return Ok(nothing) };
        let taken = (BATCH_HEADER_BYTES + len).next_multiple_of(PAGE_BYTES) as u64;
        let mut body = vec![0; len];
        match self.file.read_at(&mut body, place + BATCH_HEADER_BYTES as u64) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok((None, taken)),
            result => result?,
        }
        let whole = crc32fast::hash(&body) == crc;
        Ok((whole.then_some(Batch { number, high, body }), taken))
    }

    fn decode_header(&self, header: &[u8; BATCH_HEADER_BYTES]) -> Option<(usize, u64, u64, u32)> {
        let mut reader = Reader(header);
        let (magic, len) = (reader.u32()?, reader.u32()? as usize);
        let (number, segment, high, crc) = (reader.u64()?, reader.u64()?, reader.u64()?, reader.u32()?);
        let whole = reader.u32()? == crc32fast::hash(&header[..BATCH_HEADER_BYTES - 4]);
        // A length beyond the file is caught before anything of that size is allocated.
        let fits = len as u64 <= self.segment.bytes;
        (magic == BATCH_MAGIC && segment == self.segment.number && whole && fits).then_some((len, number, high, crc))
    }
}

struct Batch {
    number: u64,
    high: u64,
    body: Vec<u8>,
}
