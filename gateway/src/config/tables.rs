//! What a file may say with a text or with a table, `[[service]]` or `[[webhook]]`: each table becomes the text that
//! the flag takes, so that there is one way in which it is judged and shown.

use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use std::fmt;
use std::marker::PhantomData;

/// A kind of table.
pub(super) trait AsText {
    /// Its name, as it stands between the brackets.
    const NAME: &'static str;

    /// The text that says the same.
    ///
    /// # Errors
    /// What is wrong with the table.
    fn as_text<'de, A: MapAccess<'de>>(table: A) -> Result<String, A::Error>;
}

/// A list of texts and tables; one text may stand without its brackets.
pub(super) fn texts<'de, T, D>(deserializer: D) -> Result<Option<Vec<String>>, D::Error>
where
    T: AsText,
    D: Deserializer<'de>,
{
    deserializer.deserialize_any(List::<T>(PhantomData)).map(Some)
}

struct List<T>(PhantomData<T>);

impl<'de, T: AsText> Visitor<'de> for List<T> {
    type Value = Vec<String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a text, a list of texts, or tables [[{}]]", T::NAME)
    }
    fn visit_str<E: de::Error>(self, text: &str) -> Result<Vec<String>, E> {
        Ok(vec![text.to_owned()])
    }
    fn visit_map<A: MapAccess<'de>>(self, _: A) -> Result<Vec<String>, A::Error> {
        let name = T::NAME;
        let error = format!("a {name} begins with [[{name}]], in two brackets, because there may be several");
        Err(de::Error::custom(error))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<String>, A::Error> {
        let mut all = Vec::new();
        while let Some(one) = list.next_element_seed(One::<T>(PhantomData))? {
            all.push(one);
        }
        Ok(all)
    }
}

struct One<T>(PhantomData<T>);

impl<'de, T: AsText> DeserializeSeed<'de> for One<T> {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, T: AsText> Visitor<'de> for One<T> {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a text, or a table [[{}]]", T::NAME)
    }
    fn visit_str<E: de::Error>(self, text: &str) -> Result<String, E> {
        Ok(text.to_owned())
    }
    fn visit_map<A: MapAccess<'de>>(self, table: A) -> Result<String, A::Error> {
        T::as_text(table)
    }
}
