-- How often which variant of which flag was used, as edges counted it. No row says by whom.

CREATE TABLE usage_minute (
    environment_id TEXT NOT NULL REFERENCES environment (id) ON DELETE CASCADE, -- where
    flag TEXT NOT NULL,                         -- the flag's key: what is deleted and made again has its past
    variant TEXT NOT NULL,                      -- empty where the caller's own default was served
    source TEXT NOT NULL,                       -- server, or browser
    minute BIGINT NOT NULL,                     -- minutes since the epoch; kept for two days
    count BIGINT NOT NULL,                      -- uses
    PRIMARY KEY (environment_id, flag, minute, variant, source)
);
CREATE INDEX usage_minute_by_time ON usage_minute (minute);

CREATE TABLE usage_hour (
    environment_id TEXT NOT NULL REFERENCES environment (id) ON DELETE CASCADE, -- where
    flag TEXT NOT NULL,                         -- the flag's key
    variant TEXT NOT NULL,                      -- empty where the caller's own default was served
    source TEXT NOT NULL,                       -- server, or browser
    hour BIGINT NOT NULL,                       -- hours since the epoch; kept for 90 days
    count BIGINT NOT NULL,                      -- uses, those of usage_minute too
    PRIMARY KEY (environment_id, flag, hour, variant, source)
);
CREATE INDEX usage_hour_by_time ON usage_hour (hour);

-- When a flag was used last, for as long as its environment is there.
CREATE TABLE usage_flag (
    environment_id TEXT NOT NULL REFERENCES environment (id) ON DELETE CASCADE, -- where
    flag TEXT NOT NULL,                         -- the flag's key
    last_minute BIGINT NOT NULL,                -- minutes since the epoch
    PRIMARY KEY (environment_id, flag)
);

-- What browser apps tracked.
CREATE TABLE track_hour (
    environment_id TEXT NOT NULL REFERENCES environment (id) ON DELETE CASCADE, -- where
    name TEXT NOT NULL,                         -- as the app calls it
    hour BIGINT NOT NULL,                       -- hours since the epoch; kept for 90 days
    count BIGINT NOT NULL,                      -- how often
    sum_milli BIGINT NOT NULL,                  -- of the values that came with it, in thousandths
    PRIMARY KEY (environment_id, name, hour)
);
CREATE INDEX track_hour_by_time ON track_hour (hour);

-- Which report of an edge was counted last, so that none is counted twice.
CREATE TABLE usage_run (
    edge_key_id TEXT NOT NULL REFERENCES edge_key (id) ON DELETE CASCADE, -- which key it came with
    edge TEXT NOT NULL,                         -- the edge's id, as it calls itself
    run BIGINT NOT NULL,                        -- when the edge started, by its clock; numbers begin anew with each
    sequence BIGINT NOT NULL,                   -- of its last report
    received_at BIGINT NOT NULL,                -- microseconds
    PRIMARY KEY (edge_key_id, edge)
);
