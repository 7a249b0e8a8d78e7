//! Secrets of webhooks, and signatures as Standard Webhooks has them: `v1,` and, in Base64, HMAC-SHA256 of
//! `<webhook-id>.<webhook-timestamp>.<body>`.

use crate::files::read_bounded;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use hmac::{Hmac, Mac};
use sha2::Sha256;
use std::fmt;
use std::path::Path;
use zeroize::Zeroizing;

/// Bytes of a secret.
const SECRET_BYTES: std::ops::RangeInclusive<usize> = 24..=64;
/// Longest file of secrets.
const FILE_BYTES_MAX: u64 = 4 << 10;

/// The secrets of a webhook: one, or two while it is being changed. The receiver takes what either has signed.
#[derive(Clone)]
pub(crate) struct Secrets(Vec<Zeroizing<Vec<u8>>>);

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secrets({})", self.0.len())
    }
}

impl Secrets {
    /// As [`Secrets::judge`]; the message names the file too.
    pub(crate) fn read(path: &Path) -> Result<Self, String> {
        Secrets::judge(path).map_err(|error| format!("{}: {error}", path.display()))
    }

    /// Reads them from a file: a line for each, `whsec_` and Base64.
    ///
    /// # Errors
    /// What is wrong with the file, and how to make one; never what stands in it.
    pub(crate) fn judge(path: &Path) -> Result<Self, String> {
        let bytes = Zeroizing::new(read_bounded(path, FILE_BYTES_MAX, "secrets")?);
        let wrong = |error: &str| format!("{error}; echo whsec_$(openssl rand -base64 32) makes one");
        let text = std::str::from_utf8(&bytes).map_err(|_| wrong("it is no text"))?;
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let secrets = lines.map(|line| {
            let base64 = line.strip_prefix("whsec_").ok_or_else(|| wrong("a secret begins with whsec_"))?;
            let secret = BASE64.decode(base64).map_err(|_| wrong("behind whsec_ there must be Base64"))?;
            match SECRET_BYTES.contains(&secret.len()) {
                true => Ok(Zeroizing::new(secret)),
                false => Err(wrong("a secret has 24 to 64 bytes")),
            }
        });
        let secrets = secrets.collect::<Result<Vec<_>, String>>()?;
        match secrets.len() {
            1 | 2 => Ok(Secrets(secrets)),
            _ => Err(wrong("there must be one secret, or two while it is being changed, a line for each")),
        }
    }

    /// The value of `webhook-signature`.
    pub(crate) fn sign(&self, id: &str, timestamp_s: u64, body: &[u8]) -> String {
        let signatures = self.0.iter().map(|secret| {
            let mut mac = Hmac::<Sha256>::new_from_slice(secret).expect("a key may have any length");
            mac.update(format!("{id}.{timestamp_s}.").as_bytes());
            mac.update(body);
            format!("v1,{}", BASE64.encode(mac.finalize().into_bytes()))
        });
        signatures.collect::<Vec<_>>().join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Result<Secrets, String> {
        let name = format!("trunkline-secrets-{}-{:?}", std::process::id(), std::thread::current().id());
        let file = std::env::temp_dir().join(name);
        std::fs::write(&file, text).expect("a file");
        let secrets = Secrets::read(&file);
        std::fs::remove_file(&file).expect("the file");
        secrets
    }

    #[test]
    fn a_signature_is_that_of_standard_webhooks() {
        // The vector of the specification's reference libraries.
        let secrets = of("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n").expect("a secret");
        let body = br#"{"test": 2432232314}"#;
        let signature = secrets.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, body);
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
        let two =
            of("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n\nwhsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\n").expect("two");
        let both = two.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, body);
        let (old, new) = both.split_once(' ').expect("two signatures");
        assert!(old == signature && new.starts_with("v1,") && new != old);
        assert_eq!(format!("{two:?}"), "Secrets(2)");
    }

    #[test]
    fn a_file_that_holds_no_secrets_is_refused_without_what_stands_in_it() {
        let three = "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\n".repeat(3);
        for (text, why) in [
            ("", "one secret, or two"),
            (three.as_str(), "one secret, or two"),
            ("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "begins with whsec_"),
            ("whsec_?MfKQ9r8GKYqrTwjUPD8", "Base64"),
            ("whsec_MfKQ9r8G", "24 to 64 bytes"),
        ] {
            let error = of(text).expect_err(text);
            assert!(error.contains(why) && error.contains("openssl rand") && !error.contains("MfKQ"), "{error}");
        }
    }
}
