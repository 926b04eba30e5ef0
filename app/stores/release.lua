-- The photo is deleted: let go of the claim that kept others from storing it meanwhile.
-- KEYS: claim, pending   ARGV: 1 token, 2 sha256, 3 '1' to leave it to the sweep to look once more
if redis.call('GET', KEYS[1]) == ARGV[1] then
  redis.call('DEL', KEYS[1])
  if ARGV[3] ~= '1' then redis.call('ZREM', KEYS[2], ARGV[2]) end
end
return {'released'}
