-- The state of control. Times are integer microseconds since the epoch, JSON is text, booleans are
-- BOOLEAN, ids are UUIDv7 as text (they sort by age). SQLite has the same tables in its folder.

CREATE TABLE namespace (
    id TEXT COLLATE "C" PRIMARY KEY NOT NULL,               -- UUIDv7
    key TEXT COLLATE "C" NOT NULL UNIQUE,                   -- what people and URLs call it
    name TEXT COLLATE "C" NOT NULL,                         -- for people; may be empty
    version BIGINT NOT NULL,                    -- raised by every change of this row's name; the ETag
    audit_sequence BIGINT NOT NULL,             -- number of the newest audit row; locking this row locks the chain
    audit_hash BYTEA NOT NULL,                   -- hash of the newest audit row; 32 zero bytes before the first
    created_at BIGINT NOT NULL,                 -- microseconds
    updated_at BIGINT NOT NULL                  -- microseconds
);

CREATE TABLE environment (
    id TEXT COLLATE "C" PRIMARY KEY NOT NULL,               -- UUIDv7; locks are taken in this order
    namespace_id TEXT COLLATE "C" NOT NULL REFERENCES namespace (id) ON DELETE CASCADE, -- whose it is
    key TEXT COLLATE "C" NOT NULL,                          -- what people and URLs call it
    name TEXT COLLATE "C" NOT NULL,                         -- for people; may be empty
    generation BIGINT NOT NULL,                 -- raised by an operator after a database restore
    revision BIGINT NOT NULL,                   -- raised by one with every committed change, never reused
    metadata TEXT COLLATE "C" NOT NULL,                     -- the flag set's metadata, a JSON object of scalars
    growth_allowed BIGINT NOT NULL,             -- up to this revision the growth gate is open
    stream_secret BYTEA NOT NULL,                -- 32 bytes, HMAC key of this environment's stream tokens
    created_at BIGINT NOT NULL,                 -- microseconds
    updated_at BIGINT NOT NULL,                 -- microseconds
    UNIQUE (namespace_id, key)
);

-- Where the revisions of deleted environments ended, so that one made again under the same keys
-- goes on from there: an edge never goes back.
CREATE TABLE retired_environment (
    namespace_key TEXT COLLATE "C" NOT NULL,                -- key of the namespace, which may be gone too
    environment_key TEXT COLLATE "C" NOT NULL,              -- key of the deleted environment
    generation BIGINT NOT NULL,                 -- its last generation
    revision BIGINT NOT NULL,                   -- its last revision
    PRIMARY KEY (namespace_key, environment_key)
);

CREATE TABLE flag (
    id TEXT COLLATE "C" PRIMARY KEY NOT NULL,               -- UUIDv7
    namespace_id TEXT COLLATE "C" NOT NULL REFERENCES namespace (id) ON DELETE CASCADE, -- whose it is
    key TEXT COLLATE "C" NOT NULL,                          -- the flag's key
    definition TEXT COLLATE "C" NOT NULL,                   -- model::FlagDefinition as JSON
    version BIGINT NOT NULL,                    -- raised by every change of the definition; the ETag
    created_at BIGINT NOT NULL,                 -- microseconds
    updated_at BIGINT NOT NULL,                 -- microseconds
    UNIQUE (namespace_id, key)
);

-- Keys of deleted flags. Callers may still ask for them with the old type in mind, so a key comes
-- back with the same type or not at all.
CREATE TABLE flag_tombstone (
    namespace_id TEXT COLLATE "C" NOT NULL REFERENCES namespace (id) ON DELETE CASCADE, -- whose it was
    key TEXT COLLATE "C" NOT NULL,                          -- the deleted flag's key
    kind TEXT COLLATE "C" NOT NULL,                         -- its type: boolean, string, integer, float, object
    deleted_at BIGINT NOT NULL,                 -- microseconds
    PRIMARY KEY (namespace_id, key)
);

CREATE TABLE flag_config (
    flag_id TEXT COLLATE "C" NOT NULL REFERENCES flag (id) ON DELETE CASCADE, -- which flag
    environment_id TEXT COLLATE "C" NOT NULL REFERENCES environment (id) ON DELETE CASCADE, -- where
    config TEXT COLLATE "C" NOT NULL,                       -- model::FlagConfig as JSON
    version BIGINT NOT NULL,                    -- raised by every change; the ETag; no row counts as 0
    updated_at BIGINT NOT NULL,                 -- microseconds
    PRIMARY KEY (environment_id, flag_id)
);
CREATE INDEX flag_config_by_flag ON flag_config (flag_id);

