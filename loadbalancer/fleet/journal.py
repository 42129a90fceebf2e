"""The journal: passes each event of a replica's life to the log, the event stream and the metrics."""

import structlog

from loadbalancer.fleet.replica import Replica
from loadbalancer.telemetry.events import EventStream
from loadbalancer.telemetry.metrics import Metrics

_LEVELS = {"down": "warning", "missed": "warning"}


class Journal:
    """Records the events of the fleet (see `fleet.Observer`).

    Args:
        events: The event stream of `/lb/events`.
        metrics: The metrics, which count missed heartbeats and replacements.
    """

    def __init__(self, events: EventStream, metrics: Metrics) -> None:
        self._events = events
        self._metrics = metrics
        self._log = structlog.get_logger("loadbalancer.fleet")

    def replica_event(self, event: str, replica: Replica, reason: str | None = None) -> None:
        """Record an event.

        Args:
            event: `adopted`, `starting`, `up`, `missed`, `ejected`, `readmitted`, `down`, `explained`,
                `draining` or `gone`.
            replica: The replica, in its new state.
            reason: The reason of a failure, in words.
        """
        if event == "missed":
            self._metrics.heartbeats_missed.inc()
        elif event == "starting" and replica.restarts:
            self._metrics.replacements.inc()
        elif event == "gone":
            self._metrics.forget(replica.hostname)
        instance = replica.instance
        record: dict[str, object] = {
            "replica": replica.hostname,
            "number": replica.number,
            "state": replica.state.value,
            "address": instance.address if instance else None,
            "id": instance.id[:12] if instance else None,
            "reason": reason,
        }
        self._events.publish({"event": event, **record})
        getattr(self._log, _LEVELS.get(event, "info"))(
            f"replica {event}", **{key: value for key, value in record.items() if value is not None}
        )
