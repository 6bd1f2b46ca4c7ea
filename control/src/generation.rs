//! After a restore of the database: raises the generation of every environment, so that what it
//! publishes from now on is newer than whatever edges serve, though its revisions have gone back.
//!
//! For operators, with the server stopped or not. A restored database may also have forgotten a
//! generation; edges that report a higher one are believed, and the operator can name one.

use serde_json::json;

use crate::audit::{self, Entry};
use crate::authorize::callers::Caller;
use crate::outbox::{self, Raised};
use crate::refusal::Refusal;
use crate::store::query::{query, query_as, query_scalar};
use crate::store::{Store, now_us};

const NAMESPACES: &str = "SELECT id FROM namespace ORDER BY id";
const ENVIRONMENTS: &str =
    "SELECT id, key, generation, revision FROM environment WHERE namespace_id = $1 ORDER BY id";
const NEWEST: &str = "SELECT MAX(generation) FROM (SELECT generation FROM environment \
    UNION ALL SELECT generation FROM receipt UNION ALL SELECT generation FROM retired_environment \
    UNION ALL SELECT generation FROM publication) AS all_generations";
const RAISE: &str = "UPDATE environment SET generation = $2, revision = revision + 1, \
    updated_at = $3 WHERE id = $1 RETURNING revision";
/// One that is made again must not begin before what edges may have of it.
const RETIRED: &str = "UPDATE retired_environment SET generation = $1";

/// Raises all to `to`, or to one more than the highest that is known. In one transaction: the
/// generation, and how many environments have it now.
pub async fn raise(store: &Store, to: Option<i64>) -> Result<(i64, usize), Refusal> {
    let mut tx = store.write().await?;
    let newest: Option<i64> = query_scalar(NEWEST).fetch_one(&mut tx).await?;
    let newest = newest.unwrap_or(0);
    let generation = to.unwrap_or(newest + 1);
    if generation <= newest {
        return Err(Refusal::invalid(
            "/generation",
            format!("generation {newest} is known already; the new one must be higher"),
        ));
    }
    let at = now_us();
    let mut raised = 0;
    let namespaces: Vec<String> = query_scalar(NAMESPACES).fetch_all(&mut tx).await?;
    for namespace in namespaces {
        let mut head = audit::lock(&mut tx, &namespace).await?;
        let environments: Vec<(String, String, i64, i64)> =
            query_as(ENVIRONMENTS).bind(&namespace).fetch_all(&mut tx).await?;
        let before: Vec<_> = environments
            .iter()
            .map(|(_, key, generation, revision)| {
                json!({ "environment": key, "generation": generation, "revision": revision })
            })
            .collect();
        for (id, key, _, _) in environments {
            let raise = query_scalar::<i64>(RAISE).bind(&id).bind(generation).bind(at);
            let revision = raise.fetch_one(&mut tx).await?;
            let of = Raised { environment_id: id, key, generation, revision };
            outbox::add(&mut tx, &of, None, at).await?;
            raised += 1;
        }
        let entry = Entry {
            action: "generation.raise",
            target: generation.to_string(),
            environment: None,
            before: Some(json!(before)),
            after: Some(json!({ "generation": generation })),
        };
        audit::append(&mut tx, &mut head, &Caller::command_line(), at, entry).await?;
    }
    query(RETIRED).bind(generation).execute(&mut tx).await?;
    tx.commit().await?;
    Ok((generation, raised))
}
