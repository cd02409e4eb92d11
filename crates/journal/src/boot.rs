//! The machine's boot clock and boot id. Leases are measured with them: a boot-time clock runs on through suspend and
//! never jumps, and a different boot id voids every time that was written before.

use std::sync::OnceLock;

/// A reading of the boot clock, bound to the boot it was taken in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Now {
    pub boot_id: String,
    /// Milliseconds since the machine booted, sleep included.
    pub boot_ms: u64,
}

impl Now {
    pub fn read() -> Self {
        Self { boot_id: boot_id().to_owned(), boot_ms: boot_millis() }
    }
}

/// Identifies this boot of this machine; `unknown` where the system does not say.
pub fn boot_id() -> &'static str {
    static ID: OnceLock<String> = OnceLock::new();
    ID.get_or_init(|| {
        std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
            .map_or_else(|_| "unknown".into(), |text| text.trim().to_owned())
    })
}

/// Milliseconds since boot, sleep included (`CLOCK_BOOTTIME`).
pub fn boot_millis() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000 + u64::try_from(time.tv_nsec).unwrap_or(0) / 1_000_000
}

/// Milliseconds since 1970, for people.
pub fn wall_millis() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}
