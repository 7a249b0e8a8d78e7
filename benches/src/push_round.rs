//! What one case of `bench push` came to in one round.

use serde::Serialize;

use crate::{cores::CoreUse, latency::Percentiles, traffic::Measurement};

/// One measurement.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Round {
    /// Messages delivered, or pushes answered or delivered.
    pub(crate) messages: u64,
    pub(crate) rate: f64,
    /// CPU time of the gateway for one, user and system, of all its threads.
    pub(crate) cpu_us: f64,
    /// Of its services thread alone, where pushes come by HTTP; and how many such a thread with a core of its own would
    /// do in a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) services_cpu_us: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) per_second_and_services_core: Option<f64>,
    /// The saturation of the gateway, and of the bench.
    pub(crate) cores: f64,
    pub(crate) bench_cores: f64,
    /// What the core of the gateway did.
    pub(crate) server_core: CoreUse,
    /// Of messages and of pushes by a worker from writing one to taking it from the kernel; of pushes by HTTP from
    /// writing a request to its whole answer.
    pub(crate) latency: Percentiles,
    /// As those would see it who do not wait for the one before.
    pub(crate) latency_corrected: Percentiles,
    /// The longest time in which nothing came, in milliseconds.
    pub(crate) silence_ms: f64,
    /// All that were delivered, warm-up and end included; each was checked.
    pub(crate) checked: u64,
}

impl From<Measurement> for Round {
    fn from(measured: Measurement) -> Round {
        Round {
            messages: measured.messages,
            rate: measured.rate,
            cpu_us: measured.cpu_us_per_message,
            services_cpu_us: None,
            per_second_and_services_core: None,
            cores: measured.cpu_cores,
            bench_cores: measured.bench_cores,
            server_core: measured.server_core,
            latency: measured.latency,
            latency_corrected: measured.latency_corrected,
            silence_ms: measured.silence_ms,
            checked: measured.checked,
        }
    }
}
