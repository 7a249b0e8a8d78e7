-- Writes the lease of an incarnation again that Redis has lost, or renews it if it is there.
--
-- Guarantees: another's lease is not touched, and no incarnation comes back after a later one of the same name.
--
-- KEYS: lease, counter, mesh address (one slot). ARGV: incarnation, token, record, time to live in ms, mesh address. Answers 'renewed' or 'taken'.
local held = redis.call('GET', KEYS[1])
local token = ARGV[2]
if held then
  local incarnation, known = string.match(held, '^(%d+)\n(%x+)\n')
  if incarnation ~= ARGV[1] then
    return 'taken'
  end
  token = known
end
-- Both are below 2^53, so a double holds them.
local last = tonumber(redis.call('GET', KEYS[2]) or '0') or 0
if last > tonumber(ARGV[1]) then
  return 'taken'
end
redis.call('SET', KEYS[2], ARGV[1])
redis.call('SET', KEYS[3], ARGV[5])
redis.call('SET', KEYS[1], ARGV[1] .. '\n' .. token .. '\n' .. ARGV[3], 'PX', ARGV[4])
return 'renewed'
