-- Compare-and-delete: removes a session if it is the one stored.
--
-- Guarantees: another session is not touched. With the fence, which is for a session whose login may still be on its way
-- to Redis, a mark stays that keeps that login (and older ones) out; it goes with the user's key.
--
-- KEYS: user. ARGV: device, version, incarnation, session, node, '1' for the fence, seconds to keep the user.
-- Answers 1 if it was stored, otherwise 0.
local stored = redis.call('HGET', KEYS[1], ARGV[1])
local held = false
if stored then
  local incarnation, session, node = string.match(stored, '^%d+\t(%d+)\t(%d+)\t([^\t]*)\t')
  held = incarnation == ARGV[3] and session == ARGV[4] and node == ARGV[5]
end
if ARGV[6] == '1' then
  if held or not stored or string.sub(stored, 1, 20) < ARGV[2] then
    redis.call('HSET', KEYS[1], ARGV[1], ARGV[2] .. '\t-')
    redis.call('EXPIRE', KEYS[1], ARGV[7])
  end
elseif held then
  redis.call('HDEL', KEYS[1], ARGV[1])
end
return held and 1 or 0
