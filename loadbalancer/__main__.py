"""`python -m loadbalancer` is the `loadbalancer` command."""

from loadbalancer.cli import main

main()
