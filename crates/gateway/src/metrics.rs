//! `GET /metrics` in the Prometheus text format (version 0.0.4), made from the counts when it is asked for. Owns no count.

use crate::control::Mode;
use crate::core::Core;
use crate::limits::Reason;
use crate::service::{Class, Service};
use rehome_part::Side;
use rehome_part::traffic::ServiceStatus;
use std::fmt::{self, Write};
use std::sync::atomic::Ordering;

/// All figures of a gateway.
pub(crate) fn text(core: &Core) -> String {
    let mut page = String::with_capacity(8_192);
    // Writing into a string cannot fail.
    let _infallible = write(&mut page, core);
    page
}

fn write(page: &mut String, core: &Core) -> fmt::Result {
    let held = core.gate.held();
    let holding = f64::from(u8::from(core.gate.mode() == Mode::Held));
    let owner = f64::from(u8::from(core.gate.owner() == Side::Target));
    for (name, kind, help, value) in [
        ("rehome_epoch", "gauge", "Epoch of the present grant.", core.gate.epoch().0 as f64),
        ("rehome_owner_is_target", "gauge", "1 while writes belong to the target.", owner),
        ("rehome_holding", "gauge", "1 while writes wait.", holding),
        ("rehome_writes_in_flight", "gauge", "Writes forwarded and not yet answered.", held.in_flight as f64),
        ("rehome_sessions", "gauge", "Upgraded and streaming connections.", held.sessions as f64),
        ("rehome_writes_waiting", "gauge", "Writes in the line.", held.waiting as f64),
        ("rehome_waiting_bytes", "gauge", "Memory that the line takes.", held.waiting_bytes as f64),
        ("rehome_hold_fullness", "gauge", "The fullest bound of the line, 0 to 1.", held.fullness),
        ("rehome_connections", "gauge", "Client connections.", held.connections as f64),
    ] {
        writeln!(page, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}")?;
    }
    if let Some(left) = core.gate.lease_left_ms() {
        let name = "rehome_lease_seconds_left";
        writeln!(page, "# HELP {name} Time until writes wait by themselves.\n# TYPE {name} gauge")?;
        writeln!(page, "{name} {}", left as f64 / 1e3)?;
    }
    per_service(page, core)?;
    requests(page, core)?;
    databases(page, core)?;
    entrance(page, core)?;
    let dropped =
        core.services.first().and_then(|(service, _)| service.log.as_ref()).map(|log| log.dropped());
    if let Some(dropped) = dropped {
        let name = "rehome_access_log_dropped_total";
        writeln!(
            page,
            "# HELP {name} Lines that the disk was too slow for.\n# TYPE {name} counter\n{name} {dropped}"
        )?;
    }
    Ok(())
}

/// What no single service counts.
fn entrance(page: &mut String, core: &Core) -> fmt::Result {
    let Some(entrance) = core.services.first().map(|(service, _)| &service.entrance) else { return Ok(()) };
    let name = "rehome_turned_away_total";
    writeln!(
        page,
        "# HELP {name} Connections and requests turned away at the entrance.\n# TYPE {name} counter"
    )?;
    for reason in Reason::ALL {
        writeln!(page, "{name}{{reason=\"{}\"}} {}", reason.name(), entrance.turned_away(reason))?;
    }
    let name = "rehome_certificates_read_total";
    writeln!(page, "# HELP {name} Certificates read again while running.\n# TYPE {name} counter")?;
    for (result, counter) in
        [("used", &entrance.certificates_read), ("refused", &entrance.certificates_refused)]
    {
        writeln!(page, "{name}{{result=\"{result}\"}} {}", counter.load(Ordering::Relaxed))?;
    }
    Ok(())
}

type Figure = fn(&Service) -> Option<f64>;

