//! The router: its process against a real Redis Cluster, and what it says over HTTP.

mod http_api;
mod http_faults;
mod http_support;
mod http_tls;
mod log_faults;
mod redis_connect;
mod redis_faults;
mod redis_scripts;
mod redis_tls;
mod schemathesis;
mod support;
