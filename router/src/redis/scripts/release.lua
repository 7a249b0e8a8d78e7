-- Gives the lease up, if this incarnation holds it.
--
-- Guarantees: another's lease is not touched. The counter of incarnations stays.
--
-- KEYS: lease. ARGV: incarnation. Answers 1 or 0.
local held = redis.call('GET', KEYS[1])
if held and string.match(held, '^(%d+)\n') == ARGV[1] then
  return redis.call('DEL', KEYS[1])
end
return 0
