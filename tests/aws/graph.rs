//! The dependencies: with two crypto providers rustls cannot choose one and panics at the first handshake.

use std::process::Command;

#[test]
fn there_is_one_crypto_provider() {
    let arguments = [
        "tree",
        "--workspace",
        "--locked",
        "--edges",
        "normal",
        "--target",
        "all",
        "--prefix",
        "none",
        "--format",
        "{p}",
    ];
    let output = Command::new(env!("CARGO")).args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let tree = String::from_utf8(output.stdout).unwrap();
    let names: std::collections::BTreeSet<&str> = tree.lines().filter_map(|line| line.split(' ').next()).collect();
    for needed in ["ring", "rustls", "aws-config", "kube", "sqlx", "reqwest"] {
        assert!(names.contains(needed), "{needed} is not in {names:?}");
    }
    for other in
        ["aws-lc-rs", "aws-lc-sys", "aws-lc-fips-sys", "openssl", "openssl-sys", "native-tls", "s2n-tls", "boring"]
    {
        assert!(!names.contains(other), "{other} is a dependency: cargo tree -i {other}");
    }
    let rustls: std::collections::BTreeSet<&str> =
        tree.lines().filter(|line| line.starts_with("rustls v")).map(|line| line.trim_end_matches(" (*)")).collect();
    assert_eq!(rustls.len(), 1, "{rustls:?}");
}
