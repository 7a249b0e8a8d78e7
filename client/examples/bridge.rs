//! A bridge to anything that reads and writes lines over TCP: `nc`, a script, another chat system.
//!
//! `cargo run -p trunkline-client --example bridge -- 9 127.0.0.1:7788` logs in as user 9 and listens; then `nc
//! 127.0.0.1 7788` gets a line `FROM TEXT` for each message to user 9, and sends one for each line `TO TEXT`.
//!
//! What it shows: messages are acknowledged one by one, after they have been passed on; an outbox keeps what came from
//! the other side until its fate is known, over a crash of the bridge, too; a full queue holds the other side up.

use std::io;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use trunkline_client::{
    Acknowledge, Client, Config, Durability, Error, Event, Events, FileOutbox, Message, Outbox, Outcome, Outgoing,
};

/// Longest line; it must fit into a frame.
const LINE_BYTES_MAX: u64 = 60_000;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let (Some(user), Some(listen)) = (args.next().and_then(|user| user.parse().ok()), args.next()) else {
        eprintln!("usage: bridge USER ADDRESS");
        return ExitCode::from(2);
    };
    match run(user, &listen).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bridge: {error}");
            ExitCode::FAILURE
        }
    }
}

/// A file, and a word for each message that did not arrive: also for those of an earlier run.
#[derive(Debug)]
struct Told(FileOutbox);

impl Outbox for Told {
    fn load(&self) -> io::Result<Vec<Outgoing>> {
        self.0.load()
    }

    fn put(&self, message: &Outgoing) -> io::Result<()> {
        self.0.put(message)
    }

    fn settle(&self, id: u64, fate: &Result<Outcome, Error>) {
        match fate {
            Ok(Outcome::Delivered | Outcome::Stored) => {}
            Ok(other) => eprintln!("message {id} did not arrive: {other:?}"),
            Err(error) => eprintln!("message {id}: {error}"),
        }
        self.0.settle(id, fate);
    }
}

/// Serves one peer after the other until the session ends for good.
async fn run(user: u64, listen: &str) -> Result<(), Box<dyn std::error::Error>> {
    let outbox = FileOutbox::open(std::env::temp_dir().join(format!("bridge-{user}.outbox")), Durability::Process)?;
    let config = Config {
        user,
        addrs: vec![std::env::var("TRUNKLINE_ADDR").unwrap_or("127.0.0.1:7700".into())],
        token: std::env::var("TRUNKLINE_TOKEN").unwrap_or_default().into(),
        device: "bridge".into(),
        acknowledge: Acknowledge::Manually,
        // While there is no peer, nothing is taken: the gateway keeps what is not acknowledged, or tells its sender.
        event_wait: Duration::MAX,
        outbox: Some(Arc::new(Told(outbox))),
        ..Config::default()
    };
    let (client, mut events) = Client::connect(config).await?;
    let listener = TcpListener::bind(listen).await?;
    println!("user {user} listens at {}", listener.local_addr()?);
    let mut held = None;
    loop {
        let (peer, from) = listener.accept().await?;
        match pass(&client, &mut events, &mut held, peer).await? {
            End::Peer(why) => eprintln!("the peer {from} has gone: {why}"),
            End::Session => return Ok(()),
        }
    }
}

/// Why a peer is served no longer.
enum End {
    Peer(io::Error),
    Session,
}

/// Passes messages on in both directions. A message that could not be passed on stays in `held` for the next peer.
async fn pass(
    client: &Client,
    events: &mut Events,
    held: &mut Option<Message>,
    mut peer: TcpStream,
) -> Result<End, Error> {
    let (reader, mut writer) = peer.split();
    let outward = async {
        loop {
            if let Some(message) = held.as_ref() {
                let line = format!("{} {}\n", message.from, String::from_utf8_lossy(&message.body).replace('\n', " "));
                if let Err(why) = writer.write_all(line.as_bytes()).await {
                    return Ok(End::Peer(why));
                }
                client.ack(message).await?;
                *held = None;
            }
            match events.next().await {
                Some(Event::Message(message)) => *held = Some(message),
                Some(event) => eprintln!("{event:?}"),
                None => return Ok(End::Session),
            }
        }
    };
    let inward = async {
        let mut lines = BufReader::new(reader);
        loop {
            match read_line(&mut lines).await {
                Ok(line) => send(client, &line).await?,
                Err(why) => return Ok(End::Peer(why)),
            }
        }
    };
    tokio::select! {
        end = outward => end,
        end = inward => end,
    }
}

async fn read_line(lines: &mut (impl AsyncBufReadExt + Unpin)) -> io::Result<String> {
    let mut line = Vec::new();
    lines.take(LINE_BYTES_MAX).read_until(b'\n', &mut line).await?;
    // The end, or the middle of a line that is too long.
    let line = line.strip_suffix(b"\n").ok_or(io::ErrorKind::UnexpectedEof)?;
    String::from_utf8(line.to_vec()).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// Hands a line over to the client; whatever happens then, it is in the outbox.
async fn send(client: &Client, line: &str) -> Result<(), Error> {
    let Some((to, text)) = line.split_once(' ').and_then(|(to, text)| Some((to.parse().ok()?, text))) else {
        eprintln!("not `TO TEXT`: {line}");
        return Ok(());
    };
    // While as many are under way as may be, the other side is not read.
    match client.submit_when_room(Outgoing::new(to, text)).await {
        Ok(receipt) => receipt.detach(),
        Err(error @ (Error::Closed(_) | Error::Outbox(_))) => return Err(error),
        Err(error) => eprintln!("not sent to {to}: {error}"),
    }
    Ok(())
}
