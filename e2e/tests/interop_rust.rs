//! The Rust OFREP provider against a running edge.
//!
//! What it cannot do is asserted too, so that a later release that can is noticed: its reason is
//! always STATIC, a 400 is always an invalid context, and it knows no code default.

use e2e::tap::Tap;
use e2e::world::World;
use open_feature::provider::FeatureProvider;
use open_feature::{EvaluationContext, EvaluationErrorCode, EvaluationReason, Value};
use open_feature_ofrep::{OfrepOptions, OfrepProvider};

async fn provider(url: &str, key: &str) -> OfrepProvider {
    let mut options = OfrepOptions { base_url: url.to_owned(), ..OfrepOptions::default() };
    options.headers.insert("authorization", format!("Bearer {key}").parse().unwrap());
    OfrepProvider::new(options).await.unwrap()
}

fn user() -> EvaluationContext {
    EvaluationContext::default()
        .with_targeting_key("user-1")
        .with_custom_field("email", "ann@example.com")
        .with_custom_field("age", 30)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rust_provider_resolves_every_type_and_error() {
    let world = World::with_interop_flags().await;
    let tap = Tap::before(&world.edge_url()).await;
    let provider = provider(&tap.url, &world.server_key).await;

    let on = provider.resolve_bool_value("interop-bool", &user()).await.unwrap();
    assert!(on.value);
    assert_eq!(on.variant.as_deref(), Some("on"));
    let text = provider.resolve_string_value("interop-string", &user()).await.unwrap();
    assert_eq!(text.value, "Grüße 🌊");
    assert_eq!(provider.resolve_int_value("interop-int", &user()).await.unwrap().value, 42);
    assert_eq!(provider.resolve_float_value("interop-float", &user()).await.unwrap().value, 0.5);
    let whole = provider.resolve_float_value("interop-float-whole", &user()).await.unwrap();
    assert_eq!(whole.value, 3.0);
    let page = provider.resolve_struct_value("interop-object", &user()).await.unwrap().value;
    assert_eq!(page.fields.get("title"), Some(&Value::String("T".to_owned())));

    let express = provider.resolve_string_value("interop-targeted", &user()).await.unwrap();
    assert_eq!(express.value, "e");
    assert_eq!(express.reason, Some(EvaluationReason::Static), "it now passes reasons on");
    let nobody = EvaluationContext::default().with_custom_field("email", "ann@example.com");
    let classic = provider.resolve_string_value("interop-targeted", &nobody).await.unwrap();
    assert_eq!(classic.value, "c");
    let slash = provider.resolve_bool_value("interop/team ä/slash", &user()).await.unwrap();
    assert!(slash.value);

    let missing = provider.resolve_bool_value("interop-none", &user()).await.unwrap_err();
    assert_eq!(missing.code, EvaluationErrorCode::FlagNotFound);
    let mismatch = provider.resolve_bool_value("interop-string", &user()).await.unwrap_err();
    assert_eq!(mismatch.code, EvaluationErrorCode::ParseError);
    let keyless = provider.resolve_string_value("interop-split", &nobody).await.unwrap_err();
    assert_eq!(keyless.code, EvaluationErrorCode::InvalidContext);
    let none = provider.resolve_string_value("interop-code-default", &user()).await.unwrap_err();
    assert_eq!(none.code, EvaluationErrorCode::ParseError, "it now knows code defaults");

    let stranger = self::provider(&tap.url, &format!("{}x", world.server_key)).await;
    let refused = stranger.resolve_bool_value("interop-bool", &user()).await.unwrap_err();
    assert!(matches!(refused.code, EvaluationErrorCode::General(_)), "{refused:?}");
    tap.finish(14);
    world.stop().await;
}
