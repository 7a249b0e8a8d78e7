-- Requests about one group, in their order. Nobody sees them half done, and a stale home does not get in between.
--
-- KEYS[1]  hash: s (settings: join rule, members at most, muted, time to live; none: there is no such group), last and
--          floor (stamps), b (last when the group was made), e (view of the home), u (up to there positions may have
--          been given to what is not in the log: messages that are not stored), x (up to there something that was in
--          the log is lost; none: nothing that anybody knows of), i (parts of exports that were imported,
--          the latest first, each with the position there up to which all of it came)
-- KEYS[2]  stream: the messages. An id is a stamp; m: sender and id, 8 bytes each, flags, payload
-- KEYS[3]  hash: members. User -> role, notify, muted until, read up to
-- KEYS[4]  sorted set: the members by their ids, for pages
-- KEYS[5]  sorted set: stamp and user of each read mark, for counts
-- ARGV     now (0: by the clock of this server), messages a log may have, age of a message, members at most, window of
--          retries, time for which what is left of a group that is gone is kept; then the requests. Users are 16
--          hexadecimal digits.
--
-- Answer: 1 if something was written; messages expired and dropped; an answer for each request; the last position that
-- was given to what is not stored.

local G, S, M, I, R = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local now = tonumber(ARGV[1])
if now == 0 then
  -- What is too old is so by one clock for all gateways: a wrong one of theirs would empty logs.
  local time = redis.call('TIME')
  now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end
local messages_max, age_ms = tonumber(ARGV[2]), tonumber(ARGV[3])
local members_max, window, gone_ms = tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6]

local COUNTER = 1048576
local AHEAD_MS = 86400000
-- Entries that are read at a time: a payload may have a megabyte.
local STEP = 32

local wrote, expired, dropped = 0, 0, 0

local meta = {}
local flat = redis.call('HGETALL', G)
for i = 1, #flat, 2 do meta[flat[i]] = flat[i + 1] end

-- At `maxmemory` Redis refuses the first write of a script if it may take memory, and none behind another write. What
-- lets messages go is to work then, and the little that it writes: it begins with a write that takes nothing.
local begun, no_memory = false, false
local function begin_writing()
  if not begun then redis.call('HDEL', G, '') end
  begun = true
end

local function set(field, value)
  begin_writing()
  meta[field] = value
  redis.call('HSET', G, field, value)
  wrote = 1
end

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
-- In the order of which stamps are: 44 bits of milliseconds, 20 bits of a counter.
local function digits(of)
  local ms, seq = parts(of)
  return string.format('%011x%05x', ms, seq)
end

if not meta.last then
  -- The hash may be lost alone, by somebody's hand; ids of the stream never go back.
  local newest = redis.call('XREVRANGE', S, '+', '-', 'COUNT', 1)[1]
  meta.last = newest and newest[1] or '0-0'
end
meta.floor = meta.floor or '0-0'

-- What adds asks first whether there is memory; and so does whoever looks whether writing works.
local ADDS = { append = true, import = true, join = true, put = true, claim = true }
for i = 7, #ARGV do
  if ADDS[ARGV[i]] then
    -- Nothing comes of it: the name of a member is longer.
    local answer = redis.pcall('ZADD', I, 'XX', 0, '-')
    if type(answer) == 'table' then
      no_memory = string.find(answer.err, 'OOM', 1, true) ~= nil
      if not no_memory then return answer end
    else
      begun = true
    end
    break
  end
end

-- A stream that was emptied has its last position for a floor. One that was not is lost, and members are told so.
if meta.s and above(meta.last, meta.floor) and redis.call('EXISTS', S) == 0 then set('floor', meta.last) end

local settings
local function read_settings()
  settings = nil
  if not meta.s then return end
  local join, max, muted, ttl = string.match(meta.s, '^(%d+) (%d+) (%d+) (%d+)$')
  settings = { join = join or '1', max = tonumber(max or '0'), muted = muted ~= '0', ttl = ttl or '0' }
end
read_settings()

-- Drops the messages up to a stamp, which becomes the floor. Returns how many.
local function truncate(upto)
  if not above(upto, meta.floor) then return 0 end
  set('floor', upto)
  local gone = redis.call('XTRIM', S, 'MINID', '=', after(upto))
  if gone > 0 and redis.call('XLEN', S) == 0 then redis.call('DEL', S) end
  return gone
