//! A bounded queue of lines before a file descriptor, and the one thread that writes them.
//!
//! Whoever has a line puts it into the queue or drops and counts it: no caller ever waits for a disk, a terminal or the
//! reader of a pipe.

use crossbeam_queue::ArrayQueue;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use std::fmt;
use std::io::{self, Write};
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

/// Most lines that wait.
pub const LINES_MAX: usize = 4_096;
/// Most bytes that wait. At a hundred bytes a line that is more than [`LINES_MAX`]; it binds when lines are long.
pub const BYTES_MAX: usize = 1 << 20;
/// Longest line; the rest of a longer one is cut off. A backtrace fits.
const LINE_BYTES_MAX: usize = 32 << 10;
/// How often [`Sink::flush`] looks again.
const FLUSH_STEP: Duration = Duration::from_millis(1);

/// Where lines go. A clone is another handle of the same queue.
#[derive(Clone)]
pub struct Sink {
    shared: Arc<Shared>,
}

struct Shared {
    queue: ArrayQueue<Box<[u8]>>,
    bytes: AtomicUsize,
    writer: OnceLock<Thread>,
    /// Lines that were put into the queue, and those of them that were written or given up.
    accepted: AtomicU64,
    settled: AtomicU64,
    full: AtomicU64,
    failed: AtomicU64,
    /// Whether the last write worked.
    works: AtomicBool,
}

impl fmt::Debug for Sink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sink").field("waiting", &self.shared.queue.len()).finish_non_exhaustive()
    }
}

impl Sink {
    /// Starts the thread that writes to `out`. Each time it has written everything it calls `idle`, which may put
    /// further lines, and sleeps until there is a line, or for as long as `idle` says at most.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(
        name: &str,
        out: impl Write + Send + 'static,
        mut idle: impl FnMut(&Sink) -> Option<Duration> + Send + 'static,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            queue: ArrayQueue::new(LINES_MAX),
            bytes: AtomicUsize::new(0),
            writer: OnceLock::new(),
            accepted: AtomicU64::new(0),
            settled: AtomicU64::new(0),
            full: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            works: AtomicBool::new(true),
        });
        let sink = Sink { shared };
        let of_thread = sink.clone();
        let mut out = Out { out, torn: false };
        let thread = thread::Builder::new().name(name.to_owned()).spawn(move || {
            loop {
                of_thread.write_waiting(&mut out);
                let pause = idle(&of_thread);
                if !of_thread.shared.queue.is_empty() {
                    continue;
                }
                match pause {
                    Some(pause) => thread::park_timeout(pause),
                    None => thread::park(),
                }
            }
        })?;
        // Nobody else sets it.
        let _ = sink.shared.writer.set(thread.thread().clone());
        Ok(sink)
    }

    /// Queues a line, its end included, or drops and counts it. Never waits.
    pub fn put(&self, line: &[u8]) {
        let shared = &*self.shared;
        let line = bounded(line);
        let len = line.len();
        let fits = shared.bytes.fetch_add(len, Ordering::AcqRel) + len <= BYTES_MAX;
        if !fits || shared.queue.push(line).is_err() {
            shared.bytes.fetch_sub(len, Ordering::AcqRel);
            shared.full.fetch_add(1, Ordering::Relaxed);
            return;
        }
        shared.accepted.fetch_add(1, Ordering::AcqRel);
        self.wake();
    }

    /// Has the thread look at its queue, and call `idle` when that is empty.
    pub fn wake(&self) {
        if let Some(writer) = self.shared.writer.get() {
            writer.unpark();
        }
    }

    /// Waits until everything put so far has been written or given up, `longest` at most.
    pub fn flush(&self, longest: Duration) {
        let (wanted, until) = (self.shared.accepted.load(Ordering::Acquire), Instant::now() + longest);
        while self.shared.settled.load(Ordering::Acquire) < wanted && Instant::now() < until {
            thread::sleep(FLUSH_STEP);
        }
    }

    /// Lines dropped because the queue was full: nobody took them as fast as they came.
    pub fn full(&self) -> u64 {
        self.shared.full.load(Ordering::Relaxed)
    }

    /// Lines that could not be written: a full disk, a closed pipe.
    pub fn failed(&self) -> u64 {
        self.shared.failed.load(Ordering::Relaxed)
    }

    /// Whether the last line could be written.
    pub fn works(&self) -> bool {
        self.shared.works.load(Ordering::Relaxed)
    }

    /// The thread's side.
    fn write_waiting(&self, out: &mut Out<impl Write>) {
        let shared = &*self.shared;
        while let Some(line) = shared.queue.pop() {
            shared.bytes.fetch_sub(line.len(), Ordering::AcqRel);
            let works = out.write_line(&line).is_ok();
            shared.works.store(works, Ordering::Relaxed);
            if !works {
                shared.failed.fetch_add(1, Ordering::Relaxed);
            }
            shared.settled.fetch_add(1, Ordering::AcqRel);
        }
    }
}

