// Holds OFREP answers against the protocol's OpenAPI document, as e2e/src/ofrep_schema.rs does for the
// tests in Rust.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';

import Ajv from 'ajv/dist/2020.js';
import { parse } from 'yaml';

const { paths, components } = parse(readFileSync(new URL('../../../e2e/data/openapi.yaml', import.meta.url), 'utf8'));
const ajv = new Ajv({ strict: false, allErrors: true, validateFormats: false });
const validators = new Map();

/** The JSON of an answer of the edge, once it is known to be one that the document describes. */
export async function held(answer) {
  const { pathname } = new URL(answer.url);
  const single = '/ofrep/v1/evaluate/flags/{key}';
  const path = pathname.startsWith('/ofrep/v1/evaluate/flags/') ? single : '/ofrep/v1/evaluate/flags';
  const schema = paths[path].post.responses[answer.status]?.content?.['application/json']?.schema;
  assert(schema, `the document has no status ${answer.status} for ${path}`);
  const name = `${path} ${answer.status}`;
  // References point to `#/components/…`, so the components travel with each schema.
  if (!validators.has(name)) validators.set(name, ajv.compile({ allOf: [schema], components }));
  const body = await answer.json();
  const validate = validators.get(name);
  assert(validate(body), `${name}: ${ajv.errorsText(validate.errors)}: ${JSON.stringify(body)}`);
  return body;
}
