-- How what is served came to be: every version of every flag, what needs approval, and changes that
-- wait for it.

-- What an environment demands of changes. No row: nothing.
CREATE TABLE protection (
    environment_id TEXT COLLATE "C" PRIMARY KEY NOT NULL REFERENCES environment (id) ON DELETE CASCADE, -- of which
    approvals BIGINT NOT NULL,                  -- of a change set before it may be applied there; 0: changes need none
    version BIGINT NOT NULL,                    -- raised by every change; the ETag; no row counts as 0
    updated_at BIGINT NOT NULL                  -- microseconds
);

-- Definitions as they were and are.
CREATE TABLE flag_version (
    flag_id TEXT COLLATE "C" NOT NULL REFERENCES flag (id) ON DELETE CASCADE, -- of which flag
    version BIGINT NOT NULL,                    -- of the definition
    definition TEXT COLLATE "C" NOT NULL,                   -- model::FlagDefinition as JSON
    at BIGINT NOT NULL,                         -- microseconds; when it came
    actor TEXT COLLATE "C" NOT NULL,                        -- who made it, as the audit names them; empty: before versions were kept
    audit_sequence BIGINT,                      -- row of the namespace's audit that records it
    change_set BIGINT,                          -- number of the change set that it came with, if with one
    PRIMARY KEY (flag_id, version)
);
INSERT INTO flag_version (flag_id, version, definition, at, actor)
    SELECT id, version, definition, updated_at, '' FROM flag;

-- Configurations as they were and are.
CREATE TABLE config_version (
    environment_id TEXT COLLATE "C" NOT NULL REFERENCES environment (id) ON DELETE CASCADE, -- where
    flag_id TEXT COLLATE "C" NOT NULL REFERENCES flag (id) ON DELETE CASCADE, -- of which flag
    version BIGINT NOT NULL,                    -- of the configuration
    config TEXT COLLATE "C" NOT NULL,                       -- model::FlagConfig as JSON
    at BIGINT NOT NULL,                         -- microseconds; when it came
    actor TEXT COLLATE "C" NOT NULL,                        -- who made it, as the audit names them; empty: before versions were kept
    audit_sequence BIGINT,                      -- row of the namespace's audit that records it
    change_set BIGINT,                          -- number of the change set that it came with, if with one
    PRIMARY KEY (environment_id, flag_id, version)
);
CREATE INDEX config_version_by_flag ON config_version (flag_id);
INSERT INTO config_version (environment_id, flag_id, version, config, at, actor)
    SELECT environment_id, flag_id, version, config, updated_at, '' FROM flag_config;

-- Several edits that are reviewed and applied as one.
CREATE TABLE change_set (
    namespace_id TEXT COLLATE "C" NOT NULL REFERENCES namespace (id) ON DELETE CASCADE, -- whose
    number BIGINT NOT NULL,                     -- 1, 2, 3 … in the namespace
    title TEXT COLLATE "C" NOT NULL,                        -- for people
    description TEXT COLLATE "C" NOT NULL,                  -- for people; may be empty
    state TEXT COLLATE "C" NOT NULL,                        -- draft, review, approved, scheduled, applied, rejected, conflict, failed, cancelled
    reason TEXT COLLATE "C",                                -- why it is rejected, in conflict or failed
    author_key TEXT COLLATE "C" NOT NULL,                   -- who made it: kind and id
    author TEXT COLLATE "C" NOT NULL,                       -- the same, as the audit names them
    edition BIGINT NOT NULL,                    -- raised when its items change or it is rejected: approvals are of one
    version BIGINT NOT NULL,                    -- raised by every step; the ETag
    apply_at BIGINT,                            -- microseconds by the database's clock, while it is scheduled
    scheduled_key TEXT COLLATE "C",                         -- who scheduled it: kind and id
    scheduled_by TEXT COLLATE "C",                          -- the same, as the audit names them
    applied_at BIGINT,                          -- microseconds
    applied_by TEXT COLLATE "C",                            -- who applied it, as the audit names them
    revisions TEXT COLLATE "C",                             -- JSON of what it raised environments to, by key, once applied
    created_at BIGINT NOT NULL,                 -- microseconds
    updated_at BIGINT NOT NULL,                 -- microseconds
    PRIMARY KEY (namespace_id, number)
);
CREATE INDEX change_set_by_state ON change_set (state, apply_at);

CREATE TABLE change_set_item (
    namespace_id TEXT COLLATE "C" NOT NULL,                 -- whose
    number BIGINT NOT NULL,                     -- of which change set
    position BIGINT NOT NULL,                   -- in its author's order, from 0
    kind TEXT COLLATE "C" NOT NULL,                         -- config, definition, segment or policy-pin
    environment TEXT COLLATE "C",                           -- key of the environment; none for definitions
    key TEXT COLLATE "C" NOT NULL,                          -- of the flag, the segment or the policy
    value TEXT COLLATE "C",                                 -- JSON of what shall be there; none: nothing shall
    base_version BIGINT NOT NULL,               -- that it is made on; 0: nothing was there
    base TEXT COLLATE "C",                                  -- JSON of what was there
    PRIMARY KEY (namespace_id, number, position),
    FOREIGN KEY (namespace_id, number) REFERENCES change_set (namespace_id, number) ON DELETE CASCADE
);

-- What was said and done about a change set, approvals among it.
CREATE TABLE change_set_event (
    namespace_id TEXT COLLATE "C" NOT NULL,                 -- whose
    number BIGINT NOT NULL,                     -- of which change set
    sequence BIGINT NOT NULL,                   -- 1, 2, 3 …
    kind TEXT COLLATE "C" NOT NULL,                         -- created, edited, rebased, submitted, approved, rejected, commented, scheduled, unscheduled, applied, conflicted, failed, cancelled
    actor_key TEXT COLLATE "C" NOT NULL,                    -- who: kind and id
    actor TEXT COLLATE "C" NOT NULL,                        -- the same, as the audit names them
    text TEXT COLLATE "C" NOT NULL,                         -- what they said; may be empty
    edition BIGINT NOT NULL,                    -- of the change set then
    at BIGINT NOT NULL,                         -- microseconds
    PRIMARY KEY (namespace_id, number, sequence),
    FOREIGN KEY (namespace_id, number) REFERENCES change_set (namespace_id, number) ON DELETE CASCADE
);
