-- Takes the lease of a name that nobody holds, together with a new incarnation, as one step.
--
-- Guarantees: of any number of callers one gets the lease. An incarnation is higher than every earlier one of that name,
-- even after Redis has lost its data (it is never below the time in milliseconds). A call that is repeated with its own
-- token, because the answer was lost, gets the same incarnation again.
--
-- KEYS: lease, counter (one slot). ARGV: token, record, time to live in ms.
-- Answers {'granted', incarnation} or {'taken', ms left, record of the holder}.
local held = redis.call('GET', KEYS[1])
if held then
  local incarnation, token, record = string.match(held, '^(%d+)\n(%x+)\n(.*)$')
  if token == ARGV[1] then
    return {'granted', incarnation}
  end
  return {'taken', tostring(redis.call('PTTL', KEYS[1])), record or ''}
end
local time = redis.call('TIME')
local now_ms = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local last = tonumber(redis.call('GET', KEYS[2]) or '0') or 0
-- Both are below 2^53, so a double holds them.
local incarnation = string.format('%.0f', math.max(last + 1, now_ms))
redis.call('SET', KEYS[2], incarnation)
redis.call('SET', KEYS[1], incarnation .. '\n' .. ARGV[1] .. '\n' .. ARGV[2], 'PX', ARGV[3])
return {'granted', incarnation}
