"""`python -m loadbalancer` is the `loadbalancer` command."""

from loadbalancer.cli.commands import main

main()
