//! The clamds: whether they answer, with what database, and whether they know
//! the test file.
//!
//! Owns: what is asked of a clamd. Must not: open a session. The reading of
//! versions is tested here, the rest by `tests/tests/doctor.rs`.

use std::time::{Duration, Instant, SystemTime};

use super::canary::eicar;
use super::finding::Finding;
use crate::clamd::ask::{AskError, ask};
use crate::config::servers::{Address, Server};

/// How long one question may take.
const LIMIT: Duration = Duration::from_secs(10);
/// Signatures that are older are out of date: they come every day.
const OLD_DAYS: u64 = 7;
const DAY: u64 = 86_400;

/// Looks at one.
pub fn look(server: &Server) -> Vec<Finding> {
    let before = Instant::now();
    let pong = answer(server, b"zPING\0");
    let took = before.elapsed();
    match pong.as_deref() {
        Ok("PONG") => {}
        Ok(other) => {
            return vec![
                Finding::problem("clamd", format!("{server} answers PING with '{other}'"))
                    .means("it is no clamd; scans fail")
                    .mend("name clamd's own socket or port"),
            ];
        }
        Err(error) => {
            let remedy = match &server.address {
                Address::Unix(path) => format!(
                    "start clamd (systemctl start clamav-daemon), and see that its LocalSocket is {}",
                    path.display()
                ),
                Address::Tcp { .. } => {
                    "start clamd there, and see that TCPAddr, TCPSocket and the firewall let it be reached".to_owned()
                }
            };
            return vec![
                Finding::problem("clamd", format!("{server}: {error}"))
                    .means("no file can be scanned; every open is answered by the fail policy (OnAccessDenyOnError)")
                    .mend(remedy),
            ];
        }
    }
    let ms = took.as_secs_f64() * 1000.0;
    let mut findings = vec![Finding::ok(
        "clamd",
        format!("{server} answers in {ms:.1} ms"),
    )];
    findings.push(match answer(server, b"zVERSION\0") {
        Ok(version) => database(&version, SystemTime::now()),
        Err(error) => Finding::problem("clamd", format!("{server}: VERSION: {error}"))
            .means("a new database is not noticed, so that old verdicts stay"),
    });
    findings.push(knows_test_file(server));
    findings
}

/// The first record of the answer.
fn answer(server: &Server, command: &[u8]) -> Result<String, AskError> {
    let records = ask(server, command, Instant::now() + LIMIT)?;
    let first = records.first().map(Vec::as_slice).unwrap_or_default();
    Ok(String::from_utf8_lossy(first).trim_end().to_owned())
}

fn knows_test_file(server: &Server) -> Finding {
    let content = eicar();
    let length = u32::try_from(content.len()).unwrap_or(0);
    let mut command = b"zINSTREAM\0".to_vec();
    command.extend(length.to_be_bytes());
    command.extend(content);
    command.extend(0_u32.to_be_bytes());
    match answer(server, &command) {
        Ok(said) if said.ends_with(" FOUND") => {
            Finding::ok("clamd", "it finds the EICAR test file")
        }
        Ok(said) => Finding::problem(
            "clamd",
            format!("it does not find the EICAR test file; it says: {said}"),
        )
        .means("its database is not a usual one, or not loaded; malware may pass, and a canary shows nothing")
        .mend("run freshclam, and look at DatabaseDirectory"),
        Err(error) => Finding::problem("clamd", format!("a scan fails: {error}"))
            .means("clamd answers and does not scan")
            .mend("look at clamd's log"),
    }
}

/// `ClamAV 1.4.6/27461/Mon Nov 23 09:25:31 2026`; without a database of
/// clamav.net, there is no more than the first part.
fn database(version: &str, now: SystemTime) -> Finding {
    let mut parts = version.splitn(3, '/');
    let engine = parts.next().unwrap_or_default();
    let (Some(number), Some(date)) = (parts.next(), parts.next()) else {
        return Finding::note("clamd", format!("{engine}, a database without a version"))
            .means("it has no signatures of clamav.net; only its files tell when it changes")
            .mend("run freshclam, unless a database of your own is all that you want");
    };
    let now = now
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let what = format!("{engine}, database {number} of {date}");
    match parse_date(date).map(|then| now.saturating_sub(then) / DAY) {
        Some(days) if days > OLD_DAYS => Finding::problem(
            "clamd",
            format!("{what}: {days} days old"),
        )
        .means("malware of these days is not known")
        .mend("run freshclam, and let it run by itself (systemctl enable --now clamav-freshclam)"),
        _ => Finding::ok("clamd", what),
    }
}

/// Seconds since 1970 of `Mon Nov 23 09:25:31 2026`, taken for UTC.
fn parse_date(text: &str) -> Option<u64> {
    const MONTHS: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let mut words = text.split_whitespace().skip(1);
    let name = words.next()?;
    let month = MONTHS.iter().position(|month| *month == name)?;
    let day: u64 = words.next()?.parse().ok()?;
    let _time = words.next()?;
    let year: u64 = words
        .next()?
        .parse()
        .ok()
        .filter(|year| (1970..3000).contains(year))?;
    let leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    let years: u64 = (1970..year).map(|year| 365 + u64::from(leap(year))).sum();
    let days = [
        31,
        28 + u64::from(leap(year)),
        31,
        30,
        31,
        30,
        31,
        31,
        30,
        31,
        30,
        31,
    ];
    let months: u64 = days[..month].iter().sum();
    Some((years + months + day.checked_sub(1)?) * DAY)
}

#[cfg(test)]
mod tests {
    use super::super::finding::Level;
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn dates_are_read() {
        assert_eq!(parse_date("Thu Jan  1 00:00:00 1970"), Some(0));
        // date -u -d 2024-02-29 +%s and date -u -d 2026-11-23 +%s
        assert_eq!(parse_date("Thu Feb 29 09:25:31 2024"), Some(1_709_164_800));
        assert_eq!(parse_date("Mon Nov 23 09:25:31 2026"), Some(1_795_392_000));
        for wrong in [
            "",
            "Mon",
            "Mon Nov",
            "Mon Nov x 1 2026",
            "Mon Now 3 1 2026",
            "a Jan 0 1 1970",
        ] {
            assert_eq!(parse_date(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn an_old_database_is_a_problem_and_one_without_a_version_a_note() {
        let version = "ClamAV 1.4.6/27461/Mon Nov 23 09:25:31 2026";
        let level =
            |version: &str, days: u64| database(version, at(1_795_392_000 + days * DAY)).level;
        assert_eq!(level(version, 2), Level::Ok);
        assert_eq!(level(version, 9), Level::Problem);
        assert_eq!(level("ClamAV 1.4.6", 0), Level::Note);
        assert_eq!(level("ClamAV 1.4.6/1/soon", 0), Level::Ok);
    }
}
