"""Callers take turns: whoever has little waiting is served soon, and nobody starves."""

import random
from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shieldgate.scoring.fair_queue import FairQueue


@dataclass(frozen=True, eq=False)
class Item:
    caller: str
    size: int
    number: int = 0


def queue_of(*items: Item) -> FairQueue[Item]:
    queue: FairQueue[Item] = FairQueue()
    for item in items:
        queue.put(item)
    return queue


def flood(caller: str = "flood", count: int = 300, size: int = 2000) -> list[Item]:
    return [Item(caller, size, n) for n in range(count)]


@pytest.mark.parametrize("floods", [1, 2, 7])
def test_who_has_little_is_in_the_next_pass_however_much_others_have(floods: int) -> None:
    queue = queue_of(*(item for n in range(floods) for item in flood(f"flood-{n}")))
    for _ in range(50):  # wherever they are in their round
        queue.take(2000)
        small = Item("small", 200)  # less than its share, of which it sends one a pass
        queue.put(small)
        assert queue.take(2000)[0] is small


def test_of_one_caller_a_pass_takes_no_more_than_its_share_while_others_wait() -> None:
    queue = queue_of(*flood("one", size=100), *flood("other", size=100), Item("small", 50))
    taken = Counter[str]()
    for item in queue.take(3000):
        taken[item.caller] += item.size
    assert taken == {"one": 1000, "other": 1000, "small": 50}
    queue.drop([item for item in queue if item.caller == "other"])
    assert len(queue.take(3000)) == 30, "alone, it has all"


def test_a_piece_over_the_budget_goes_alone() -> None:
    queue = queue_of(Item("long", 900), Item("small", 100))
    assert [[item.size for item in queue.take(500)] for _ in range(3)] == [[100], [900], []]


def test_callers_with_as_much_get_as_much_whatever_the_size_of_their_pieces() -> None:
    queue = queue_of(*flood("coarse", size=1500), *flood("fine", count=6000, size=75))
    taken = Counter[str]()
    for _ in range(200):
        for item in queue.take(2000):
            taken[item.caller] += item.size
    assert abs(taken["coarse"] - taken["fine"]) <= 3000


def test_callers_who_never_came_before_starve_nobody() -> None:
    """As with connections that are used once."""
    waiting = Item("long", 2000)
    queue = queue_of(waiting)
    for n in range(50):
        queue.put(Item(f"new-{n}", 300))
        if waiting in queue.take(300):
            assert n < 20
            return
    raise AssertionError("it never had its turn")


def test_what_nobody_waits_for_any_more_is_in_nobodys_way() -> None:
    gone, kept = flood("flood", 5), Item("flood", 7)
    queue = queue_of(*gone, kept, Item("small", 300))
    assert queue.ahead("small", 100) == 300 + 400
    queue.drop(gone)
    assert len(queue) == 2
    assert queue.ahead("small", 100) == 300 + 7
    assert {item.size for item in queue.take(1000)} == {7, 300}
    assert not queue._starts, "nobody is remembered for ever"


ITEMS = st.lists(st.tuples(st.sampled_from("abcde"), st.integers(1, 2000)), max_size=60)


@given(ITEMS, st.lists(st.integers(1, 5000), min_size=1, max_size=8), st.integers())
def test_whatever_comes_all_is_served_in_its_order_and_within_the_budget(
    given_items: list[tuple[str, int]], budgets: list[int], seed: int
) -> None:
    chance = random.Random(seed)
    items = [Item(caller, size, n) for n, (caller, size) in enumerate(given_items)]
    queue: FairQueue[Item] = FairQueue()
    served: list[Item] = []
    dropped: set[Item] = set()
    coming = iter(items)
    exhausted = False
    while not exhausted or len(queue):
        for _ in range(chance.randint(0, 6)):
            if (item := next(coming, None)) is None:
                exhausted = True
                break
            queue.put(item)
        waiting = list(queue)
        if waiting and chance.random() < 0.2:
            gone = chance.sample(waiting, 1)
            queue.drop(gone)
            dropped.update(gone)
            waiting = list(queue)
        budget = budgets[len(served) % len(budgets)]
        taken = queue.take(budget)
        assert bool(taken) == bool(waiting), "it is never idle while something waits"
        assert len(taken) <= 1 or sum(item.size for item in taken) <= budget
        callers = {item.caller for item in waiting}
        for caller in callers:
            sizes = [item.size for item in taken if item.caller == caller]
            assert len(sizes) <= 1 or sum(sizes) <= budget / len(callers)
        served += taken
    assert Counter(served) + Counter(dropped) == Counter(items)
    for caller in "abcde":
        numbers = [item.number for item in served if item.caller == caller]
        assert numbers == sorted(numbers)


@given(
    st.lists(st.integers(1, 2000), min_size=1, max_size=6),
    st.integers(1, 300),
    st.integers(0, 40),
    st.integers(1, 4000),
)
@example([1, 1, 58, 82, 82, 91], 70, 6, 95)
def test_passes_before_ones_own_begin_with_as_much_of_each_other_and_a_piece_and_a_pass(
    sizes: list[int], mine: int, passes: int, budget: int
) -> None:
    """However much the others have; what fills up a pass, where one's own doesn't fit, is free."""
    queue = queue_of(*(i for n, s in enumerate(sizes) for i in flood(str(n), 400, s)))
    for _ in range(passes):
        queue.take(budget)
    own = Item("mine", mine)
    queue.put(own)
    before = Counter[str]()
    while own not in (taken := queue.take(budget)):
        before[taken[0].caller] += taken[0].size
    assert max(before.values(), default=0) <= mine + 2 * max(sizes) + budget
