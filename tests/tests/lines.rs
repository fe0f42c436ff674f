//! The lines that scripts grep: each as clamonacc writes it, in one list.
//!
//! A line may say more after what clamonacc said (`*` at the end), never before.
//! Owns that list; `docs/compatibility.md` says the same to readers. The test
//! provokes each line, so that none can change unnoticed.

mod common;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use common::{FakeSite, LIMIT, Site, assert_opens, assert_refused, infected};
use onacc_tests::{
    Agent, Behaviour, Opening, ScratchFs, clamd::EICAR_NAME, clamd::wait_until, or_skip,
    require_root,
};

/// What is kept. `{…}` stands for what a run fills in, `*` for anything.
const KEPT: &[&str] = &[
    // The verdict, and what became of the file.
    "{bad}: {signature} FOUND",
    "{bad}: moved to '{dir}/bad'",
    "{bad}: copied to '{dir}/bad'",
    "{bad}: Removed.",
    "{bad} (real path: '{renamed}'): moved to '{dir}/renamed'",
    "ERROR: Can't move file '{bad}' to '{dir}'*",
    "ERROR: Can't copy file '{bad}' to '{dir}'*",
    "ERROR: Can't remove file '{bad}'*",
    "ERROR: Clamonacc: can't setup client*",
    // What is watched.
    "ClamInotif: watching '{in}' (and all sub-directories)",
    "ClamInotif: excluding '{in}/off' (and all sub-directories)",
    // clamd.
    "ERROR: ClamClient: Connection to clamd failed, *",
    "ClamClient: Connection to clamd re-established.*",
    "ERROR: ClamCom: TIMEOUT while waiting on socket (recv)*",
    "ERROR: ClamMisc: Unexpected issue; Daemon failed to scan: *",
    // Settings. (Parse errors are in other words: with column and remedy.)
    "WARNING: Ignoring deprecated option ScanOnAccess at {conf}:*",
    "WARNING: Ignoring unsupported option --bell*",
    // The end.
    "Clamonacc: stopped",
];

/// Whether a line is of a form; `*` in it stands for any text.
fn fits(form: &str, line: &str) -> bool {
    let mut parts = form.split('*');
    let Some(mut rest) = parts.next().and_then(|first| line.strip_prefix(first)) else {
        return false;
    };
    let mut open = false;
    for part in parts {
        open = part.is_empty();
        let Some(at) = rest.find(part) else {
            return false;
        };
        rest = &rest[at + part.len()..];
    }
    open || rest.is_empty()
}

#[test]
fn forms_are_whole_lines() {
    assert!(fits("a*c*", "abcd") && fits("ab", "ab") && fits("a*", "a"));
    assert!(!fits("ab", "abc") && !fits("a*c", "abcd") && !fits("b*", "ab"));
}

/// All that was said so far, and which of the kept lines were among it.
#[derive(Default)]
struct Heard {
    missing: Vec<&'static str>,
    said: String,
}

impl Heard {
    /// Waits for these kept lines, filled in.
    #[track_caller]
    fn lines(&mut self, agent: &Agent, forms: &[&str], values: &[(&str, String)]) {
        for form in forms {
            let whole = filled(form, values);
            let said = || agent.output().lines().any(|line| fits(&whole, line));
            assert!(
                wait_until(LIMIT, said),
                "no {whole:?} in\n{}",
                agent.output()
            );
            self.tick(form);
        }
        self.said += &agent.output();
    }

    #[track_caller]
    fn tick(&mut self, form: &str) {
        let place = KEPT.iter().position(|kept| *kept == form);
        let kept = KEPT[place.unwrap_or_else(|| panic!("{form:?} is not in the list"))];
        self.missing.retain(|other| *other != kept);
    }
}

