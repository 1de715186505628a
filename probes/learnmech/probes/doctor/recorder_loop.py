"""A loop with a `Recorder`: its probes and its sink are replaced, its updates are counted."""

from typing import Any

from learnmech.probes.doctor.session import Session, Stop
from learnmech.probes.probes import probe_set
from learnmech.probes.recorder import Recorder


def intercept(session: Session) -> None:
    """Make every `Recorder` of this process one of the dry run."""
    init, enter, after_step, close = Recorder.__init__, Recorder.__enter__, Recorder.after_step, Recorder.close

    def dry_init(self: Recorder, model: Any, optimizer: Any, loss_fn: Any, probes: Any = None, **settings: Any) -> None:
        own = None if probes is None else probe_set(probes)
        session.facts |= {"budget": settings.get("budget"), "accumulation": settings.get("accumulation")}
        tried = own if session.alone else session.try_out(own)
        init(self, model, optimizer, loss_fn, tried, **settings | {"sink": session.sink, "strict": False})
        self._doctor_sees = (model, optimizer)  # type: ignore[attr-defined]  # for __enter__, in this process only

    def dry_enter(self: Recorder) -> Recorder:
        if session.over:
            raise Stop
        if not session.alone:
            enter(self)
        model, optimizer = self._doctor_sees  # type: ignore[attr-defined]  # set in __init__
        session.begin(model, [optimizer], trainer=session.facts.get("trainer", "a loop with Recorder"))
        return self

    def dry_after_step(self: Recorder, batch: Any, loss: Any = None) -> None:
        after_step(self, batch, loss)
        try:
            session.updated()
        except Stop as stop:
            self.close(stop)  # not every loop has a `with`
            raise

    def dry_close(self: Recorder, error: BaseException | None = None, timeout: float = 5.0) -> None:
        close(self, error, timeout)
        if not session.over and (error is None or isinstance(error, Stop)):
            session.finish()
            if error is None:  # the loop has ended by itself: what comes after it is no part of a dry run
                raise Stop

    for name, function in (
        ("__init__", dry_init),
        ("__enter__", dry_enter),
        ("after_step", dry_after_step),
        ("close", dry_close),
    ):
        setattr(Recorder, name, function)
