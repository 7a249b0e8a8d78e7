-- Puts a name on the list of nodes, and takes those off that were not renewed for long.
--
-- Guarantees: a name stays for at least the time given after its last call. Times are Redis's, so clocks of nodes do not
-- matter.
--
-- KEYS: list. ARGV: name, time to keep in ms. Answers the number of names removed.
local time = redis.call('TIME')
local now_ms = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
redis.call('ZADD', KEYS[1], string.format('%.0f', now_ms), ARGV[1])
return redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('(%.0f', now_ms - tonumber(ARGV[2])))
