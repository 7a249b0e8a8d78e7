//! The algorithms of the route plane against naive models and test vectors.

mod balance_failures;
mod balance_hash;
mod balance_least_conn;
mod balance_least_time;
mod balance_properties;
mod balance_random_two;
mod balance_round_robin;
mod balance_servers;
mod balance_support;
mod hash;
mod membership;
mod presence;
mod ring;
