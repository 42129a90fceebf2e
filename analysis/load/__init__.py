"""The load generator: closed loop and open loop, on as many connections as it takes."""
