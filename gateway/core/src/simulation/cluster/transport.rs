//! What lies between the frames of a client and its bytes, where something does: a WebSocket, TLS, or both.

use crate::io::sim::Rng;
use crate::simulation::tls::TlsEnd;
use crate::simulation::websocket::WebSocketEnd;
use trunkline_proto::Code;

/// A client's end of them.
#[derive(Debug)]
pub(super) struct Transport {
    websocket: Option<WebSocketEnd>,
    tls: Option<TlsEnd>,
    rng: Rng,
    /// When it began.
    since_us: u64,
}

impl Transport {
    /// Of a new connection; `None` for a native one, as most are.
    pub(super) fn draw(rng: &mut Rng, now_us: u64) -> Option<Box<Self>> {
        let (websocket, tls) = (rng.chance(150), rng.chance(150));
        (websocket || tls).then(|| {
            let mut rng = Rng::new(rng.bits());
            Box::new(Transport {
                websocket: websocket.then(WebSocketEnd::new),
                tls: tls.then(|| TlsEnd::new(&mut rng)),
                rng,
                since_us: now_us,
            })
        })
    }

    pub(super) fn name(&self) -> &'static str {
        match (&self.websocket, &self.tls) {
            (Some(_), Some(_)) => "WebSocket and TLS",
            (Some(_), None) => "WebSocket",
            (None, _) => "TLS",
        }
    }

    pub(super) fn since_us(&self) -> u64 {
        self.since_us
    }

    /// What is written for these frames.
    pub(super) fn wrap(&mut self, frames: &[u8]) -> Vec<u8> {
        match &mut self.websocket {
            Some(websocket) => {
                let messages = websocket.wrap(frames, &mut self.rng, false);
                self.seal(&messages)
            }
            None => self.seal(frames),
        }
    }

    fn seal(&mut self, bytes: &[u8]) -> Vec<u8> {
        match &mut self.tls {
            Some(tls) if !bytes.is_empty() => tls.wrap(bytes, &mut self.rng),
            _ => bytes.to_vec(),
        }
    }

    /// Takes what came. Returns the frames in it, and what is due in return.
    pub(super) fn unwrap(&mut self, bytes: &[u8]) -> (Vec<u8>, Vec<u8>) {
        let (bytes, mut due) = match &mut self.tls {
            Some(tls) => tls.unwrap(bytes, &mut self.rng),
            None => (bytes.to_vec(), Vec::new()),
        };
        let Some(websocket) = &mut self.websocket else { return (bytes, due) };
        let (frames, pongs) = websocket.unwrap(&bytes, &mut self.rng);
        due.extend(self.seal(&pongs));
        (frames, due)
    }

    /// Panics unless a connection that was ended by its node was closed as it should be. `bye` is what was told before.
    pub(super) fn check_close(&self, bye: Option<Code>) {
        if let Some(websocket) = &self.websocket {
            websocket.check_close(bye);
        }
    }
}
