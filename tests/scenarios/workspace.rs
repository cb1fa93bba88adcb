//! Promises about the workspace itself.

use std::fs;
use std::path::Path;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

#[test]
fn there_is_one_tls_stack() {
    let lock = fs::read_to_string(Path::new(ROOT).join("Cargo.lock")).unwrap();
    let count = |name: &str| lock.matches(&format!("name = \"{name}\"\n")).count();
    assert_eq!((count("rustls"), count("hyper-rustls"), count("ring")), (1, 1, 1));
    for other in ["aws-lc-rs", "aws-lc-sys", "openssl", "openssl-sys", "native-tls", "s2n-tls"] {
        assert_eq!(count(other), 0, "{other} is in Cargo.lock");
    }
}

#[test]
fn a_functions_main_only_sets_up() {
    let mut seen = 0;
    for entry in fs::read_dir(Path::new(ROOT).join("functions")).unwrap() {
        let main = entry.unwrap().path().join("src/main.rs");
        let Ok(text) = fs::read_to_string(&main) else { continue };
        assert!(text.lines().count() <= 25, "{} has more than 25 lines", main.display());
        seen += 1;
    }
    assert_eq!(seen, 7);
}
