"""The command line: the commands, the sources of options, and a client of a running load balancer."""
