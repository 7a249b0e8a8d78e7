-- Puts a name on the lists of nodes by when its lease ends, and takes those off whose lease has ended.
--
-- Guarantees: a name stays on a list for at least the time given for it after its lease has ended, unless so many names are on the list that
-- those whose leases end last fill it. Times are Redis's, so clocks of nodes do not matter; a name with a time beyond any lease, which Redis gave
-- while its own clock was ahead, keeps its place and gets a time of now.
--
-- KEYS: lists (one slot). ARGV: name, time to live of its lease in ms, names on a list at most, time to live of a lease at most in ms, then
-- for each list the time to keep a name in ms. Answers for each list the number of names for which there was no room.
local time = redis.call('TIME')
local now_ms = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local function text(number)
  return string.format('%.0f', number)
end
local dropped = {}
for at, list in ipairs(KEYS) do
  local kept_ms = tonumber(ARGV[4 + at])
  redis.call('ZADD', list, text(now_ms + tonumber(ARGV[2])), ARGV[1])
  local beyond = text(now_ms + tonumber(ARGV[4]) + kept_ms)
  for _, name in ipairs(redis.call('ZRANGEBYSCORE', list, beyond, '+inf', 'LIMIT', 0, 64)) do
    redis.call('ZADD', list, text(now_ms), name)
  end
  redis.call('ZREMRANGEBYSCORE', list, '-inf', '(' .. text(now_ms - kept_ms))
  dropped[at] = redis.call('ZREMRANGEBYRANK', list, 0, -1 - tonumber(ARGV[3]))
end
return dropped
