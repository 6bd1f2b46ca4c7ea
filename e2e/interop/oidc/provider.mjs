// An OpenID provider for tests: npm's `oidc-provider`, which signs in whoever the cookie `who` names and
// asks nobody for their consent. Prints its address as a line of JSON.
import { createServer } from "node:http";
import Provider from "oidc-provider";

const setting = (name) => {
  const value = process.env[name];
  if (!value) throw new Error(`${name} is not set`);
  return value;
};

// Who is there, and what may be said of them.
const people = JSON.parse(setting("PEOPLE"));

const server = createServer();
await new Promise((listening) => server.listen(0, "127.0.0.1", listening));
const issuer = `http://127.0.0.1:${server.address().port}`;

const provider = new Provider(issuer, {
  clients: [
    {
      client_id: setting("CLIENT_ID"),
      client_secret: setting("CLIENT_SECRET"),
      redirect_uris: [setting("REDIRECT_URI")],
      grant_types: ["authorization_code"],
      response_types: ["code"],
    },
  ],
  // Claims are in the ID token for some, and asked for at the UserInfo endpoint for others.
  conformIdTokenClaims: setting("USER_INFO") === "1",
  claims: { openid: ["sub"], email: ["email", "email_verified"], profile: ["name"] },
  cookies: { keys: ["for tests only"] },
  features: { devInteractions: { enabled: false } },
  pkce: { methods: ["S256"], required: () => true },
  findAccount: (_, id) => people[id] && { accountId: id, claims: () => ({ sub: id, ...people[id] }) },
  loadExistingGrant: async (context) => {
    const { client, session } = context.oidc;
    const grant = new provider.Grant({ clientId: client.clientId, accountId: session.accountId });
    grant.addOIDCScope("openid email profile");
    await grant.save();
    return grant;
  },
  interactions: { url: (_, interaction) => `/interaction/${interaction.uid}` },
});

const answer = provider.callback();
server.on("request", async (request, response) => {
  if (!request.url.startsWith("/interaction/")) return answer(request, response);
  const who = /(?:^|; )who=([^;]*)/.exec(request.headers.cookie ?? "")?.[1];
  const result = people[who]
    ? { login: { accountId: who } }
    : { error: "access_denied", error_description: "nobody is there" };
  await provider.interactionFinished(request, response, result, { mergeWithLastSubmission: false });
});
console.log(JSON.stringify({ issuer }));
// Nobody reads what it says from here on.
console.info = console.log = console.warn = () => {};
