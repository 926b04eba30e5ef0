-- Give up what begin claimed. Answers 'orphan' when nothing refers to the photo: the claim is then kept,
-- so that the caller can delete the photo before anyone stores it again, and must call release. That holds
-- even if this request stored nothing: an earlier one may have, and crashed.
-- KEYS: idem, claim, refs, pending
-- ARGV: 1 token, 2 sha256, 3 claim ms
if redis.call('HGET', KEYS[1], 'token') == ARGV[1] and redis.call('HEXISTS', KEYS[1], 'id') == 0 then
  redis.call('DEL', KEYS[1])
end
if redis.call('GET', KEYS[2]) ~= ARGV[1] then return {'lost'} end
if redis.call('SCARD', KEYS[3]) == 0 then
  redis.call('PEXPIRE', KEYS[2], ARGV[3])
  return {'orphan'}
end
redis.call('DEL', KEYS[2])
redis.call('ZREM', KEYS[4], ARGV[2])
return {'released'}