fn filled(form: &str, values: &[(&str, String)]) -> String {
    values.iter().fold(form.to_owned(), |form, (name, value)| {
        form.replace(&format!("{{{name}}}"), value)
    })
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

fn quarantine(filesystem: &ScratchFs, name: &str) -> (PathBuf, String) {
    let dir = filesystem.mkdir(name);
    let shown = text(&dir);
    (dir, shown)
}

fn of_verdicts(heard: &mut Heard, site: &Site, home: &ScratchFs) {
    let bad = site.watched().join("bad");
    let off = site.scratch().mkdir("in/off");
    let values = |dir: &str| {
        vec![
            ("bad", text(&bad)),
            ("dir", dir.to_owned()),
            ("signature", EICAR_NAME.to_owned()),
            ("in", text(&site.watched())),
        ]
    };
    for action in ["move", "copy", "remove"] {
        fs::write(&bad, infected()).expect("the filesystem obeys");
        let (dir, shown) = quarantine(home, action);
        let mut values = values(&shown);
        let flag = match action {
            "remove" => "--remove".to_owned(),
            _ => format!("--{action}={shown}"),
        };
        let mut agent = site
            .agent()
            .exclude(&off)
            .option("ScanOnAccess yes")
            .arg("--bell")
            .arg(&flag)
            .start();
        values.push(("conf", text(&agent.conf())));
        let done = match action {
            "move" => "{bad}: moved to '{dir}/bad'",
            "copy" => "{bad}: copied to '{dir}/bad'",
            _ => "{bad}: Removed.",
        };
        assert_refused(&bad);
        let forms = [
            "{bad}: {signature} FOUND",
            done,
            "ClamInotif: watching '{in}' (and all sub-directories)",
            "ClamInotif: excluding '{in}/off' (and all sub-directories)",
            "WARNING: Ignoring deprecated option ScanOnAccess at {conf}:*",
            "WARNING: Ignoring unsupported option --bell*",
        ];
        heard.lines(&agent, &forms, &values);
        // What cannot be done: the quarantine is gone, the names may not be changed.
        let failed = match action {
            "move" => "ERROR: Can't move file '{bad}' to '{dir}'*",
            "copy" => "ERROR: Can't copy file '{bad}' to '{dir}'*",
            _ => "ERROR: Can't remove file '{bad}'*",
        };
        fs::write(site.scratch().join("made"), infected()).expect("the filesystem obeys");
        fs::rename(site.scratch().join("made"), &bad).expect("the filesystem obeys");
        if action == "remove" {
            chattr("+i", &site.watched());
        } else {
            fs::remove_dir_all(dir).expect("the filesystem obeys");
        }
        assert_refused(&bad);
        heard.lines(&agent, &[failed], &values);
        if action == "remove" {
            chattr("-i", &site.watched());
        }
        agent.stop();
        heard.lines(&agent, &["Clamonacc: stopped"], &values);
    }
}

/// Gives a directory an attribute: in an immutable one no name can go.
#[track_caller]
fn chattr(attribute: &str, dir: &Path) {
    let output = Command::new("chattr").arg(attribute).arg(dir).output();
    let output = output.expect("chattr starts");
    assert!(output.status.success(), "{output:?}");
}

fn of_clamd(heard: &mut Heard, site: &mut FakeSite, home: &ScratchFs) {
    let (_, dir) = quarantine(home, "slow");
    let (bad, renamed) = (site.write("bad", b"slow"), site.watched().join("renamed"));
    let (mute, faulty) = (site.write("mute", b"mute"), site.write("faulty", b"faulty"));
    let other = site.write("other", b"other");
    let values = [
        ("bad", text(&bad)),
        ("renamed", text(&renamed)),
        ("dir", dir.clone()),
    ];
    let agent = site
        .agent()
        .option("OnAccessCurlTimeout 3000")
        .arg(&format!("--move={dir}"))
        .start();
    assert_opens(&faulty);
    let open = Opening::start(&bad);
    assert!(site.fake().wait_for_scans(1, LIMIT));
    fs::rename(&bad, &renamed).expect("the filesystem obeys");
    assert!(open.within(LIMIT).is_refused());
    assert_opens(&mute);
    let forms = [
        "ERROR: ClamMisc: Unexpected issue; Daemon failed to scan: *",
        "{bad} (real path: '{renamed}'): moved to '{dir}/renamed'",
        "ERROR: ClamCom: TIMEOUT while waiting on socket (recv)*",
    ];
    heard.lines(&agent, &forms, &values);
    site.end_clamd();
    assert_opens(&other);
    heard.lines(
        &agent,
        &["ERROR: ClamClient: Connection to clamd failed, *"],
        &values,
    );
    site.restart_clamd(|_| Behaviour::usual());
    let back = || {
        assert_opens(&other);
        agent.output().contains("re-established")
    };
    assert!(wait_until(LIMIT, back), "{}", agent.output());
    heard.lines(
        &agent,
        &["ClamClient: Connection to clamd re-established.*"],
        &values,
    );
}

fn of_a_bad_start(heard: &mut Heard, site: &Site) {
    let form = "ERROR: Clamonacc: can't setup client*";
    let exited = site
        .agent()
        .arg("--move=/nonexistent/dir")
        .spawn_expect_exit();
    assert_eq!(exited.status.code(), Some(2));
    let said = exited.output.lines().any(|line| fits(form, line));
    assert!(said, "no {form:?} in\n{}", exited.output);
    heard.tick(form);
}

#[test]
fn each_line_that_scripts_grep_is_written_as_clamonacc_does() {
    require_root!();
    let mut heard = Heard {
        missing: KEPT.to_vec(),
        said: String::new(),
    };
    let home = or_skip!(ScratchFs::tmpfs(8));
    let site = or_skip!(Site::ext4());
    of_verdicts(&mut heard, &site, &home);
    of_a_bad_start(&mut heard, &site);
    drop(site);
    let mut fake = or_skip!(FakeSite::ext4(|request| {
        match request.content().as_slice() {
            b"slow" => Behaviour::infected("Slow").after(Duration::from_millis(700)),
            b"mute" => Behaviour::never(),
            b"faulty" => Behaviour::error("Can't allocate memory"),
            _ => Behaviour::usual(),
        }
    }));
    of_clamd(&mut heard, &mut fake, &home);
    assert_eq!(heard.missing, Vec::<&str>::new(), "never provoked");
    // What is new is marked as ours, so that no old pattern finds it.
    for line in heard.said.lines().filter(|line| line.contains("pid=")) {
        assert!(line.starts_with("onacc: open "), "{line}");
        assert!(
            !line.contains(" FOUND") && !line.contains(": moved to '"),
            "{line}"
        );
    }
    assert!(heard.said.contains("onacc: open refused: pid="));
}
