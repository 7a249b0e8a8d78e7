-- Renews the lease and replaces its record, if this incarnation holds it.
--
-- Guarantees: a lease that has run out is not revived, and another's is not touched.
--
-- KEYS: lease. ARGV: incarnation, record, time to live in ms. Answers 'renewed', 'absent' or 'taken'.
local held = redis.call('GET', KEYS[1])
if not held then
  return 'absent'
end
local incarnation, token = string.match(held, '^(%d+)\n(%x+)\n')
if incarnation ~= ARGV[1] then
  return 'taken'
end
redis.call('SET', KEYS[1], incarnation .. '\n' .. token .. '\n' .. ARGV[2], 'PX', ARGV[3])
return 'renewed'
