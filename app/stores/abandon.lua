-- Give up what begin claimed. Answers 'orphan' when nothing refers to the photo: the claim is then kept,
-- so that the caller can delete the photo before anyone stores it again, and must call release. That holds
-- even if this request stored nothing: an earlier one may have, and crashed. The claim gets a new token,
-- so that a finish that was sent before and lands after is refused.
-- KEYS: idem, claim, refs, pending
-- ARGV: 1 token, 2 sha256, 3 claim ms
if redis.call('HGET', KEYS[1], 'token') == ARGV[1] and redis.call('HEXISTS', KEYS[1], 'id') == 0 then
  redis.call('DEL', KEYS[1])
end
local holder, given_up = redis.call('GET', KEYS[2]), ARGV[1] .. ':given-up'
if holder == given_up then return {'orphan', given_up} end
if holder ~= ARGV[1] then return {'lost'} end
if redis.call('SCARD', KEYS[3]) == 0 then
  redis.call('SET', KEYS[2], given_up, 'PX', ARGV[3])
  return {'orphan', given_up}
end
redis.call('DEL', KEYS[2])
redis.call('ZREM', KEYS[4], ARGV[2])
return {'released'}
