-- Sweep: take a photo whose claim ran out (its process died) and that no result refers to. 'done': another
-- sweep was first.
-- KEYS: claim, refs, pending   ARGV: 1 token, 2 sha256, 3 claim ms
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return {'busy'} end
if not redis.call('ZSCORE', KEYS[3], ARGV[2]) then return {'done'} end
if redis.call('SCARD', KEYS[2]) > 0 then
  redis.call('ZREM', KEYS[3], ARGV[2])
  return {'kept'}
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[3])
return {'orphan'}
