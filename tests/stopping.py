"""An observer that stops a run from outside."""

from __future__ import annotations

import os
import signal

from kdx.hookspecs import hookimpl


class Stop:
    """Sends a signal to this process after a step."""

    def __init__(self, step: int, number: int = signal.SIGTERM) -> None:
        self.step, self.number = step, number

    @hookimpl
    def kdx_step_end(self, step) -> None:
        if step == self.step:
            os.kill(os.getpid(), self.number)
