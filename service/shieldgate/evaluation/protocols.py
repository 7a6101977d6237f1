"""How the ShieldGemma paper measured, and what it published."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from shieldgate.evaluation.datasets import Survey
from shieldgate.plural import counted


@dataclass(frozen=True, slots=True)
class HeadlineFigures:
    """Optimal F1, which is the best over all thresholds on the test rows, and AU-PRC."""

    optimal_f1: float
    au_prc: float


@dataclass(frozen=True, slots=True)
class Protocol:
    """One benchmark as arXiv 2407.21772 ran it: table 1 and its section on experiments.

    Texts are judged in the words of `template`, and with `as_response` each as a response to an
    empty question; an example's score is the maximum over `policies`. `digest` is the sha256 of
    the published file's content, `rows` and `harmful` are its counts (None: its authors don't
    say). `published` is keyed by the size of the model.
    """

    name: str
    title: str
    adapter: str
    policies: tuple[str, ...]
    as_response: bool
    template: str
    digest: str
    rows: int
    harmful: int | None
    published: Mapping[str, HeadlineFigures]

    def beside(
        self, scorer: str, survey: Survey, whole: bool, ours: HeadlineFigures | None
    ) -> list[str]:
        """Say in sentences how our figures stand beside the published ones.

        `scorer` is an identity's name. The difference is given only where the rows are the
        published ones: by their digest, and if `whole` says that all were scored. `ours` is None
        where it is undefined.
        """
        same = whole and survey.digest == self.digest and not survey.bad_count
        lines = [self._rows(survey, whole, same)]
        size = _size(scorer)
        if size is None:
            lines.append(
                f"{scorer} is not one of the models of the paper, which has no figures of it. "
                f"{self.title} there: {self._all()}."
            )
            return lines
        paper = self.published[size]
        line = f"ShieldGemma {size.upper()} in the paper: {_written(paper)}"
        if ours is None:
            line += "; ours: undefined"
        else:
            line += f"; ours: {_written(ours)}"
            if same:
                line += (
                    f"; difference {ours.optimal_f1 - paper.optimal_f1:+.3f}"
                    f"/{ours.au_prc - paper.au_prc:+.3f}"
                )
        return [*lines, line + "."]

    def _rows(self, survey: Survey, whole: bool, same: bool) -> str:
        if same:
            return f"The rows are those of {self.title} as published, by their digest."
        published = f"{counted(self.rows, 'row')}"
        if self.harmful is not None:
            published += f", {self.harmful:,} of them harmful"
        have = f"{counted(survey.rows, 'row')}, {survey.harmful[1]:,} of them harmful"
        scored = "" if whole else ", of which a part was scored"
        return (
            f"The rows are not those of {self.title} as published ({published}): this file has "
            f"{have}{scored}. The figures can't be compared to the digit."
        )

    def _all(self) -> str:
        return ", ".join(f"{size.upper()} {_written(f)}" for size, f in self.published.items())


PROTOCOLS: Mapping[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            name="openai-mod",
            title="OpenAI Mod",
            adapter="openai-mod",
            policies=(
                "openai/sexual",
                "openai/hate",
                "openai/violence",
                "openai/harassment",
                "openai/self-harm",
                "openai/sexual-minors",
                "openai/hate-threatening",
                "openai/violence-graphic",
            ),
            as_response=True,
            template="paper",
            # data/samples-1680.jsonl.gz of openai/moderation-api-release, decompressed.
            digest="f27c25f726fd0aa1b431118a68a4a6b9b5f0bb1ffd415f9767e9af59c4c422f4",
            rows=1680,
            harmful=522,
            published={
                "2b": HeadlineFigures(0.812, 0.887),
                "9b": HeadlineFigures(0.821, 0.907),
                "27b": HeadlineFigures(0.805, 0.886),
            },
        ),
        Protocol(
            name="toxicchat",
            title="ToxicChat",
            adapter="toxicchat",
            policies=(
                "shieldgemma/dangerous",
                "shieldgemma/harassment",
                "shieldgemma/hate",
                "shieldgemma/sexual",
                "shieldgemma/violence",
                "shieldgemma/profanity",
            ),
            as_response=False,
            template="paper",
            # data/0124/toxic-chat_annotation_test.csv of lmsys/toxic-chat.
            digest="3c2e49889626f7738dca0a29bface0ba0a0595b2ffdd17f0e02f19df7c3c4c9b",
            rows=5083,
            harmful=None,
            published={
                "2b": HeadlineFigures(0.704, 0.778),
                "9b": HeadlineFigures(0.694, 0.782),
                "27b": HeadlineFigures(0.729, 0.811),
            },
        ),
    )
}


def _written(figures: HeadlineFigures) -> str:
    return f"optimal F1 {figures.optimal_f1:.3f}, AU-PRC {figures.au_prc:.3f}"


def _size(scorer: str) -> str | None:
    """Tell by its name which published model a scorer is, if it is one."""
    found = re.fullmatch(r"(?:google/)?shieldgemma-(2b|9b|27b)@.*", scorer)
    return found[1] if found else None
