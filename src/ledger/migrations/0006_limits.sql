-- Limits that all workers share, and what is parked on the shares of users.

-- Token buckets. A rate gives out moments in time: a token for each 1/rate of a second.
create table longshore.buckets (
    -- kind:<kind>, dependency:<name>
    name        text        primary key,
    -- The moments up to here are given out.
    given_until timestamptz not null
);

comment on table longshore.buckets is 'Rates that all workers share: up to when tokens are given out';

-- Takes up to `wanted` tokens out of a bucket, and says in how many seconds there is another one. What
-- nobody took gathers up to `burst`.
create function longshore.take_tokens(
    bucket text, wanted integer, rate double precision, burst double precision,
    out granted integer, out next_in double precision)
language plpgsql volatile as $$
declare
    since     timestamptz;
    looked_at timestamptz;
begin
    insert into longshore.buckets as b (name, given_until)
    values (bucket, clock_timestamp() - make_interval(secs => burst / rate))
        on conflict (name) do nothing;
    select b.given_until into since from longshore.buckets b where b.name = bucket for update;
    -- Only now: there may have been a wait for others.
    looked_at := clock_timestamp();
    since := greatest(since, looked_at - make_interval(secs => burst / rate));
    granted := greatest(0, least(
        wanted, floor(extract(epoch from looked_at - since)::double precision * rate + 1e-6)));
    since := since + make_interval(secs => granted / rate);
    update longshore.buckets b set given_until = since where b.name = bucket;
    next_in := greatest(0, extract(epoch from since - looked_at)::double precision + 1 / rate);
end $$;

comment on function longshore.take_tokens is
    'Takes tokens out of a bucket; in how many seconds there is another one';

-- What is parked on the share of its user is brought up user after user; found here.
create index requests_shares on longshore.requests (user_id, received_at)
 where state = 'parked' and parked_on = 'limit:user';
