-- Sweep: take a photo whose claim ran out (its process died) and that no result refers to.
-- KEYS: claim, refs, pending   ARGV: 1 token, 2 sha256, 3 claim ms
if redis.call('EXISTS', KEYS[1]) == 1 then return {'busy'} end
if redis.call('SCARD', KEYS[2]) > 0 then
  redis.call('ZREM', KEYS[3], ARGV[2])
  return {'kept'}
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[3])
return {'orphan'}
