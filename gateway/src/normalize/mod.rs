//! The second station of the path: open messages are mapped and recorded, in order per key, at our own pace.

pub mod lanes;
pub mod plan;
pub mod waiters;
