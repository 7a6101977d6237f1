"""Words that are no words are read as those that they were made of, if that is no accident."""

import pytest

from shieldgate.english import is_word, plain_words


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("youarebakingbreadagain.", "you are baking bread again."),
        ("yo ua re ba ki ng br ea d", "you are baking bread"),
        ("br ead an d but ter fo r din ner", "bread and butter for dinner"),
        ("b-read and bu-tter for din-ner", "bread and butter for dinner"),
        ("daerb dna rettub rof rennid", "dinner for butter and bread"),
        ("bbrreeaadd aanndd bbuutttteerr", "bread and butter"),
        ("braed and btuter for dnnier", "bread and butter for dinner"),
        ("wll fnd brd bttr", "will find bird better"),
        ("br*ad and b*tter for d*nner", "brad and better for dinner"),
        ("oernq naq ohggre sbe qvaare", "bread and butter for dinner"),
    ],
)
def test_words_in_disguise_are_read_as_what_they_were(text: str, read: str) -> None:
    assert plain_words(text) == read


@pytest.mark.parametrize(
    "text",
    [
        "Sooo good, I told teh boss.",
        "Donaudampfschifffahrtsgesellschaft and Geschwindigkeitsbegrenzung",
        "abcdefghijklmnopqrstuvwxyz",
        "Kuala Lumpur, Addis Ababa, Antananarivo, Ouagadougou",
        "Le chat est sur la table et il mange du pain avec beaucoup de beurre.",
        "it is up to me to do it or no to go on as we do in it",
    ],
)
def test_what_is_no_disguise_stays_as_it_is(text: str) -> None:
    assert plain_words(text) == text


def test_a_long_run_is_parted_where_its_words_end() -> None:
    said = "you are baking bread again and again with flour and water " * 20
    assert plain_words(said.replace(" ", "")) == said.strip()
    unknown = "qwkjzx" * 40
    assert plain_words(unknown) == unknown
    assert "again with flour" in plain_words(unknown + said.replace(" ", ""))


def test_benign_words_around_hide_no_disguise() -> None:
    around = "Flour, water and salt make bread. " * 40
    assert "dinner for butter and bread" in plain_words(
        f"{around}daerb dna rettub rof rennid {around}"
    )


def test_words_are_known_in_any_case() -> None:
    assert all(map(is_word, ("bread", "Bread", "BREAD")))
    assert not any(map(is_word, ("", "brd", "bread!")))
