"""Delivery: from the training loop to the collector without ever getting in its way.

`Outbox.put` writes one frame to a local spool (`spool`); a background thread (`courier`) reads the spool, sends batches
to the sink (`http`, or a database in process) and deletes what was acknowledged. What a killed process left behind is
delivered by the next one (`leftovers`), what the collector refuses is kept (`quarantine`).
"""

from learnmech.probes.delivery.outbox import Outbox, Report

__all__ = ["Outbox", "Report"]