fn bounded(line: &[u8]) -> Box<[u8]> {
    if line.len() <= LINE_BYTES_MAX {
        return line.into();
    }
    let mut cut = line[..LINE_BYTES_MAX].to_vec();
    cut.extend_from_slice("…\n".as_bytes());
    cut.into()
}

/// Where the thread writes.
struct Out<W> {
    out: W,
    /// The last line was written in part only, so the next one begins with a line end.
    torn: bool,
}

impl<W: Write> Out<W> {
    fn write_line(&mut self, line: &[u8]) -> io::Result<()> {
        if self.torn {
            self.out.write_all(b"\n")?;
            self.torn = false;
        }
        let mut rest = line;
        while !rest.is_empty() {
            match self.out.write(rest) {
                Ok(0) => return Err(self.give_up(line, rest, io::ErrorKind::WriteZero.into())),
                Ok(len) => rest = &rest[len..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.give_up(line, rest, error)),
            }
        }
        Ok(())
    }

    fn give_up(&mut self, line: &[u8], rest: &[u8], error: io::Error) -> io::Error {
        self.torn = rest.len() < line.len();
        error
    }
}

/// A standard stream, written without the buffer and without the lock of the standard library: a thread that is held up
/// in here must not hold up whoever else prints or ends the process.
#[derive(Clone, Copy, Debug)]
pub enum Stream {
    /// Descriptor 1.
    Stdout,
    /// Descriptor 2.
    Stderr,
}

