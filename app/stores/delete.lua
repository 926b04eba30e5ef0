-- Delete one result. Answers 'last' when nothing refers to its photo any more: the caller then holds the
-- claim, deletes the photo and calls release. 'kept': others refer to it, or a scorer is at work on it.
-- KEYS: result, refs, seen, claim, pending, diary, reviews
-- ARGV: 1 id, 2 sha256, 3 token, 4 claim ms
if redis.call('DEL', KEYS[1]) == 0 then
  -- The same call, sent again because its answer was lost, must get that answer.
  if redis.call('GET', KEYS[4]) == ARGV[3] then return {'last'} end
  return {'missing'}
end
redis.call('ZREM', KEYS[6], ARGV[1])
redis.call('ZREM', KEYS[7], ARGV[1])
redis.call('SREM', KEYS[2], ARGV[1])
-- A later duplicate must never name, or be reused from, a result that is gone.
redis.call('DEL', KEYS[3])
if redis.call('SCARD', KEYS[2]) > 0 then return {'kept'} end
if not redis.call('SET', KEYS[4], ARGV[3], 'NX', 'PX', ARGV[4]) then return {'kept'} end
local now = redis.call('TIME')
redis.call('ZADD', KEYS[5], now[1], ARGV[2])
return {'last'}
