"""The book that holds policies and profiles, and finds them by name."""

import difflib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from shieldgate.drift import ScoreHistogram
from shieldgate.errors import UnknownName
from shieldgate.policy.model import Policy, Profile
from shieldgate.types import DIRECTIONS, Direction

# By the ratio of difflib: one letter too many, too few, wrong or swapped in six.
_NEAR = 0.7
_MODERATION_MODELS = ("omni-moderation", "text-moderation")


@dataclass(frozen=True, slots=True)
class Rules:
    """What an exchange is judged by: a profile and policies, out of one version of the book.

    Policies `beside` them are judged for a caller to see, and nothing follows from that.
    """

    book: str
    profile: Profile
    policies: tuple[Policy, ...]
    beside: tuple[Policy, ...] = ()


@dataclass(frozen=True, slots=True)
class PolicyBook:
    """All policies and profiles, as one immutable snapshot; `version` digests the content."""

    policies: Mapping[str, Policy]
    profiles: Mapping[str, Profile]
    version: str

    def expected_scores(self, scorer: str) -> dict[tuple[str, Direction], ScoreHistogram]:
        """Give the scores that are to be expected of a scorer, where that is known."""
        return {
            (policy.id, direction): fitted.scores
            for policy in self.policies.values()
            for direction in DIRECTIONS
            if (fitted := policy.calibration(scorer, direction)) and fitted.scores
        }

    def profile(self, name: str) -> Profile:
        """Look a profile up by name; raise UnknownName."""
        try:
            return self.profiles[name]
        except KeyError:
            raise UnknownName(_unknown("profile", name, self.profiles)) from None

    def meant(self, name: str | None, scorer: str) -> Profile | None:
        """Find the profile that a field `model` names; None where it names a model, or nothing.

        Such fields are for models first, and clients fill them in. Raises UnknownName for what is
        neither the `scorer` nor a model of OpenAI's, and so near to a profile's name that it was
        meant.
        """
        if name is None or name == scorer or name in self.profiles:
            return self.profiles.get(name or "")
        written = name.strip().lower()
        near = difflib.get_close_matches(written, self.profiles, 1, _NEAR)
        if near and not written.startswith(_MODERATION_MODELS):
            raise UnknownName(
                f"`model` names no profile; did you mean {near[0]!r}? Known: "
                f"{', '.join(sorted(self.profiles))}."
            )
        return None

    def rules(self, profile: Profile, asked: Sequence[str] = ()) -> Rules:
        """Put together what exchanges are judged by; raise UnknownName as `select` does."""
        return Rules(self.version, profile, self.select(profile, asked))

    def select(self, profile: Profile, asked: Sequence[str] = ()) -> tuple[Policy, ...]:
        """List the policies to judge: what was asked for, together with what is mandatory.

        Raises UnknownName, also where that makes no policy at all.
        """
        names = (*profile.policies, *asked)
        if not names:
            raise UnknownName(
                f"The profile {profile.name!r} has no policies and none was asked for, so there is "
                f"nothing to judge. Known: {', '.join(sorted(self.policies))}."
            )
        return self.find(names, profile.policies)

    def find(self, names: Iterable[str], near: Collection[str] = ()) -> tuple[Policy, ...]:
        """Look policies up, each once: by id, or by the part after the family where that is plain.

        Where several families have it, that of the ids `near` is meant. Raises UnknownName.
        """
        found = (self._policy(name, near) for name in names)
        return tuple({policy.id: policy for policy in found}.values())

    def _policy(self, name: str, near: Collection[str]) -> Policy:
        if name in self.policies:
            return self.policies[name]
        families = {id.partition("/")[0] for id in near}
        parts = {id: id.partition("/") for id in self.policies}
        ids = [id for id, (_, _, part) in parts.items() if part == name]
        ids = [id for id in ids if parts[id][0] in families] or ids
        if len(ids) > 1:
            raise UnknownName(
                f"Several policies are named {name!r}: {', '.join(ids)}. Name one by its whole id."
            )
        if not ids:
            short = (part for _, _, part in parts.values())
            raise UnknownName(_unknown("policy", name, self.policies, short))
        return self.policies[ids[0]]


def _unknown(kind: str, name: str, known: Iterable[str], short: Iterable[str] = ()) -> str:
    # What can't be a name may be a text in the wrong place.
    named = f"named {name!r}" if re.fullmatch(r"[\w./-]{1,80}", name) else "of that name"
    near = difflib.get_close_matches(name, [*known, *short], 1, _NEAR)
    meant = f" Did you mean {near[0]!r}?" if near else ""
    return f"There is no {kind} {named}.{meant} Known: {', '.join(sorted(known))}."
