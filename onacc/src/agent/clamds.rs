//! The clamds of the settings, ready to be spoken with.

use std::time::Instant;

use super::AgentError;
use crate::clamd::TlsClient;
use crate::config::Settings;
use crate::config::servers::{Address, Transfer};
use crate::kernel::wake::Mailbox;
use crate::observe::counters::ServerCounters;
use crate::observe::latency::Latencies;
use crate::scan::{MOST_STREAMS, Matcher, Pool, Resolver, ServerState, Work};

/// Nothing is spoken yet. Reads certificates and keys.
pub(super) fn build_pool(
    settings: &Settings,
    jobs: &Mailbox<Work>,
) -> Result<(Pool, Vec<ServerCounters>), AgentError> {
    // More would block clamd's receiving thread (facts/clamonacc.md, 3).
    let cap = (settings.max_queue / 2).saturating_sub(1).max(1);
    let now = Instant::now();
    let mut states = Vec::new();
    let mut tcp = false;
    for (number, server) in settings.servers.iter().enumerate() {
        let server = &server.value;
        let tls = match (&server.tls, &server.address) {
            (Some(tls), Address::Tcp { host, .. }) => Some(TlsClient::new(tls, host)?),
            _ => None,
        };
        tcp |= matches!(server.address, Address::Tcp { .. });
        tracing::info!("onacc: server{} is {server}", number + 1);
        states.push(ServerState::new(server, tls, cap, now));
    }
    let counters = states.iter().map(|_| ServerCounters::default()).collect();
    let resolver = tcp.then(|| Resolver::start(jobs.clone())).transpose()?;
    Ok((Pool::new(states, resolver), counters))
}

/// Who names all matches, if that is wanted.
pub(super) fn matcher(settings: &Settings) -> Result<Option<Matcher>, AgentError> {
    if !settings.all_match {
        return Ok(None);
    }
    let servers = settings.servers.iter().map(|server| &server.value);
    let matcher = Matcher::start(servers, settings.bound())?;
    if matcher.is_none() {
        tracing::warn!(
            "onacc: --allmatch: clamd names all matches by path alone, which needs a LocalSocket; over TCP the first match alone is named"
        );
    }
    Ok(matcher)
}

/// Fds that sessions may need beyond the first.
pub(super) fn fds_of_servers(settings: &Settings) -> u64 {
    let each = settings
        .servers
        .iter()
        .map(|server| match server.value.transfer {
            Transfer::PassFd => 1,
            // And those of the files that are read elsewhere.
            Transfer::Stream => 2 * MOST_STREAMS as u64,
        });
    each.sum::<u64>() - 1
}

/// Counters of the servers, and how long things took.
pub(super) fn say_pipeline(servers: &[ServerCounters], latencies: &Latencies) {
    let servers = servers.iter().enumerate();
    let each = servers.flat_map(|(number, counters)| counters.list(number + 1));
    for (name, value) in each.chain(latencies.list()) {
        tracing::info!("onacc: counter: {name} {value}");
    }
}
