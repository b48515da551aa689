"""From token bytes to text: no half characters, nothing of a stop string. Pure."""

import codecs
from collections.abc import Sequence


class TextStream:
    """Text that may be shown so far.

    Bytes of an unfinished UTF-8 character are held back, and so is any ending that may still grow
    into a stop string. Law: what ``push`` and ``flush`` returned, joined, is the decoded input up to
    the first stop string to be completed (the longest one when several end at once).
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stop = tuple(text for text in stop if text)
        self._held = ""
        self.stopped = False

    def push(self, piece: bytes) -> str:
        """Take a token's bytes; return the text that is now certain."""
        return self._take(self._decoder.decode(piece))

    def flush(self) -> str:
        """The rest, when nothing more will come. An unfinished character becomes U+FFFD."""
        text = self._take(self._decoder.decode(b"", final=True))
        if self.stopped:
            return text
        held, self._held = self._held, ""
        return text + held

    def _take(self, text: str) -> str:
        if self.stopped:
            return ""
        if not self._stop:
            return text
        shown = []
        # One character at a time, so that the first stop to be completed wins whatever the pieces are.
        for character in text:
            self._held += character
            matched = [stop for stop in self._stop if self._held.endswith(stop)]
            if matched:
                self.stopped = True
                shown.append(self._held[: -len(max(matched, key=len))])
                self._held = ""
                break
            keep = self._possible_start()
            shown.append(self._held[: len(self._held) - keep])
            self._held = self._held[len(self._held) - keep :]
        return "".join(shown)

    def _possible_start(self) -> int:
        """Length of the longest ending that is the beginning of a stop string."""
        longest = 0
        for stop in self._stop:
            for size in range(min(len(stop) - 1, len(self._held)), longest, -1):
                if self._held.endswith(stop[:size]):
                    longest = size
                    break
        return longest
