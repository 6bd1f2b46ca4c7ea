//! Fraud guard: somebody whose score is above `params.max` is sent to `params.variant`, everybody
//! else is left to the next rule.

use tidegate_policy::serde_json::Value;
use tidegate_policy::{Answer, Input, policy};

policy! { reads: ["user.score"], decide: decide }

fn decide(input: &Input) -> Answer {
    let score = input.attribute("user.score").and_then(Value::as_f64);
    let max = input.params.get("max").and_then(Value::as_f64).unwrap_or(3.0);
    match score {
        Some(score) if score > max => {
            let to = input.params.get("variant").and_then(Value::as_str).unwrap_or("review");
            Answer::variant(to).because("the score is above the maximum")
        }
        _ => Answer::abstain(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_policy::{input_of, serde_json::json};

    #[test]
    fn only_a_score_above_the_maximum_is_reviewed() {
        let score = |score: i64| {
            let document =
                json!({ "attributes": { "user": { "score": score } }, "params": { "max": 5 } });
            decide(&input_of(document)).to_json()
        };
        assert_eq!(score(5), json!({ "abstain": true }));
        assert_eq!(
            score(6),
            json!({ "variant": "review", "reason": "the score is above the maximum" })
        );
    }
}
