-- Requests about one user, in their order. Nobody sees them half done, and a stale home does not get in between.
--
-- KEYS[1]  stream: the messages. An id is a stamp: milliseconds, and a counter below 2^20.
--          m  sender and id, 8 bytes each, flags, payload
--          s  how many messages came before it, and their bytes: so an inbox is counted without being read
-- KEYS[2]  hash: floor, last, g (stamps; up to g messages were given up), n and t (messages and their bytes so far),
--          e (view of the home), p (last epoch of a device), d:<name> (number, epoch, cursor, when it was seen),
--          o:<name> (its epoch before its last LOGOUT, and the one since), l:<name> (number of that LOGOUT), i (parts of
--          exports that were imported, the latest first, each with the position there up to which all of it came)
-- ARGV     now (0: by the clock of this server), messages and bytes an inbox may have, 1 to drop the oldest of a full
--          one, age of a message, time after which a device is forgotten, devices, window of retries, time after which
--          the keys end; then the requests
--
-- Answer: 1 if something was written; messages acknowledged, expired and dropped, devices forgotten, positions of
-- devices that are not known; an answer for each request.

local S, M = KEYS[1], KEYS[2]
local now = tonumber(ARGV[1])
if now == 0 then
  -- What is too old is so by one clock for all gateways: a wrong one of theirs would empty inboxes.
  local time = redis.call('TIME')
  now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end
local messages_max, bytes_max, drops = tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4] == '1'
local age_ms, unseen_ms, devices_max = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local window, ttl_ms = tonumber(ARGV[8]), ARGV[9]

local COUNTER = 1048576
local AHEAD_MS, SEEN_GRAIN_MS = 86400000, 3600000
local OVERHEAD = 48
-- Entries that are read at a time: a payload may have a megabyte.
local STEP = 32

local wrote = 0
local acknowledged, expired, dropped, forgotten, stale = 0, 0, 0, 0, 0

local meta = {}
local flat = redis.call('HGETALL', M)
for i = 1, #flat, 2 do meta[flat[i]] = flat[i + 1] end

-- At `maxmemory` Redis refuses the first write of a script if it may take memory, and none behind another write. What
-- lets messages go is to work then, and the little that it writes: it begins with a write that takes nothing.
local begun, no_memory = false, false
local function begin_writing()
  if not begun then redis.call('HDEL', M, '') end
  begun = true
end

local function set(field, value)
  begin_writing()
  meta[field] = value
  redis.call('HSET', M, field, value)
  wrote = 1
end

-- An import of an earlier version has left that. It is no view, and no home could write.
if meta.e == '4294967295' then meta.e = nil end

-- Whole numbers beyond 2^31 are not for tostring.
local function text(number) return string.format('%.0f', number) end
local function stamp(ms, seq) return text(ms) .. '-' .. text(seq) end
local function parts(of)
  local ms, seq = string.match(of, '^(%d+)-(%d+)$')
  return tonumber(ms), tonumber(seq)
end
local function above(a, b)
  local ams, aseq = parts(a)
  local bms, bseq = parts(b)
  return ams > bms or (ams == bms and aseq > bseq)
end
local function highest(a, b) if above(b, a) then return b end return a end
local function after(of)
  local ms, seq = parts(of)
  if seq + 1 >= COUNTER then return stamp(ms + 1, 0) end
  return stamp(ms, seq + 1)
end

local function before(entry)
  local n, t = string.match(entry[2][4], '^(%d+) (%d+)$')
  return tonumber(n), tonumber(t)
end

