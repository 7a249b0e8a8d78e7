-- Adds to the log of events of a node, and takes off its beginning what is of no use any more.
--
-- KEYS: the log (a hash: owner, bytes), its pieces, and for each piece its mark: the era (10 digits), the last event in
-- it (20 digits), a colon and its bytes.
-- ARGV: who writes; pieces of earlier eras than this go; those that end at this event or before go; how many may go at
-- once; how long the log lives without a write (ms); then mark and piece by turns.
-- Answers whether the log is the writer's, its bytes, and whether more of it could go.
if redis.call('HGET', KEYS[1], 'owner') ~= ARGV[1] then
  return {0, 0, 0}
end
for i = 6, #ARGV, 2 do
  redis.call('RPUSH', KEYS[3], ARGV[i])
  redis.call('RPUSH', KEYS[2], ARGV[i + 1])
  redis.call('HINCRBY', KEYS[1], 'bytes', #ARGV[i + 1])
end
local gone, more = 0, 0
while true do
  local mark = redis.call('LINDEX', KEYS[3], 0)
  if not mark or (string.sub(mark, 1, 10) >= ARGV[2] and string.sub(mark, 11, 30) > ARGV[3]) then
    break
  end
  if gone == tonumber(ARGV[4]) then
    more = 1
    break
  end
  gone = gone + 1
  redis.call('LPOP', KEYS[3])
  redis.call('LPOP', KEYS[2])
  redis.call('HINCRBY', KEYS[1], 'bytes', -tonumber(string.sub(mark, 32)))
end
for i = 1, 3 do
  redis.call('PEXPIRE', KEYS[i], ARGV[5])
end
return {1, redis.call('HINCRBY', KEYS[1], 'bytes', 0), more}
