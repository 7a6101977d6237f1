"""What keeps texts in a file keeps them in a real PostgreSQL, too."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from postgres_server import postgres_server
from test_kept_texts import CANARY, check_store, ids, kept, put
from test_review_desk import check_crowd, check_desk

from shieldgate.errors import StoreFailed
from shieldgate.kept_texts.store import TextStore


@pytest.fixture(scope="module")
def place() -> Iterator[str]:
    with postgres_server() as url:
        yield url


def test_gateways_that_start_together_make_one_table(place: str) -> None:
    stores = [TextStore.at(place) for _ in range(4)]
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(TextStore.count, stores)) == [0] * 4
    for store in stores:
        store.close()


def test_a_server_keeps_finds_expires_shrinks_and_forgets(place: str) -> None:
    store = TextStore.at(place.replace("postgresql://", "postgres://"))
    check_store(store)
    assert store.forget("other") == 1
    put(store, *(kept(f"dec_{number}", prompt=CANARY) for number in range(450)))
    assert len(ids(store)) == 450
    store.forget("web")
    store.close()


def test_a_server_that_is_away_is_no_mistake_until_it_is_asked() -> None:
    store = TextStore.at("postgresql://nobody:hunter2@127.0.0.1:1/none")
    assert "hunter2" not in store.name
    with pytest.raises(StoreFailed, match="refused") as failed:
        store.count()
    assert "hunter2" not in str(failed.value)
    store.close()


def test_two_people_and_many_label_at_one_server(place: str) -> None:
    check_desk(place)
    check_crowd(place)
    store = TextStore.at(place)
    store.forget("web")
    store.close()
