//! `WWW-Authenticate`, as far as registries use it.

use std::fmt::Write as _;

/// How a registry wants to be asked.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Scheme {
    Basic,
    Bearer(Challenge),
}

/// Where to fetch a token, and what for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Challenge {
    pub(super) realm: String,
    pub(super) service: String,
    pub(super) scope: String,
}

/// Reads one header; `None` for schemes that no registry uses.
pub(super) fn parse(header: &str) -> Option<Scheme> {
    let (scheme, rest) = header.trim().split_once(' ').unwrap_or((header.trim(), ""));
    if scheme.eq_ignore_ascii_case("basic") {
        return Some(Scheme::Basic);
    }
    if !scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    let mut challenge = Challenge::default();
    let mut rest = rest.trim_start_matches([' ', ',']);
    while let Some((name, after)) = rest.split_once('=') {
        let (value, after) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
            None => after.split_once(',').unwrap_or((after, "")),
        };
        let place = match name.trim().to_ascii_lowercase().as_str() {
            "realm" => Some(&mut challenge.realm),
            "service" => Some(&mut challenge.service),
            "scope" => Some(&mut challenge.scope),
            _ => None,
        };
        if let Some(place) = place {
            value.clone_into(place);
        }
        rest = after.trim_start_matches([' ', ',']);
    }
    (!challenge.realm.is_empty()).then_some(Scheme::Bearer(challenge))
}

/// Fields as a query or form writes them; those without a value are left out.
pub(super) fn query(fields: &[(&str, &str)]) -> String {
    let mut query = String::new();
    for (name, value) in fields.iter().filter(|(_, value)| !value.is_empty()) {
        if !query.is_empty() {
            query.push('&');
        }
        query.push_str(name);
        query.push('=');
        for byte in value.bytes() {
            if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
                query.push(char::from(byte));
            } else {
                // Writing to a string cannot fail.
                let _ = write!(query, "%{byte:02X}");
            }
        }
    }
    query
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read() {
        let full = r#"Bearer realm="https://auth.example/token",service="registry.example",scope="repository:a/b:pull,push""#;
        let Some(Scheme::Bearer(challenge)) = parse(full) else { panic!("{full}") };
        assert_eq!(challenge.realm, "https://auth.example/token");
        assert_eq!(challenge.service, "registry.example");
        assert_eq!(challenge.scope, "repository:a/b:pull,push");
        let loose = "bearer  Realm=https://auth.example/t , error=\"x=y\"";
        let Some(Scheme::Bearer(challenge)) = parse(loose) else { panic!("{loose}") };
        assert_eq!(challenge.realm.trim(), "https://auth.example/t");
        assert_eq!(parse("Basic realm=\"x\""), Some(Scheme::Basic));
        assert_eq!(parse("basic"), Some(Scheme::Basic));
        for other in
            ["", "Negotiate", "Bearer", "Bearer service=\"x\"", "Bearer realm=\"", "Digest realm=\"x\""]
        {
            assert_eq!(parse(other), None, "{other}");
        }
    }

    #[test]
    fn queries_are_escaped() {
        assert_eq!(
            query(&[("service", "a b&c=d"), ("scope", ""), ("x", "é")]),
            "service=a%20b%26c%3Dd&x=%C3%A9"
        );
    }
}
