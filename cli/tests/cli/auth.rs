//! Who the tool says it is, and to whom.

use std::os::unix::fs::PermissionsExt as _;

use serde_json::json;

use crate::registry::{Door, Fake};
use crate::run::{Home, stoker};

// base64 of `me:secret`
const AUTH: &str = "bWU6c2VjcmV0";

fn logged_in(fake: &Fake) -> Home {
    Home::with_config(&json!({"auths": {fake.address.to_string(): {"auth": AUTH}}}))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_from_dockers_config_opens_a_basic_door() {
    let fake = Fake::start().await;
    let a = fake.put("app", "a", "one two three");
    fake.env().door = Door::Basic(format!("Basic {AUTH}"));
    let ran = stoker(&format!("cache verify {a}")).await;
    assert_eq!((ran.code, ran.err.contains("docker login")), (3, true), "{}", ran.err);
    let ran = logged_in(&fake).stoker(&format!("cache verify {a}")).await;
    assert_eq!(ran.code, 0, "{}{}", ran.out, ran.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn anybody_gets_a_token_and_asks_for_it_once_a_scope() {
    let fake = Fake::start().await;
    let a = fake.put("app", "a", "one two three four five");
    fake.env().door = Door::Bearer { password: None, refresh_token: None };
    let ran = stoker(&format!("cache verify {a}")).await;
    assert_eq!(ran.code, 0, "{}{}", ran.out, ran.err);
    assert_eq!(fake.count("GET", "/token?service=fake&scope=repository%3Aapp%3Apull"), 1);
    assert_eq!(fake.count("", "/token"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_service_is_shown_the_password_and_the_registry_the_token() {
    let fake = Fake::start().await;
    let (a, b) = (fake.put("app", "a", "one two"), fake.put("builds", "b", "three"));
    fake.env().door = Door::Bearer { password: Some(format!("Basic {AUTH}")), refresh_token: None };
    let line = format!("cache merge {a} {b} --into {}", fake.reference("trusted", "main"));
    assert_eq!(stoker(&line).await.code, 3);
    fake.env().asked.clear();
    let ran = logged_in(&fake).stoker(&line).await;
    assert_eq!(ran.code, 0, "{}{}", ran.out, ran.err);
    // A mount asks for the right to read the other repository too.
    assert_eq!(
        fake.count("GET", "scope=repository%3Abuilds%3Apull&scope=repository%3Atrusted%3Apull%2Cpush"),
        1
    );
    for asked in &fake.env().asked {
        let is_password = asked.authorization.as_deref().is_some_and(|header| header.starts_with("Basic"));
        assert_eq!(is_password, asked.line.contains("/token"), "{asked:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_token_is_posted() {
    let fake = Fake::start().await;
    let a = fake.put("app", "a", "one");
    fake.env().door = Door::Bearer { password: None, refresh_token: Some("refresh-me".to_owned()) };
    let auth = json!({"auth": "eDo=", "identitytoken": "refresh-me"});
    let home = Home::with_config(&json!({"auths": {fake.address.to_string(): auth}}));
    let ran = home.stoker(&format!("cache verify {a}")).await;
    assert_eq!(ran.code, 0, "{}{}", ran.out, ran.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn credential_helpers_are_asked() {
    let fake = Fake::start().await;
    let a = fake.put("app", "a", "one");
    fake.env().door = Door::Basic(format!("Basic {AUTH}"));
    for config in [
        json!({"credHelpers": {fake.address.to_string(): "fake"}}),
        json!({"credsStore": "fake", "credHelpers": {"other.example": "none"}}),
    ] {
        let home = Home::with_config(&config);
        let script = format!(
            "#!/bin/sh\nread -r server\ntest \"$1 $server\" = 'get {}' || exit 1\n\
             echo '{{\"ServerURL\":\"x\",\"Username\":\"me\",\"Secret\":\"secret\"}}'\n",
            fake.address
        );
        let helper = home.path().join("docker-credential-fake");
        std::fs::write(&helper, script).unwrap();
        std::fs::set_permissions(&helper, std::fs::Permissions::from_mode(0o755)).unwrap();
        let ran = home.stoker(&format!("cache verify {a}")).await;
        assert_eq!(ran.code, 0, "{config}: {}{}", ran.out, ran.err);
    }
    let home = Home::with_config(&json!({"credsStore": "gone"}));
    let ran = home.stoker(&format!("cache verify {a}")).await;
    assert_eq!((ran.code, ran.err.contains("docker-credential-gone")), (3, true), "{}", ran.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_copied_after_a_refused_mount_needs_no_second_login() {
    let fake = Fake::start().await;
    let (a, b) = (fake.put("app", "a", "one two"), fake.put("builds", "b", "three"));
    fake.env().door = Door::Bearer { password: None, refresh_token: None };
    fake.env().refuses_mounts = true;
    let ran = stoker(&format!("cache merge {a} {b} --into {}", fake.reference("trusted", "main"))).await;
    assert_eq!((ran.code, ran.out.contains("3 copied")), (0, true), "{}{}", ran.out, ran.err);
    // Three for the blobs, each filled at the first try, and one for the config.
    assert_eq!(fake.count("PUT", "/blobs/"), 4);
}
