-- One round trip before any work: is this request known (Idempotency-Key), is this photo known (dedupe)?
-- If neither, this request claims the photo, so that two identical photos at once are scored once.
-- KEYS: idem, seen, claim, pending
-- ARGV: 1 token, 2 fingerprint ('' without an Idempotency-Key), 3 model revision, 4 sha256, 5 claim ms
local token, fingerprint = ARGV[1], ARGV[2]
if fingerprint ~= '' then
  local held = redis.call('HMGET', KEYS[1], 'fingerprint', 'id', 'token')
  if held[1] then
    if held[1] ~= fingerprint then return {'reused'} end
    if held[2] then return {'replay', held[2]} end
    if held[3] ~= token then return {'in_flight', tostring(redis.call('PTTL', KEYS[1]))} end
  else
    redis.call('HSET', KEYS[1], 'fingerprint', fingerprint, 'token', token)
    redis.call('PEXPIRE', KEYS[1], ARGV[5])
  end
end
local seen = redis.call('HGET', KEYS[2], ARGV[3])
if seen then return {'seen', seen} end
local holder = redis.call('GET', KEYS[3])
if holder and holder ~= token then return {'busy'} end
redis.call('SET', KEYS[3], token, 'PX', ARGV[5])
local now = redis.call('TIME')
redis.call('ZADD', KEYS[4], now[1], ARGV[4])
return {'claimed'}
