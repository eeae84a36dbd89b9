-- Lines: requests of ordered kinds wait behind the earlier ones of their user.

-- Where in its user's line a request stands: the less, the earlier. Null: it stands in none. Who has
-- an open one before him is parked on `order` until infinity, and brought up when that one has ended.
alter table longshore.requests add column place bigint;

create sequence longshore.places;

create index requests_line on longshore.requests (user_id, place)
 where place is not null and state in ('running', 'waiting', 'parked');

comment on column longshore.requests.place is
    'The place in the line of its user, for kinds with ordered_by';
