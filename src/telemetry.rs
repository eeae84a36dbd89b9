//! Telemetry: logs, metrics, traces.
pub mod metrics;
