-- Compare-and-set: writes a session of one device of one user.
--
-- Guarantees: a session never takes the place of one with a higher version. With an equal version it takes only its own
-- place, and not with a lower incarnation. What was fenced off by a logout stays away. Numbers are compared as texts of 20
-- digits, because numbers in Lua have 53 bits. What does not begin with such a number is no session, and is written over.
--
-- KEYS: user. ARGV: device, version, incarnation, session, node, rest of the entry, seconds to keep the user.
-- Answers '' if written, otherwise the version that is stored.
local stored = redis.call('HGET', KEYS[1], ARGV[1])
local version = stored and string.match(stored, '^(' .. string.rep('%d', 20) .. ')\t')
if version then
  local incarnation, session, node = string.match(stored, '^%d+\t(%d+)\t(%d+)\t([^\t]*)\t')
  local own = session == ARGV[4] and node == ARGV[5] and incarnation <= ARGV[3]
  if version > ARGV[2] or (version == ARGV[2] and not own) then
    return version
  end
end
redis.call('HSET', KEYS[1], ARGV[1],
  ARGV[2] .. '\t' .. ARGV[3] .. '\t' .. ARGV[4] .. '\t' .. ARGV[5] .. '\t' .. ARGV[6])
redis.call('EXPIRE', KEYS[1], ARGV[7])
return ''
