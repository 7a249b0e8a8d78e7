//! Lines in and lines out: with line editing on a terminal, plainly elsewhere.

use std::io::{self, BufRead, IsTerminal, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use rustyline::error::ReadlineError;
use rustyline::history::DefaultHistory;
use rustyline::{CompletionType, Editor, ExternalPrinter};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::complete::Completion;
use crate::groups::KnownGroups;
use crate::line::{Command, Conversation};
use crate::prompt::{Connected, LivePrompt};
use crate::style::{Style, Tone, When};

/// Lines that may wait, in each direction.
const QUEUE_LEN: usize = 256;

/// Longest line read from a pipe: more than the payload of a default frame, so that the library says what is too long.
const LINE_BYTES_MAX: usize = 128 * 1024;

/// How long the last lines may take to reach the screen.
const FLUSH_WAIT: Duration = Duration::from_secs(2);

/// What came in.
#[derive(Debug)]
pub(crate) enum Input {
    Command(Command),
    /// Nothing more will come.
    End,
    Failed(String),
}

/// What goes out.
#[derive(Debug)]
struct Output {
    /// [`Tone::Status`] goes to standard error, unless that is the same terminal.
    tone: Tone,
    text: String,
    sent_ms: Option<u64>,
}

/// Everything printed goes through here, so that it never tears the line being typed.
#[derive(Debug)]
pub(crate) struct Screen {
    output: mpsc::Sender<Output>,
    flushed: oneshot::Receiver<()>,
    /// Somebody sits in front of it.
    pub(crate) interactive: bool,
    /// What the prompt says of the connection.
    pub(crate) connected: Connected,
    /// Tells the line editor that the line being typed is the last.
    leaving: Arc<AtomicBool>,
}

impl Screen {
    /// Takes over standard input and output for user `me`. Both get a thread of their own, as both block; the one that
    /// reads may be left behind at exit.
    pub(crate) fn start(me: u64, colour: When, groups: KnownGroups) -> (Self, mpsc::Receiver<Input>) {
        let (input, input_queue) = mpsc::channel(QUEUE_LEN);
        let (output, output_queue) = mpsc::channel(QUEUE_LEN);
        let (flush, flushed) = oneshot::channel();
        let leaving = Arc::new(AtomicBool::new(false));
        let connected = Connected::new();
        let interactive = match line_editor(groups) {
            Some((editor, printer)) => {
                let (last, connected) = (leaving.clone(), connected.clone());
                let style = Style::new(colour, true);
                thread::spawn(move || edit_lines(editor, me, &input, &connected, &last));
                thread::spawn(move || print_beside(printer, &style, output_queue, flush));
                true
            }
            None => {
                thread::spawn(move || read_lines(io::stdin().lock(), &input));
                let style = Style::new(colour, false);
                thread::spawn(move || print_plainly(&style, output_queue, flush));
                false
            }
        };
        let screen = Self { output, flushed, interactive, connected, leaving };
        (screen, input_queue)
    }

    /// Prints a line; false when nothing can be printed any more.
    pub(crate) async fn line(&self, tone: Tone, text: String) -> bool {
        self.output.send(Output { tone, text, sent_ms: None }).await.is_ok()
    }

    /// Prints a message that was sent at this time; false when nothing can be printed any more.
    pub(crate) async fn message(&self, text: String, sent_ms: u64) -> bool {
        self.output.send(Output { tone: Tone::Message, text, sent_ms: Some(sent_ms) }).await.is_ok()
    }

    /// Prints a line about the program itself; false when nothing can be printed any more.
    pub(crate) async fn status(&self, text: String) -> bool {
        self.line(Tone::Status, text).await
    }

    /// Takes leave with `sentence` while a line may be under the user's hands: the terminal belongs to the editor,
    /// which puts it back in order when that line ends.
    pub(crate) async fn release(&self, sentence: &str, input: &mut mpsc::Receiver<Input>) {
        if !self.interactive || input.is_closed() {
            return;
        }
        self.leaving.store(true, Ordering::SeqCst);
        if self.status(format!("{sentence}. Press Enter to leave.")).await {
            // What is still typed has nobody left to go to.
            while input.recv().await.is_some() {}
        }
    }

    /// Waits until everything is printed, but not for ever: on a terminal the printer hangs if the editor has just
    /// left.
    pub(crate) async fn flush(self) {
        drop(self.output);
        // Neither a printer that failed nor one that hangs leaves anything to be done here.
        drop(timeout(FLUSH_WAIT, self.flushed).await);
    }
}

type LineEditor = Editor<Completion, DefaultHistory>;

/// A line editor, where there is a terminal that can carry one.
fn line_editor(groups: KnownGroups) -> Option<(LineEditor, impl ExternalPrinter + Send + 'static)> {
    if !io::stdin().is_terminal() || !io::stdout().is_terminal() {
        return None;
    }
    let config = rustyline::Config::builder().completion_type(CompletionType::List).build();
    let mut editor = LineEditor::with_config(config).ok()?;
    editor.set_helper(Some(Completion(groups)));
    let printer = editor.create_external_printer().ok()?;
    Some((editor, printer))
}

fn edit_lines(
    mut editor: LineEditor,
    me: u64,
    input: &mpsc::Sender<Input>,
    connected: &Connected,
    leaving: &AtomicBool,
) {
    let mut talk = Conversation::default();
    loop {
        let next = match editor.readline(&LivePrompt::new(&talk.who(me), connected)) {
            Ok(line) => {
                // Without a history the line can still be sent.
                let _ = editor.add_history_entry(&line);
                Input::Command(talk.read(&line))
            }
            Err(ReadlineError::Eof | ReadlineError::Interrupted | ReadlineError::Signal(_)) => Input::End,
            Err(error) => Input::Failed(format!("cannot read from the terminal: {error}")),
        };
        let last = matches!(next, Input::Command(Command::Quit) | Input::End | Input::Failed(_));
        if input.blocking_send(next).is_err() || last || leaving.load(Ordering::SeqCst) {
            return;
        }
    }
}

fn read_lines(mut stdin: impl BufRead, input: &mpsc::Sender<Input>) {
    let mut talk = Conversation::default();
    loop {
        let next = match read_line(&mut stdin) {
            Ok(Some(Ok(line))) => Input::Command(talk.read(&line)),
            Ok(Some(Err(TooLong))) => {
                let wrong = format!("a line of more than {LINE_BYTES_MAX} bytes was left out");
                Input::Command(Command::Wrong(wrong))
            }
            Ok(None) => Input::End,
            Err(error) => Input::Failed(format!("cannot read standard input: {error}")),
        };
        let last = matches!(next, Input::Command(Command::Quit) | Input::End | Input::Failed(_));
        if input.blocking_send(next).is_err() || last {
            return;
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
struct TooLong;

/// The next line without its end; `None` at the end of the input.
fn read_line(input: &mut impl BufRead) -> io::Result<Option<Result<String, TooLong>>> {
    let mut bytes = Vec::new();
    if input.by_ref().take(LINE_BYTES_MAX as u64).read_until(b'\n', &mut bytes)? == 0 {
        return Ok(None);
    }
    if bytes.len() == LINE_BYTES_MAX && bytes.last() != Some(&b'\n') {
        input.skip_until(b'\n')?;
        return Ok(Some(Err(TooLong)));
    }
    let line = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
    Ok(Some(Ok(String::from_utf8_lossy(line).into_owned())))
}

/// Prints above the line being typed.
fn print_beside(
    mut printer: impl ExternalPrinter,
    style: &Style,
    mut output: mpsc::Receiver<Output>,
    flush: oneshot::Sender<()>,
) {
    while let Some(Output { tone, text, sent_ms }) = output.blocking_recv() {
        // A list has one time for all of its lines, above it.
        let separator = if text.contains('\n') { "\n" } else { "" };
        let line = style.line(tone, &format!("{separator}{text}"), sent_ms);
        if printer.print(format!("{line}\n")).is_err() {
            return;
        }
    }
    // Nobody waits any more if this fails.
    let _ = flush.send(());
}

/// Prints line by line; ends when the other side of a pipe has gone.
fn print_plainly(style: &Style, mut output: mpsc::Receiver<Output>, flush: oneshot::Sender<()>) {
    let (mut stdout, mut stderr) = (io::stdout(), io::stderr());
    while let Some(Output { tone, text, sent_ms }) = output.blocking_recv() {
        let line = style.line(tone, &text, sent_ms);
        let printed = match tone {
            Tone::Status => writeln!(stderr, "{line}"),
            _ => writeln!(stdout, "{line}").and_then(|()| stdout.flush()),
        };
        if printed.is_err() {
            return;
        }
    }
    // Nobody waits any more if this fails.
    let _ = flush.send(());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(mut input: &[u8]) -> Vec<Result<String, TooLong>> {
        let mut lines = Vec::new();
        while let Some(line) = read_line(&mut input).expect("memory can be read") {
            lines.push(line);
        }
        lines
    }

    #[test]
    fn the_last_line_needs_no_end_and_bad_utf8_is_replaced() {
        let expected = [Ok("a".into()), Ok(String::new()), Ok("\u{fffd}b".into())];
        assert_eq!(lines(b"a\n\n\xffb"), expected);
    }

    #[test]
    fn a_line_too_long_is_left_out_whole_and_the_next_is_read() {
        let mut input = vec![b'x'; 3 * LINE_BYTES_MAX];
        input.extend_from_slice(b"\nnext\n");
        assert_eq!(lines(&input), [Err(TooLong), Ok("next".into())]);
    }

    #[test]
    fn a_line_of_exactly_the_longest_length_is_read() {
        let mut input = vec![b'x'; LINE_BYTES_MAX - 1];
        input.extend_from_slice(b"\nnext");
        let read = lines(&input);
        assert_eq!(read[0].as_ref().map(String::len), Ok(LINE_BYTES_MAX - 1));
        assert_eq!(read[1], Ok("next".into()));
    }
}
