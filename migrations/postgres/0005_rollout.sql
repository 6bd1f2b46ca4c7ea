-- How far an environment's newest snapshot has come in the fleet, and what edges serve that it has
-- not come to. Moved by the control that publishes; no row: none was ever rolled out in stages.

CREATE TABLE rollout (
    environment_id TEXT COLLATE "C" PRIMARY KEY NOT NULL REFERENCES environment (id) ON DELETE CASCADE, -- of what
    generation BIGINT NOT NULL,                 -- of the new snapshot
    revision BIGINT NOT NULL,                   -- of the new snapshot
    previous TEXT COLLATE "C" NOT NULL,                       -- head::Previous as JSON: the last that came to all
    previous_generation BIGINT NOT NULL,        -- of it
    previous_revision BIGINT NOT NULL,          -- of it
    stage BIGINT NOT NULL,                      -- share of the fleet, of 10,000
    step BIGINT NOT NULL,                       -- which stage of the schedule, from 0
    state TEXT COLLATE "C" NOT NULL,                          -- running, halted, finishing (an operator said so), done
    reason TEXT COLLATE "C",                                  -- why it is halted
    chain_at BIGINT NOT NULL,                   -- microseconds; when the first began of those that were replaced before they came to all
    began_at BIGINT NOT NULL,                   -- microseconds, by the database's clock
    step_at BIGINT NOT NULL,                    -- microseconds; when the stage began
    ended_at BIGINT                             -- microseconds; when it was done or halted
);

-- Revisions that an operator wanted to come to all edges at once (?rollout=now).
CREATE TABLE rollout_urgent (
    environment_id TEXT COLLATE "C" PRIMARY KEY NOT NULL REFERENCES environment (id) ON DELETE CASCADE, -- of what
    revision BIGINT NOT NULL                    -- up to this one
);
