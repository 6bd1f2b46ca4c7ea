//! Going back, killing, promoting and change sets from the command line.

use serde_json::json;

use crate::world::Dev;

#[test]
fn a_flag_goes_back_is_killed_and_changes_by_a_change_set() {
    let folder = tempfile::tempdir().unwrap();
    let dev = Dev::start(folder.path());
    dev.tidegate(&["flag", "set", "adFailure", "--variant", "on"]).ok();
    dev.tidegate(&["flag", "set", "adFailure", "--variant", "off"]).ok();
    let versions = dev.tidegate(&["flag", "history", "adFailure", "-o", "json"]).ok().json();
    let newest = versions[0]["version"].as_i64().unwrap();
    assert_eq!(versions.as_array().map(Vec::len), usize::try_from(newest).ok());
    let (newest_text, before) = (newest.to_string(), (newest - 1).to_string());
    let shown = dev.tidegate(&["flag", "history", "adFailure", "--version", &newest_text]).ok().out;
    assert!(shown.contains("replace /fallthrough/variant \"off\""), "{shown}");
    let done = dev.tidegate(&["flag", "restore", "adFailure", "--version", &before]).ok();
    assert!(done.out.contains("everybody else: off → on"), "{done:?}");
    let done = dev.tidegate(&["flag", "kill", "adFailure", "--reason", "it fails ads"]).ok();
    assert!(done.out.contains("on → off"), "{done:?}");

    let flag = dev.tidegate(&["flag", "get", "adFailure", "-o", "json"]).ok().json();
    let mut config = flag["config"].clone();
    config["enabled"] = json!(true);
    let items = json!([{ "kind": "config", "environment": dev.server.said["environment"],
        "key": "adFailure", "value": config }]);
    let file = folder.path().join("items.json");
    std::fs::write(&file, items.to_string()).unwrap();
    let file = file.to_str().unwrap();
    let made = dev.tidegate(&["change", "create", "--title", "Ads again", "--file", file]).ok().out;
    assert!(made.contains("Ads again  draft (version 1)"), "{made}");
    assert!(made.contains("replace /enabled true"), "{made}");
    dev.tidegate(&["change", "apply", "1"]).failed(5);
    let contexts = folder.path().join("contexts.json");
    std::fs::write(&contexts, r#"[{ "targetingKey": "ann" }, {}]"#).unwrap();
    let contexts = contexts.to_str().unwrap();
    let told = dev.tidegate(&["change", "impact", "1", "--contexts", contexts]).ok().out;
    assert!(told.starts_with("2 of 2 contexts are answered differently\n  adFailure: 2"), "{told}");
    dev.tidegate(&["change", "impact", "1"]).failed(2);
    dev.tidegate(&["change", "impact", "1", "--recent", "5", "--in", "nowhere"]).failed(4);
    assert!(dev.tidegate(&["change", "submit", "1"]).ok().out.starts_with("1 is approved"));
    // Whoever wrote it does not approve it.
    dev.tidegate(&["change", "approve", "1"]).failed(1);
    let at = "2020-01-01T00:00:00Z";
    dev.tidegate(&["change", "schedule", "1", "--at", at]).failed(4);
    dev.tidegate(&["change", "comment", "1", "--text", "now?"]).ok();
    let done = dev.tidegate(&["change", "apply", "1"]).ok().out;
    assert!(done.starts_with("1 is applied; "), "{done}");
    let list = dev.tidegate(&["change", "list", "--state", "applied"]).ok().out;
    assert!(list.contains("Ads again"), "{list}");
    assert!(dev.tidegate(&["change", "show", "1"]).ok().out.contains("commented by"));
    dev.tidegate(&["change", "show", "2"]).failed(3);
    let flag = dev.tidegate(&["flag", "get", "adFailure", "-o", "json"]).ok().json();
    assert_eq!(flag["config"], config);
    dev.tidegate(&["flag", "promote", "adFailure", "--from", "nowhere"]).failed(3);
}
