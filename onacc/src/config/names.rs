//! User names to uids.
//!
//! Owns the only call to the name service. It may block for seconds (LDAP), so
//! it must never run on the thread that answers events; it runs at start and
//! when the account files change. A name matches whole: `clam` is not `clamav`.
//! Tested below, with a stand-in for the name service.

use nix::unistd::User;

use super::entry::Located;
use super::error::shown;

/// The uids of these users, sorted and without doubles, and one warning for
/// each name that has none. Such a user is not excluded: its files are scanned.
pub fn resolve(names: &[Located<String>]) -> (Vec<u32>, Vec<String>) {
    resolve_with(names, |name| {
        let user = User::from_name(name).map_err(|error| error.desc().to_owned())?;
        Ok(user.map(|user| (user.name, user.uid.as_raw())))
    })
}

/// As [`resolve`]; `look_up` returns the name and uid of an account.
fn resolve_with(
    names: &[Located<String>],
    look_up: impl Fn(&str) -> Result<Option<(String, u32)>, String>,
) -> (Vec<u32>, Vec<String>) {
    let mut uids = Vec::new();
    let mut warnings = Vec::new();
    for name in names {
        let problem = match look_up(&name.value) {
            // Some name services look up without regard to case, or to what
            // stands behind an @.
            Ok(Some((found, uid))) if found == name.value => {
                uids.push(uid);
                continue;
            }
            Ok(Some((found, _))) => {
                let found = shown(found.as_bytes());
                format!("the account is called {found}; write it so")
            }
            Ok(None) => "there is no such user; correct the name or remove the line".to_owned(),
            Err(error) => format!("the name service failed: {error}; check it with getent passwd"),
        };
        warnings.push(format!(
            "{name}: '{}' is not excluded: {problem}",
            shown(name.value.as_bytes())
        ));
    }
    uids.sort_unstable();
    uids.dedup();
    (uids, warnings)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(names: &[&str]) -> Vec<Located<String>> {
        let located = |(index, name): (usize, &&str)| Located {
            value: (*name).to_owned(),
            origin: crate::config::entry::Origin::File {
                file: "f".into(),
                line: index + 1,
                column: 22,
            },
            option: "OnAccessExcludeUname",
        };
        names.iter().enumerate().map(located).collect()
    }

    fn accounts(name: &str) -> Result<Option<(String, u32)>, String> {
        match name {
            "clamav" | "CLAMAV" => Ok(Some(("clamav".to_owned(), 101))),
            "also-clamav" => Ok(Some(("also-clamav".to_owned(), 101))),
            "backup" => Ok(Some(("backup".to_owned(), 34))),
            "broken" => Err("EIO".to_owned()),
            _ => Ok(None),
        }
    }

    #[test]
    fn known_names_become_uids() {
        let (uids, warnings) = resolve_with(&named(&["clamav", "backup", "also-clamav"]), accounts);
        assert_eq!(uids, [34, 101]);
        assert!(warnings.is_empty());
    }

    #[test]
    fn a_name_matches_whole_and_in_its_case() {
        let (uids, warnings) = resolve_with(&named(&["clam", "clamav-evil", "CLAMAV"]), accounts);
        assert!(uids.is_empty());
        assert_eq!(warnings.len(), 3);
        assert_eq!(
            warnings[0],
            "f:1: OnAccessExcludeUname: 'clam' is not excluded: there is no such user; correct the name or remove the line"
        );
        assert!(warnings[2].ends_with("the account is called clamav; write it so"));
    }

    #[test]
    fn a_failing_name_service_excludes_nobody() {
        let (uids, warnings) = resolve_with(&named(&["broken"]), accounts);
        assert!(uids.is_empty());
        assert!(warnings[0].contains("the name service failed: EIO"));
    }

    #[test]
    fn root_is_known_everywhere() {
        let (uids, warnings) = resolve(&named(&["root", "no-such-user-anywhere"]));
        assert_eq!(uids, [0]);
        assert_eq!(warnings.len(), 1);
    }
}
