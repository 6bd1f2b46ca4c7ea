//! What edges count: how often which variant of which flag was used, by the minute. Wire types of
//! `/edge/v1/usage` and of what browsers send to an edge.
//!
//! No subject and no context is in any of it: counts cannot be traced to whom they count.

use serde::{Deserialize, Serialize};

/// Entries of one report, of uses and of tracks each.
pub const REPORT_ENTRIES_MAX: usize = 1_000;
/// Bytes of what one browser sends at once: what `sendBeacon` takes.
pub const EVENTS_BYTES_MAX: usize = 64 * 1024;
/// Entries of what one browser sends at once, of both kinds together.
pub const EVENTS_MAX: usize = 1_000;
/// Of what one entry counts.
pub const COUNT_MAX: u64 = 1_000_000;
/// Bytes of the name of something tracked.
pub const TRACK_NAME_BYTES_MAX: usize = 128;

/// Who used it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    Server,
    Browser,
}

impl Source {
    pub fn name(self) -> &'static str {
        match self {
            Source::Server => "server",
            Source::Browser => "browser",
        }
    }
}

/// The body of `POST /edge/v1/usage`. A report that is sent again has the same number, and counts once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UsageReport {
    pub edge: String,
    /// When the edge started, in microseconds: its numbers begin anew with each start.
    pub run: i64,
    /// 1, 2, 3 … within a run.
    pub sequence: u64,
    pub environments: Vec<EnvironmentUsage>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EnvironmentUsage {
    pub namespace: String,
    pub environment: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub uses: Vec<UseCount>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tracks: Vec<TrackCount>,
    /// Keys that somebody came with since the last report. A control of before reads past them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keys: Vec<KeyUse>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyUse {
    pub id: String,
    /// The last one of use, since the epoch.
    pub minute: i64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UseCount {
    pub flag: String,
    /// None where the caller's own default was served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    pub source: Source,
    /// Since the epoch.
    pub minute: i64,
    pub count: u64,
}

/// Something that a browser app did and told (OpenFeature's tracking).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrackCount {
    pub name: String,
    pub minute: i64,
    pub count: u64,
    /// Of the values that came with it.
    #[serde(default)]
    pub sum: f64,
}

/// What a browser sends: `POST /sdk/v1/events`. The key is in the body, because `sendBeacon` sends no
/// headers.
#[derive(Debug, Clone, Deserialize)]
pub struct ClientEvents {
    pub key: String,
    #[serde(default)]
    pub usage: Vec<ClientUse>,
    #[serde(default)]
    pub tracks: Vec<ClientTrack>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct ClientUse {
    pub flag: String,
    #[serde(default)]
    pub variant: Option<String>,
    pub minute: i64,
    pub count: u64,
}

#[derive(Debug, Clone, Deserialize)]
pub struct ClientTrack {
    pub name: String,
    pub minute: i64,
    pub count: u64,
    #[serde(default)]
    pub sum: Option<f64>,
}
