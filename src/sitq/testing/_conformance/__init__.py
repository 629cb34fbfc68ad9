"""`BackendConformance`: the `Backend` port as checks that any store can be held to."""

from __future__ import annotations

from sitq.testing._conformance._cancelling import CancelChecks, ReadChecks
from sitq.testing._conformance._enqueueing import EnqueueChecks
from sitq.testing._conformance._finishing import FinishChecks
from sitq.testing._conformance._leases import LeaseChecks
from sitq.testing._conformance._listening import ListenChecks
from sitq.testing._conformance._opening import OpenChecks
from sitq.testing._conformance._reserving import ReserveChecks
from sitq.testing._conformance._sweeping import SweepChecks
from sitq.testing._conformance._unique_keys import UniqueKeyChecks

__all__ = ["BackendConformance"]


class BackendConformance(
    EnqueueChecks,
    UniqueKeyChecks,
    ReserveChecks,
    FinishChecks,
    SweepChecks,
    CancelChecks,
    ReadChecks,
    LeaseChecks,
    ListenChecks,
    OpenChecks,
):
    """The checks that every backend passes, for pytest with anyio's plugin.

    Derive a class whose name begins with ``Test`` and say in `make_backend` how a backend on an
    empty store is made. Every check then runs on asyncio and on trio. A store that two instances
    can share overrides `make_peer`, and one whose instances cannot wake each other says so in
    `wakes_peers`; one that forgets its tasks when it is closed says so in `keeps_tasks`; one
    whose moments are coarser than a microsecond says so in `tick`; one that judges by a server's
    time overrides `now` and `advance` too.
    """
