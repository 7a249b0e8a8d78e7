//! What the frames of clients travel in.

use std::sync::Arc;

use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::tls::{TlsArgs, TlsClient, Within};

/// What a connection of a client is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Transport {
    /// Frames one behind the other on TCP
    #[default]
    Native,
    /// Each frame in a binary message of a WebSocket, as a browser sends it
    Ws,
    /// Frames within TLS: a record for what is sent at once
    Tls,
    /// WebSockets within TLS, alike
    Wss,
}

impl Transport {
    /// All of them.
    pub(crate) const ALL: [Transport; 4] = [Transport::Native, Transport::Ws, Transport::Tls, Transport::Wss];

    /// A name with the transport behind it, unless that is the usual one.
    pub(crate) fn label(self, name: &str) -> String {
        match self {
            Transport::Native => name.to_owned(),
            Transport::Ws => format!("{name}, WebSocket"),
            Transport::Tls => format!("{name}, TLS"),
            Transport::Wss => format!("{name}, WebSocket over TLS"),
        }
    }

    /// Whether it goes over TLS.
    pub(crate) fn is_tls(self) -> bool {
        matches!(self, Transport::Tls | Transport::Wss)
    }

    /// What a gateway's clients put their frames in.
    pub(crate) fn layers(self, tls: TlsArgs) -> Layers {
        match self {
            Transport::Native => Wire::Native.into(),
            Transport::Ws => Wire::WebSocket.into(),
            Transport::Tls => Layers { wire: Wire::Native, tls: Some(TlsClient::new(tls, Within::Frames)) },
            Transport::Wss => Layers { wire: Wire::WebSocket, tls: Some(TlsClient::new(tls, Within::Http)) },
        }
    }

    /// What an echo's clients do: it sends back the bytes that a gateway's clients would have sent. `None` over TLS,
    /// for which an echo has no keys.
    pub(crate) fn echo_wire(self) -> Option<Wire> {
        match self {
            Transport::Native => Some(Wire::Native),
            Transport::Ws => Some(Wire::WebSocketEcho),
            Transport::Tls | Transport::Wss => None,
        }
    }
}

/// Transports to be measured one after the other.
#[derive(Clone, Debug, Args, Serialize)]
pub(crate) struct Transports {
    /// What the clients' frames travel in; several are compared in the same run
    #[arg(long, value_name = "TRANSPORT", value_delimiter = ',', default_values_t = [Transport::Native])]
    pub(crate) transport: Vec<Transport>,
    #[command(flatten)]
    #[serde(flatten)]
    pub(crate) tls: TlsArgs,
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

    /// Whether any goes over TLS.
    pub(crate) fn any_tls(&self) -> bool {
        self.transport.iter().any(|transport| transport.is_tls())
    }
}

impl std::fmt::Display for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Transport::Native => "native",
            Transport::Ws => "ws",
            Transport::Tls => "tls",
            Transport::Wss => "wss",
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
    /// A request for this subprotocol, then what is said at once in a masked binary message; in what comes back
    /// messages begin and end anywhere.
    OtherWebSocket(&'static str),
}

impl Wire {
    /// The subprotocol that a request asks for; `None` where there is no request.
    pub(crate) fn subprotocol(self) -> Option<&'static str> {
        match self {
            Wire::WebSocket => Some("trunkline.v1"),
            Wire::OtherWebSocket(subprotocol) => Some(subprotocol),
            Wire::Native | Wire::WebSocketEcho => None,
        }
    }
}

/// What lies between the frames of a fleet and its sockets.
#[derive(Clone, Debug, Default)]
pub(crate) struct Layers {
    pub(crate) wire: Wire,
    /// Below that.
    pub(crate) tls: Option<Arc<TlsClient>>,
}

impl From<Wire> for Layers {
    fn from(wire: Wire) -> Layers {
        Layers { wire, tls: None }
    }
}
