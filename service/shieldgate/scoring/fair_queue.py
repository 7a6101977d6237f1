"""A queue in which callers take turns, however much each of them has waiting."""

from collections import Counter, deque
from collections.abc import Collection, Iterator
from heapq import heapify, heappop, heapreplace
from typing import Generic, Protocol, TypeVar

from shieldgate.scoring import turn


class Sized(Protocol):
    """What waits: it has a caller, and a size in units of one's own."""

    @property
    def caller(self) -> str:
        """Name whose it is."""
        ...

    @property
    def size(self) -> int:
        """Tell how much of a budget it takes, which is more than 0."""
        ...


T = TypeVar("T", bound=Sized)


class FairQueue(Generic[T]):
    """Weighted fair queueing (Demers, Keshav and Shenker, 1989), all callers with the same weight.

    What waits leaves in the order in which it would be done if all callers were served at once,
    bit by bit. That is told by tags, as in start-time fair queueing (Goyal, Vin and Cheng, 1996):
    a caller who begins to wait starts at the virtual time, which is the start of what was taken
    last, and its share of it. So who has little waiting goes before who has much, also when it
    comes later; nobody starves, of however many who come once; and what is one caller's keeps its
    order. What is in the background (`turn.BACKGROUND`) leaves one by one, when nothing else waits.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, deque[T]] = {}
        self._sizes: Counter[str] = Counter()
        self._time = 0.0
        self._starts: dict[str, float] = {}  # in virtual time, of what is next of each caller
        self._background: deque[T] = deque()

    def __len__(self) -> int:
        """Count what waits."""
        return self.of_callers + len(self._background)

    def __iter__(self) -> Iterator[T]:
        """Iterate over what waits, caller by caller."""
        return (item for items in (*self._waiting.values(), self._background) for item in items)

    @property
    def of_callers(self) -> int:
        """Count what waits and is not in the background."""
        return sum(map(len, self._waiting.values()))

    def put(self, item: T) -> None:
        """Add to what waits, behind all that is its caller's."""
        caller = item.caller
        if caller == turn.BACKGROUND:
            self._background.append(item)
            return
        if caller not in self._waiting:
            self._waiting[caller] = deque()
            self._starts[caller] = max(self._starts.get(caller, 0.0), self._time)
        self._waiting[caller].append(item)
        self._sizes[caller] += item.size

    def take(self, budget: float) -> list[T]:
        """Take what is next, and what else fits the budget; nothing only where nothing waits.

        Of one caller it is no more than its share of the budget, which is the same for all who
        wait, or one item.
        """
        if self._background and not self._waiting:
            return [self._background.popleft()]
        taken: list[T] = []
        sizes: Counter[str] = Counter()
        rest, share = budget, budget / max(1, len(self._waiting))
        next_ones = [self._next(caller, n) for n, caller in enumerate(self._waiting)]
        heapify(next_ones)
        in_order = True
        while next_ones:
            _, place, caller = next_ones[0]
            size = self._waiting[caller][0].size
            too_much = caller in sizes and sizes[caller] + size > share
            if taken and (size > rest or too_much):
                heappop(next_ones)
                in_order = False
                continue
            taken.append(self._take_from(caller, in_order))
            sizes[caller] += size
            rest -= size
            if caller in self._waiting:
                heapreplace(next_ones, self._next(caller, place))
            else:
                heappop(next_ones)
        self._forget()
        return taken

    def drop(self, items: Collection[T]) -> None:
        """Take away what its callers no longer wait for."""
        gone = set(map(id, items))
        if any(item.caller == turn.BACKGROUND for item in items):
            self._background = deque(i for i in self._background if id(i) not in gone)
        for caller in {item.caller for item in items} & self._waiting.keys():
            kept = deque(item for item in self._waiting[caller] if id(item) not in gone)
            self._sizes[caller] = sum(item.size for item in kept)
            self._waiting[caller] = kept
            if not kept:
                del self._waiting[caller], self._sizes[caller]
        self._forget()

    def ahead(self, caller: str, size: int) -> int:
        """Tell how much will be taken before something of that size that its caller adds now."""
        mine = self._sizes[caller]
        return mine + sum(min(s, mine + size) for c, s in self._sizes.items() if c != caller)

    def _next(self, caller: str, place: int) -> tuple[float, int, str]:
        """Tell when a caller's first item would be done, in virtual time."""
        return self._starts[caller] + self._waiting[caller][0].size, place, caller

    def _take_from(self, caller: str, in_order: bool) -> T:
        callers = len(self._waiting)
        item = self._waiting[caller].popleft()
        # What only fills a pass up, before its turn, puts no newcomer further back.
        if in_order:
            self._time = max(self._time, self._starts[caller] + item.size / callers)
        self._starts[caller] += item.size
        self._sizes[caller] -= item.size
        if not self._waiting[caller]:
            del self._waiting[caller], self._sizes[caller]
        return item

    def _forget(self) -> None:
        """Forget callers who have nothing waiting and no more than their share behind them."""
        if not self._waiting:
            self._starts.clear()
            self._time = 0.0
        elif len(self._starts) > 2 * len(self._waiting):
            self._starts = {
                caller: start
                for caller, start in self._starts.items()
                if caller in self._waiting or start > self._time
            }