fn per_service(page: &mut String, core: &Core) -> fmt::Result {
    let figures: [(&str, &str, &str, Figure); 11] = [
        ("rehome_weight_wanted", "gauge", "Percent of reads asked to leave the owner.", |service| {
            Some(f64::from(service.weight.load(Ordering::Relaxed)))
        }),
        ("rehome_weight_actual", "gauge", "Percent of reads that really may.", |service| {
            Some(f64::from(service.weight_actual()))
        }),
        ("rehome_lag_seconds", "gauge", "Age of the other side; absent while unknown.", |service| {
            service.lag_micros().map(|micros| micros as f64 / 1e6)
        }),
        ("rehome_refused_total", "counter", "Requests that no side answered.", |service| {
            count(&service.refused)
        }),
        ("rehome_writes_total", "counter", "Writes handed to an upstream.", |service| count(&service.writes)),
        ("rehome_writes_unknown_total", "counter", "Writes without a known outcome.", |service| {
            count(&service.writes_unknown)
        }),
        ("rehome_repeated_total", "counter", "Reads sent a second time.", |service| count(&service.repeated)),
        ("rehome_not_repeated_total", "counter", "Reads not repeated: the budget was spent.", |service| {
            count(&service.not_repeated)
        }),
        ("rehome_held_total", "counter", "Writes and sessions that waited.", |service| count(&service.held)),
        ("rehome_held_seconds_total", "counter", "Time they waited.", |service| {
            count(&service.held_micros).map(|micros| micros / 1e6)
        }),
        ("rehome_write_p999_seconds", "gauge", "99.9th percentile of recent writes.", |service| {
            service.write_times.quantile_ms(0.999).map(|millis| millis / 1e3)
        }),
    ];
    for (name, kind, help, figure) in figures {
        writeln!(page, "# HELP {name} {help}\n# TYPE {name} {kind}")?;
        for (service, _) in &core.services {
            if let Some(value) = figure(service) {
                writeln!(page, "{name}{{service=\"{}\"}} {value}", escape(&service.plan.name))?;
            }
        }
    }
    Ok(())
}

/// Of databases whose clients wait here or in a PgBouncer.
fn databases(page: &mut String, core: &Core) -> fmt::Result {
    let doors = core.doors.iter().map(|door| ("front", door.status()));
    let all: Vec<_> =
        core.bouncers.iter().map(|bouncer| ("pgbouncer", bouncer.status())).chain(doors).collect();
    type Figure = fn(&ServiceStatus) -> Option<f64>;
    let figures: [(&str, &str, &str, Figure); 3] = [
        ("rehome_transactions_total", "counter", "Transactions of clients.", |status| {
            Some(status.writes_total as f64)
        }),
        ("rehome_transaction_p999_seconds", "gauge", "99.9th percentile of recent transactions.", |status| {
            status.write_p999_ms.map(|millis| millis / 1e3)
        }),
        ("rehome_clients_refused_total", "counter", "Clients that could not wait any longer.", |status| {
            Some(status.refused as f64)
        }),
    ];
    for (name, kind, help, figure) in figures.iter().filter(|_| !all.is_empty()) {
        writeln!(page, "# HELP {name} {help}\n# TYPE {name} {kind}")?;
        for (way, status) in &all {
            if let Some(value) = figure(status) {
                let database = escape(&status.name);
                writeln!(page, "{name}{{database=\"{database}\",way=\"{way}\"}} {value}")?;
            }
        }
    }
    Ok(())
}

fn count(counter: &std::sync::atomic::AtomicU64) -> Option<f64> {
    Some(counter.load(Ordering::Relaxed) as f64)
}

fn requests(page: &mut String, core: &Core) -> fmt::Result {
    let sides = || {
        core.services.iter().flat_map(|(service, _)| [Side::Source, Side::Target].map(|side| (service, side)))
    };
    let name = "rehome_requests_total";
    writeln!(page, "# HELP {name} Requests handed to a side.\n# TYPE {name} counter")?;
    for (service, side) in sides() {
        for class in Class::ALL {
            let value = service.side(side).requests[class as usize].load(Ordering::Relaxed);
            let (service, class) = (escape(&service.plan.name), class.name());
            writeln!(page, "{name}{{service=\"{service}\",side=\"{side}\",class=\"{class}\"}} {value}")?;
        }
    }
    let name = "rehome_failures_total";
    writeln!(page, "# HELP {name} Answers of 500 and above, and failed connections.\n# TYPE {name} counter")?;
    for (service, side) in sides() {
        let value = service.side(side).failed();
        writeln!(page, "{name}{{service=\"{}\",side=\"{side}\"}} {value}", escape(&service.plan.name))?;
    }
    let name = "rehome_side_healthy";
    writeln!(
        page,
        "# HELP {name} 1 when the last health check went well; absent while unknown.\n# TYPE {name} gauge"
    )?;
    for (service, side) in sides() {
        if let Some(healthy) = service.side(side).healthy() {
            let value = u8::from(healthy);
            writeln!(page, "{name}{{service=\"{}\",side=\"{side}\"}} {value}", escape(&service.plan.name))?;
        }
    }
    let name = "rehome_answer_seconds";
    writeln!(page, "# HELP {name} Recent times to the head of an answer.\n# TYPE {name} gauge")?;
    for (service, side) in sides() {
        for quantile in [0.5, 0.99] {
            if let Some(millis) = service.side(side).answer_ms(quantile) {
                let service = escape(&service.plan.name);
                let seconds = millis / 1e3;
                writeln!(
                    page,
                    "{name}{{service=\"{service}\",side=\"{side}\",quantile=\"{quantile}\"}} {seconds}"
                )?;
            }
        }
    }
    Ok(())
}

fn escape(label: &str) -> String {
    label.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}
