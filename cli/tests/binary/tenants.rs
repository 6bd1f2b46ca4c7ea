//! Namespaces, environments and keys, made and ended by commands alone.

use serde_json::Value;

use crate::world::{Dev, Done, ofrep, until};

#[test]
fn a_namespace_is_furnished_and_cleared_by_commands_alone() {
    let folder = tempfile::tempdir().unwrap();
    let dev = Dev::start(folder.path());
    let ask = |arguments: &[&str]| -> Done { dev.tidegate(arguments) };
    let json = |arguments: &[&str]| ask(&[arguments, &["--output", "json"]].concat()).ok().json();
    let shop = ["--namespace", "shop"];
    let live = ["--namespace", "shop", "--environment", "live"];

    ask(&["namespace", "create", "shop", "--name", "The shop"]).ok();
    ask(&["namespace", "create", "shop"]).failed(5);
    assert!(ask(&["namespace", "create", "The Shop"]).failed(4).err.contains("/key"));
    let listed = ask(&["namespace", "list"]).ok().out;
    assert!(listed.contains("shop  The shop") && listed.contains("demo"), "{listed}");
    assert_eq!(ask(&[&["environment", "list"][..], &shop].concat()).ok().out, "no environments\n");
    ask(&[&["environment", "create", "live"][..], &shop].concat()).ok();

    // Two keys of a kind; the first ends when it is rotated without any overlap.
    let key = |out: &str| {
        let key = out.lines().find_map(|line| line.strip_prefix("key, shown once: "));
        key.expect(out).to_owned()
    };
    let made = ask(&[&["key", "create", "server", "--name", "till"][..], &live].concat()).ok().out;
    let (id, first) = (made.lines().next().unwrap().to_owned(), key(&made));
    let rotate = ["key", "rotate", &id, "--overlap", "0"];
    let second = key(&ask(&[&rotate[..], &live].concat()).ok().out);
    assert_ne!(first, second);
    ask(&[&["key", "rotate", "nobody"][..], &live].concat()).failed(3);
    let origin = ["key", "create", "browser", "--origin", "https://shop.example.com"];
    let browser = json(&[&origin[..], &live].concat());
    assert_eq!(browser["origins"][0], "https://shop.example.com");
    let wrong = ["key", "create", "browser", "--origin", "shop"];
    assert!(ask(&[&wrong[..], &live].concat()).failed(4).err.contains("/origins/0"));
    let listed = ask(&[&["key", "list"][..], &live].concat()).ok().out;
    assert!(listed.contains("till") && listed.contains("never"), "{listed}");
    assert!(!listed.contains(&second) && !listed.contains("tg_"), "{listed}");

    let flag = ["flag", "create", "open"];
    ask(&[&flag[..], &live].concat()).ok();
    let on = ["flag", "set", "open", "--enabled", "--variant", "on", "--wait", "60"];
    ask(&[&on[..], &live].concat()).ok();
    let asked =
        |key: &str| ofrep(dev.server.text("edge_url"), key, "open", serde_json::json!({})).0;
    // An edge that has not said that it has the environment is not waited for.
    until("the edge having it", || (asked(&second) == 200).then_some(()));
    assert_eq!(asked(&first), 401);

    let protect =
        |more: &[&str]| ask(&[&["environment", "protect"][..], &live, more].concat()).ok().out;
    assert_eq!(protect(&[]), "live takes changes without approval\n");
    assert_eq!(protect(&["--approvals", "2"]), "live takes changes after 2 approvals\n");
    assert_eq!(protect(&["--approvals", "0"]), "live takes changes without approval\n");
    ask(&[&["environment", "protect", "--approvals", "6"][..], &live].concat()).failed(2);

    assert!(ask(&["edge-key", "create"]).failed(2).err.contains("--namespace"));
    let made = json(&["edge-key", "create", "--name", "e1", "--all"]);
    assert_eq!(made["namespaces"], "all");
    let id = made["id"].as_str().unwrap();
    json(&["edge-key", "rotate", id]);
    assert!(ask(&["edge-key", "list"]).ok().out.contains("e1"));
    ask(&["edge-key", "delete", id]).ok();

    // Nothing goes by mistake, and nothing that edges still answer for.
    let environment = ["environment", "delete", "live", "--namespace", "shop"];
    assert!(ask(&environment).failed(2).err.contains("--yes"));
    let delete = [&environment[..], &["--yes"]].concat();
    assert!(ask(&delete).failed(5).err.contains("revoke them first"));
    let keys: Value = json(&[&["key", "list"][..], &live].concat());
    for key in keys.as_array().unwrap() {
        ask(&[&["key", "delete", key["id"].as_str().unwrap()][..], &live].concat()).ok();
    }
    crate::world::until("the environment's end", || (ask(&delete).code == 0).then_some(()));
    ask(&["namespace", "delete", "shop"]).failed(2);
    ask(&["namespace", "delete", "shop", "--yes"]).ok();
    assert!(!ask(&["namespace", "list"]).ok().out.contains("shop"));
}
