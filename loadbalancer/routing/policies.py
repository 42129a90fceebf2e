"""Policies: each one small class that picks an upstream for a request."""

from collections.abc import Collection
from typing import Protocol

from loadbalancer.routing.upstream import Upstream


class Policy(Protocol):
    """Chooses among the upstreams that it was built over."""

    def pick(self, key: str, tried: Collection[Upstream] = ()) -> Upstream | None:
        """Choose the upstream of a request, or None when none is left.

        Args:
            key: What the request is hashed on; policies that do not hash ignore it.
            tried: Upstreams not to choose, because this request has failed on them.
        """
