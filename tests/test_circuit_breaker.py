"""What keeps failing is left alone for a while, and used again as soon as it works."""

from contextlib import nullcontext, suppress

import pytest

from shieldgate.circuit_breaker import CircuitBreaker, State


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def states() -> list[State]:
    return []


@pytest.fixture
def breaker(clock: Clock, states: list[State]) -> CircuitBreaker:
    return CircuitBreaker(
        failure_threshold=3, pause=1, longest_pause=5, changed=states.append, clock=clock
    )


def call(breaker: CircuitBreaker, error: BaseException | None = None) -> None:
    assert breaker.retry_after() == 0
    with suppress(type(error)) if error else nullcontext(), breaker.watch(OSError):
        if error:
            raise error


def broken(breaker: CircuitBreaker) -> CircuitBreaker:
    for _ in range(3):
        call(breaker, OSError())
    return breaker


def test_only_failures_in_a_row_open_it(breaker: CircuitBreaker, states: list[State]) -> None:
    for _ in range(5):
        call(breaker, OSError())
        call(breaker, OSError())
        call(breaker)
    assert states == []
    assert broken(breaker).retry_after() == 1
    assert states == ["open"]


def test_what_is_no_failure_is_not_counted(breaker: CircuitBreaker) -> None:
    for _ in range(5):
        call(breaker, KeyError())
        call(breaker, KeyboardInterrupt())
    assert breaker.state == "closed"


def test_one_call_probes_and_its_success_closes_it(
    breaker: CircuitBreaker, clock: Clock, states: list[State]
) -> None:
    broken(breaker)
    clock.now += 1
    assert breaker.retry_after() == 0
    with breaker.watch(OSError):
        assert breaker.retry_after() > 0, "while one probes, nobody else calls"
    assert breaker.retry_after() == 0
    assert states == ["open", "half_open", "closed"]
    call(breaker, OSError())
    assert breaker.state == "closed", "it counts from nothing again"


def test_probes_that_fail_come_less_and_less_often(breaker: CircuitBreaker, clock: Clock) -> None:
    broken(breaker)
    for pause in (1, 2, 4, 5, 5):
        assert breaker.retry_after() == pause
        clock.now += pause
        call(breaker, OSError())
    clock.now += 5
    call(breaker)
    assert broken(breaker).retry_after() == 1, "after a success, the pauses start anew"


def test_a_probe_that_tells_nothing_lets_the_next_one_probe(
    breaker: CircuitBreaker, clock: Clock
) -> None:
    broken(breaker)
    clock.now += 1
    call(breaker, KeyError())
    assert breaker.state == "open"
    call(breaker)
    assert breaker.state == "closed"


def test_a_probe_that_tells_nothing_opens_nothing_that_was_closed_meanwhile(
    breaker: CircuitBreaker, clock: Clock
) -> None:
    before = breaker.watch(OSError)
    before.__enter__()
    broken(breaker)
    clock.now += 1
    with suppress(KeyError), breaker.watch(OSError):
        before.__exit__(None, None, None)
        assert breaker.state == "closed"
        raise KeyError
    assert breaker.state == "closed"


def test_calls_from_before_may_close_it_but_not_prolong_its_pause(
    breaker: CircuitBreaker, clock: Clock
) -> None:
    with breaker.watch(OSError):
        with suppress(OSError), breaker.watch(OSError):
            broken(breaker)
            clock.now += 0.5
            raise OSError
        assert breaker.retry_after() == 0.5
    assert breaker.state == "closed"
