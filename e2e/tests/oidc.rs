//! Signing in with an identity provider: npm's `oidc-provider`, run by these tests, and a browser that
//! follows redirects and keeps cookies.

use std::collections::BTreeMap;

use control::oidc::Settings;
use control::store::query::query;
use e2e::oidc::{CLIENT, Provider};
use e2e::world::{Setup, World};
use rules::secret::Secret;
use serde_json::{Value, json};
use url::Url;

const SECRET: &str = "a secret of tests, and of nobody else";
const HOPS_MAX: usize = 12;

/// Cookies of each host and port. Marks of security are not its business: there is no TLS here.
struct Browser {
    http: reqwest::Client,
    cookies: BTreeMap<String, BTreeMap<String, String>>,
}

struct Page {
    url: Url,
    status: u16,
    location: Option<String>,
    body: String,
}

impl Browser {
    fn of(who: &str, provider: &Provider) -> Browser {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .tls_certs_only([])
            .build()
            .expect("a client");
        let mut browser = Browser { http, cookies: BTreeMap::new() };
        let place = Url::parse(&provider.issuer).expect("a URL");
        let jar = browser.cookies.entry(place.authority().to_owned()).or_default();
        jar.insert("who".to_owned(), who.to_owned());
        browser
    }

    async fn get(&mut self, url: &str) -> Page {
        let url = Url::parse(url).expect("a URL");
        let jar = self.cookies.entry(url.authority().to_owned()).or_default();
        let sent: Vec<String> = jar.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let answer = self.http.get(url.clone()).header("cookie", sent.join("; ")).send().await;
        let answer = answer.expect("an answer");
        for set in answer.headers().get_all("set-cookie") {
            let pair = set.to_str().expect("text").split(';').next().unwrap_or_default();
            let (name, value) = pair.split_once('=').expect("a pair");
            e2e::run::secrets_in(value);
            if name == "__Host-tidegate-oidc" {
                e2e::run::secret("sign-in cookie", value);
            }
            match value {
                "" => drop(jar.remove(name)),
                value => drop(jar.insert(name.to_owned(), value.to_owned())),
            }
        }
        let location = answer.headers().get("location");
        let location = location.map(|place| place.to_str().expect("text").to_owned());
        // Not what a test has guessed.
        for (_, code) in url.query_pairs().filter(|(name, code)| name == "code" && code.len() > 20)
        {
            e2e::run::secret("code", &code);
        }
        let status = answer.status().as_u16();
        Page { url, status, location, body: answer.text().await.expect("a body") }
    }

    /// Follows redirects until there is none, or the next would be to a path that begins so.
    async fn follow(&mut self, url: &str, until: &str) -> Page {
        let mut url = url.to_owned();
        for _ in 0..HOPS_MAX {
            let page = self.get(&url).await;
            let Some(location) = &page.location else { return page };
            let next = page.url.join(location).expect("a place");
            if next.path().starts_with(until) && next.authority() != page.url.authority()
                || next.path() == until
            {
                return page;
            }
            url = next.to_string();
        }
        panic!("it redirects for ever: {url}");
    }

    fn cookie(&self, url: &str, name: &str) -> Option<&String> {
        self.cookies.get(Url::parse(url).expect("a URL").authority())?.get(name)
    }
}

const CALLBACK: &str = "/api/v1/oidc/callback";

/// Goes to the provider and comes back; the place that it is then sent to, or the status.
async fn sign_in(world: &World, browser: &mut Browser) -> Result<String, (u16, String)> {
    let url = format!("{}/api/v1/oidc/login?returnTo=/flags", world.admin.url);
    let page = browser.follow(&url, "/flags").await;
    match (page.status, page.location) {
        (303, Some(place)) => Ok(place),
        (status, _) => Err((status, page.body)),
    }
}

/// Who the browser is to control.
async fn me(world: &World, browser: &mut Browser) -> Value {
    let page = browser.get(&format!("{}/api/v1/me", world.admin.url)).await;
    serde_json::from_str(&page.body).expect("JSON")
}

async fn world(user_info: bool) -> (World, Provider) {
    let address = e2e::postgres::ports::free().expect("a port");
    let url = format!("http://{address}");
    let person = |email: &str, verified: bool| json!({ "email": email, "email_verified": verified, "name": "Somebody" });
    let people = json!({ "ann": person("Ann@example.com", true), "new": person("new@example.com", true),
        "far": person("far@elsewhere.example", true), "liar": person("bob@example.com", false),
        "bob": person("bob@example.com", true) });
    let provider = Provider::start(&url, SECRET, &people, user_info).await;
    let secret = Some(Secret::new(SECRET.to_owned()));
    let domains = vec!["example.com".to_owned()];
    let settings = Settings::new(&provider.issuer, CLIENT, secret, &url, domains).expect("fit");
    let control = move |config: &mut control::config::Config| {
        config.listen = address;
        config.oidc = Some(settings.clone());
    };
    let world = World::with(Setup { control: &control, ..Setup::default() }).await;
    (world, provider)
}

