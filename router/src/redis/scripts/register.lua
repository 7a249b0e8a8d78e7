-- Puts a name on the list of nodes by when its lease ends, and takes those off whose lease has ended.
--
-- Guarantees: a name stays for at least the time given after its lease has ended, unless so many names are on the list that those whose
-- leases end last fill it. Times are Redis's, so clocks of nodes do not matter; a name with a time beyond any lease, which Redis gave while its
-- own clock was ahead, keeps its place and gets a time of now.
--
-- KEYS: list. ARGV: name, time to live of its lease in ms, time to keep in ms, names at most, time to live of a lease at most in ms.
-- Answers the number of names for which there was no room.
local time = redis.call('TIME')
local now_ms = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local function text(number)
  return string.format('%.0f', number)
end
redis.call('ZADD', KEYS[1], text(now_ms + tonumber(ARGV[2])), ARGV[1])
local beyond = text(now_ms + tonumber(ARGV[5]) + tonumber(ARGV[3]))
for _, name in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], beyond, '+inf', 'LIMIT', 0, 64)) do
  redis.call('ZADD', KEYS[1], text(now_ms), name)
end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', '(' .. text(now_ms - tonumber(ARGV[3])))
return redis.call('ZREMRANGEBYRANK', KEYS[1], 0, -1 - tonumber(ARGV[4]))
