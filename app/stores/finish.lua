-- Everything an acknowledged result consists of, written at once or not at all.
-- KEYS: result, seen, claim, refs, pending, idem, diary, last tip, reviews
-- ARGV: 1 token, 2 id, 3 sha256, 4 model revision, 5 analysis ('' when reused), 6 dedupe ms,
--       7 fingerprint, 8 idempotency ms, 9 user ('' without), 10 '1' when a review is needed,
--       11 tip id, 12 result, 13 second tip id, 14 result with the second tip
local reused = ARGV[5] == ''
if redis.call('EXISTS', KEYS[1]) == 1 then return {'written', redis.call('GET', KEYS[1])} end
if reused then
  -- The first of its kind was deleted since: its photo may be gone, so this one must be stored and scored.
  if redis.call('HEXISTS', KEYS[2], ARGV[4]) == 0 then return {'gone'} end
elseif redis.call('GET', KEYS[3]) ~= ARGV[1] then
  return {'lost'}
end
local result = ARGV[12]
if ARGV[9] ~= '' and ARGV[11] ~= '' then
  local tip = ARGV[11]
  if redis.call('GET', KEYS[8]) == tip and ARGV[13] ~= '' then tip, result = ARGV[13], ARGV[14] end
  redis.call('SET', KEYS[8], tip)
end
redis.call('SET', KEYS[1], result)
redis.call('SADD', KEYS[4], ARGV[2])
if not reused then
  redis.call('HSET', KEYS[2], ARGV[4], ARGV[5])
  redis.call('PEXPIRE', KEYS[2], ARGV[6])
  redis.call('DEL', KEYS[3])
  redis.call('ZREM', KEYS[5], ARGV[3])
end
if ARGV[7] ~= '' then
  redis.call('HSET', KEYS[6], 'fingerprint', ARGV[7], 'id', ARGV[2])
  redis.call('PEXPIRE', KEYS[6], ARGV[8])
end
if ARGV[9] ~= '' then redis.call('ZADD', KEYS[7], 0, ARGV[2]) end
if ARGV[10] == '1' then redis.call('ZADD', KEYS[9], 0, ARGV[2]) end
return {'written', result}
