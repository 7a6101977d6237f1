"""The screen of `shieldgate review`: a text, a question, and one key for an answer."""

import os
import re
import select
import signal
import sys
import termios
import tty
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import FrameType

from rich.console import Console
from rich.text import Text

from shieldgate.policy import Policy
from shieldgate.review.session import Question, Session
from shieldgate.review.shown import parts, plain

_ENTER = "\x1b[?1049h\x1b[?25l"  # the other screen, which leaves nothing behind; no cursor
_LEAVE = "\x1b[?25h\x1b[?1049l"
_REDRAW = "\x1b[H\x1b[2J"

_KEY = re.compile(rb"\x1b(?:\[[0-9;?]*[@-~]|O.)?|[\s\S]")
_FORWARD = (b" ", b"\x1b[6~", b"\x1b[B", b"\x1b[C")
_BACK = (b"b", b"\x1b[5~", b"\x1b[A", b"\x1b[D", b"\x7f")
_RESIZE_SECONDS = 0.5
_LEAST = 20

_END = (Text("That was the last one.", "bold cyan"), Text("u undo   q quit", "bold"))
_HELP = "y violates it   n does not   a nor any that follow   s skip   u undo   q quit"


@dataclass(slots=True)
class Screen:
    """Shows a session's questions one after another, until the last one or a wish to stop.

    `shows_scores` shows what the scorer said, which sways the one who labels.
    """

    session: Session
    policies: Mapping[str, Policy]
    name: str
    shows_scores: bool = False
    _page: int = 0

    def run(self) -> None:
        """Ask until `q`; raise ConfigurationError where an answer can't be saved."""
        with _keys() as read:
            self._draw()
            while all(map(self._take, read())):
                self._draw()

    def _take(self, key: bytes) -> bool:
        """Do what a key says; tell whether to go on."""
        session = self.session
        steps: dict[bytes, Callable[[], None]] = {
            b"y": partial(session.answer, 1),
            b"n": partial(session.answer, 0),
            b"a": partial(session.answer_rest, 0),
            b"s": partial(session.answer, None),
            b"u": session.undo,
        }
        if step := steps.get(key.lower()):
            self._turned(step)
        elif key in _FORWARD:
            self._page += 1
        elif key in _BACK:
            self._page -= 1
        return key.lower() not in (b"q", b"")

    def _turned(self, step: Callable[[], None]) -> None:
        """Take a step, and begin at the top of what is another text."""
        before = self.session.question
        step()
        after = self.session.question
        if before is None or after is None or before.item != after.item:
            self._page = 0

    def _draw(self) -> None:
        console = Console(highlight=False, markup=False, emoji=False)
        width = max(console.width, _LEAST)
        question = self.session.question
        foot = self._below(question, console, width) if question else list(_END)
        lines = _wrapped(self._texts(question) if question else (), console, width)
        room = max(1, console.height - len(foot) - 3)
        pages = max(1, -(-len(lines) // room))
        self._page = max(0, min(self._page, pages - 1))
        at = f"text {question.item + 1:,}" if question else "all"
        head = Text(f"{at} of {self.session.texts:,}", "bold")
        if pages > 1:
            head.append(f"   page {self._page + 1} of {pages}: space, b", "bold yellow")
        head.append(f"   labels in {self.name}: {self.session.labels:,}", "dim")
        line = Text("─" * width, "dim")
        page = lines[self._page * room : (self._page + 1) * room]
        # The question stays where it is, whatever the text.
        page += [Text("")] * (room - len(page))
        sys.stdout.write(_REDRAW)
        for shown in (head, line, *page, line, *foot[:-1]):
            console.print(shown, no_wrap=True, overflow="crop", crop=True)
        console.print(foot[-1], no_wrap=True, overflow="crop", crop=True, end="")
        sys.stdout.flush()

    def _texts(self, question: Question) -> Iterator[Text]:
        exchange = question.text.exchange
        if exchange.response is None:
            yield _shown(exchange.prompt)
            return
        yield Text("The prompt, for context", "dim")
        yield _shown(exchange.prompt)
        yield Text("")
        yield Text("The answer, which is judged", "dim")
        yield _shown(exchange.response)

    def _below(self, question: Question, console: Console, width: int) -> list[Text]:
        policy = self.policies[question.policy]
        title = Text(policy.title, "bold cyan")
        title.append(f"   {policy.id}", "dim")
        if len(question.text.asked) > 1:
            title.append(f"   {question.place + 1} of {len(question.text.asked)}", "dim")
        guideline = Text(plain(policy.guidelines[question.text.exchange.direction]))
        words = list(guideline.wrap(console, width))
        if len(words) > (most := max(1, console.height // 3)):
            words = [*words[: most - 1], Text("…")]
        said = [Text(self._said(question), "dim")] if self.shows_scores else []
        rest = _wrapped([*said, Text(_HELP, "bold")], console, width)
        return [*_wrapped([title], console, width), *words, *rest]

    def _said(self, question: Question) -> str:
        candidate = next(c for c in question.text.candidates if question.policy in c.asked)
        judged = {j.policy: j for j in candidate.text.judgements}[question.policy]
        why = ", ".join(candidate.chosen.why)
        return (
            f"probability {judged.probability:.3f}, threshold {judged.threshold:g}; chosen: {why}"
        )


def _wrapped(texts: Iterable[Text], console: Console, width: int) -> list[Text]:
    return [line for text in texts for line in text.wrap(console, width)]


def _shown(text: str) -> Text:
    shown = Text()
    for part, is_escaped in parts(text):
        shown.append(part, "reverse" if is_escaped else "")
    return shown


@contextmanager
def _keys() -> Iterator[Callable[[], list[bytes]]]:
    """Take the terminal; gives what waits for keys, or for a window of another size."""
    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)

    def stop(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

    stopped = {n: signal.signal(n, stop) for n in (signal.SIGTERM, signal.SIGHUP)}

    def read() -> list[bytes]:
        size = os.get_terminal_size(terminal)
        while not select.select([terminal], [], [], _RESIZE_SECONDS)[0]:
            if os.get_terminal_size(terminal) != size:
                return []
        given = os.read(terminal, 1024)
        return _KEY.findall(given) or [b""]

    try:
        tty.setcbreak(terminal)
        # Ctrl-Z would leave the terminal as it is now.
        now = termios.tcgetattr(terminal)
        now[6][termios.VSUSP] = b"\0"
        termios.tcsetattr(terminal, termios.TCSANOW, now)
        sys.stdout.write(_ENTER)
        yield read
    finally:
        sys.stdout.write(_LEAVE)
        sys.stdout.flush()
        termios.tcsetattr(terminal, termios.TCSAFLUSH, before)
        for number, handler in stopped.items():
            signal.signal(number, handler)
