// Receivers of webhooks over HTTPS, one for each certificate in CERTIFICATES (names of NAME.pem and
// NAME.key in FOLDER). Prints where each listens, then a line for each request: what came, and whether the
// official library of Standard Webhooks verifies it with each secret that lines of standard input name.
import { readFileSync } from "node:fs";
import { createServer } from "node:https";
import { createInterface } from "node:readline";
import { Webhook } from "standardwebhooks";

const setting = (name) => {
  const value = process.env[name];
  if (!value) throw new Error(`${name} is not set`);
  return value;
};

const secrets = [];
createInterface({ input: process.stdin }).on("line", (line) => secrets.push(line.trim()));

const verified = (secret, body, headers) => {
  try {
    return new Webhook(secret).verify(body, headers) !== undefined;
  } catch {
    return false;
  }
};

const listening = {};
for (const name of setting("CERTIFICATES").split(",")) {
  const read = (kind) => readFileSync(`${setting("FOLDER")}/${name}.${kind}`);
  const server = createServer({ cert: read("pem"), key: read("key") }, async (request, response) => {
    const pieces = [];
    for await (const piece of request) pieces.push(piece);
    const body = Buffer.concat(pieces);
    const text = body.toString("utf8");
    const got = {
      at: name,
      path: request.url,
      method: request.method,
      id: request.headers["webhook-id"],
      contentType: request.headers["content-type"],
      event: request.method === "POST" ? JSON.parse(text) : null,
      verified: secrets.map((secret) => verified(secret, text, request.headers)),
      // The same with a byte more, and under another id.
      altered: secrets.some((secret) => verified(secret, `${text} `, request.headers)),
      moved: secrets.some((secret) =>
        verified(secret, text, { ...request.headers, "webhook-id": "msg_another" }),
      ),
    };
    // Told before it is answered, so that what control takes as delivered has been printed.
    process.stdout.write(`${JSON.stringify(got)}\n`);
    if (request.url === "/redirect") response.writeHead(307, { location: "/elsewhere" }).end();
    else response.writeHead(204).end();
  });
  await new Promise((ready) => server.listen(0, "localhost", ready));
  listening[name] = `https://localhost:${server.address().port}`;
}
process.stdout.write(`${JSON.stringify(listening)}\n`);
