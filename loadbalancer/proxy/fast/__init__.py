"""The fast lane: HTTP/1.1 on uvloop and httptools, one small protocol class for each side."""
