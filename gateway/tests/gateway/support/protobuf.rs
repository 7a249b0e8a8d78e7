//! As much of the protobuf wire format as the control messages need: varints, fixed64 and length-delimited fields.

/// A message under construction. Fields that hold their default are left out, as proto3 does.
#[derive(Default)]
pub(crate) struct MessageWriter(Vec<u8>);

impl MessageWriter {
    pub(crate) fn number(&mut self, field: u32, value: u64) {
        if value != 0 {
            self.varint(u64::from(field) << 3);
            self.varint(value);
        }
    }

    pub(crate) fn bytes(&mut self, field: u32, value: &[u8]) {
        if !value.is_empty() {
            self.varint(u64::from(field) << 3 | 2);
            self.varint(value.len() as u64);
            self.0.extend_from_slice(value);
        }
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        self.0
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }
}

/// The fields of a received message by number; of a field that occurs twice, the last counts.
pub(crate) struct MessageFields(Vec<(u32, Value)>);

enum Value {
    Number(u64),
    Bytes(Vec<u8>),
}

impl MessageFields {
    /// Fails the test when the server sent something that is not a protobuf message of these field types.
    pub(crate) fn parse(mut rest: &[u8]) -> Self {
        let mut fields = Vec::new();
        while !rest.is_empty() {
            let tag = take_varint(&mut rest);
            let field = (tag >> 3) as u32;
            let value = match tag & 7 {
                0 => Value::Number(take_varint(&mut rest)),
                1 => {
                    let (bytes, after) = rest.split_first_chunk().expect("a fixed64 ends within its message");
                    rest = after;
                    Value::Number(u64::from_le_bytes(*bytes))
                }
                2 => {
                    let length = take_varint(&mut rest) as usize;
                    assert!(length <= rest.len(), "field {field} is longer than its message");
                    let (bytes, after) = rest.split_at(length);
                    rest = after;
                    Value::Bytes(bytes.to_vec())
                }
                other => panic!("field {field} has wire type {other}"),
            };
            fields.push((field, value));
        }
        MessageFields(fields)
    }

    pub(crate) fn number(&self, field: u32) -> u64 {
        match self.last(field) {
            None => 0,
            Some(Value::Number(value)) => *value,
            Some(Value::Bytes(_)) => panic!("field {field} is not a number"),
        }
    }

    pub(crate) fn bytes(&self, field: u32) -> Vec<u8> {
        match self.last(field) {
            None => Vec::new(),
            Some(Value::Bytes(bytes)) => bytes.clone(),
            Some(Value::Number(_)) => panic!("field {field} is not a string"),
        }
    }

    /// All values of a field that may occur more than once.
    pub(crate) fn all_bytes(&self, field: u32) -> Vec<Vec<u8>> {
        let of_field = self.0.iter().filter(|(number, _)| *number == field);
        let bytes = of_field.map(|(_, value)| match value {
            Value::Bytes(bytes) => bytes.clone(),
            Value::Number(_) => panic!("field {field} is not a message"),
        });
        bytes.collect()
    }

    pub(crate) fn text(&self, field: u32) -> String {
        String::from_utf8(self.bytes(field)).expect("a string field holds UTF-8")
    }

    fn last(&self, field: u32) -> Option<&Value> {
        self.0.iter().rev().find(|(number, _)| *number == field).map(|(_, value)| value)
    }
}

fn take_varint(rest: &mut &[u8]) -> u64 {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (&byte, after) = rest.split_first().expect("a varint ends within its message");
        *rest = after;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return value;
        }
    }
    panic!("a varint has more than ten bytes");
}
