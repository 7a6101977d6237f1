"""Words that are no words are read as those that they were made of, if that is no accident."""

import pytest

from shieldgate.english import is_sentence, is_word, plain_words, rejoined


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


@pytest.mark.parametrize(
    ("texts", "read"),
    [
        (["bake the br", "ead of rye"], "bake the bread of rye"),
        (["br", "ea", "d", "and", "but", "ter"], "bread|and|butter"),
        (["we ba", "k", "e it"], "we bake it"),
        (["B", "R", "EAD"], "BREAD"),
        # Words that are some by themselves, and letters that make none.
        (["they come in a", "way and", "out a", "gain"], "they come in a|way and|out a|gain"),
        (["bake qx", "zv"], "bake qx|zv"),
        (["br ", "ead"], "br |ead"),
        (["", "br", "", "ead"], "|br||ead"),
        (["x" * 40 + "br", "ead"], "x" * 40 + "br|ead"),
        ([], ""),
    ],
)
def test_a_word_that_is_cut_between_texts_is_whole(texts: list[str], read: str) -> None:
    assert rejoined(texts, "|") == read


def test_sentences_are_full_of_frequent_words() -> None:
    assert is_sentence("I will find you and break your legs")
    for words in ("for for in in for in a", "crust oven butter rye flour salt", "I will find you"):
        assert not is_sentence(words)
