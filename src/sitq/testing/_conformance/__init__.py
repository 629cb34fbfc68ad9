"""`BackendConformance`: checks of any store against the protocol `Backend`."""

from __future__ import annotations

from sitq.testing._conformance._admin_calls import AdminCallChecks
from sitq.testing._conformance._bulk import BulkChecks, RetryChecks
from sitq.testing._conformance._cancelling import CancelChecks, ReadChecks
from sitq.testing._conformance._enqueueing import EnqueueChecks
from sitq.testing._conformance._finishing import FinishChecks
from sitq.testing._conformance._leases import LeaseChecks
from sitq.testing._conformance._listening import ListenChecks
from sitq.testing._conformance._listing_tasks import ListChecks
from sitq.testing._conformance._opening import OpenChecks
from sitq.testing._conformance._pausing import PauseChecks
from sitq.testing._conformance._reserving import ReserveChecks
from sitq.testing._conformance._sweeping import SweepChecks
from sitq.testing._conformance._unique_keys import UniqueKeyChecks
from sitq.testing._conformance._workers import AttemptChecks, WorkerChecks

__all__ = ["AdminBackendConformance", "BackendConformance"]


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

    Derive a class whose name begins with ``Test``, and override `make_backend`. Every check then
    runs on asyncio and on trio. Override what differs in the store:

    - `make_peer`, if two instances can share a store;
    - `wakes_peers`, if a change of one instance does not wake the other;
    - `keeps_tasks`, if the tasks are gone after the last `close`;
    - `tick`, if the store's moments are coarser than a microsecond;
    - `now` and `advance`, if the store judges by a server's clock.
    """


class AdminBackendConformance(
    AdminCallChecks,
    ListChecks,
    PauseChecks,
    BulkChecks,
    RetryChecks,
    WorkerChecks,
    AttemptChecks,
):
    """The checks that every `AdminBackend` passes, besides those of `BackendConformance`.

    They are used in the same way.
    """
