"""How many threads compute: all that were asked for, and fewer while somebody else wants the cores. Pure.

llama.cpp's threads meet after every operation and wait for each other by spinning, which is fastest on a
quiet machine. Beside a busy neighbour they spin while the one that they wait for has no core: two threads on
two cores then do a tenth of what one does. What a computation took of the clock and of the processors tells
which of the two it is.
"""

WINDOW = 0.25
"""Seconds of computing that are judged together."""
MISSED = 0.5
"""Of a core: when its threads had so much less than they could have used, somebody else wants the cores."""
ALONE = 0.01
"""Of a computation, in which its first thread works alone and the others may sleep."""
NOISE = 0.1
"""Of a core, by which a measurement may be short of a whole one."""
FIRST_PAUSE, LONGEST_PAUSE = 4, 32
"""Until all are tried again, in what was computed when they were too many: at first, and after trial upon
trial that failed. Where steps are slow, so are trials."""
TRUSTED_AFTER = 10.0
"""Seconds of computing after which a trial that went well is no longer remembered."""


class Threads:
    """``now`` threads compute, of at most ``most``."""

    def __init__(self, most: int) -> None:
        self.most = self.now = most
        self._pause, self._until_trial, self._held = FIRST_PAUSE, 0.0, TRUSTED_AFTER
        self._wall = self._cpu = 0.0

    def took(self, wall: float, cpu: float) -> None:
        """A computation by ``now`` threads took so many seconds, and ``cpu`` of all processors together."""
        self._wall += wall
        self._cpu += cpu
        if self._wall < WINDOW:
            return
        seconds, cores = self._wall, self._cpu / self._wall + ALONE * (self.now - 1)
        self._wall = self._cpu = 0.0
        if self.now > 1 and cores < self.now - MISSED:
            self._give_up(cores, seconds)
        elif self.now < self.most:
            self._until_trial -= seconds
            if self._until_trial <= 0:
                self.now, self._held = self.most, 0.0
        else:
            self._held += seconds

    def _give_up(self, cores: float, seconds: float) -> None:
        """No more than ``cores`` were to be had in the last ``seconds``."""
        if self.now == self.most:
            failed_trial = self._held < TRUSTED_AFTER
            self._pause = min(2 * self._pause, LONGEST_PAUSE) if failed_trial else FIRST_PAUSE
        self.now = max(1, int(cores + NOISE))
        self._until_trial = self._pause * seconds
