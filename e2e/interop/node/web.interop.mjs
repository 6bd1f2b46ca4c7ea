// The OFREP web provider against a running edge. Node has no EventSource of its own (the provider then
// skips events without a word), so the npm polyfill stands in for the browser's.
import assert from "node:assert/strict";
import { test, before, after } from "node:test";
import { EventSource } from "eventsource";
import { OpenFeature, ErrorCode, ProviderEvents, ProviderStatus } from "@openfeature/web-sdk";
import { OFREPWebProvider } from "@openfeature/ofrep-web-provider";
import { bearer, browserKey, edgeUrl, serve, until } from "./edge.mjs";

const streams = [];
const requests = [];
globalThis.EventSource = class extends EventSource {
  constructor(url, init) {
    super(url, init);
    streams.push(this);
  }
};

const user = { targetingKey: "user-1", email: "ann@example.com", age: 30 };
let client;

before(async () => {
  await OpenFeature.setContext(user);
  const provider = new OFREPWebProvider({
    baseUrl: edgeUrl,
    headers: bearer(browserKey),
    timeoutMs: 60_000,
    cacheMode: "disabled",
    fetchImplementation: async (input, init) => {
      const answer = await fetch(input, init);
      requests.push({ url: String(input.url ?? input), status: answer.status });
      return answer;
    },
  });
  await OpenFeature.setProviderAndWait(provider);
  client = OpenFeature.getClient();
});
after(() => OpenFeature.close());

test("the provider is ready after one bulk evaluation", () => {
  assert.equal(client.providerStatus, ProviderStatus.READY);
  assert.equal(requests[0].status, 200);
});

test("every type resolves from the bulk answer", () => {
  const details = client.getBooleanDetails("interop-bool", false);
  assert.deepEqual([details.value, details.variant, details.reason], [true, "on", "STATIC"]);
  assert.equal(details.flagMetadata.owner, "interop");
  assert.equal(client.getStringValue("interop-string", ""), "Grüße 🌊");
  assert.equal(client.getNumberValue("interop-int", 0), 42);
  assert.equal(client.getNumberValue("interop-float", 0), 0.5);
  assert.equal(client.getNumberValue("interop-float-whole", 0), 3);
  assert.deepEqual(client.getObjectValue("interop-object", {}), { title: "T", sizes: [1, 2.5], nested: { on: true } });
  assert.equal(client.getBooleanValue("interop/team ä/slash", false), true);
  assert.equal(client.getStringValue("interop-code-default", "mine"), "mine");
});

test("a browser does not see what is not for clients", () => {
  const details = client.getBooleanDetails("interop-secret", false);
  assert.deepEqual([details.value, details.errorCode], [false, ErrorCode.FLAG_NOT_FOUND]);
});

test("errors have OpenFeature's codes", () => {
  assert.equal(client.getBooleanDetails("interop-none", true).errorCode, ErrorCode.FLAG_NOT_FOUND);
  const mismatch = client.getBooleanDetails("interop-string", true);
  assert.deepEqual([mismatch.value, mismatch.errorCode], [true, ErrorCode.TYPE_MISMATCH]);
});

test("a change of context evaluates again", async () => {
  assert.equal(client.getStringValue("interop-targeted", ""), "e");
  await OpenFeature.setContext({ targetingKey: "user-2", email: "bob@other.example", age: 30 });
  assert.equal(client.getStringValue("interop-targeted", ""), "c");
  await OpenFeature.setContext({ email: "ann@example.com", age: 30 });
  assert.equal(client.getStringDetails("interop-split", "none").errorCode, ErrorCode.TARGETING_KEY_MISSING);
  assert.equal(client.getStringValue("interop-targeted", ""), "e");
  await OpenFeature.setContext(user);
});

test("an event brings a change of a flag without polling", async () => {
  await serve("interop-change", "before");
  await until("the edge serves before", async () => {
    await OpenFeature.setContext({ ...user, turn: requests.length });
    return client.getStringValue("interop-change", "") === "before" || client.getStringValue("interop-change", "");
  });
  await until("an event stream is open", () => streams.some((s) => s.readyState === EventSource.OPEN) || streams.map((s) => s.readyState));
  const changes = [];
  client.addHandler(ProviderEvents.ConfigurationChanged, (event) => changes.push(event.flagsChanged ?? []));
  const asked = requests.length;
  await serve("interop-change", "after");
  await until("PROVIDER_CONFIGURATION_CHANGED", () => changes.some((flags) => flags.includes("interop-change")) || { changes, requests: requests.slice(asked) });
  assert.equal(client.getStringValue("interop-change", ""), "after");
  assert.ok(requests.slice(asked).some((r) => r.url.includes("flagConfig")), `the refetch carries the event's version: ${JSON.stringify(requests.slice(asked))}`);
});

test("a bad key is fatal", async () => {
  const provider = new OFREPWebProvider({
    baseUrl: edgeUrl,
    headers: bearer(`${browserKey}x`),
    timeoutMs: 60_000,
    cacheMode: "disabled",
    changeDetection: "none",
  });
  await assert.rejects(OpenFeature.setProviderAndWait("bad", provider));
  assert.equal(OpenFeature.getClient("bad").providerStatus, ProviderStatus.FATAL);
});
