-- Delete one result, in two calls when its photo goes with it. The first answers 'photo' when nothing else
-- refers to the photo: the caller then holds the claim, deletes the photo, and calls again to say so. Until
-- then the result stays, so that a deletion that fails half-way can be asked for again.
-- Else: 'deleted', others refer to the photo; 'busy', somebody is at work on it, ask again; 'missing'.
-- KEYS: result, refs, seen, claim, pending, diary, reviews, labels
-- ARGV: 1 id, 2 sha256, 3 token, 4 claim ms, 5 '1' when the photo is gone
local function erase()
  redis.call('DEL', KEYS[1])
  redis.call('ZREM', KEYS[6], ARGV[1])
  redis.call('ZREM', KEYS[7], ARGV[1])
  redis.call('ZREM', KEYS[8], ARGV[1])
  redis.call('SREM', KEYS[2], ARGV[1])
  -- A later duplicate must never name, or be reused from, a result that is gone.
  redis.call('DEL', KEYS[3])
  return {'deleted'}
end
local holder = redis.call('GET', KEYS[4])
if ARGV[5] == '1' then
  if holder == ARGV[3] then
    redis.call('DEL', KEYS[4])
    redis.call('ZREM', KEYS[5], ARGV[2])
  end
  return erase()
end
if redis.call('EXISTS', KEYS[1]) == 0 then return {'missing'} end
if redis.call('SCARD', KEYS[2]) - redis.call('SISMEMBER', KEYS[2], ARGV[1]) > 0 then return erase() end
if holder and holder ~= ARGV[3] then return {'busy'} end
redis.call('SET', KEYS[4], ARGV[3], 'PX', ARGV[4])
redis.call('DEL', KEYS[3])
local now = redis.call('TIME')
redis.call('ZADD', KEYS[5], now[1], ARGV[2])
return {'photo'}
