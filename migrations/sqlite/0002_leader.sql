-- Who may publish. One control at a time does, for economy; what another writes late is refused,
-- because every write of a leader first finds its own epoch here and locks this row.

CREATE TABLE leader (
    name TEXT PRIMARY KEY NOT NULL,             -- of the task: publisher
    epoch BIGINT NOT NULL,                      -- raised with every takeover, never lowered
    coordinator TEXT NOT NULL,                  -- who gives epochs: "database", or etcd's cluster id
    holder TEXT NOT NULL,                       -- the process that has it, as it calls itself
    expires_at BIGINT NOT NULL                  -- microseconds, by the database's clock
);