CREATE TABLE segment (
    id TEXT COLLATE "C" PRIMARY KEY NOT NULL,               -- UUIDv7
    environment_id TEXT COLLATE "C" NOT NULL REFERENCES environment (id) ON DELETE CASCADE, -- where
    key TEXT COLLATE "C" NOT NULL,                          -- the segment's key
    definition TEXT COLLATE "C" NOT NULL,                   -- model::Segment as JSON
    version BIGINT NOT NULL,                    -- raised by every change, of lists too; the ETag
    created_at BIGINT NOT NULL,                 -- microseconds
    updated_at BIGINT NOT NULL,                 -- microseconds
    UNIQUE (environment_id, key)
);

CREATE TABLE segment_list (
    segment_id TEXT COLLATE "C" NOT NULL REFERENCES segment (id) ON DELETE CASCADE, -- whose list
    kind TEXT COLLATE "C" NOT NULL,                         -- included or excluded
    digest TEXT COLLATE "C" NOT NULL,                       -- of the list's blob, hexadecimal
    bytes BIGINT NOT NULL,                      -- of the list's blob
    id_count BIGINT NOT NULL,                   -- ids, each counted once
    ids TEXT COLLATE "C" NOT NULL,                          -- as the author gave them, one a line
    PRIMARY KEY (segment_id, kind)
);

CREATE TABLE api_key (
    id TEXT COLLATE "C" PRIMARY KEY NOT NULL,               -- the id inside of the key
    environment_id TEXT COLLATE "C" NOT NULL REFERENCES environment (id) ON DELETE CASCADE, -- what it opens
    kind TEXT COLLATE "C" NOT NULL,                         -- server or browser
    name TEXT COLLATE "C" NOT NULL,                         -- for people; may be empty
    origins TEXT COLLATE "C" NOT NULL,                      -- JSON array of exact origins, of browser keys
    hash BYTEA NOT NULL,                         -- SHA-256 of the whole key; the key itself is nowhere
    created_at BIGINT NOT NULL                  -- microseconds
);
CREATE INDEX api_key_by_environment ON api_key (environment_id);

CREATE TABLE edge_key (
    id TEXT COLLATE "C" PRIMARY KEY NOT NULL,               -- the id inside of the key
    name TEXT COLLATE "C" NOT NULL,                         -- for people; may be empty
    all_namespaces BOOLEAN NOT NULL,            -- every namespace, also coming ones
    hash BYTEA NOT NULL,                         -- SHA-256 of the whole key
    created_at BIGINT NOT NULL                  -- microseconds
);

CREATE TABLE edge_key_namespace (
    edge_key_id TEXT COLLATE "C" NOT NULL REFERENCES edge_key (id) ON DELETE CASCADE, -- which key
    namespace_id TEXT COLLATE "C" NOT NULL REFERENCES namespace (id) ON DELETE CASCADE, -- what it may see
    PRIMARY KEY (edge_key_id, namespace_id)
);

CREATE TABLE admin_token (
    id TEXT COLLATE "C" PRIMARY KEY NOT NULL,               -- the id inside of the token
    name TEXT COLLATE "C" NOT NULL,                         -- who it stands for in the audit
    hash BYTEA NOT NULL,                         -- SHA-256 of the whole token
    created_at BIGINT NOT NULL                  -- microseconds
);

-- Append only. No foreign key: the record of a deleted namespace stays.
CREATE TABLE audit (
    namespace_id TEXT COLLATE "C" NOT NULL,                 -- whose chain
    sequence BIGINT NOT NULL,                   -- 1, 2, 3 … without a gap
    at BIGINT NOT NULL,                         -- microseconds
    actor TEXT COLLATE "C" NOT NULL,                        -- who did it
    action TEXT COLLATE "C" NOT NULL,                       -- what was done: flag.create, config.set …
    target TEXT COLLATE "C" NOT NULL,                       -- on what: a key or an id
    environment TEXT COLLATE "C",                           -- key of the environment, if it was done in one
    before TEXT COLLATE "C",                                -- JSON of what was there, if anything
    after TEXT COLLATE "C",                                 -- JSON of what is there now, if anything
    previous BYTEA NOT NULL,                     -- hash of the row before
    hash BYTEA NOT NULL,                         -- SHA-256 of previous and this row's canonical form
    PRIMARY KEY (namespace_id, sequence)
);

