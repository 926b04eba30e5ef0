-- The photo is deleted: let go of the claim that kept others from storing it meanwhile.
-- KEYS: claim, pending   ARGV: 1 token, 2 sha256
if redis.call('GET', KEYS[1]) == ARGV[1] then
  redis.call('DEL', KEYS[1])
  redis.call('ZREM', KEYS[2], ARGV[2])
end
return {'released'}
