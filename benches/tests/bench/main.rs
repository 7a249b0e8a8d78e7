//! The `bench` program: what it counts, and every scenario at small size.

mod accounting;
mod complaints;
mod faults;
mod proxy;
#[path = "../../../router/tests/router/support/redis_cluster.rs"]
mod redis_cluster;
mod scenarios;
