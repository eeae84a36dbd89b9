-- What is parked on a dependency or a paused kind is let go by whoever looks after that, the oldest
-- first: found here, and out of the way of what goes on by the clock (due_at is then `infinity`, or
-- just after the deadline of the request).
create index requests_parked on longshore.requests (parked_on, received_at) where state = 'parked';
