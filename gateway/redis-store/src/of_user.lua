-- Which groups a user is in, as an index: the groups themselves say who is a member. An entry is written before the
-- group has the member and taken out behind it, so each membership has one; one without a membership is taken out when
-- the user logs in.
--
-- KEYS[1]  hash: group -> version, a random number for each time it was written, and when that was
-- ARGV     what, then its words
--
-- enter    group, version, groups at most: 1 for a new entry, 0 for one that was there, 'full'
-- version  group: that of its entry, '' if there is none
-- drop     group, version, age: takes the entry out if it is of that version and at least that old, milliseconds
-- list     groups and versions

local U = KEYS[1]
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)

local function entry(group)
  local value = redis.call('HGET', U, group)
  if not value then return end
  local version, at = string.match(value, '^(%d+) (%d+)$')
  return version, tonumber(at)
end

local what, group = ARGV[1], ARGV[2]
if what == 'enter' then
  local is_new = 1 - redis.call('HEXISTS', U, group)
  if is_new == 1 and redis.call('HLEN', U) >= tonumber(ARGV[4]) then return { 0, 'full' } end
  redis.call('HSET', U, group, ARGV[3] .. ' ' .. string.format('%.0f', now))
  return { 1, is_new }
elseif what == 'version' then
  return { 0, entry(group) or '' }
elseif what == 'drop' then
  local version, at = entry(group)
  if version ~= ARGV[3] or now - at < tonumber(ARGV[4]) then return { 0, 0 } end
  redis.call('HDEL', U, group)
  return { 1, 1 }
end
local list = {}
local flat = redis.call('HGETALL', U)
for i = 1, #flat, 2 do
  local version = string.match(flat[i + 1], '^(%d+) ')
  list[#list + 1] = flat[i]
  list[#list + 1] = version or '0'
end
return { 0, list }
