-- The record of what was done: more of who did it, signed ends, and those who are told of it.

-- Rows from before are of form 1, and have none of the rest.
ALTER TABLE audit ADD COLUMN form BIGINT NOT NULL DEFAULT 1; -- which fields the hash is of
ALTER TABLE audit ADD COLUMN actor_kind TEXT COLLATE "C";   -- user, service, bootstrap, control or command-line
ALTER TABLE audit ADD COLUMN actor_id TEXT COLLATE "C";     -- the account's or token's id, unique within its kind
ALTER TABLE audit ADD COLUMN via TEXT COLLATE "C";          -- the session or personal token that they came with
ALTER TABLE audit ADD COLUMN address TEXT COLLATE "C";      -- where the request came from
ALTER TABLE audit ADD COLUMN user_agent TEXT COLLATE "C";   -- their program, as it calls itself
ALTER TABLE audit ADD COLUMN change_set TEXT COLLATE "C";   -- the change set that it was a part of, if it was
-- The history of one flag, key or person.
CREATE INDEX audit_by_target ON audit (namespace_id, target, sequence);

-- Ends of the chains that have no namespace: the installation's own, and those of deleted namespaces.
CREATE TABLE audit_chain (
    id TEXT COLLATE "C" PRIMARY KEY NOT NULL,               -- "instance", or the deleted namespace's id
    name TEXT COLLATE "C" NOT NULL,                         -- the deleted namespace's key
    audit_sequence BIGINT NOT NULL,             -- number of the newest row; locking this row locks the chain
    audit_hash BYTEA NOT NULL                    -- hash of the newest row; 32 zero bytes before the first
);
INSERT INTO audit_chain (id, name, audit_sequence, audit_hash) VALUES ('instance', 'instance', 0,
    '\x0000000000000000000000000000000000000000000000000000000000000000');

-- What the leader signed of chains, so that one that was written anew shows.
CREATE TABLE audit_anchor (
    namespace_id TEXT COLLATE "C" NOT NULL,                 -- whose chain; no foreign key, as the rows have none
    sequence BIGINT NOT NULL,                   -- up to this row
    hash BYTEA NOT NULL,                         -- that row's hash
    at BIGINT NOT NULL,                         -- microseconds; when it was signed
    key_id TEXT COLLATE "C" NOT NULL,                       -- of the key that it was signed with
    signature BYTEA NOT NULL,                    -- Ed25519 over all of this and the namespace's key
    name TEXT COLLATE "C" NOT NULL,                         -- the namespace's key, or "instance"
    PRIMARY KEY (namespace_id, sequence)
);

-- Whom a namespace tells what was done.
CREATE TABLE webhook (
    id TEXT COLLATE "C" PRIMARY KEY NOT NULL,               -- UUIDv7
    namespace_id TEXT COLLATE "C" NOT NULL REFERENCES namespace (id) ON DELETE CASCADE, -- whose
    url TEXT COLLATE "C" NOT NULL,                          -- where it is told
    description TEXT COLLATE "C" NOT NULL,                  -- for people; may be empty
    actions TEXT COLLATE "C" NOT NULL,                      -- JSON array of actions, or nouns with .*; empty: all
    environments TEXT COLLATE "C" NOT NULL,                 -- JSON array of keys; empty: all, and what is in none
    secret BYTEA NOT NULL,                       -- what bodies are signed with
    secret_before BYTEA,                         -- the one before, while it is valid beside it
    secret_before_until BIGINT,                 -- microseconds; how long that is
    enabled BOOLEAN NOT NULL,                   -- whether it is told
    disabled_reason TEXT COLLATE "C",                       -- why it is not, for people
    cursor BIGINT NOT NULL,                     -- the audit row up to which deliveries were made
    anchored BIGINT NOT NULL,                   -- the anchor up to which deliveries were made
    ordinal BIGINT NOT NULL,                    -- number of its newest delivery
    version BIGINT NOT NULL,                    -- raised by every change by people; the ETag
    created_by TEXT COLLATE "C" NOT NULL,                   -- who made it, as the audit names them
    created_at BIGINT NOT NULL,                 -- microseconds
    updated_at BIGINT NOT NULL                  -- microseconds
);
CREATE INDEX webhook_by_namespace ON webhook (namespace_id, id);

CREATE TABLE webhook_delivery (
    id TEXT COLLATE "C" PRIMARY KEY NOT NULL,               -- what receivers know it by, also when it comes again
    webhook_id TEXT COLLATE "C" NOT NULL REFERENCES webhook (id) ON DELETE CASCADE, -- to whom
    ordinal BIGINT NOT NULL,                    -- 1, 2, 3 …: the order in which it is sent
    event TEXT COLLATE "C" NOT NULL,                        -- the action, audit.anchor, or webhook.test
    sequence BIGINT,                            -- of the audit row or anchor; none of a test
    body TEXT COLLATE "C" NOT NULL,                         -- as it is sent
    state TEXT COLLATE "C" NOT NULL,                        -- waiting, delivered or dead
    attempts BIGINT NOT NULL,                   -- since it was first sent, or sent anew
    next_at BIGINT NOT NULL,                    -- microseconds, by the database's clock; of the next one
    log TEXT COLLATE "C" NOT NULL,                          -- JSON array of the newest attempts and their ends
    created_at BIGINT NOT NULL,                 -- microseconds
    finished_at BIGINT,                         -- microseconds; delivered, or given up
    UNIQUE (webhook_id, ordinal)
);
CREATE INDEX webhook_delivery_waiting ON webhook_delivery (webhook_id, state, ordinal);

-- How far the change stream on the broker has come.
CREATE TABLE change_stream (
    namespace_id TEXT COLLATE "C" PRIMARY KEY NOT NULL REFERENCES namespace (id) ON DELETE CASCADE, -- whose
    sequence BIGINT NOT NULL                    -- the newest audit row that the broker has acknowledged
);
