-- Deletes a key if it holds a value.
--
-- Guarantees: what somebody else has put there meanwhile is not touched.
--
-- KEYS: any. ARGV: value. Answers 1 or 0.
if redis.call('GET', KEYS[1]) == ARGV[1] then
  return redis.call('DEL', KEYS[1])
end
return 0