impl Stream {
    fn fd(self) -> BorrowedFd<'static> {
        match self {
            Stream::Stdout => rustix::stdio::stdout(),
            Stream::Stderr => rustix::stdio::stderr(),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match rustix::io::write(self.fd(), bytes) {
                // Whoever shares the pipe or terminal has made it non-blocking.
                Err(Errno::AGAIN) => {
                    poll(&mut [PollFd::from_borrowed_fd(self.fd(), PollFlags::OUT)], None)?;
                }
                outcome => return Ok(outcome?),
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::sync::{Condvar, Mutex};

    const PATIENCE: Duration = Duration::from_secs(60);

    /// A place to write to that can be stopped, and that can fail.
    #[derive(Default)]
    struct Place {
        state: Mutex<PlaceState>,
        changed: Condvar,
    }

    #[derive(Default)]
    struct PlaceState {
        written: Vec<u8>,
        stopped: bool,
        waits: bool,
        /// Bytes that are taken before writes fail.
        room: Option<usize>,
    }

    struct Pen(Arc<Place>);

    impl Write for Pen {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut state = self.0.state.lock().unwrap();
            while state.stopped {
                state.waits = true;
                self.0.changed.notify_all();
                state = self.0.changed.wait(state).unwrap();
            }
            let len = bytes.len().min(state.room.unwrap_or(usize::MAX));
            if len == 0 {
                return Err(io::Error::from_raw_os_error(Errno::NOSPC.raw_os_error()));
            }
            state.room = state.room.map(|room| room - len);
            state.written.extend_from_slice(&bytes[..len]);
            Ok(len)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Place {
        fn set(&self, change: impl FnOnce(&mut PlaceState)) {
            change(&mut self.state.lock().unwrap());
            self.changed.notify_all();
        }
        fn wait_until_stuck(&self) {
            let state = self.state.lock().unwrap();
            let (_state, timeout) = self.changed.wait_timeout_while(state, PATIENCE, |state| !state.waits).unwrap();
            assert!(!timeout.timed_out(), "the writer never came");
        }
        fn text(&self) -> String {
            String::from_utf8(self.state.lock().unwrap().written.clone()).unwrap()
        }
    }

    fn sink() -> (Sink, Arc<Place>) {
        let place = Arc::new(Place::default());
        (Sink::start("test", Pen(place.clone()), |_| None).unwrap(), place)
    }

    #[test]
    fn lines_are_written_in_their_order() {
        let (sink, place) = sink();
        (0..1_000).for_each(|number| sink.put(format!("{number}\n").as_bytes()));
        sink.flush(PATIENCE);
        let expected: String = (0..1_000).map(|number| format!("{number}\n")).collect();
        assert_eq!(place.text(), expected);
        assert_eq!((sink.full(), sink.failed(), sink.works()), (0, 0, true));
    }

    #[test]
    fn a_reader_that_stops_costs_lines_and_nobody_waits() {
        let (sink, place) = sink();
        place.set(|state| state.stopped = true);
        sink.put(b"first\n");
        place.wait_until_stuck();
        // One is in the hands of the thread, the rest fits or is dropped: this loop would never end if a caller waited.
        (0..LINES_MAX + 100).for_each(|_| sink.put(b"x\n"));
        assert_eq!(sink.full(), 100);
        sink.flush(Duration::ZERO);
        place.set(|state| state.stopped = false);
        sink.flush(PATIENCE);
        assert_eq!(place.text().lines().count(), LINES_MAX + 1);
        sink.put(b"again\n");
        sink.flush(PATIENCE);
        assert!(place.text().ends_with("x\nagain\n"));
    }

    #[test]
    fn long_lines_are_cut_and_bounded_together() {
        let (sink, place) = sink();
        place.set(|state| state.stopped = true);
        sink.put(b"first\n");
        place.wait_until_stuck();
        let long = [b'x'; 2 * LINE_BYTES_MAX];
        (0..LINES_MAX).for_each(|_| sink.put(&long));
        assert!(sink.full() > 0 && sink.shared.bytes.load(Ordering::Relaxed) <= BYTES_MAX);
        place.set(|state| state.stopped = false);
        sink.flush(PATIENCE);
        assert!(place.text().len() <= BYTES_MAX + 10 && place.text().ends_with("…\n"));
        assert_eq!(sink.shared.bytes.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_full_disk_costs_lines_until_there_is_room() {
        let (sink, place) = sink();
        place.set(|state| state.room = Some(3));
        sink.put(b"torn off\n");
        sink.put(b"lost\n");
        sink.flush(PATIENCE);
        assert_eq!((sink.failed(), sink.full(), sink.works()), (2, 0, false));
        place.set(|state| state.room = None);
        sink.put(b"whole\n");
        sink.flush(PATIENCE);
        assert_eq!(place.text(), "tor\nwhole\n");
        assert!(sink.works());
    }

    #[test]
    fn who_is_idle_may_add_lines_and_choose_its_pause() {
        let (tell, told): (Sender<()>, Receiver<()>) = channel();
        let place = Arc::new(Place::default());
        let mut rounds = 0;
        let sink = Sink::start("test", Pen(place.clone()), move |sink| {
            rounds += 1;
            if rounds == 2 {
                sink.put(b"from idle\n");
            }
            let _ = tell.send(());
            (rounds == 1).then_some(Duration::from_millis(1))
        })
        .unwrap();
        for _ in 0..3 {
            told.recv_timeout(PATIENCE).expect("it comes by itself");
        }
        sink.flush(PATIENCE);
        assert_eq!(place.text(), "from idle\n");
    }
}
