-- May this tenant call now? Both limits are looked at before either is charged: a refused request costs nothing.
-- By the second: the generic cell rate algorithm (ITU-T I.371, A.1), with a burst of one second's requests.
-- By the day: a count that ends at midnight UTC.
-- KEYS: rate, day
-- ARGV: 1 requests a second ('' for no limit), 2 burst, 3 requests a day ('' for no limit)
-- Returns: allowed or refused, the limit that is nearest, what is left of it, seconds until there is more.
local time = redis.call('TIME')
local now = time[1] + time[2] / 1e6
local midnight = time[1] - time[1] % 86400 + 86400
local nearest = nil

local function refused(limit, wait)
  return {'refused', tostring(limit), '0', string.format('%.3f', wait)}
end

local function allowed(limit, left, reset)
  if not nearest or left < tonumber(nearest[3]) then
    nearest = {'allowed', tostring(limit), tostring(left), string.format('%.3f', reset)}
  end
end

local per_day = tonumber(ARGV[3])
local used = 0
if per_day then
  used = tonumber(redis.call('GET', KEYS[2]) or '0')
  if used >= per_day then
    return refused(per_day, midnight - now)
  end
end

local per_second = tonumber(ARGV[1])
if per_second then
  local burst = tonumber(ARGV[2])
  local due = math.max(tonumber(redis.call('GET', KEYS[1]) or '0'), now) + 1 / per_second
  local wait = due - burst / per_second - now
  if wait > 0 then
    return refused(burst, wait)
  end
  redis.call('SET', KEYS[1], string.format('%.6f', due), 'PX', math.ceil((due - now) * 1000))
  allowed(burst, math.floor(-wait * per_second + 1e-6), due - now)
end

if per_day then
  redis.call('INCR', KEYS[2])
  redis.call('EXPIREAT', KEYS[2], midnight)
  allowed(per_day, per_day - used - 1, midnight - now)
end
return nearest
