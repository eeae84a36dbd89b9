-- What operators wish, for every worker, and who wished it.

create table longshore.steering (
    -- breaker:<dependency>, limit:<dependency>, work, kind:<kind>
    target text        primary key,
    -- A breaker's mode, a number, or paused.
    wish   text        not null,
    who    text        not null,
    at     timestamptz not null default now()
);

comment on table longshore.steering is
    'What operators wish; a target without a row is as the settings say';

-- Written in the transaction that changes a wish, and by nothing else.
create table longshore.audit (
    id     bigint      generated always as identity primary key,
    at     timestamptz not null default now(),
    -- The process that wrote it.
    worker text        not null,
    who    text        not null,
    action text        not null,
    target text        not null,
    -- Null: as the settings say.
    before text,
    after  text
);

comment on table longshore.audit is 'Every act of steering: who, what, when, before and after';
