// What the interop tests share: settings from the environment, and one write through the admin API.

function setting(name) {
  const value = process.env[name];
  if (!value) throw new Error(`${name} is not set: these tests are run by e2e/tests/interop_node.rs`);
  return value;
}

export const edgeUrl = setting("EDGE_URL");
export const serverKey = setting("SERVER_KEY");
export const browserKey = setting("BROWSER_KEY");
const controlUrl = setting("CONTROL_URL");
const adminToken = setting("ADMIN_TOKEN");
const environment = setting("ENVIRONMENT_PATH");

export const bearer = (key) => [["Authorization", `Bearer ${key}`]];

/** Sets the variant that a flag serves to everybody, as an admin would. */
export async function serve(flag, variant) {
  const url = `${controlUrl}${environment}/flags/${encodeURIComponent(flag)}`;
  const answer = await fetch(url, {
    method: "PUT",
    headers: { authorization: `Bearer ${adminToken}`, "content-type": "application/json", "if-match": "*" },
    body: JSON.stringify({ enabled: true, fallthrough: { variant } }),
  });
  if (!answer.ok) throw new Error(`${url} answered ${answer.status}: ${await answer.text()}`);
}

/** Resolves once `done` holds; fails with the last thing seen at the deadline. */
export async function until(what, done, deadlineMs = 60_000) {
  const end = Date.now() + deadlineMs;
  for (;;) {
    const seen = await done();
    if (seen === true) return;
    if (Date.now() > end) throw new Error(`${what} did not happen; last seen: ${JSON.stringify(seen)}`);
    await new Promise((resolve) => setTimeout(resolve, 25));
  }
}