end

-- Lets go what is too old.
local function tidy()
  if now <= age_ms then return end
  local old = redis.call('XREVRANGE', S, '(' .. stamp(now - age_ms, 0), '-', 'COUNT', 1)[1]
  if old then expired = expired + truncate(old[1]) end
end

-- How long the view of a home is kept of a group that never was one: longer than any home of an earlier view may act.
-- Anybody may ask for any id.
local UNKNOWN_MS = 60000

-- Whether a home of that view may write: none of an earlier one does from then on. View 0 is nobody's. `again`: it is
-- written once more, so that replicas are asked for it: those of the one before may not have had it.
local function claim(view, again)
  if view == 0 then
    -- A look whether writing works.
    if settings then set('last', meta.last) end
    return true
  end
  if view < tonumber(meta.e or '0') then return false end
  if again or view > tonumber(meta.e or '0') then
    set('e', text(view))
    if not settings then
      set('last', meta.last)
      local was_one = meta.b or meta.floor ~= '0-0' or meta.last ~= '0-0'
      redis.call('PEXPIRE', G, was_one and gone_ms or UNKNOWN_MS)
    end
  end
  return true
end

-- The last stamp, as far as this group goes: one of the same id before it has had its own.
local function last()
  if not settings or meta.last == meta.b then return '0-0' end
  return meta.last
end

local function begin(words)
  -- What homes of an earlier version have passed on, which noted nothing of it, lies before now.
  if not meta.u then set('u', settings and stamp(now, 0) or meta.last) end
  if not settings then set('b', meta.last) end
  set('s', words)
  set('last', meta.last)
  read_settings()
  redis.call('PERSIST', G)
end

local function member(user)
  local value = redis.call('HGET', M, user)
  if not value then return end
  local role, notify, muted, read = string.match(value, '^(%d+) (%d+) (%d+) (%d+%-%d+)$')
  if not role then return end
  return { role = role, notify = notify, muted = muted, read = read }
end
local function keep(user, of)
  begin_writing()
  redis.call('HSET', M, user, table.concat({ of.role, of.notify, of.muted, of.read }, ' '))
  wrote = 1
end

-- Why a user may not send; nil if it may.
local function why_not(user)
  -- A service need not be a member.
  if settings and user >= 'ffffffffffff0000' then return end
  local of = settings and member(user)
  if not of then return 'not_a_member' end
  if tonumber(of.muted) > math.floor(now / 1000) or (settings.muted and of.role == '0') then return 'muted' end
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
  return { 'stored', id, 1, redis.call('HLEN', M), '0-0' }
end

