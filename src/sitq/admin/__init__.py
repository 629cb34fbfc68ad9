"""`Admin` and `SyncAdmin`: look into a store, and steer its tasks, queues and workers."""

from __future__ import annotations

from sitq.admin._admin import Admin
from sitq.admin._sync import SyncAdmin

__all__ = ["Admin", "SyncAdmin"]
