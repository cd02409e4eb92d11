//! What a gateway says of a service: counts, times and comparisons, by side. The words of the control protocol and of the engine's
//! gates alike. Plain data.

use crate::measure::{Histogram, Share};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ServiceStatus {
    pub name: String,
    pub listen: String,
    pub weight_wanted: u8,
    /// What is really sent; 0 while lag is unknown or above the bound.
    pub weight_actual: u8,
    pub lag_ms: Option<u64>,
    pub source: SideStatus,
    pub target: SideStatus,
    /// Requests that no side answered (held too long, both unreachable).
    pub refused: u64,
    pub writes_total: u64,
    /// Writes whose outcome the gateway does not know: a byte may have left and no answer came.
    pub writes_unknown: u64,
    /// 99.9th percentile of the time writes were in flight lately, in milliseconds; the first part of a predicted pause.
    pub write_p999_ms: Option<f64>,
    /// Median of what the gateway itself adds before a request goes on its way, in milliseconds; waiting in a hold not counted.
    #[serde(default)]
    pub added_ms: Option<f64>,
    #[serde(default)]
    pub shadow: ShadowStatus,
}

/// What the comparison of reads has found since it began.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ShadowStatus {
    pub on: bool,
    /// Percent of the reads that are compared.
    pub share: u8,
    /// Comparisons that a verdict needs.
    pub least: u32,
    /// Share of them that may differ.
    pub allowed: f64,
    /// Reads that could have been chosen.
    pub seen: u64,
    pub compared: u64,
    pub different: u64,
    /// Compared, with something left out that also differs between two looks at one side.
    pub noisy: u64,
    /// Chosen and not compared, by reason: `busy`, `large`, `cut`, `unsure`, `stale`.
    pub missed: BTreeMap<String, u64>,
    /// To the head of the answer, of the same requests.
    pub owner_times: Histogram,
    pub other_times: Histogram,
    /// Worst first, at most twenty.
    pub endpoints: Vec<EndpointDifferences>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct EndpointDifferences {
    /// `GET /orders/{}`.
    pub endpoint: String,
    pub compared: u64,
    pub different: u64,
    /// Worst first, at most eight.
    pub places: Vec<PlaceCount>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PlaceCount {
    /// `header cache-control`, `$.items[].price`.
    pub place: String,
    /// `another value`, `missing`, …
    pub kind: String,
    pub count: u64,
    /// Id of the first request it was seen with.
    pub request: String,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SideStatus {
    pub healthy: Option<bool>,
    pub requests: u64,
    /// Answers of 500 and above, and connections that failed.
    pub failed: u64,
    pub p50_ms: Option<f64>,
    pub p99_ms: Option<f64>,
    pub connect_ms: Option<f64>,
    /// Reads that failed, of all reads sent there.
    #[serde(default)]
    pub reads: Share,
    /// To the head of their answers, since the process began.
    #[serde(default)]
    pub read_times: Histogram,
    /// Each address of the side.
    #[serde(default)]
    pub upstreams: Vec<UpstreamStatus>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct UpstreamStatus {
    pub address: String,
    pub healthy: Option<bool>,
    /// It failed several times in a row and gets nothing for a moment, as long as there is another.
    pub resting: bool,
    pub under_way: u32,
}
