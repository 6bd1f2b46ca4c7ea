-- Wasm policies that rule authors upload: named in a namespace, immutable by digest, pinned per
-- environment. The modules themselves lie in `blob`, as id lists do.

CREATE TABLE policy (
    id TEXT PRIMARY KEY NOT NULL,               -- UUIDv7
    namespace_id TEXT NOT NULL REFERENCES namespace (id) ON DELETE CASCADE, -- whose
    name TEXT NOT NULL,                         -- what rules call it by
    created_at BIGINT NOT NULL,                 -- microseconds
    UNIQUE (namespace_id, name)
);

CREATE TABLE policy_version (
    policy_id TEXT NOT NULL REFERENCES policy (id) ON DELETE CASCADE, -- of what
    digest TEXT NOT NULL,                       -- SHA-256 of the module, hexadecimal; its blob's
    bytes BIGINT NOT NULL,                      -- of the module
    attributes TEXT NOT NULL,                   -- JSON array of the paths that it declared to read
    verdict TEXT NOT NULL,                      -- sandbox::policy::Verdict as JSON, of its last admission
    uploaded_by TEXT NOT NULL,                  -- who brought it
    uploaded_at BIGINT NOT NULL,                -- microseconds
    PRIMARY KEY (policy_id, digest)
);
CREATE INDEX policy_version_by_digest ON policy_version (digest);

CREATE TABLE policy_pin (
    environment_id TEXT NOT NULL REFERENCES environment (id) ON DELETE CASCADE, -- where
    policy_id TEXT NOT NULL REFERENCES policy (id) ON DELETE CASCADE, -- what
    digest TEXT NOT NULL,                       -- the version that rules call
    previous_digest TEXT,                       -- the version before it, to go back to
    shadow_digest TEXT,                         -- the version that runs beside it, if any
    shadow_share BIGINT NOT NULL,               -- of 100,000 calls; 0 without a shadow
    reverted TEXT,                              -- why control itself went back to this version, if it did
    version BIGINT NOT NULL,                    -- raised by every change; the ETag
    updated_at BIGINT NOT NULL,                 -- microseconds
    PRIMARY KEY (environment_id, policy_id)
);
CREATE INDEX policy_pin_by_policy ON policy_pin (policy_id);

-- What edges counted; a row is replaced by the edge's next report.
CREATE TABLE policy_report (
    edge_key_id TEXT NOT NULL REFERENCES edge_key (id) ON DELETE CASCADE, -- who reported
    edge TEXT NOT NULL,                         -- the edge's id
    environment_id TEXT NOT NULL REFERENCES environment (id) ON DELETE CASCADE, -- where
    name TEXT NOT NULL,                         -- the policy's
    report TEXT NOT NULL,                       -- head::PolicyReport as JSON
    received_at BIGINT NOT NULL,                -- microseconds
    PRIMARY KEY (edge_key_id, edge, environment_id, name)
);
CREATE INDEX policy_report_by_environment ON policy_report (environment_id, name);
