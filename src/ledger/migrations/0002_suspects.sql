-- Who brings its worker down: told apart from those that were merely in flight beside it.

-- How often in a row a worker vanished over it. An attempt that comes to an end sets it to 0.
alter table longshore.requests add column crashes integer not null default 0;
-- Whether the running attempt is the only one of its worker that is under suspicion. Should that
-- worker vanish, the attempt is charged; nobody else's is.
alter table longshore.requests add column alone boolean not null default false;
