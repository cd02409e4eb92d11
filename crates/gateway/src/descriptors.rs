//! How many files this process may have open: every connection is one, with one more towards the upstream. Raises the soft limit
//! as far as it may be; the hard one is whoever started the process's to set.

use rustix::process::{Resource, getrlimit, setrlimit};

/// Besides connections: listeners, the control socket, the state file, logs, the runtime's own, and what an embedding program has.
const BESIDES: u64 = 256;

/// What `connections` clients need at most: each may have a request under way.
fn needed(connections: u32) -> u64 {
    u64::from(connections) * 2 + BESIDES
}

/// Makes room for so many client connections, or says how many there is room for.
pub(crate) fn make_room(connections: u32) {
    let (needed, mut limit) = (needed(connections), getrlimit(Resource::Nofile));
    let Some(current) = limit.current.filter(|current| *current < needed) else { return };
    // No hard limit: as many as are needed, since a limit of everything slows some programs down.
    let wanted = limit.maximum.map_or(needed, |maximum| maximum.min(needed));
    limit.current = Some(wanted);
    let raised = if wanted > current { setrlimit(Resource::Nofile, limit) } else { Ok(()) };
    let open = if raised.is_ok() { wanted.max(current) } else { current };
    if open < needed {
        tracing::warn!(
            open_files = open,
            needed,
            connections,
            busy_connections = open.saturating_sub(BESIDES) / 2,
            "the limit of open files is too low for `switch.hold.connections`: raise it (LimitNOFILE in a systemd unit, \
             `ulimit -Hn` in a shell), or lower `connections`"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nextest gives every test its own process, so nobody else is disturbed.
    #[test]
    fn the_soft_limit_is_raised_as_far_as_needed_and_never_lowered() {
        let hard = getrlimit(Resource::Nofile).maximum;
        let small = rustix::process::Rlimit { current: Some(512), maximum: hard };
        setrlimit(Resource::Nofile, small).unwrap();
        make_room(500);
        assert_eq!(getrlimit(Resource::Nofile).current, Some(hard.map_or(1_256, |hard| hard.min(1_256))));
        make_room(10);
        assert_eq!(getrlimit(Resource::Nofile).current, Some(hard.map_or(1_256, |hard| hard.min(1_256))));
        make_room(u32::MAX);
        assert_eq!(getrlimit(Resource::Nofile).maximum, hard, "the hard limit is not ours");
    }
}
