//! docs/OPERATORS.md as an operator follows it, and docs/LIFECYCLE.md. The pages' ports are this test's
//! own, and the provider is npm's `oidc-provider`.

use e2e::ofrep_schema::{OfrepSchema, SINGLE};
use e2e::oidc::Provider;
use e2e::page::Page;
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn the_page_leads_from_an_empty_folder_to_a_restored_backup() {
    let port = || e2e::ports::free().expect("a port").port();
    let (control, edge) = (port(), port());
    let (url, people) =
        (format!("http://127.0.0.1:{control}"), json!({ "ann": { "email": "ann@example.com" } }));
    let secret = "what the provider calls the client secret";
    let provider = Provider::start(&url, secret, &people, false).await;
    let issuer = &provider.issuer;
    let page = Page::of("docs/OPERATORS.md", 11)
        .with("127.0.0.1:8080", &format!("127.0.0.1:{control}"))
        .with("127.0.0.1:8016", &format!("127.0.0.1:{edge}"))
        .with("https://login.example.com", issuer)
        // Ten seconds are enough for people, and not for every busy machine.
        .with(" --wait\n", " --wait 60\n");
    let followed = page.follow().await;
    let (said, told) = (&followed.said, &followed.told);
    e2e::run::secret("password", &followed.read("owner-password"));
    e2e::run::secret("password", "four words of his own");
    // What the page promises, beside that no line failed.
    let redirect = format!("303 {issuer}/auth?");
    assert!(said.contains(&redirect) || said.contains(&redirect.replace("303", "302")), "{told}");
    let answers: Vec<&str> =
        said.lines().filter(|line| line.starts_with("{\"key\":\"free-shipping\"")).collect();
    assert_eq!(answers.len(), 2, "the flag before and after the restore: {told}");
    for answer in answers {
        OfrepSchema::shared().check(SINGLE, "POST", 200, answer.as_bytes()).expect("OFREP");
        assert!(answer.contains("\"value\":true"), "{told}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_of_lives_leads_from_a_flag_to_its_end() {
    let port = e2e::ports::free().expect("a port").port();
    let page = Page::of("docs/LIFECYCLE.md", 6);
    let followed = page.with("127.0.0.1:8080", &format!("127.0.0.1:{port}")).follow().await;
    e2e::run::secret("password", &followed.read("password"));
    // What the page promises, beside that no line failed.
    for said in [
        "of ann@example.com",
        "it was expected to be gone by 2026-01-31",
        "new-menu  production",
        "refused, as it is needed",
        "new-menu  archived",
        "new-menu  is back",
        "new-menu  deleted",
    ] {
        assert!(followed.said.contains(said), "{said:?}: {}", followed.told);
    }
}
