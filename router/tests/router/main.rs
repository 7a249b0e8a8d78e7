//! The router: its algorithms against naive models, and its process against a real Redis Cluster.

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
mod http_api;
mod http_faults;
mod http_support;
mod http_tls;
mod log_faults;
mod membership;
mod presence;
mod redis_connect;
mod redis_faults;
mod redis_scripts;
mod redis_tls;
mod ring;
mod schemathesis;
mod support;
