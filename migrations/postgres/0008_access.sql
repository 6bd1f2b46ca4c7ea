-- Who may do what: people, their sessions, tokens, and roles in namespaces and environments.

CREATE TABLE user_account (
    id TEXT COLLATE "C" PRIMARY KEY NOT NULL,               -- UUIDv7
    email TEXT COLLATE "C" NOT NULL UNIQUE,                 -- in lower case; what people sign in with
    name TEXT COLLATE "C" NOT NULL,                         -- for people; may be empty
    operator BOOLEAN NOT NULL,                  -- runs the installation: may do everything everywhere
    password_hash TEXT,                         -- Argon2id in PHC form; none: no sign-in by password
    disabled_at BIGINT,                         -- microseconds; whoever is disabled may do nothing
    version BIGINT NOT NULL,                    -- raised by every change; the ETag
    created_at BIGINT NOT NULL,                 -- microseconds
    updated_at BIGINT NOT NULL,                 -- microseconds
    last_seen_at BIGINT                         -- microseconds, to the minute; none: never
);

-- Who an identity provider says that somebody is.
CREATE TABLE user_identity (
    issuer TEXT COLLATE "C" NOT NULL,                       -- of the OpenID provider
    subject TEXT COLLATE "C" NOT NULL,                      -- its `sub`, unique within the issuer
    user_id TEXT COLLATE "C" NOT NULL REFERENCES user_account (id) ON DELETE CASCADE, -- who that is here
    created_at BIGINT NOT NULL,                 -- microseconds
    PRIMARY KEY (issuer, subject)
);
CREATE INDEX user_identity_by_user ON user_identity (user_id);

-- A sign-in with an identity provider that has begun and not come back.
CREATE TABLE oidc_login (
    state_hash BYTEA PRIMARY KEY NOT NULL,       -- SHA-256 of the state parameter
    browser_hash BYTEA NOT NULL,                 -- SHA-256 of the cookie of the browser that began it
    nonce TEXT COLLATE "C" NOT NULL,                        -- that the ID token must hold
    verifier TEXT COLLATE "C" NOT NULL,                     -- of PKCE (RFC 7636)
    return_to TEXT COLLATE "C" NOT NULL,                    -- path of our own to go to afterwards
    created_at BIGINT NOT NULL                  -- microseconds; minutes later it is void
);

-- One use each: to choose a password, or to make the first owner.
CREATE TABLE invitation (
    id TEXT COLLATE "C" PRIMARY KEY NOT NULL,               -- the id inside of the token
    kind TEXT COLLATE "C" NOT NULL,                         -- setup or invite
    user_id TEXT COLLATE "C" REFERENCES user_account (id) ON DELETE CASCADE, -- whose password; none for setup
    hash BYTEA NOT NULL,                         -- SHA-256 of the whole token
    expires_at BIGINT,                          -- microseconds; none: until used
    created_at BIGINT NOT NULL                  -- microseconds
);

CREATE TABLE session (
    id TEXT COLLATE "C" PRIMARY KEY NOT NULL,               -- UUIDv7; `sid` of its tokens
    user_id TEXT COLLATE "C" NOT NULL REFERENCES user_account (id) ON DELETE CASCADE, -- whose
    how TEXT COLLATE "C" NOT NULL,                          -- password, oidc or setup
    address TEXT,                               -- where it began
    user_agent TEXT,                            -- what it began with, as that program says
    created_at BIGINT NOT NULL,                 -- microseconds
    last_used_at BIGINT NOT NULL,               -- microseconds; of its last refresh
    expires_at BIGINT NOT NULL,                 -- microseconds; moved by each refresh
    revoked_at BIGINT                           -- microseconds; signed out, or a refresh token came twice
);
CREATE INDEX session_by_user ON session (user_id);

-- All that a session ever had: one that comes a second time was stolen, and ends the session.
CREATE TABLE refresh_token (
    id TEXT COLLATE "C" PRIMARY KEY NOT NULL,               -- the id inside of the token
    session_id TEXT COLLATE "C" NOT NULL REFERENCES session (id) ON DELETE CASCADE, -- whose
    hash BYTEA NOT NULL,                         -- SHA-256 of the whole token
    created_at BIGINT NOT NULL,                 -- microseconds
    used_at BIGINT                              -- microseconds; none: the one that is valid
);
CREATE INDEX refresh_token_by_session ON refresh_token (session_id);

CREATE TABLE access_token (
    id TEXT COLLATE "C" PRIMARY KEY NOT NULL,               -- the id inside of the token
    user_id TEXT COLLATE "C" REFERENCES user_account (id) ON DELETE CASCADE, -- personal: who it acts as
    namespace_id TEXT COLLATE "C" REFERENCES namespace (id) ON DELETE CASCADE, -- service: whose it is
    name TEXT COLLATE "C" NOT NULL,                         -- for people
    scopes TEXT COLLATE "C" NOT NULL,                       -- JSON array of what it may at most: read, write, approve, admin
    hash BYTEA NOT NULL,                         -- SHA-256 of the whole token
    expires_at BIGINT,                          -- microseconds; none: never
    last_used_at BIGINT,                        -- microseconds, to the minute; none: never
    created_by TEXT COLLATE "C" NOT NULL,                   -- who made it, as the audit names them
    created_at BIGINT NOT NULL                  -- microseconds
);
CREATE INDEX access_token_by_user ON access_token (user_id);
CREATE INDEX access_token_by_namespace ON access_token (namespace_id);

-- A role of a person or a service token in a namespace, or in one environment of it.
CREATE TABLE role_binding (
    id TEXT COLLATE "C" PRIMARY KEY NOT NULL,               -- UUIDv7
    namespace_id TEXT COLLATE "C" NOT NULL REFERENCES namespace (id) ON DELETE CASCADE, -- where
    environment_id TEXT COLLATE "C" REFERENCES environment (id) ON DELETE CASCADE, -- there alone; none: everywhere in the namespace
    user_id TEXT COLLATE "C" REFERENCES user_account (id) ON DELETE CASCADE, -- who, or
    token_id TEXT COLLATE "C" REFERENCES access_token (id) ON DELETE CASCADE, -- which service token
    role TEXT COLLATE "C" NOT NULL,                         -- owner, admin, editor, approver or viewer
    kill_switch BOOLEAN NOT NULL,               -- may turn flags off past an environment's approvals
    created_by TEXT COLLATE "C" NOT NULL,                   -- who gave it, as the audit names them
    created_at BIGINT NOT NULL                  -- microseconds
);
CREATE UNIQUE INDEX role_binding_once ON role_binding
    (namespace_id, COALESCE(environment_id, ''), COALESCE(user_id, token_id));
CREATE INDEX role_binding_by_user ON role_binding (user_id);
CREATE INDEX role_binding_by_token ON role_binding (token_id);
