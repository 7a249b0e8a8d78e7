//! The protocol as it is on the wire, tested from outside.

mod corpus;
mod generated;
mod golden;
mod limits;
mod numbers;
mod properties;
mod samples;
mod split;
mod websocket;
