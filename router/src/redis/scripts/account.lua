-- Gives a name to a user, if nobody has it.
--
-- Guarantees: a name has one user, for ever. Giving it to the user who has it already changes nothing and succeeds.
--
-- KEYS: account. ARGV: user. Answers the user who has the name now.
local user = redis.call('GET', KEYS[1])
if user then
  return user
end
redis.call('SET', KEYS[1], ARGV[1])
return ARGV[1]
