//! Configured paths into real ones: symlinks resolved, what is missing kept.
//!
//! Runs before any mark is placed, or on the agent's own threads. Must not:
//! give up because of one path. Tested here.

use std::path::{Component, Path, PathBuf};

use crate::config::{Located, Settings};
use crate::kernel::mounts::MountTable;
use crate::observe::printable;
use crate::policy::{LimitedPaths, PathLimits, Scope};

/// A configured path, resolved as far as it exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// Absolute, without symlinks in the part that exists.
    pub path: PathBuf,
    /// Whether all of it exists.
    pub exists: bool,
}

/// Resolves the longest part that exists and keeps the rest as it is written.
///
/// # Errors
/// The part that should exist cannot be looked at (a loop of symlinks, no
/// permission).
pub fn resolve(path: &Path) -> std::io::Result<Resolved> {
    let path = without_dots(path);
    let mut missing = Vec::new();
    let mut existing = path.as_path();
    loop {
        match existing.canonicalize() {
            Ok(mut real) => {
                real.extend(missing.iter().rev());
                return Ok(Resolved {
                    path: real,
                    exists: missing.is_empty(),
                });
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let (Some(parent), Some(name)) = (existing.parent(), existing.file_name()) else {
                    return Err(error);
                };
                missing.push(name.to_owned());
                existing = parent;
            }
            Err(error) => return Err(error),
        }
    }
}

/// A configured path cannot be resolved.
#[derive(Debug, thiserror::Error)]
#[error("{place}: {path}: {source}; correct the path")]
pub struct PathError {
    /// File, line and option.
    place: String,
    /// The path.
    path: String,
    /// Why.
    source: std::io::Error,
}

/// Whether to log what is odd about the paths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tell {
    /// At start.
    Yes,
    /// When it has been said before.
    No,
}

/// The configured paths, as they lead now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RealPaths {
    /// Include paths; for `OnAccessMountPath` the mount points.
    pub includes: Vec<PathBuf>,
    /// Exclude paths.
    pub excludes: Vec<PathBuf>,
    /// Paths that have limits of their own.
    pub limited: LimitedPaths,
}

impl RealPaths {
    /// Resolves the configured paths.
    ///
    /// # Errors
    /// The first path that cannot be resolved.
    pub fn of(settings: &Settings, table: &MountTable, tell: Tell) -> Result<Self, PathError> {
        let mount_point = |path: &Located<PathBuf>, real: PathBuf| {
            let mount = settings.mount_paths.contains(path);
            match table.mount_of(&real).filter(|_| mount) {
                Some(mount) => mount.point.clone(),
                None => real,
            }
        };
        let includes = settings
            .include_paths
            .iter()
            .map(|path| Ok(mount_point(path, real_path(path, tell)?)));
        let excludes = settings
            .exclude_paths
            .iter()
            .map(|path| real_path(path, tell));
        let limited = settings.path_rules.iter().map(|rule| {
            let limits = PathLimits {
                deny_on_error: rule.value.deny_on_error,
                max_file_size: rule.value.max_file_size,
            };
            let path = real_path(&rule.with(rule.value.path.clone()), tell)?;
            Ok((path, limits))
        });
        Ok(Self {
            includes: includes.collect::<Result<_, _>>()?,
            excludes: excludes.collect::<Result<_, _>>()?,
            limited: limited.collect::<Result<_, _>>()?,
        })
    }

    /// The scope that these paths describe.
    pub fn scope(&self, table: &MountTable) -> Scope {
        Scope::build(&self.includes, &self.excludes, table).with_limits(&self.limited, table)
    }
}

fn real_path(path: &Located<PathBuf>, tell: Tell) -> Result<PathBuf, PathError> {
    let shown = printable(path.value.as_os_str().as_encoded_bytes());
    let resolved = resolve(&path.value).map_err(|source| PathError {
        place: path.to_string(),
        path: shown.clone(),
        source,
    })?;
    if tell == Tell::Yes {
        if !resolved.exists {
            tracing::warn!("{path}: {shown} does not exist (yet); it is judged as soon as it does");
        } else if resolved.path != path.value {
            let real = printable(resolved.path.as_os_str().as_encoded_bytes());
            tracing::info!("{path}: {shown} leads to {real}");
        }
    }
    Ok(resolved.path)
}

/// Takes out `.` and doubled slashes; `..` stays for the kernel to judge.
fn without_dots(path: &Path) -> PathBuf {
    path.components()
        .filter(|component| !matches!(component, Component::CurDir))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_resolved_and_missing_tails_kept() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().canonicalize().unwrap();
        std::fs::create_dir(base.join("real")).unwrap();
        std::os::unix::fs::symlink(base.join("real"), base.join("link")).unwrap();
        assert_eq!(
            resolve(&base.join("link")).unwrap(),
            Resolved {
                path: base.join("real"),
                exists: true
            }
        );
        assert_eq!(
            resolve(&base.join("link/./a//b/")).unwrap(),
            Resolved {
                path: base.join("real/a/b"),
                exists: false
            }
        );
        assert_eq!(resolve(Path::new("/.")).unwrap().path, Path::new("/"));
    }

    #[test]
    fn a_loop_of_links_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("loop");
        std::os::unix::fs::symlink(&path, &path).unwrap();
        assert!(resolve(&path).is_err());
    }
}
