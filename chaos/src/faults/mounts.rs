//! Mounts that come and go inside the scope.

use std::{
    fs::{self, File},
    path::Path,
    time::{Duration, Instant},
};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::super::{
    load::seen,
    rules::{Leave, Seen},
    scene::{BACK, Scene},
};

fn attach(point: &Path) -> Result<(), String> {
    fs::create_dir_all(point).map_err(|error| format!("{}: {error}", point.display()))?;
    let options = Some("size=4m");
    mount(
        Some("tmpfs"),
        point,
        Some("tmpfs"),
        MsFlags::empty(),
        options,
    )
    .map_err(|error| format!("mounting on {}: {error}", point.display()))
}

/// A scan may hold it for a moment.
fn detach(point: &Path, limit: Duration) -> Result<(), String> {
    let until = Instant::now() + limit;
    while let Err(error) = umount2(point, MntFlags::empty()) {
        if Instant::now() >= until {
            let _ = umount2(point, MntFlags::MNT_DETACH);
            return Err(format!("{} stays busy: {error}", point.display()));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Protection reaches a new filesystem within two seconds, and lets it go.
pub fn come_and_go(scene: &mut Scene) -> Result<(), String> {
    scene.fault_begins(Leave::NONE);
    let point = scene.files.dir.join("mount");
    for _ in 0..4 {
        attach(&point)?;
        let bad = point.join("bad");
        let written = fs::write(&bad, &scene.files.marker);
        let before = Instant::now();
        while written.is_ok() && seen(&File::open(&bad)) != Seen::Refused {
            if before.elapsed() > BACK {
                let what = "a new filesystem was not protected within two seconds";
                scene.rules.violation(what.to_owned());
                break;
            }
            scene.wait(Duration::from_millis(5));
        }
        detach(&point, Duration::from_secs(5))?;
    }
    scene.fault_over();
    Ok(())
}

/// No rest in between, and marks that may never be placed.
pub fn in_a_hurry(scene: &mut Scene) -> Result<(), String> {
    scene.fault_begins(Leave::NONE);
    let point = scene.files.dir.join("hurry");
    for _ in 0..25 {
        attach(&point)?;
        let _ = fs::write(point.join("file"), b"something");
        drop(File::open(point.join("file")));
        detach(&point, Duration::from_secs(5))?;
    }
    scene.fault_over();
    Ok(())
}