-- `retry`: as for `find`; empty if the message was never stored. Without a user it is one of another store.
local function append(view, proposed, retry, user, message)
  local denial = user and why_not(user)
  if denial then return { 'denied', denial } end
  local found = retry ~= '' and find(proposed, retry, message)
  if found then return known(found) end
  if not claim(view) then return { 'stale' } end
  if no_memory then return { 'oom' } end
  if redis.call('XLEN', S) >= messages_max then
    tidy()
    local left = redis.call('XLEN', S)
    if left >= messages_max then
      -- A sixty-fourth goes besides, or each message to a full log would have to look for the oldest.
      local over = math.max(1, left + 1 - (messages_max - math.floor(messages_max / 64)))
      local upto, lower = nil, '-'
      while over > 0 do
        local entries = redis.call('XRANGE', S, lower, '+', 'COUNT', math.min(STEP, over))
        if #entries == 0 then break end
        over = over - #entries
        upto = entries[#entries][1]
        lower = '(' .. upto
      end
      if upto then dropped = dropped + truncate(upto) end
    end
  end
  -- What homes of an earlier version have passed on lies before this.
  if not meta.u then set('u', stamp(now, 0)) end
  -- Else one wrong clock would push the log to the end of all stamps.
  local latest = stamp(now + AHEAD_MS, 0)
  if above(proposed, latest) then proposed = latest end
  local id = after(meta.last)
  if above(proposed, id) then id = proposed end
  local before = last()
  redis.call('XADD', S, id, 'm', message)
  set('last', id)
  return { 'stored', id, 0, redis.call('HLEN', M), before }
end

-- Of an import: the part of an export that is put in, and up to where all of it came.
local part, came, came_further = nil, nil, false
local PARTS = 4

local function begin_part(name)
  part = name
  for of, upto in string.gmatch(meta.i or '', '(%S+) (%S+)') do
    if of == part then came = upto end
  end
end

-- A message of another store. What came with its part before is not stored again, whatever has become of it since.
local function import(proposed, message)
  if not settings then return { 'denied', 'no_group' } end
  if came and not above(proposed, came) then return known(proposed) end
  local answer = append(0, proposed, '0-0', nil, message)
  if part then came, came_further = proposed, true end
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

local passed = '0-0'
-- A message that is not stored. It does not have to wait for replicas that have what is noted of it: the node that has
-- passed it on knows better than a replica that took over, and tells it.
local function admit(user, proposed)
  local denial = why_not(user)
  if denial then return { 'denied', denial } end
  if settings then
    passed = highest(proposed, after(highest(meta.last, meta.u or stamp(now, 0))))
    meta.u = passed
    begin_writing()
    redis.call('HSET', G, 'u', passed)
  end
  return { 'admitted', redis.call('HLEN', M) }
end

-- What the node that asks was told before: the last position of a message that counts as stored, and the last that was
-- given to what is not. A log that ends before that has lost its end.
local function learn(stored, passed_on)
  if not settings then return end
  if above(stored, meta.last) then
    set('x', stored)
    -- Positions never go back: whoever has what is lost must not take another message for it.
    set('last', stored)
  end
  if above(passed_on, meta.u or stamp(now, 0)) then
    meta.u = passed_on
    begin_writing()
    redis.call('HSET', G, 'u', passed_on)
  end
end

local function join(view, user, words, added, create)
  local of = settings and member(user)
  if of then
    set('last', meta.last)
    return { 'joined', 0, last() }
  end
  if not settings and not create then return { 'denied', 'no_group' } end
  if settings and settings.join ~= '0' and not added then return { 'denied', 'not_open' } end
  local most = members_max
  if settings and settings.max > 0 and settings.max < most then most = settings.max end
  if redis.call('HLEN', M) >= most then return { 'denied', 'full' } end
  if not claim(view) then return { 'stale' } end
  if no_memory then return { 'oom' } end
  if not settings then begin('0 0 0 0') end
  redis.call('HSET', M, user, words .. ' 0-0')
  redis.call('ZADD', I, 0, user)
  set('last', meta.last)
  return { 'joined', 1, last() }
end

local function leave(view, user)
  if not claim(view) then return { 'stale' } end
  local of = settings and member(user)
  if settings then set('last', meta.last) end
  if not of then return { 'left', 0, last() } end
  redis.call('HDEL', M, user)
  redis.call('ZREM', I, user)
  redis.call('ZREM', R, digits(of.read) .. user)
  return { 'left', 1, last() }
end

local function info(kind, created)
  return { kind, created, meta.s, redis.call('HLEN', M), last() }
end

local function delete(view)
  if not claim(view) then return { 'stale' } end
  if not settings then return { 'deleted', 0, 0 } end
  local members = redis.call('HLEN', M)
  redis.call('UNLINK', S, M, I, R)
  redis.call('HDEL', G, 's', 'i')
  -- Positions of a group that is made anew lie behind those of this one.
  set('last', meta.last)
  set('floor', meta.last)
  meta.s, meta.i = nil, nil
  read_settings()
  redis.call('PEXPIRE', G, gone_ms)
  return { 'deleted', 1, members }
end

-- `seen`: up to there whoever asks has what there was. Redis has lost something of that if it was ever in the log. Who
-- has less than what is known to be lost is told once: a page that is whole ends behind it.
local function read(user, from, limit, payload_max, seen)
  if not settings then return { 'denied', user == '' and 'no_group' or 'not_a_member' } end
  if user ~= '' and not member(user) then return { 'denied', 'not_a_member' } end
  tidy()
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
  local is_lost = meta.u and above(seen, highest(meta.last, meta.u))
  local gap = meta.x and above(meta.x, from) and meta.x or '0-0'
  local truncated = (is_lost or gap ~= '0-0' or above(meta.floor, from)) and 1 or 0
  -- A copy of all there is begins where it does.
  local floor = user == '' and meta.floor or highest(meta.floor, gap)
  return { 'page', settings.ttl, floor, meta.last, complete, truncated, records, gap }
end

local function mark(user, upto)
  local of = settings and member(user)
  if not of then return end
  if above(upto, last()) then upto = last() end
  -- One that is told again is written again, so that replicas are asked for it: they may not have had it.
  if upto == '0-0' or above(of.read, upto) then return end
  begin_writing()
  redis.call('ZREM', R, digits(of.read) .. user)
  of.read = upto
  keep(user, of)
  redis.call('ZADD', R, 0, digits(upto) .. user)
end

local answers = {}
local at = 7
local function word()
  at = at + 1
  return ARGV[at - 1]
end
while at <= #ARGV do
  local what = word()
  local answer = { 'none' }
  if what == 'append' then
    local view, proposed, retry, user = tonumber(word()), word(), word(), word()
    answer = append(view, proposed, retry, user, word())
  elseif what == 'import' then
    local proposed, message = word(), word()
    answer = import(proposed, message)
  elseif what == 'part' then
    begin_part(word())
    answer = nil
  elseif what == 'floor' then
    -- Of a group that is imported: what is gone where it comes from is gone here.
    local upto = word()
    if settings and redis.call('XLEN', S) == 0 and above(upto, meta.floor) then
      set('floor', upto)
      if above(upto, meta.last) then set('last', upto) end
    end
  elseif what == 'known' then
    local stored = word()
    learn(stored, word())
    answer = nil
  elseif what == 'admit' then
    local user = word()
    answer = admit(user, word())
  elseif what == 'join' then
    local view, user, words, added = tonumber(word()), word(), word(), word() == '1'
    answer = join(view, user, words, added, word() == '1')
  elseif what == 'leave' then
    local view = tonumber(word())
    answer = leave(view, word())
  elseif what == 'change' then
    local user, role, muted, notify = word(), word(), word(), word()
    local of = settings and member(user)
    if not settings then
      answer = { 'denied', 'no_group' }
    elseif not of then
      answer = { 'denied', 'not_a_member' }
    else
      if role ~= '' then of.role = role end
      if muted ~= '' then of.muted = muted end
      if notify ~= '' then of.notify = notify end
      keep(user, of)
      answer = { 'member', of.role, of.notify, of.muted }
    end
  elseif what == 'put' then
    local created, words = settings and 0 or 1, word()
    if no_memory then
      answer = { 'oom' }
    else
      begin(words)
      answer = info('put', created)
    end
  elseif what == 'delete' then
    answer = delete(tonumber(word()))
  elseif what == 'get' then
    answer = settings and info('info', 0) or { 'denied', 'no_group' }
  elseif what == 'claim' then
    local view = tonumber(word())
    if view == 0 and no_memory then
      answer = { 'oom' }
    else
      answer = claim(view, true) and { 'claimed', last() } or { 'stale' }
    end
  elseif what == 'members' then
    local from, limit = word(), tonumber(word())
    if settings then
      local users = redis.call('ZRANGEBYLEX', I, '(' .. from, '+', 'LIMIT', 0, limit + 1)
      local list, more = {}, 0
      for i, user in ipairs(users) do
        if i > limit then
          more = 1
          break
        end
        local of = member(user)
        if of then list[#list + 1] = { user, of.role, of.notify, of.muted, of.read } end
      end
      answer = { 'members', more, list }
    else
      answer = { 'denied', 'no_group' }
    end
  elseif what == 'read' then
    local user, from, limit, bytes = word(), word(), tonumber(word()), tonumber(word())
    answer = read(user, from, limit, bytes, word())
  elseif what == 'mark' then
    local user = word()
    mark(user, word())
  elseif what == 'reads' then
    local upto = word()
    if not settings then
      answer = { 'denied', 'no_group' }
    else
      local members = redis.call('HLEN', M)
      local read = members
      if upto ~= '0-0' then read = redis.call('ZLEXCOUNT', R, '[' .. digits(upto), '+') end
      answer = { 'reads', read, members }
    end
  elseif what == 'look' then
    local of = settings and member(word())
    if of then answer = { 'membership', of.role, of.notify, of.muted, of.read, last() } end
  end
  if answer then answers[#answers + 1] = answer end
end

if came_further then keep_part() end
return { wrote, expired, dropped, answers, passed }
