"""The file of keys: what it says, what is refused, and `shieldgate keys`."""

import hashlib
import re
from pathlib import Path

import pytest
from fakes import small_book
from structlog.testing import capture_logs
from typer.testing import CliRunner, Result

from shieldgate.access.keys import Key, LiveKeys, load_keys, new_key
from shieldgate.access.rate_limits import RateLimit
from shieldgate.cli.keys import app
from shieldgate.errors import ConfigurationError
from shieldgate.policy import PolicyBook

BOOK = small_book()
SECRET = "sg-canary-7b20"


def entry(name: str, secret: str = SECRET, *, profile: str = "default", **more: object) -> str:
    """Write a key as it stands in the file."""
    lines = [f"{name}:", f"  sha256: {hashlib.sha256(secret.encode()).hexdigest()!r}"]
    lines += [f"  {key}: {value}" for key, value in {"profile": profile, **more}.items()]
    return "\n".join(lines) + "\n"


def written(folder: Path, *entries: str) -> Path:
    file = folder / "keys.yaml"
    file.write_text("".join(entries))
    return file


def keys(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_a_key_is_found_by_its_digest_with_all_that_it_allows(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        entry("web", profile="strict", requests_per_minute=60, texts_per_minute=90, concurrent=3),
        entry("prometheus", "sg-other", admin="true"),
    )
    found = load_keys(file, BOOK)
    assert found.find(SECRET) == Key("web", "strict", RateLimit("web", 60, 90, concurrent=3))
    assert found.find("sg-other") == Key("prometheus", "default", RateLimit("prometheus"), True)
    assert found.profiles == {"strict": "web", "default": "prometheus"}


@pytest.mark.parametrize(
    "wrong", ["", "sg-", SECRET + " ", SECRET[:-1], SECRET.upper(), "\udc80", "sg-\u00e4"]
)
def test_any_other_word_is_no_key(tmp_path: Path, wrong: str) -> None:
    assert load_keys(written(tmp_path, entry("web")), BOOK).find(wrong) is None


def test_the_index_alone_admits_nobody(tmp_path: Path) -> None:
    digest = hashlib.sha256(SECRET.encode()).hexdigest()
    other = digest[:16] + "0" * 48
    file = written(tmp_path, entry("web").replace(digest, other))
    assert load_keys(file, BOOK).find(SECRET) is None


def test_keys_are_long_random_and_each_another() -> None:
    made = {new_key() for _ in range(100)}
    assert len(made) == 100
    assert all(re.fullmatch(r"sg-[A-Za-z0-9_-]{43}", key) for key in made)


@pytest.mark.parametrize(
    ("text", "line", "why"),
    [
        ("", 1, "must hold lines as"),
        ("- web\n", 1, "must hold lines as"),
        (f"web: {SECRET}\n", 1, "web: must hold lines as"),
        (f"web:\n  sha256: {SECRET}\n  profile: strict\n", 2, "sha256: must be the 64 hexa"),
        (f"web:\n  key: {SECRET}\n  profile: strict\n", 2, "unknown key; choose from: sha256"),
        (entry("web", profle="strict"), 4, "did you mean 'profile'"),
        (entry("web", profile="strct"), 3, "did you mean 'strict'"),
        (entry("web", concurrent=0), 4, "must be a whole number from 1"),
        (entry("web", concurrent="many"), 4, "must be a whole number from 1"),
        (entry("web", admin="maybe"), 4, "must be true or false"),
        (entry("web", explain="maybe"), 4, "must be true or false"),
        ("web:\n  profile: strict\n", 1, "'sha256' is missing"),
        (entry("web app"), 1, "a name has at most 64 letters"),
        (entry("web") + entry("again"), 5, "'web' has the same key"),
        ("web: [\n", 2, "not YAML"),
    ],
)
def test_a_bad_file_is_refused_with_place_and_mend_and_never_quoted(
    tmp_path: Path, text: str, line: int, why: str
) -> None:
    file = written(tmp_path, text)
    with pytest.raises(ConfigurationError) as refused:
        load_keys(file, BOOK)
    assert f"{file}:{line}: " in str(refused.value)
    assert why in str(refused.value)
    assert SECRET not in str(refused.value)
    assert hashlib.sha256(SECRET.encode()).hexdigest() not in str(refused.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="can't be read: No such file"):
        load_keys(tmp_path / "none.yaml", BOOK)


async def test_a_bad_file_at_reload_keeps_the_keys_that_were_in_force(tmp_path: Path) -> None:
    file = written(tmp_path, entry("web"))
    refused: list[bool] = []
    live = LiveKeys(file, lambda: BOOK, refused=refused.append)
    for bad in ("web: [", entry("web", "sg-new", profile="gone"), ""):
        file.write_text(bad)
        with capture_logs() as lines:
            await live.reload()
        assert [(line["event"], line["kept"]) for line in lines] == [("keys_refused", 1)]
        assert live.current.find(SECRET)
    file.write_text(entry("web", "sg-new"))
    await live.reload()
    assert live.current.find("sg-new")
    assert not live.current.find(SECRET)
    assert refused == [True, True, True, False]


def test_new_writes_lines_for_the_file_and_shows_the_key_beside_them(tmp_path: Path) -> None:
    made = [
        keys("new", "web-app", "--profile", "strict", "--concurrent", "3"),
        keys("new", "prometheus", "--admin", "--explain"),
    ]
    assert [result.exit_code for result in made] == [0, 0]
    file = written(tmp_path, *(result.stdout for result in made))
    found = load_keys(file, BOOK)
    secrets = [result.stderr.split()[-1] for result in made]
    assert found.find(secrets[0]) == Key("web-app", "strict", RateLimit("web-app", concurrent=3))
    assert found.find(secrets[1]) == Key(
        "prometheus", "default", RateLimit("prometheus"), True, True
    )
    assert not any(secret in file.read_text() for secret in secrets)
    checked = keys("check", file)
    assert (checked.exit_code, checked.output) == (0, f"{file}: 2 keys\n")


def test_a_name_that_the_file_could_not_hold_is_refused() -> None:
    result = keys("new", "my app")
    assert result.exit_code == 2
    assert result.stdout == ""


def test_check_names_every_problem(tmp_path: Path) -> None:
    result = keys("check", written(tmp_path, entry("web", profile="strct", concurrent=-1)))
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1  # what it can't read it can't look up
    result = keys("check", written(tmp_path, entry("a", profile="x"), entry("b", profile="y")))
    assert len(result.stderr.splitlines()) == 3


async def test_the_book_that_a_profile_is_looked_up_in_is_the_one_in_force(tmp_path: Path) -> None:
    file = written(tmp_path, entry("web", profile="strict"))
    small = PolicyBook(BOOK.policies, {"default": BOOK.profiles["default"]}, "small")
    books = [BOOK]
    live = LiveKeys(file, lambda: books[-1])
    books.append(small)
    await live.reload()
    assert live.current.find(SECRET)
    with pytest.raises(ConfigurationError):
        load_keys(file, small)
