//! What the frames of clients travel in.

use clap::{Args, ValueEnum};
use serde::Serialize;

/// What a connection of a client is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Transport {
    /// Frames one behind the other on TCP
    #[default]
    Native,
    /// Each frame in a binary message of a WebSocket, as a browser sends it
    Ws,
}

impl Transport {
    /// A name with the transport behind it, unless that is the usual one.
    pub(crate) fn label(self, name: &str) -> String {
        match self {
            Transport::Native => name.to_owned(),
            Transport::Ws => format!("{name}, WebSocket"),
        }
    }

    /// What a gateway's clients put their frames in.
    pub(crate) fn wire(self) -> Wire {
        match self {
            Transport::Native => Wire::Native,
            Transport::Ws => Wire::WebSocket,
        }
    }

    /// What an echo's clients do: it sends back the bytes that a gateway's clients would have sent.
    pub(crate) fn echo_wire(self) -> Wire {
        match self {
            Transport::Native => Wire::Native,
            Transport::Ws => Wire::WebSocketEcho,
        }
    }
}

/// Transports to be measured one after the other.
#[derive(Clone, Debug, Args, Serialize)]
pub(crate) struct Transports {
    /// What the clients' frames travel in; several are compared in the same run
    #[arg(long, value_name = "TRANSPORT", value_delimiter = ',', default_values_t = [Transport::Native])]
    pub(crate) transport: Vec<Transport>,
}

impl Transports {
    /// Each once, in the order given.
    pub(crate) fn distinct(&self) -> Vec<Transport> {
        let mut distinct = Vec::new();
        for transport in &self.transport {
            if !distinct.contains(transport) {
                distinct.push(*transport);
            }
        }
        distinct
    }
}

impl std::fmt::Display for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Transport::Native => "native",
            Transport::Ws => "ws",
        })
    }
}

/// What a fleet writes to its connections and reads from them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Wire {
    /// Frames as they are.
    #[default]
    Native,
    /// A request to become a WebSocket, then frames in masked binary messages; what comes back is not masked.
    WebSocket,
    /// The same without the request, and what comes back are the bytes that were sent.
    WebSocketEcho,
}
