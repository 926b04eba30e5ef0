-- Put a tenant in the place of what was read of it, unless somebody else was faster.
-- KEYS: tenants   ARGV: 1 id, 2 the tenant as it was read, 3 as it shall be
local now = redis.call('HGET', KEYS[1], ARGV[1])
if not now then return {'missing'} end
if now ~= ARGV[2] and now ~= ARGV[3] then return {'stale'} end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
return {'written'}