async fn account(world: &World, email: &str) {
    world.admin.post("/api/v1/users", &json!({ "email": email })).await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_goes_to_the_provider_and_comes_back_as_the_account_of_its_verified_address() {
    let (world, provider) = world(false).await;
    account(&world, "ann@example.com").await;
    let mut ann = Browser::of("ann", &provider);
    assert_eq!(sign_in(&world, &mut ann).await, Ok("/flags".to_owned()));
    let who = me(&world, &mut ann).await;
    assert_eq!((&who["kind"], &who["name"]), (&json!("user"), &json!("ann@example.com")), "{who}");
    assert!(who["csrfToken"].is_string() && who["operator"] == false, "{who}");
    assert_eq!(ann.cookie(&world.admin.url, "__Host-tidegate-oidc"), None, "it is over");

    // The second time by issuer and subject, whatever became of the address here.
    let id = who["id"].clone();
    let mut tx = world.control().store.write().await.unwrap();
    query("UPDATE user_account SET email = 'ann@married.example'").execute(&mut tx).await.unwrap();
    tx.commit().await.unwrap();
    let mut again = Browser::of("ann", &provider);
    assert_eq!(sign_in(&world, &mut again).await, Ok("/flags".to_owned()));
    assert_eq!(me(&world, &mut again).await["id"], id);

    // A domain that may come in gets an account, without roles; others, and liars, get none.
    let mut new = Browser::of("new", &provider);
    assert_eq!(sign_in(&world, &mut new).await, Ok("/flags".to_owned()));
    let who = me(&world, &mut new).await;
    assert_eq!(
        (&who["name"], &who["namespaces"]),
        (&json!("new@example.com"), &json!({})),
        "{who}"
    );
    account(&world, "bob@example.com").await;
    for (who, why) in [
        ("far", "no account with this address"),
        ("liar", "not verified an e-mail address"),
        ("nobody", "the provider refused it"),
    ] {
        let refused = sign_in(&world, &mut Browser::of(who, &provider)).await.expect_err(who);
        assert!(refused.0 == 403 && refused.1.contains(why), "{who}: {refused:?}");
    }
    // Whoever is disabled stays out.
    let path = format!("/api/v1/users/{}", id.as_str().unwrap());
    let gone = world.admin.request(http::Method::DELETE, &path).header("if-match", "*");
    e2e::http::send(gone).await.ok();
    assert_eq!(me(&world, &mut again).await["status"], 401);
    let refused = sign_in(&world, &mut Browser::of("ann", &provider)).await.expect_err("disabled");
    assert!(refused.0 == 403 && refused.1.contains("disabled"), "{refused:?}");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_come_back_as_it_went_is_refused() {
    // This provider says addresses only when asked once more.
    let (world, provider) = world(true).await;
    account(&world, "ann@example.com").await;
    let login = format!("{}/api/v1/oidc/login", world.admin.url);
    // As far as the way back: the address that the provider sends the browser to.
    let way_back = async |browser: &mut Browser| {
        let page = browser.follow(&login, CALLBACK).await;
        page.location.unwrap_or_else(|| panic!("{} {}", page.status, page.body))
    };
    let refused = |page: Page, why: &str| {
        assert!(page.status == 403 && page.body.contains(why), "{} {}", page.status, page.body);
    };
    let mut ann = Browser::of("ann", &provider);
    let back = way_back(&mut ann).await;

    // In a browser that has not begun it: somebody else's sign-in is not slipped to them.
    refused(Browser::of("ann", &provider).get(&back).await, "has not begun it");
    // That was the one time that the state was good for.
    refused(ann.get(&back).await, "has not begun it");

    let back = way_back(&mut ann).await;
    let with = |name: &str, value: &str| {
        let mut url = Url::parse(&back).unwrap();
        let pairs: Vec<(String, String)> = url.query_pairs().into_owned().collect();
        let pairs = pairs.into_iter().map(|(key, was)| match key == name {
            true => (key, value.to_owned()),
            false => (key, was),
        });
        let pairs: Vec<(String, String)> = pairs.collect();
        url.query_pairs_mut().clear().extend_pairs(pairs);
        url.to_string()
    };
    refused(ann.get(&with("state", "guessed")).await, "has not begun it");
    refused(ann.get(&with("iss", "https://evil.example")).await, "another provider");
    let back = way_back(&mut ann).await;
    assert!(back.contains("code="), "{back}");
    let code = Url::parse(&back).unwrap();
    let state = code.query_pairs().find(|(key, _)| key == "state").unwrap().1.into_owned();
    let place = format!("{}{CALLBACK}", world.admin.url);
    refused(
        ann.get(&format!("{place}?state={state}&code=guessed")).await,
        "does not take its code",
    );

    for (statement, why) in [
        ("UPDATE oidc_login SET nonce = 'another'", "ID token does not hold"),
        ("UPDATE oidc_login SET verifier = verifier || 'x'", "does not take its code"),
        ("UPDATE oidc_login SET created_at = 1", "has not begun it"),
    ] {
        let back = way_back(&mut ann).await;
        let mut tx = world.control().store.write().await.unwrap();
        assert_eq!(query(statement).execute(&mut tx).await.unwrap(), 1);
        tx.commit().await.unwrap();
        refused(ann.get(&back).await, why);
    }
    for foreign in ["https://evil.example", "//evil.example", "/%5Cevil.example"] {
        assert_eq!(ann.get(&format!("{login}?returnTo={foreign}")).await.status, 422, "{foreign}");
    }
    assert_eq!(me(&world, &mut ann).await["status"], 401);
    let back = way_back(&mut ann).await;
    assert_eq!(ann.get(&back).await.status, 303);
    assert_eq!(me(&world, &mut ann).await["name"], "ann@example.com");
    // Without the provider nobody comes in, who is in stays in, and control goes on.
    let back = way_back(&mut ann).await;
    provider.kill().await;
    assert_eq!(ann.get(&back).await.status, 503);
    assert_eq!(me(&world, &mut ann).await["name"], "ann@example.com");
    world.stop().await;
}
