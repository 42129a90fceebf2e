-- Makes varied requests for wrk: each has a different path, query and cookie.
-- The parts are made once and only joined for each request, so that wrk does not limit the rate.
-- Arguments: the number of the first request; the value of the Connection header (omitted: no such header).

local digits, number, head, tail = {}, 0, "", ""

function init(args)
   for n = 0, 999 do
      digits[n] = string.format("%03d", n)
   end
   number = tonumber(args[1])
   head = " HTTP/1.1\r\nHost: " .. wrk.host .. ":" .. wrk.port .. "\r\n"
      .. "User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0\r\n"
      .. "Accept: text/html,*/*;q=0.8\r\nAccept-Language: en\r\nAccept-Encoding: gzip, deflate\r\n"
      .. "Cookie: theme=dark; sid="
   tail = args[2] and "\r\nConnection: " .. args[2] .. "\r\n\r\n" or "\r\n\r\n"
end

function request()
   number = number + 1
   local low = digits[number % 1000]
   local middle = digits[math.floor(number / 1000) % 1000]
   local high = digits[math.floor(number / 1000000) % 1000]
   return "GET /items/" .. high .. middle .. low .. "?page=" .. low .. "&from=" .. middle .. high
      .. head .. high .. low .. middle .. tail
end
