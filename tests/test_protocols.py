"""The paper's figures stand beside ours; a difference only where rows and model are the same."""

from collections import Counter
from dataclasses import replace

import pytest

from shieldgate.evaluation.adapters import ADAPTERS
from shieldgate.evaluation.datasets import Survey
from shieldgate.evaluation.protocols import PROTOCOLS, HeadlineFigures
from shieldgate.policy import load_book
from shieldgate.prompt import TEMPLATES

OPENAI = PROTOCOLS["openai-mod"]
PUBLISHED = Survey(
    digest=OPENAI.digest,
    rows=1680,
    responses=1680,
    harmful=Counter({1: 522, 0: 1158}),
    labels={},
    duplicates=0,
    bad_count=0,
    bad=(),
)
OURS = HeadlineFigures(0.800, 0.900)


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=lambda p: p.name)
def test_a_protocol_names_policies_template_and_adapter_that_there_are(protocol):
    assert set(protocol.policies) <= set(load_book().policies)
    assert protocol.adapter in ADAPTERS
    assert not protocol.as_response or TEMPLATES[protocol.template].for_response
    assert set(protocol.published) == {"2b", "9b", "27b"}


def test_the_paper_judged_openai_mod_by_eight_policies_and_toxicchat_by_six():
    assert len(OPENAI.policies) == 8
    assert OPENAI.as_response
    assert len(PROTOCOLS["toxicchat"].policies) == 6
    assert not PROTOCOLS["toxicchat"].as_response


def test_a_published_model_on_the_published_rows_is_compared_to_the_digit():
    rows, figures = OPENAI.beside("google/shieldgemma-2b@0123", PUBLISHED, True, OURS)
    assert rows == "The rows are those of OpenAI Mod as published, by their digest."
    assert figures == (
        "ShieldGemma 2B in the paper: optimal F1 0.812, AU-PRC 0.887; "
        "ours: optimal F1 0.800, AU-PRC 0.900; difference -0.012/+0.013."
    )


@pytest.mark.parametrize(
    ("survey", "whole", "said"),
    [
        (
            replace(PUBLISHED, digest="other", rows=1559, harmful=Counter({1: 401})),
            True,
            "(1,680 rows, 522 of them harmful): this file has 1,559 rows, 401 of them harmful. ",
        ),
        (PUBLISHED, False, "1,680 rows, 522 of them harmful, of which a part was scored. "),
        (replace(PUBLISHED, bad_count=1, rows=1679), True, "this file has 1,679 rows, "),
    ],
)
def test_other_rows_are_said_to_be_others_and_get_no_difference(survey, whole, said):
    rows, figures = OPENAI.beside("google/shieldgemma-9b@0123", survey, whole, OURS)
    assert rows.startswith("The rows are not those of OpenAI Mod as published (1,680 rows, ")
    assert said in rows
    assert "ShieldGemma 9B in the paper: optimal F1 0.821, AU-PRC 0.907; ours: " in figures
    assert "difference" not in figures


@pytest.mark.parametrize("scorer", ["starter@01", "my/shieldgemma-2b@01", "shieldgemma-2b-it@01"])
def test_a_model_that_was_not_published_is_said_to_be_none(scorer):
    _, figures = OPENAI.beside(scorer, PUBLISHED, True, OURS)
    assert figures.startswith(f"{scorer} is not one of the models of the paper")
    assert "difference" not in figures


def test_undefined_figures_are_undefined():
    _, figures = OPENAI.beside("shieldgemma-27b@01", PUBLISHED, True, None)
    assert figures.endswith("AU-PRC 0.886; ours: undefined.")
