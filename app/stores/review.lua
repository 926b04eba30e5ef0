-- Replace a result by its reviewed form, take it off the review queue, and put it last among the labels.
-- Its place there is the server's clock in microseconds, raised where that is not past the last one's: no two
-- labels share a place, and what is reviewed while somebody reads page by page always comes on a later page.
-- KEYS: result, reviews, labels   ARGV: 1 id, 2 reviewed result
local before = redis.call('GET', KEYS[1])
if not before then return {'missing'} end
if before == ARGV[2] then return {'written'} end
local now = redis.call('TIME')
local place = now[1] * 1000000 + now[2]
local last = redis.call('ZRANGE', KEYS[3], -1, -1, 'WITHSCORES')[2]
if last and tonumber(last) >= place then place = tonumber(last) + 1 end
redis.call('SET', KEYS[1], ARGV[2])
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('ZADD', KEYS[3], string.format('%.0f', place), ARGV[1])
return {'written'}
