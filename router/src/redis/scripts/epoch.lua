-- Agrees on a number for a view.
--
-- Guarantees: the answer is never below the caller's number nor below an earlier answer. Callers with one digest that ask
-- in turn end with one number, and a digest that differs from the last one gets a higher number than it.
--
-- KEYS: view. ARGV: digest, the caller's epoch. Answers the epoch in decimal digits.
local known = tonumber(ARGV[2])
local digest, epoch = string.match(redis.call('GET', KEYS[1]) or '', '^(%x+) (%d+)$')
local stored = tonumber(epoch or '0')
local agreed
if digest == ARGV[1] then
  agreed = math.max(stored, known)
else
  agreed = math.max(stored, known) + 1
end
local text = string.format('%.0f', agreed)
if digest ~= ARGV[1] or agreed ~= stored then
  redis.call('SET', KEYS[1], ARGV[1] .. ' ' .. text)
end
return text
