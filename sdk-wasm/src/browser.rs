//! For JavaScript: a class that holds one environment's rules and answers as OFREP JSON text.

use rules::answer::{self, Audience};
use rules::context::ContextBuf;
use rules::eval::{ErrorCode, Evaluator as Rules, Input, NoHost, Scratch};
use wasm_bindgen::prelude::*;

#[wasm_bindgen]
pub struct Evaluator {
    rules: Rules,
    scratch: Scratch,
}

#[wasm_bindgen]
impl Evaluator {
    /// From the bytes of a framed ruleset; throws with the reason if they are not one.
    #[wasm_bindgen(constructor)]
    pub fn load(ruleset: &[u8]) -> Result<Evaluator, JsError> {
        let rules = Rules::load(ruleset)?;
        Ok(Evaluator { rules, scratch: Scratch::default() })
    }

    /// The OFREP answer for one flag. `now_ms` is in milliseconds since the epoch.
    pub fn evaluate(&mut self, key: &str, context_json: &str, now_ms: f64) -> String {
        let mut out = Vec::new();
        match ContextBuf::from_json(context_json.as_bytes()) {
            Ok(context) => {
                let input = Input { context: context.view(), now_ms: now_ms as i64, host: &NoHost };
                let scratch = &mut self.scratch;
                answer::write_one(&self.rules, key, Audience::Server, &input, scratch, &mut out);
            }
            Err(error) => {
                let code = ErrorCode::InvalidContext;
                answer::write_error(key, code, &error.to_string(), &mut out);
            }
        }
        String::from_utf8_lossy(&out).into_owned()
    }

    /// The OFREP answer for every flag.
    #[wasm_bindgen(js_name = evaluateAll)]
    pub fn evaluate_all(&mut self, context_json: &str, now_ms: f64) -> Result<String, JsError> {
        let context = ContextBuf::from_json(context_json.as_bytes())?;
        let input = Input { context: context.view(), now_ms: now_ms as i64, host: &NoHost };
        let mut out = Vec::new();
        answer::write_all(&self.rules, Audience::Server, &input, &mut self.scratch, &mut out);
        Ok(String::from_utf8_lossy(&out).into_owned())
    }
}
