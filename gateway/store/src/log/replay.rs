//! Reading the log back.

use super::{BATCH_HEADER_BYTES, BATCH_MAGIC, Change, PAGE_BYTES, SEGMENT_MAGIC, Unsure, segment_name, segment_number};
use crate::codec::Reader;
use crate::disk::{Disk, File, Window};
use std::io;
use std::ops::Range;

/// What is read of a segment at a time, if no batch is longer.
const PIECE_BYTES: u64 = 1 << 20;

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
    /// Whoever wrote the header knew that batches before this one were on disk.
    sure: u64,
    high: u64,
}

/// Who takes what the log says, in its order.
pub(crate) trait Take {
    /// A change.
    fn change(&mut self, change: Change);
    /// All changes of the batches before number `next` have been taken.
    fn batch_end(&mut self, next: u64);
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
    /// The last batch, if it may be in the page cache alone.
    pub(crate) unsure: Option<Unsure>,
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

/// The store's epoch, if there is a segment that tells it.
pub(crate) fn store_epoch(found: &[Found]) -> Option<u64> {
    found.iter().rev().find_map(|segment| segment.header).map(|header| header.store_epoch)
}

fn read_header(file: &dyn File, number: u64) -> io::Result<Option<Header>> {
    let mut bytes = [0; 8 + 5 * 8 + 4];
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
        let (store_epoch, own) = (reader.u64()?, reader.u64()?);
        let header = Header { store_epoch, first_batch: reader.u64()?, sure: reader.u64()?, high: reader.u64()? };
        (own == number).then_some(header)
    })();
    Ok(header)
}

/// Reads the segments from number `from` on and tells `take` of each change in its order. Batches before `batch_from`
/// are passed over: what they say is known.
///
/// Bytes that make no sense are the torn end of a segment if nothing that was durable can have come after them: no
/// later batch of the same segment is there, and the next segment begins with the batch that is missing. Everything
/// else is damage: reading goes on behind it, and it is reported.
pub(crate) fn replay(
    disk: &dyn Disk,
    found: &[Found],
    from: u64,
    batch_from: u64,
    take: &mut impl Take,
) -> io::Result<Replayed> {
    let mut replayed = Replayed::default();
    // None until something says at which batch the log begins.
    let mut expected: Option<u64> = None;
    // What a table has is on disk, too.
    let mut sure = batch_from;
    let mut last = None;
    for (at, segment) in found.iter().enumerate() {
        if let Some(header) = segment.header {
            replayed.high = replayed.high.max(header.high);
            sure = sure.max(header.sure);
            replayed.next_batch = replayed.next_batch.max(header.first_batch);
        }
        if segment.number < from {
            continue;
        }
        match segment.header {
            Some(Header { first_batch, sure, .. }) => {
                // Those from `sure` on are repeated here, if they were there.
                if expected.is_some_and(|expected| expected < sure) {
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
        let mut reading = Reading { file: &*file, segment, end, batch_from, window: Window::default() };
        last = reading.batches(&mut expected, &mut replayed, take)?.or(last);
    }
    replayed.unsure = last.filter(|unsure| unsure.number >= sure);
    // Numbers are not given out twice, even if all segments are lost.
    replayed.next_batch = replayed.next_batch.max(expected.unwrap_or(0)).max(batch_from).max(1);
    Ok(replayed)
}

struct Reading<'a> {
    file: &'a dyn File,
    segment: &'a Found,
    /// Batches from this one on count in a later segment.
    end: u64,
    /// Batches before this one are known.
    batch_from: u64,
    window: Window,
}

impl Reading<'_> {
    /// Tells of all batches. Returns the last one.
    fn batches(
        &mut self,
        expected: &mut Option<u64>,
        replayed: &mut Replayed,
        take: &mut impl Take,
    ) -> io::Result<Option<Unsure>> {
        let (segment, end, batch_from) = (self.segment, self.end, self.batch_from);
        let mut place = PAGE_BYTES as u64;
        let mut unreadable = None;
        let mut last = None;
        while place < segment.bytes {
            let (batch, taken) = self.batch(place)?;
            let here = place;
            place += taken;
            let Some(batch) = batch.filter(|batch| expected.is_none_or(|expected| batch.number >= expected)) else {
                unreadable.get_or_insert(here);
                continue;
            };
            if batch.number >= end {
                break;
            }
            if unreadable.is_some() || expected.is_some_and(|expected| batch.number != expected) {
                let from = unreadable.take().unwrap_or(here);
                replayed.damages.push(format!("{}: damaged at {from}", segment_name(segment.number)));
            }
            let mut reader = Reader(if batch.number < batch_from { &[] } else { batch.body });
            while !reader.0.is_empty() {
                let Some(change) = Change::decode(&mut reader) else {
                    let text = format!("{}: a change at {here} makes no sense", segment_name(segment.number));
                    replayed.damages.push(text);
                    break;
                };
                take.change(change);
            }
            *expected = Some(batch.number + 1);
            replayed.high = replayed.high.max(batch.high);
            replayed.batches += 1;
            last = Some((batch.number, here));
            take.batch_end(batch.number + 1);
        }
        let Some((number, place)) = last else { return Ok(None) };
        let (batch, _) = self.batch(place)?;
        Ok(batch.map(|batch| Unsure { number, body: batch.body.to_vec() }))
    }

    /// The batch at a place, if there is one that is whole, and the bytes to go on after. Where only the header can be
    /// trusted, what is in the body is not taken for batches.
    fn batch(&mut self, place: u64) -> io::Result<(Option<Batch<'_>>, u64)> {
        let body_at = place + BATCH_HEADER_BYTES as u64;
        let nothing = (None, PAGE_BYTES as u64);
        let header = self.read(place..body_at)?.and_then(|bytes| bytes.first_chunk().copied());
        let Some((len, number, high, crc)) = header.and_then(|header| self.decode_header(&header)) else {
            return Ok(nothing);
        };
        let taken = (BATCH_HEADER_BYTES + len).next_multiple_of(PAGE_BYTES) as u64;
        let body = self.read(body_at..body_at + len as u64)?;
        let body = body.filter(|body| crc32fast::hash(body) == crc);
        Ok((body.map(|body| Batch { number, high, body }), taken))
    }

    /// What is at a place of the segment; none beyond its end.
    fn read(&mut self, place: Range<u64>) -> io::Result<Option<&[u8]>> {
        if place.end > self.segment.bytes {
            return Ok(None);
        }
        let (file, end) = (self.file, self.segment.bytes);
        match self.window.read_on(&place, PIECE_BYTES, end, |bytes, offset| file.read_at(bytes, offset)) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            result => result?,
        }
        Ok(self.window.get(&place))
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

struct Batch<'a> {
    number: u64,
    high: u64,
    body: &'a [u8],
}
