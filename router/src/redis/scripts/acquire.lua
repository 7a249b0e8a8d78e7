-- Takes the lease of a name that nobody holds, or that the caller itself held, together with a new incarnation, as one step.
--
-- Guarantees: of any number of callers one gets the lease. A holder that takes it anew holds it all the while: nobody sees the name without a
-- lease, and nobody else gets it in between. An incarnation is higher than every earlier one of that name that Redis knows, than the
-- caller's own, and not below the time in milliseconds; so it grows although Redis has lost its data, or its clock was ahead before. A call
-- that is repeated with its own token, because the answer was lost, gets the same incarnation again.
--
-- The mesh address stays when the lease has run out: whoever begins then may have to call there.
--
-- KEYS: lease, counter, mesh address (one slot). ARGV: token, record, time to live in ms, the caller's incarnation or 0, mesh address.
-- Answers {'granted', incarnation} or {'taken', ms left, record of the holder}.
local held = redis.call('GET', KEYS[1])
if held then
  local incarnation, token, record = string.match(held, '^(%d+)\n(%x+)\n(.*)$')
  if token == ARGV[1] then
    return {'granted', incarnation}
  end
  if ARGV[4] == '0' or incarnation ~= ARGV[4] then
    return {'taken', tostring(redis.call('PTTL', KEYS[1])), record or ''}
  end
end
local time = redis.call('TIME')
local now_ms = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local last = tonumber(redis.call('GET', KEYS[2]) or '0') or 0
-- All are below 2^53, so a double holds them.
local incarnation = string.format('%.0f', math.max(last + 1, now_ms, tonumber(ARGV[4]) + 1))
redis.call('SET', KEYS[2], incarnation)
redis.call('SET', KEYS[3], ARGV[5])
redis.call('SET', KEYS[1], incarnation .. '\n' .. ARGV[1] .. '\n' .. ARGV[2], 'PX', ARGV[3])
return {'granted', incarnation}
