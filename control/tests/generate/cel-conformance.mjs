// Takes from the published conformance tests of CEL what conditions can be asked, once:
//   npm pack @bufbuild/cel-spec@0.6.1 && tar xzf bufbuild-cel-spec-0.6.1.tgz
//   node control/tests/generate/cel-conformance.mjs package control/tests/data/cel-conformance.json
// What is left out is counted in the file by the reason.
import fs from "node:fs";
import path from "node:path";
import { pathToFileURL } from "node:url";

const [from, to] = process.argv.slice(2);
const { tests } = await import(pathToFileURL(path.resolve(from, "dist/esm/testdata/conformance.js")));

class Out extends Error {}
const out = (why) => {
  throw new Out(why);
};

// A value of the suite as [type, value].
function value(v) {
  if ("nullValue" in v) return ["null"];
  if ("boolValue" in v) return ["bool", v.boolValue];
  if ("int64Value" in v) return ["int", v.int64Value];
  if ("doubleValue" in v) return ["double", String(v.doubleValue)];
  if ("stringValue" in v) return ["string", v.stringValue];
  if ("listValue" in v) return ["list", (v.listValue.values ?? []).map(value)];
  if ("mapValue" in v) {
    return ["map", (v.mapValue.entries ?? []).map((e) => [value(e.key), value(e.value)])];
  }
  if ("uint64Value" in v) out("unsigned numbers");
  if ("bytesValue" in v) out("bytes");
  if ("typeValue" in v) out("types as values");
  if ("objectValue" in v) {
    const type = v.objectValue["@type"];
    if (type?.endsWith("/google.protobuf.Timestamp")) return ["timestamp", v.objectValue.value];
    if (type?.endsWith("/google.protobuf.Duration")) return ["duration", v.objectValue.value];
    out("messages");
  }
  return out("messages");
}

// A bound value as JSON, which is what a context is.
function json(v) {
  const [type, inner] = value(v);
  switch (type) {
    case "null":
      return out("bindings that a context cannot have");
    case "int":
      return { raw: inner };
    case "double":
      return Number.isFinite(Number(inner))
        ? { raw: Number.isInteger(Number(inner)) ? `${Number(inner)}.0` : inner }
        : out("bindings that a context cannot have");
    case "list":
      return { raw: `[${v.listValue.values?.map((item) => json(item).raw).join(",") ?? ""}]` };
    case "map":
      return {
        raw: `{${inner
          .map(([[keyType, key]], index) =>
            keyType === "string"
              ? `${JSON.stringify(key)}:${json(v.mapValue.entries[index].value).raw}`
              : out("bindings that a context cannot have"),
          )
          .join(",")}}`,
      };
    case "bool":
    case "string":
      return { raw: JSON.stringify(inner) };
    default:
      return out("bindings that a context cannot have");
  }
}

// What is in no condition, by what the text says.
const REASONS = [
  [/TestAllTypes|NestedMessage|google\.protobuf|GlobalEnum|proto\.|Struct\{|Value\{/, "messages"],
  [/optional|\.\?|\[\?|\{\?|\bopt/, "optional values (an extension)"],
  [/math\./, "the extension of mathematics"],
  [/cel\.bind|cel\.block|cel\.index|cel\.iterVar|cel\.accuVar/, "the extensions bind and block"],
  [/base64\./, "bytes"],
  [/\btype\(|\btype\b|google|\bnull_type\b|dyn\)/, "types as values"],
  [/\buint\(|\b(0x[0-9a-fA-F]+|\d+)[uU]\b/, "unsigned numbers"],
  [/\bbytes\(|\b[bB][rR]?['"]/, "bytes"],
  [/\.format\(|\.quote\(|strings\.quote|\.reverse\(/, "the text functions format, quote and reverse"],
  [/(transformList|transformMap|transformMapEntry)\(/, "macros with two variables (an extension)"],
  [/\.(all|exists|existsOne|exists_one)\(\w+,\s*\w+,/, "macros with two variables (an extension)"],
  [/'[A-Z][a-z]+\/[A-Z][A-Za-z_]+'|'US\//, "names of time zones"],
];

const cases = [];
const counts = {};
let total = 0;

function walk(suite, names) {
  for (const { original: test } of suite.tests ?? []) {
    total += 1;
    try {
      if (test.checkOnly) out("tests of the deduced type alone");
      if ((test.typeEnv ?? []).some((entry) => entry.function)) out("functions of the test's own");
      for (const [pattern, why] of REASONS) if (pattern.test(test.expr)) out(why);
      if (test.container) out("messages");
      const bindings = Object.entries(test.bindings ?? {}).map(([name, bound]) => {
        if (name.includes(".")) out("names in packages");
        return `${JSON.stringify(name)}:${json(bound.value ?? {}).raw}`;
      });
      const result = test.value ?? test.typedResult?.result;
      const expect = test.evalError ? ["error"] : result ? value(result) : ["bool", true];
      cases.push({
        suite: names.join("/"),
        name: test.name ?? "",
        expr: test.expr,
        // As text: a JSON parser of JavaScript would lose 1.0 and large integers.
        ...(bindings.length > 0 ? { context: `{${bindings.join(",")}}` } : {}),
        ...(test.disableCheck ? { unchecked: true } : {}),
        expect,
      });
    } catch (error) {
      if (!(error instanceof Out)) throw error;
      counts[error.message] = (counts[error.message] ?? 0) + 1;
    }
  }
  for (const inner of suite.suites ?? []) walk(inner, [...names, inner.name]);
}
walk(tests, []);

const head = {
  source: "@bufbuild/cel-spec 0.6.1 (google/cel-spec 0.25.1), Apache License 2.0; reduced and rewritten",
  total,
  out: counts,
};
const lines = cases.map((one) => `  ${JSON.stringify(one)}`);
const text = JSON.stringify(head, null, 1).replace(/\n}$/, ",");
fs.writeFileSync(to, `${text}\n "cases": [\n${lines.join(",\n")}\n ]\n}\n`);
console.log(total, cases.length, counts);
