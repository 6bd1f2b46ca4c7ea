//! Contexts that edges saw, redacted there, for previews of changes. Wire types of `/edge/v1/samples`:
//! an edge brings what it took and is told what to take from now on.
//!
//! Off unless somebody switched it on for an environment, for a while, naming the attributes that
//! may leave the edge. Nothing else of a context does.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Of one environment and edge.
pub const PER_MINUTE_MAX: u32 = 600;
/// Attributes that one environment's order may name.
pub const KEEP_MAX: usize = 50;
/// Of one redacted context, as JSON; a longer one is not taken.
pub const SAMPLE_BYTES_MAX: usize = 4 * 1024;
/// Contexts of one report.
pub const REPORT_SAMPLES_MAX: usize = 200;

/// The body of `POST /edge/v1/samples`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SampleReport {
    pub edge: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub environments: Vec<EnvironmentSamples>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EnvironmentSamples {
    pub namespace: String,
    pub environment: String,
    pub samples: Vec<Sample>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Sample {
    /// Milliseconds since the epoch.
    pub at_ms: i64,
    pub context: Value,
}

/// The answer: of every environment that is not in it, nothing is taken.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SampleOrders {
    pub orders: Vec<SampleOrder>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SampleOrder {
    pub namespace: String,
    pub environment: String,
    pub per_minute: u32,
    /// Dotted paths of attributes that are kept as they are. The targeting key is kept as a
    /// pseudonym, unless it is named here.
    pub keep: Vec<String>,
    /// Milliseconds since the epoch; nothing is taken after it.
    pub until_ms: i64,
}
