-- The ledger: inbox, retry schedule, parking, dead letters and history of every request.

create table longshore.requests (
    request_id   text        primary key,
    kind         text        not null,
    user_id      text        not null,
    state        text        not null
                 check (state in ('running', 'waiting', 'parked', 'done', 'dead')),
    -- Attempts charged so far, the running one included.
    attempt      integer     not null check (attempt >= 0),
    -- A random number for each claim. Who finishes must still hold it: a worker that was taken
    -- over finds another number here and changes nothing.
    fence        bigint      not null,
    -- Whether the running attempt holds a delivery. Only then may a redelivery take it over: the
    -- broker redelivers what lost its worker, and knows nothing of work that the ledger brought up.
    from_queue   boolean     not null,
    worker       text,
    -- waiting, parked: when it is to go on; running: when its lease ends.
    due_at       timestamptz,
    -- What a parked request waits for: a dependency, `not_before`, `stop`.
    parked_on    text,
    error_code   text,
    error        text,
    result       jsonb,
    -- SHA-256 of the body: tells the same request from another one under the same id.
    digest       bytea       not null,
    -- As received, and kept until done: jsonb would refuse what JSON allows (\u0000).
    body         bytea,
    properties   json,
    deadline     timestamptz,
    published_at timestamptz,
    received_at  timestamptz not null,
    finished_at  timestamptz,
    check ((state in ('running', 'waiting', 'parked')) = (due_at is not null)),
    check ((state in ('done', 'dead')) = (finished_at is not null)),
    check (state = 'done' or body is not null)
) with (
    fillfactor = 90,
    -- Rows come and go by the million: vacuum by count, not by share of a growing table.
    autovacuum_vacuum_scale_factor = 0.0,
    autovacuum_vacuum_threshold = 50000,
    autovacuum_analyze_scale_factor = 0.02
);

create index requests_due  on longshore.requests (due_at) where state in ('running', 'waiting', 'parked');
create index requests_done on longshore.requests (finished_at) where state = 'done';
create index requests_dead on longshore.requests (finished_at) where state = 'dead';

comment on table longshore.requests is
    'Every request that Longshore has taken in: what became of it, and when it goes on';

-- What did not go right the first time, attempt by attempt.
create table longshore.attempts (
    request_id  text        not null,
    attempt     integer     not null,
    ended_at    timestamptz not null default now(),
    worker      text,
    outcome     text        not null,
    error_code  text,
    error       text
);

create index attempts_request on longshore.attempts (request_id);
create index attempts_ended on longshore.attempts (ended_at);

comment on table longshore.attempts is 'Attempts that ended as retry, parked or dead';

-- Messages without a usable id, or with the id of another request: kept whole for a person.
create table longshore.unreadable (
    id           bigint      generated always as identity primary key,
    -- Over body and properties, so that a redelivery is counted and not stored again.
    digest       bytea       not null unique,
    seen         integer     not null default 1,
    received_at  timestamptz not null default now(),
    last_seen_at timestamptz not null default now(),
    request_id   text,
    error_code   text        not null,
    error        text        not null,
    body         bytea       not null,
    properties   json        not null
);

comment on table longshore.unreadable is
    'Messages that could not be filed under an id of their own, as received';