-- Says that an environment changed, never what.
CREATE TABLE outbox (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY, -- in commit order
    environment_id TEXT COLLATE "C" NOT NULL,               -- which one
    revision BIGINT NOT NULL,                   -- what the change raised it to
    trace_context TEXT COLLATE "C",                         -- W3C traceparent of the request, if it had one
    created_at BIGINT NOT NULL                  -- microseconds
);
CREATE INDEX outbox_by_environment ON outbox (environment_id, revision);

CREATE TABLE blob (
    digest TEXT COLLATE "C" PRIMARY KEY NOT NULL,           -- SHA-256 of the bytes, hexadecimal
    bytes BYTEA NOT NULL,                        -- a snapshot or an id list
    created_at BIGINT NOT NULL                  -- microseconds
);

-- Which namespaces may read a blob.
CREATE TABLE blob_use (
    digest TEXT COLLATE "C" NOT NULL REFERENCES blob (digest) ON DELETE CASCADE, -- which blob
    environment_id TEXT COLLATE "C" NOT NULL REFERENCES environment (id) ON DELETE CASCADE, -- who references it
    revision BIGINT NOT NULL,                   -- the newest revision that references it
    PRIMARY KEY (digest, environment_id)
);
CREATE INDEX blob_use_by_environment ON blob_use (environment_id, revision);

-- What was compiled for a revision: the first digest that is stored wins.
CREATE TABLE snapshot (
    environment_id TEXT COLLATE "C" NOT NULL REFERENCES environment (id) ON DELETE CASCADE, -- of what
    generation BIGINT NOT NULL,                 -- of the environment
    revision BIGINT NOT NULL,                   -- of the environment
    digest TEXT COLLATE "C" NOT NULL,                       -- of the blob, hexadecimal; empty if rejected before there was one
    bytes BIGINT NOT NULL,                      -- of the blob
    flag_count BIGINT NOT NULL,                 -- for the growth gate
    rejected TEXT COLLATE "C",                              -- why the head did not move to it
    created_at BIGINT NOT NULL,                 -- microseconds
    PRIMARY KEY (environment_id, generation, revision)
);

CREATE TABLE publication (
    environment_id TEXT COLLATE "C" PRIMARY KEY NOT NULL REFERENCES environment (id) ON DELETE CASCADE, -- of what
    generation BIGINT NOT NULL,                 -- of the published head
    revision BIGINT NOT NULL,                   -- of the published head
    flag_count BIGINT NOT NULL,                 -- of the published snapshot
    head TEXT COLLATE "C" NOT NULL,                         -- head::SignedHead as JSON, to be put on the bus again
    published_at BIGINT NOT NULL                -- microseconds
);

-- Answers of writes that named an Idempotency-Key, for a day.
CREATE TABLE idempotency (
    actor TEXT COLLATE "C" NOT NULL,                        -- whose key
    key TEXT COLLATE "C" NOT NULL,                          -- what the client chose
    request_hash BYTEA NOT NULL,                 -- SHA-256 of method, path and body
    status BIGINT NOT NULL,                     -- of the answer
    etag TEXT COLLATE "C",                                  -- of the answer
    location TEXT COLLATE "C",                              -- of the answer
    body BYTEA NOT NULL,                         -- of the answer
    created_at BIGINT NOT NULL,                 -- microseconds
    PRIMARY KEY (actor, key)
);
CREATE INDEX idempotency_by_age ON idempotency (created_at);

-- The newest report of each edge.
CREATE TABLE receipt (
    edge TEXT COLLATE "C" NOT NULL,                         -- the edge's id, as it calls itself
    edge_key_id TEXT COLLATE "C" NOT NULL REFERENCES edge_key (id) ON DELETE CASCADE, -- which key it came with
    environment_id TEXT COLLATE "C" NOT NULL REFERENCES environment (id) ON DELETE CASCADE, -- of what
    generation BIGINT NOT NULL,                 -- that it serves
    revision BIGINT NOT NULL,                   -- that it serves
    digest TEXT COLLATE "C" NOT NULL,                       -- that it serves
    reader BIGINT NOT NULL,                     -- newest format that it reads
    rejected TEXT COLLATE "C",                              -- head::Rejection as JSON
    received_at BIGINT NOT NULL,                -- microseconds
    PRIMARY KEY (edge_key_id, edge, environment_id)
);
