//! Attributes of a local file: one extended attribute with all of them as JSON, and the file's own modified time.

use crate::store::Attributes;
use rustix::fd::AsFd;
use rustix::fs::{Stat, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;
use rustix::time::Timespec as Time;

const NAME: &str = "user.rehome.attributes";
const LARGEST_BYTES: usize = 64 << 10;
/// The user metadata key that carries the modified time.
const MTIME: &str = "mtime";

/// Does the file system take attributes? Asks by reading one that is not there.
pub(super) fn are_kept(folder: impl AsFd) -> bool {
    let mut byte = [0u8; 1];
    !matches!(rustix::fs::fgetxattr(folder, NAME, &mut byte), Err(Errno::OPNOTSUPP | Errno::NOSYS))
}

/// # Errors
/// `NOSPC` and `2BIG` here mean that the file system has no room for attributes of this size.
pub(super) fn write(file: impl AsFd, attributes: &Attributes) -> Result<(), Errno> {
    let kept = Attributes { not_carried: Vec::new(), ..attributes.clone() };
    if kept == Attributes::default() {
        return Ok(());
    }
    let text = serde_json::to_vec(&kept).map_err(|_| Errno::INVAL)?;
    rustix::fs::fsetxattr(file, NAME, &text, XattrFlags::empty())
}

/// What the file has. A `mtime` that the file's own time contradicts is left out: somebody wrote the file since.
pub(super) fn read(file: impl AsFd, stat: &Stat) -> Result<Attributes, Errno> {
    let mut small = [0u8; 1024];
    let text = match rustix::fs::fgetxattr(&file, NAME, &mut small) {
        Ok(length) => small[..length].to_vec(),
        Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(Attributes::default()),
        Err(Errno::RANGE) => {
            let mut large = vec![0u8; LARGEST_BYTES];
            let length = rustix::fs::fgetxattr(&file, NAME, &mut large[..])?;
            large.truncate(length);
            large
        }
        Err(error) => return Err(error),
    };
    let mut attributes: Attributes = serde_json::from_slice(&text).unwrap_or_else(|_| Attributes {
        not_carried: vec![format!("extended attribute {NAME} (not readable)")],
        ..Attributes::default()
    });
    let same_time = |text: &String| parse_seconds(text).is_some_and(|time| agrees(time, stat));
    if attributes.user.get(MTIME).is_some_and(|text| !same_time(text)) {
        attributes.user.remove(MTIME);
    }
    Ok(attributes)
}

/// Gives the file the modified time its user metadata names, if it names one.
pub(super) fn set_time(file: impl AsFd, attributes: &Attributes) -> Result<(), Errno> {
    let Some(time) = attributes.user.get(MTIME).and_then(|text| parse_seconds(text)) else { return Ok(()) };
    let last_modification = Timespec { tv_sec: time.tv_sec, tv_nsec: time.tv_nsec };
    rustix::fs::futimens(file, &Timestamps { last_access: last_modification, last_modification })
}

/// Decimal seconds since 1970 with up to nine digits of fraction; further digits are cut off.
fn parse_seconds(text: &str) -> Option<Time> {
    let (whole, fraction) = text.trim().split_once('.').unwrap_or((text.trim(), ""));
    let digits_only = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits_only(fraction) || whole.is_empty() {
        return None;
    }
    let seconds: i64 = whole.parse().ok()?;
    let nine: String = fraction.chars().chain(std::iter::repeat('0')).take(9).collect();
    let nanos: i64 = nine.parse().ok()?;
    match (whole.starts_with('-'), nanos) {
        (true, 1..) => Some(Time { tv_sec: seconds - 1, tv_nsec: 1_000_000_000 - nanos }),
        _ => Some(Time { tv_sec: seconds, tv_nsec: nanos }),
    }
}

/// File systems keep times with different precision: a microsecond is close enough.
fn agrees(time: Time, stat: &Stat) -> bool {
    let nanos = |seconds: i64, nanos: i64| i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
    let own = nanos(stat.st_mtime, i64::try_from(stat.st_mtime_nsec).unwrap_or(0));
    (nanos(time.tv_sec, time.tv_nsec) - own).abs() < 1_000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_with_fractions() {
        let time = |text| parse_seconds(text).map(|time| (time.tv_sec, time.tv_nsec));
        assert_eq!(time("1700000000"), Some((1_700_000_000, 0)));
        assert_eq!(time("1700000000.5"), Some((1_700_000_000, 500_000_000)));
        assert_eq!(time("1700000000.123456789"), Some((1_700_000_000, 123_456_789)));
        assert_eq!(time("1700000000.1234567899"), Some((1_700_000_000, 123_456_789)));
        assert_eq!(time("-1.5"), Some((-2, 500_000_000)));
        for bad in ["", "x", "1.x", "2024-01-01", ".5"] {
            assert_eq!(time(bad), None, "{bad:?}");
        }
    }
}
