//! `make bump`: changes the version everywhere, on a clean tree only.

use std::path::Path;
use std::process::{Command, Output};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const FILES: [&str; 5] = ["Cargo.toml", "Cargo.lock", "CHANGELOG.md", "Makefile", "scripts/bump"];

/// A repository with the files that hold the version, in a temporary directory.
struct Repository(std::path::PathBuf);

impl Repository {
    fn new() -> Self {
        let directory =
            std::env::temp_dir().join(format!("bump-{}-{:?}", std::process::id(), std::thread::current().id()));
        std::fs::create_dir_all(directory.join("scripts")).unwrap();
        for file in FILES {
            std::fs::copy(Path::new(ROOT).join(file), directory.join(file)).unwrap();
        }
        let repository = Self(directory);
        repository.run("git", &["init", "--quiet"]);
        repository.commit();
        repository
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Output {
        Command::new(program).args(arguments).current_dir(&self.0).output().unwrap()
    }

    fn commit(&self) {
        let who = ["-c", "user.name=test", "-c", "user.email=test@example.invalid"];
        assert!(self.run("git", &["add", "--all"]).status.success());
        assert!(self.run("git", &[&who[..], &["commit", "--quiet", "-m", "x"]].concat()).status.success());
    }

    fn text(&self, file: &str) -> String {
        std::fs::read_to_string(self.0.join(file)).unwrap()
    }
}

impl Drop for Repository {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

#[test]
fn raises_the_version_everywhere() {
    let [major, minor, patch] = env!("CARGO_PKG_VERSION").split('.').collect::<Vec<_>>()[..] else { panic!() };
    let number = |text: &str| text.parse::<u32>().unwrap();
    let cases = [
        ("major", format!("{}.0.0", number(major) + 1)),
        ("minor", format!("{major}.{}.0", number(minor) + 1)),
        ("patch", format!("{major}.{minor}.{}", number(patch) + 1)),
    ];
    for (part, version) in cases {
        let repository = Repository::new();
        let bumped = repository.run("make", &["--silent", "bump", &format!("PART={part}")]);
        assert!(bumped.status.success(), "{bumped:?}");
        assert!(repository.text("Cargo.toml").contains(&format!("\nversion = \"{version}\"\n")), "{part}");
        assert!(repository.text("CHANGELOG.md").contains(&format!("\n## Unreleased\n\n## {version} (")), "{part}");
        for member in ["operator-service", "fuzz", "devstack", "fake-engine", "fake-kubernetes"] {
            let entry = format!("name = \"{member}\"\nversion = \"{version}\"\n");
            assert!(repository.text("Cargo.lock").contains(&entry), "{part} {member}");
        }
        let changed = repository.run("git", &["diff", "--numstat"]);
        let changed = String::from_utf8(changed.stdout).unwrap();
        assert_eq!(changed, "2\t0\tCHANGELOG.md\n6\t6\tCargo.lock\n1\t1\tCargo.toml\n", "{part}");
    }
}

#[test]
fn refuses_a_dirty_tree_and_an_unknown_part() {
    let repository = Repository::new();
    let unknown = repository.run("make", &["--silent", "bump", "PART=huge"]);
    assert!(!unknown.status.success());
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("make bump PART=major|minor|patch"));

    std::fs::write(repository.0.join("new"), "").unwrap();
    let dirty = repository.run("make", &["--silent", "bump", "PART=patch"]);
    assert!(!dirty.status.success());
    assert!(String::from_utf8_lossy(&dirty.stderr).contains("not clean"), "{dirty:?}");
    assert_eq!(repository.run("git", &["diff", "--quiet"]).status.code(), Some(0));
}
