//! Services as tables of the configuration file: `[[service]]` with `[[service.server]]` and `[service.health]` below
//! it. Each becomes the text that `--service` takes, so that there is one way in which a service is judged and shown.

use super::tables::{AsText, texts};
use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, Visitor};
use std::fmt;

/// A list of services, each of them a text or a table; one text may stand without its brackets.
pub(super) fn services<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<String>>, D::Error> {
    texts::<Service, D>(deserializer)
}

/// A table `[[service]]`.
struct Service;

impl AsText for Service {
    const NAME: &'static str = "service";

    fn as_text<'de, A: MapAccess<'de>>(mut table: A) -> Result<String, A::Error> {
        let (mut number, mut name, mut options) = (None, String::new(), String::new());
        while let Some(key) = table.next_key::<String>()? {
            match key.as_str() {
                "number" => number = Some(table.next_value_seed(Scalar)?),
                "name" => name = table.next_value_seed(Scalar)?,
                "server" => {
                    for server in table.next_value::<Vec<Pairs>>()? {
                        options.push_str(&format!(",server={}", server.as_server().map_err(de::Error::custom)?));
                    }
                }
                "health" => {
                    for (key, value) in table.next_value::<Pairs>()?.0 {
                        options.push_str(&format!(",health_{key}={value}"));
                    }
                }
                _ => options.push_str(&format!(",{key}={}", table.next_value_seed(Scalar)?)),
            }
        }
        let number = number.ok_or_else(|| de::Error::custom("a service without its number: add number = 7"))?;
        let colon = if name.is_empty() { "" } else { ":" };
        Ok(format!("{number}{colon}{name}{options}"))
    }
}

/// A number, a truth or a text, as it stands in the text of a service.
struct Scalar;

impl<'de> DeserializeSeed<'de> for Scalar {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl Visitor<'_> for Scalar {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a whole number, true, false, or a text")
    }
    fn visit_bool<E: de::Error>(self, value: bool) -> Result<String, E> {
        Ok(value.to_string())
    }
    fn visit_i64<E: de::Error>(self, value: i64) -> Result<String, E> {
        Ok(value.to_string())
    }
    fn visit_u64<E: de::Error>(self, value: u64) -> Result<String, E> {
        Ok(value.to_string())
    }
    fn visit_str<E: de::Error>(self, text: &str) -> Result<String, E> {
        // It would be taken for the end of what it is the value of.
        match text.contains(|c: char| c == ',' || c.is_whitespace() || c.is_control()) {
            true => Err(de::Error::custom(format!("{text:?}: no comma and no space may stand in it"))),
            false => Ok(text.to_owned()),
        }
    }
}

/// What a table of numbers, truths and texts says.
struct Pairs(Vec<(String, String)>);

impl Pairs {
    /// As a server stands in the text of a service: its address first.
    fn as_server(&self) -> Result<String, &'static str> {
        let address = self.0.iter().find(|(key, _)| key == "address");
        let (_, address) = address.ok_or("a server without its address: add address = \"http://HOST:PORT/PATH\"")?;
        let rest = self.0.iter().filter(|(key, _)| key != "address");
        Ok(rest.fold(address.clone(), |text, (key, value)| format!("{text} {key}={value}")))
    }
}

impl<'de> serde::Deserialize<'de> for Pairs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Table;

        impl<'de> Visitor<'de> for Table {
            type Value = Pairs;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a table")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut table: A) -> Result<Pairs, A::Error> {
                let mut pairs = Vec::new();
                while let Some(key) = table.next_key::<String>()? {
                    pairs.push((key, table.next_value_seed(Scalar)?));
                }
                Ok(Pairs(pairs))
            }
        }

        deserializer.deserialize_any(Table)
    }
}

#[cfg(test)]
mod tests {
    use super::super::ConfigFile;
    use crate::services::ServiceSpec;
    use std::path::Path;

    fn read(text: &str) -> Result<Vec<String>, String> {
        let file = ConfigFile::parse(Path::new("some.toml"), text).map_err(|error| error.to_string())?;
        Ok(file.settings.service.unwrap_or_default())
    }

    #[test]
    fn a_service_as_a_table_is_what_it_is_as_a_text() {
        let text = r#"
            shards = 2
            [[service]]
            number = 7
            name = "orders"
            transport = "http"
            policy = "least-conn"
            idempotent = true
              [[service.server]]
              address = "http://orders.internal:9000/calls"
              resolve = true
              weight = 5
              [[service.server]]
              address = "127.0.0.1:9001"
              backup = true
              [service.health]
              interval_secs = 5
            [[service]]
            number = 8
            queue = 0
        "#;
        let services = read(text).expect("a configuration");
        let orders = "7:orders,idempotent=true,policy=least-conn,transport=http,\
                      server=http://orders.internal:9000/calls resolve weight=5,server=127.0.0.1:9001 backup,\
                      health_interval_secs=5";
        let parsed: Vec<ServiceSpec> = services.iter().map(|text| text.parse().expect(text)).collect();
        assert_eq!(parsed, [orders.parse().unwrap(), "8,queue=0".parse().unwrap()]);
        assert_eq!(read("service = \"8,queue=0\"\n").unwrap(), ["8,queue=0"]);
        assert_eq!(read("service = [\"8\", \"9:a\"]\n").unwrap(), ["8", "9:a"]);
    }

    #[test]
    fn what_is_wrong_with_a_table_is_told_with_its_line() {
        for (text, why) in [
            ("[service]\nnumber = 7\n", "[[service]]"),
            ("[[service]]\nname = \"orders\"\n", "number = 7"),
            ("[[service]]\nnumber = 7\n[[service.server]]\nweight = 1\n", "address ="),
            ("[[service]]\nnumber = 7\nname = \"a,queue=9\"\n", "no comma"),
            ("[[service]]\nnumber = 7\nqueue = 1.5\n", "whole number"),
            ("service = 7\n", "tables [[service]]"),
        ] {
            let error = read(text).expect_err(text);
            assert!(error.contains(why) && error.contains("some.toml"), "{text}: {error}");
        }
    }
}