meta.last, meta.floor = meta.last or '0-0', meta.floor or '0-0'
if not meta.n then
  -- The hash may be lost alone, by somebody's hand; ids of the stream never go back.
  local newest = redis.call('XREVRANGE', S, '+', '-', 'COUNT', 1)[1]
  if newest then
    local n, t = before(newest)
    meta.last = highest(meta.last, newest[1])
    meta.n, meta.t = text(n + 1), text(t + #newest[2][2] - 17 + OVERHEAD)
  end
end

meta.last = highest(meta.last, meta.floor)

-- What adds asks first whether there is memory; and so does whoever looks whether writing works.
for i = 10, #ARGV do
  if ARGV[i] == 'append' or ARGV[i] == 'adopt' or ARGV[i] == 'claim' then
    local answer = redis.pcall('HSETNX', M, 'last', meta.last)
    if type(answer) == 'table' then
      no_memory = string.find(answer.err, 'OOM', 1, true) ~= nil
      if not no_memory or ARGV[i] == 'adopt' then return answer end
    else
      begun = true
      if answer == 1 then wrote = 1 end
    end
    break
  end
end

-- Messages up to there are gone, whoever has not got them.
local function gone() return highest(meta.floor, meta.g or '0-0') end

-- A stream that was emptied has its last position for a floor. One that was not is lost, and devices are told so.
if above(meta.last, gone()) and redis.call('EXISTS', S) == 0 then set('floor', meta.last) end

-- What came before the oldest message: false if there is none, nil if that was not looked up.
local first_n, first_t

-- What the inbox has: messages and bytes.
local function holds()
  if first_n == nil then
    local first = redis.call('XRANGE', S, '-', '+', 'COUNT', 1)[1]
    first_n, first_t = false, false
    if first then first_n, first_t = before(first) end
  end
  if not first_n then return 0, 0 end
  return tonumber(meta.n) - first_n, tonumber(meta.t) - first_t
end

-- Drops the messages up to a stamp, which becomes the floor. Returns how many.
local function truncate(upto)
  if not above(upto, meta.floor) then return 0 end
  set('floor', upto)
  first_n = nil
  local gone = redis.call('XTRIM', S, 'MINID', '=', after(upto))
  if gone > 0 and redis.call('XLEN', S) == 0 then redis.call('DEL', S) end
  return gone
end

local devices
local function all_devices()
  if devices then return devices end
  devices = {}
  for field, value in pairs(meta) do
    if string.sub(field, 1, 2) == 'd:' then
      local number, epoch, cursor, seen = string.match(value, '^(%d+) (%d+) (%d+%-%d+) (%d+)$')
      if number then
        devices[#devices + 1] = {
          name = string.sub(field, 3), number = tonumber(number), epoch = epoch, cursor = cursor, seen = tonumber(seen)
        }
      end
    end
  end
  table.sort(devices, function(a, b) return a.number < b.number end)
  return devices
end
local function keep(device)
  local words = { text(device.number), device.epoch, device.cursor, text(device.seen) }
  set('d:' .. device.name, table.concat(words, ' '))
end
local function forget(at)
  local device = table.remove(all_devices(), at)
  for _, kind in ipairs({ 'd:', 'o:', 'l:' }) do
    meta[kind .. device.name] = nil
    redis.call('HDEL', M, kind .. device.name)
  end
  wrote = 1
end
local function named(name)
  for _, device in ipairs(all_devices()) do if device.name == name then return device end end
end
local function numbered(number)
  for at, device in ipairs(all_devices()) do if device.number == number then return device, at end end
end
-- Notes a sign of life; true if it is worth writing down.
local function seen(device)
  if now < device.seen + SEEN_GRAIN_MS then return false end
  device.seen = now
  return true
end
local function next_epoch()
  local epoch = now % 4294967296
  local last = tonumber(meta.p or '0')
  if epoch <= last and last - epoch < 2147483648 then epoch = (last + 1) % 4294967296 end
  if epoch == 0 then epoch = 1 end
  set('p', text(epoch))
  return text(epoch)
end

-- Lets go what is too old and what all devices have, and forgets devices that stay away.
local function tidy()
  local all = all_devices()
  for at = #all, 1, -1 do
    if now - all[at].seen > unseen_ms then
      forget(at)
      forgotten = forgotten + 1
    end
  end
  if now > age_ms then
    local old = redis.call('XREVRANGE', S, '(' .. stamp(now - age_ms, 0), '-', 'COUNT', 1)[1]
    if old then expired = expired + truncate(old[1]) end
  end
  local least
  for _, device in ipairs(all) do
    if not least or above(least, device.cursor) then least = device.cursor end
  end
  if least then acknowledged = acknowledged + truncate(least) end
end

-- Whether a home of that view may write: none of an earlier one does from then on. `again`: it is written once more,
-- so that replicas are asked for it: those of the one before may not have had it.
local function claim(view, again)
  if view == 0 then
    -- Nobody's: a look whether writing works.
    set('last', meta.last)
    return true
  end
  if view < tonumber(meta.e or '0') then return false end
  if again or view > tonumber(meta.e or '0') then set('e', text(view)) end
  return true
end

-- Which bound one more message would pass; one always may, however long it is.
local function full(bytes)
  local messages, held = holds()
  if messages == 0 then return nil end
  if messages >= messages_max then return 'messages', messages, held end
  if held + bytes > bytes_max then return 'bytes', messages, held end
end

-- Where a message is that may have been stored before: at the very position that it asks for, as one is that has come
-- with an export, or among the last. `retry`: the position up to which nothing is looked for.
local function find(proposed, retry, message)
  local function is_it(entry) return string.sub(entry[2][2], 1, 16) == string.sub(message, 1, 16) end
  if above(proposed, retry) and not above(proposed, meta.last) then
    local entry = redis.call('XRANGE', S, proposed, proposed)[1]
    if entry and is_it(entry) then return proposed end
  end
  local looked, upper = 0, '+'
  while looked < window do
    local entries = redis.call('XREVRANGE', S, upper, '(' .. retry, 'COUNT', math.min(STEP, window - looked))
    for _, entry in ipairs(entries) do
      if is_it(entry) then return entry[1] end
    end
    if #entries < STEP then return end
    looked = looked + #entries
    upper = '(' .. entries[#entries][1]
  end
end

-- Written, so that replicas are asked for it: whoever stored it may have had no answer.
local function known(id)
  set('last', meta.last)
  return { 'stored', id, 1, meta.last }
end

local appended = false
-- `retry`: as for `find`; empty if the message was never stored.
local function append(view, proposed, retry, message)
  local found = retry ~= '' and find(proposed, retry, message)
  if found then return known(found) end
  if not claim(view) then return { 'stale' } end
  if no_memory then return { 'oom' } end
  local bytes = #message - 17 + OVERHEAD
  local why, messages, held = full(bytes)
  if why then
    tidy()
    why, messages, held = full(bytes)
  end
  if why and drops then
    -- A sixty-fourth goes besides, or each message to a full inbox would have to look for the oldest.
    local over = math.max(0, messages + 1 - (messages_max - math.floor(messages_max / 64)))
    local over_bytes = math.max(0, held + bytes - (bytes_max - math.floor(bytes_max / 64)))
    local upto, lower = nil, '-'
    local first_n, first_t = tonumber(meta.n) - messages, tonumber(meta.t) - held
    local enough = false
    while not enough do
      local entries = redis.call('XRANGE', S, lower, '+', 'COUNT', STEP)
      for _, entry in ipairs(entries) do
        local n, t = before(entry)
        if n - first_n >= over and t - first_t >= over_bytes then
          enough = true
          break
        end
        upto = entry[1]
      end
      if #entries < STEP then break end
      lower = '(' .. entries[#entries][1]
    end
    if upto then dropped = dropped + truncate(upto) end
    why = full(bytes)
  end
  if why then return { why } end
  -- Else one wrong clock would push the log to the end of all stamps.
  local latest = stamp(now + AHEAD_MS, 0)
  if above(proposed, latest) then proposed = latest end
  local id = highest(proposed, after(meta.last))
  local n, t = tonumber(meta.n or '0'), tonumber(meta.t or '0')
  redis.call('XADD', S, id, 'm', message, 's', text(n) .. ' ' .. text(t))
  if first_n == false then first_n, first_t = n, t end
  local last = meta.last
  meta.last, meta.n, meta.t = id, text(n + 1), text(t + bytes)
  appended = true
  return { 'stored', id, 0, last }
end

-- Of an import: the part of an export that is put in, up to where all of it came, and whether more of it counts. Behind
-- a message that was refused none does, so that it is asked for when it is put in again.
local part, came, counts, came_further = nil, nil, true, false
local PARTS = 4

local function begin_part(name)
  part = name
  for of, upto in string.gmatch(meta.i or '', '(%S+) (%S+)') do
    if of == part then came = upto end
  end
end

-- A message of that part. What came before is not stored again, whatever has become of it since.
local function append_of_part(view, proposed, retry, message)
  if came and not above(proposed, came) then return known(proposed) end
  local answer = append(view, proposed, retry, message)
  counts = counts and answer[1] == 'stored'
  if counts then came, came_further = proposed, true end
  return answer
end

local function keep_part()
  local words = { part, came }
  for of, upto in string.gmatch(meta.i or '', '(%S+) (%S+)') do
    if of ~= part and #words < 2 * PARTS then
      words[#words + 1] = of
      words[#words + 1] = upto
    end
  end
  set('i', table.concat(words, ' '))
end

local function open(name, ephemeral, view)
  if view then claim(view, true) end
  tidy()
  local all = all_devices()
  local device = named(name)
  local known = device and 1 or 0
  local number, epoch, cursor = 0, '0', meta.last
  if device then
    if seen(device) then keep(device) end
  elseif not ephemeral then
    if #all == 0 then cursor = meta.floor end
    while #all >= devices_max do
      local longest = 1
      for at, other in ipairs(all) do if other.seen < all[longest].seen then longest = at end end
      forget(longest)
      forgotten = forgotten + 1
    end
    local free = 1
    while numbered(free) do free = free + 1 end
    device = { name = name, number = free, epoch = next_epoch(), cursor = cursor, seen = now }
    all[#all + 1] = device
    keep(device)
  end
  if device then number, epoch, cursor = device.number, device.epoch, device.cursor end
  local pending = 0
  local behind = redis.call('XRANGE', S, '(' .. cursor, '+', 'COUNT', 1)[1]
  if behind then
    local n = before(behind)
    pending = tonumber(meta.n) - n
  end
  return { 'opened', known, number, epoch, cursor, gone(), meta.last, pending, #all }
end

local function read(number, epoch, from, limit, payload_max)
  tidy()
  -- What a device has is not given to it, and is no gap to it. The number of one that was forgotten is another one's.
  local device = numbered(number)
  if device and device.epoch == epoch then from = highest(from, device.cursor) end
  local records, bytes, complete, lower = {}, 0, 1, '(' .. from
  while true do
    local entries = redis.call('XRANGE', S, lower, '+', 'COUNT', STEP)
    for _, entry in ipairs(entries) do
      bytes = bytes + #entry[2][2] - 17
      if #records >= limit or (#records > 0 and bytes > payload_max) then
        complete = 0
        break
      end
      records[#records + 1] = { entry[1], entry[2][2] }
    end
    if complete == 0 or #entries < STEP then break end
    lower = '(' .. entries[#entries][1]
  end
  return { 'page', gone(), meta.last, complete, above(gone(), from) and 1 or 0, records }
end

-- What a device has told before its LOGOUT may come behind that, from another node. A node of an older version leaves
-- what is noted of a LOGOUT when it forgets a device, so the epoch since then has to fit, too.
local function is_of(device, epoch)
  if device.epoch == epoch then return true end
  return meta['o:' .. device.name] == epoch .. ' ' .. device.epoch
end

local function cursor(number, epoch, upto)
  local device = numbered(number)
  if not device or not is_of(device, epoch) then
    stale = stale + 1
    return
  end
  if above(upto, meta.last) then upto = meta.last end
  -- One that is told again is written again, so that replicas are asked for it: they may not have had it.
  local counts = upto ~= '0-0' and not above(device.cursor, upto)
  if counts then device.cursor = upto end
  if seen(device) or counts then keep(device) end
end

local function list()
  local list = {}
  for i, device in ipairs(all_devices()) do
    list[i] = { device.number, device.name, device.cursor, text(device.seen), device.epoch }
  end
  return { 'devices', list }
end

-- Messages up to a position were given up before they got here. The end of the log moves there, so that whoever has got
-- them, or was told, gets past it.
local function gap(upto)
  local latest = stamp(now + AHEAD_MS, 0)
  if above(upto, latest) then upto = latest end
  if not above(upto, meta.g or '0-0') then return end
  for _, device in ipairs(all_devices()) do
    if above(upto, device.cursor) then
      set('g', upto)
      set('last', highest(meta.last, upto))
      return
    end
  end
end

local answers = {}
local at = 10
local function word()
  at = at + 1
  return ARGV[at - 1]
end
while at <= #ARGV do
  local what = word()
  local answer = { 'none' }
  if what == 'append' then
    local view, proposed, retry = tonumber(word()), word(), word()
    answer = (part and append_of_part or append)(view, proposed, retry, word())
  elseif what == 'part' then
    begin_part(word())
    answer = nil
  elseif what == 'open' then
    local name, ephemeral = word(), word() == '1'
    answer = open(name, ephemeral, tonumber(word()))
  elseif what == 'read' then
    local number, epoch, from, limit = tonumber(word()), word(), word(), tonumber(word())
    answer = read(number, epoch, from, limit, tonumber(word()))
  elseif what == 'cursor' then
    local number, epoch = tonumber(word()), word()
    cursor(number, epoch, word())
    tidy()
  elseif what == 'gap' then
    gap(word())
  elseif what == 'claim' then
    local view = tonumber(word())
    if view == 0 and no_memory then answer = { 'oom' } else claim(view, true) end
  elseif what == 'logout' then
    local device, number = named(word()), word()
    if device and meta['l:' .. device.name] == number then
      -- Asked once more because its answer was lost: written, so that replicas are asked for it.
      set('l:' .. device.name, number)
    elseif device then
      local before = device.epoch
      device.epoch = next_epoch()
      set('o:' .. device.name, before .. ' ' .. device.epoch)
      set('l:' .. device.name, number)
      keep(device)
    end
  elseif what == 'devices' then
    tidy()
    answer = list()
  elseif what == 'forget' then
    local device, place = numbered(tonumber(word()))
    local epoch = word()
    if device and is_of(device, epoch) then forget(place) end
    tidy()
    answer = list()
  elseif what == 'delete' then
    truncate(meta.last)
    for place = #all_devices(), 1, -1 do forget(place) end
    -- Whoever puts it in again wants it back.
    meta.i = nil
    redis.call('HDEL', M, 'i')
    answer = { 'done' }
  elseif what == 'inspect' then
    local view = tonumber(word())
    if view then claim(view, true) end
    tidy()
    local messages, bytes = holds()
    answer = { 'inspected', messages, bytes, gone(), meta.last, #all_devices() }
  elseif what == 'adopt' then
    -- An import: the floor and the devices of another store, where there are none.
    local floor, count = word(), tonumber(word())
    local empty = #all_devices() == 0
    for _ = 1, count do
      local name, number, epoch, position, when = word(), tonumber(word()), word(), word(), tonumber(word())
      if empty then
        local device = { name = name, number = number, epoch = epoch, cursor = position, seen = when }
        keep(device)
      end
    end
    devices = nil
    if empty and above(floor, meta.floor) then
      truncate(floor)
      if above(floor, meta.last) then set('last', floor) end
    end
    answer = { empty and 'done' or 'none' }
  end
  if answer then answers[#answers + 1] = answer end
end

if came_further then keep_part() end
if appended then
  redis.call('HSET', M, 'last', meta.last, 'n', meta.n, 't', meta.t)
  wrote = 1
end
-- Nodes, and tools, may be told different ages: what one of them keeps longer is not cut short by another.
local function outlive(key)
  if redis.call('PTTL', key) < tonumber(ttl_ms) then redis.call('PEXPIRE', key, ttl_ms) end
end
if wrote == 1 then
  outlive(S)
  outlive(M)
end
return { wrote, acknowledged, expired, dropped, forgotten, stale, answers }
