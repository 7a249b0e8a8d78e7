//! Alerts: how either side of TLS says why it ends (RFC 8446, section 6).

macro_rules! alerts {
    ($($name:ident = $number:literal $label:literal;)*) => {
        /// What an alert says. Each is a label of a metric.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        #[allow(missing_docs)]
        pub enum Alert { $($name = $number,)* }

        impl Alert {
            /// All of them, in the order of their numbers.
            pub const ALL: &[Alert] = &[$(Alert::$name,)*];

            /// The alert with that number; what nobody has a name for is [`Alert::Other`].
            pub const fn of(number: u8) -> Alert {
                match number { $($number => Alert::$name,)* _ => Alert::Other }
            }

            /// Its name in the registry of IANA.
            pub const fn label(self) -> &'static str {
                match self { $(Alert::$name => $label,)* }
            }
        }
    };
}

alerts! {
    CloseNotify = 0 "close_notify";
    UnexpectedMessage = 10 "unexpected_message";
    BadRecordMac = 20 "bad_record_mac";
    RecordOverflow = 22 "record_overflow";
    HandshakeFailure = 40 "handshake_failure";
    BadCertificate = 42 "bad_certificate";
    UnsupportedCertificate = 43 "unsupported_certificate";
    CertificateRevoked = 44 "certificate_revoked";
    CertificateExpired = 45 "certificate_expired";
    CertificateUnknown = 46 "certificate_unknown";
    IllegalParameter = 47 "illegal_parameter";
    UnknownCa = 48 "unknown_ca";
    AccessDenied = 49 "access_denied";
    DecodeError = 50 "decode_error";
    DecryptError = 51 "decrypt_error";
    ProtocolVersion = 70 "protocol_version";
    InsufficientSecurity = 71 "insufficient_security";
    InternalError = 80 "internal_error";
    InappropriateFallback = 86 "inappropriate_fallback";
    UserCanceled = 90 "user_canceled";
    NoRenegotiation = 100 "no_renegotiation";
    MissingExtension = 109 "missing_extension";
    UnsupportedExtension = 110 "unsupported_extension";
    UnrecognizedName = 112 "unrecognized_name";
    UnknownPskIdentity = 115 "unknown_psk_identity";
    CertificateRequired = 116 "certificate_required";
    NoApplicationProtocol = 120 "no_application_protocol";
    Other = 255 "other";
}

/// Number of alerts, for tables indexed by [`Alert::index`].
pub const ALERTS: usize = Alert::ALL.len();

/// Level of an alert that ends nothing.
const WARNING: u8 = 1;
/// Level of an alert that ends the connection.
const FATAL: u8 = 2;

impl Alert {
    /// Its place in a table of all.
    pub fn index(self) -> usize {
        Alert::ALL.iter().position(|alert| *alert == self).unwrap_or(ALERTS - 1)
    }

    /// Level and number, as they stand in a record.
    pub fn body(self) -> [u8; 2] {
        let level = match self {
            Alert::CloseNotify | Alert::NoRenegotiation | Alert::UserCanceled => WARNING,
            _ => FATAL,
        };
        [level, self as u8]
    }

    /// The whole record of an alert in clear, for a peer with whom no keys are agreed.
    pub fn clear_record(self) -> [u8; 7] {
        let [level, number] = self.body();
        [21, 3, 3, 0, 2, level, number]
    }
}
