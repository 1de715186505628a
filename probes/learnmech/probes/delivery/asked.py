"""Hearing from acknowledgements that somebody, somewhere else, asked for a measurement now."""

from collections.abc import Callable

from learnmech.probes.delivery.notices import Notices
from learnmech.wire import Ack


class Asked:
    """Passes a request on, once, however often acknowledgements repeat it; in the courier's thread.

    A process is one attempt, and is told of requests of this attempt alone: nothing that was asked before it began
    reaches it, and nothing that is asked before its first acknowledgement is lost.
    """

    def __init__(self, answer: Callable[[], None] | None, notices: Notices) -> None:
        """Begin.

        Args:
            answer: What to call when a measurement is asked for; None: nobody listens.
            notices: Where to put messages for people.
        """
        self.listens = answer is not None
        self._answer = answer
        self._notices = notices
        self._heard = 0

    def deafen(self) -> None:
        """Listen no more: the training has made its last step."""
        self._answer = None

    def hear(self, ack: Ack) -> None:
        """Look whether an acknowledgement of this process's own batch carries a request that is new."""
        # 0 says nothing: an older collector beside a newer one does not take back what that one told.
        if self._answer is None or not ack.asked:
            return
        new, self._heard = ack.asked != self._heard, ack.asked  # in order: a smaller number is another database's
        if not new:
            return
        try:
            self._answer()
        except Exception as error:  # noqa: BLE001 (what was delivered is delivered, whatever the listener does)
            self._notices.note("asked", f"a measurement was asked for, and passing that on failed: {error!r}")
