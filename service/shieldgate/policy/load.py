"""Policy files in, a PolicyBook out; all problems at once, each with its place and its mend."""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from shieldgate.drift import ScoreHistogram
from shieldgate.errors import PolicyError
from shieldgate.openai.categories import CATEGORIES
from shieldgate.policy.book import PolicyBook
from shieldgate.policy.model import Calibration, Passages, Policy, Profile, Streaming
from shieldgate.policy.schema import (
    CalibrationEntry,
    FileEntry,
    PassagesEntry,
    PolicyEntry,
    ProfileEntry,
    ScoresEntry,
    StreamingEntry,
)
from shieldgate.types import Direction
from shieldgate.yaml_document import Document, Location, reason, suggest

SUFFIXES = (".yaml", ".yml")

# So many names that name nothing are compared with all there are, to say which was meant: a file
# can hold thousands of both.
_SUGGESTIONS = 20


def shipped_policies() -> Path:
    """Find the directory of the policy files that come with shieldgate."""
    package = Path(__file__).parents[1]
    installed = package / "shipped_policies"
    return installed if installed.is_dir() else package.parents[1] / "policies"


def policy_files(path: Path) -> list[Path]:
    """List the files of the book at `path`: itself, or a directory's YAML in the order of names.

    Raises PolicyError where a directory can't be read or holds none.
    """
    try:
        if not path.is_dir():
            return [path]
        # Hidden names are editors' temporary files and the inner links of a Kubernetes ConfigMap.
        files = sorted(
            file
            for file in path.iterdir()
            if file.suffix in SUFFIXES and not file.name.startswith(".")
        )
    except OSError as refused:
        raise PolicyError(
            f"{path}: can't be read: {refused.strerror}; check the path and its permissions"
        ) from refused
    if not files:
        raise PolicyError(
            f"{path}: the directory holds no *.yaml or *.yml; "
            "'shieldgate policies init DIR' writes files to start from"
        )
    return files


def book_of(file: Path) -> Path:
    """Find the book that a policy file belongs to: the file where it is whole, else its folder.

    Other YAML may lie beside a file that is a book by itself. Raises PolicyError where it is no
    file.
    """
    if not file.is_file():
        raise PolicyError(f"{file}: there is no file of that name.")
    try:
        load_book(file)
    except PolicyError:
        return file.parent
    return file


@dataclass(frozen=True, slots=True)
class Draft:
    """A policy file that is not written yet.

    It stands for the file of that name in the book, or beside the files where none has it. Without
    a name it is the whole book.
    """

    text: str
    file: str | None = None


def load_book(path: Path | None = None, draft: Draft | None = None) -> PolicyBook:
    """Read a policy file, or a directory of them; None means the shipped ones.

    What is given is the whole book: nothing is added to it but a `draft`. Raises PolicyError with
    one line for each problem: `file:line: key: value: why; mend`.
    """
    return _book(_read(_documents(path or shipped_policies(), draft)))


def load_texts(path: Path) -> dict[str, str]:
    """Read what the files of a book say, by their names; raise PolicyError where it is none.

    A file that leads to something else is never shown: it is no policy file.
    """
    documents = _documents(path, None)
    _read(documents)
    return {document.path.name: document.text or "" for document in documents}


def _documents(path: Path, draft: Draft | None) -> list[Document]:
    if draft and draft.file is None:
        return [Document(Path("draft.yaml"), draft.text)]
    documents = {file.name: Document(file) for file in policy_files(path)}
    if draft and draft.file:
        if draft.file not in documents and not path.is_dir():
            raise PolicyError(
                f"{path.name} is the whole book, and no file beside it is read; draft that, or "
                "give a directory as the book"
            )
        documents[draft.file] = Document(Path(draft.file), draft.text)
    return list(documents.values())


def _read(documents: Sequence[Document]) -> list[FileEntry]:
    """Read documents that make a book together; raise PolicyError."""
    for document in documents:
        document.read()
    entries = [entry for document in documents if (entry := _validated(document))]
    _check_names(documents)
    problems = [problem for document in documents for problem in document.problems]
    if problems:
        raise PolicyError("\n".join(map(str, problems)), problems)
    return entries


def _book(entries: Sequence[FileEntry]) -> PolicyBook:
    policies = {
        f"{entry.family}/{name}": policy
        for entry in entries
        for name, policy in entry.policies.items()
    }
    profiles = {name: profile for entry in entries for name, profile in entry.profiles.items()}
    return PolicyBook(
        policies={id: _policy(id, entry) for id, entry in policies.items()},
        profiles={name: _profile(name, entry) for name, entry in profiles.items()},
        version=_digest(policies, profiles),
    )


def define_policy(
    id: str, guideline: str, *, response: str | None = None, threshold: float = 0.5
) -> Policy:
    """Make a policy of a guideline, such as '"No Spam": The prompt shall not advertise.'.

    `id` is 'family/name'. `response` words it for answers of a model, where it reads differently.
    `threshold` is the probability from which on the policy is violated. Raises PolicyError where a
    policy file could not say the same.
    """
    family, _, name = str(id).partition("/")
    entry = {
        "title": str(id),
        "guideline": {
            "prompt": guideline,
            "response": guideline if response is None else response,
        },
        "threshold": threshold,
    }
    try:
        file = FileEntry.model_validate({"family": family, "policies": {name: entry}})
    except ValidationError as refused:
        # Once, where the same is wrong for both directions.
        said = dict.fromkeys(_refused(id, e) for e in refused.errors(include_url=False))
        raise PolicyError("\n".join(said)) from None
    if id in CATEGORIES:
        raise PolicyError(f"{id!r} is an OpenAI category; rename the policy")
    return _policy(id, file.policies[name])


def _refused(id: str, error: ErrorDetails) -> str:
    """Say what is wrong with a policy that is made in a program."""
    match error["loc"]:
        case ("policies", _, ("guideline" | "threshold") as what, *_):
            return f"The {what} of {id!r} {_why(error)}"
        case _:
            return f"The id {id!r} is not one such as 'acme/spam': its halves {_why(error)}"


def _validated(document: Document) -> FileEntry | None:
    if not document.readable:
        return None
    if not isinstance(document.content, dict):
        document.refuse((), "a policy file holds 'family' and 'policies', or 'profiles'; add them")
        return None
    if "policies" in document.content and "family" not in document.content:
        document.refuse(("policies",), "'family' is missing; add a line such as 'family: acme'")
    try:
        return FileEntry.model_validate(document.content)
    except ValidationError as refused:
        for error in refused.errors(include_url=False, include_input=False):
            at = error["loc"]
            why = _why(error)
            # What is like no key of ours may be a line of another file, which a link leads to.
            foreign = error["type"] == "extra_forbidden" and not why.endswith("?")
            at = at[:-1] if at[-1:] == ("[key]",) else at
            document.refuse(at, why, quote=not foreign)
        return None


def _why(error: ErrorDetails) -> str:
    if error["type"] == "too_short":
        return "is empty, and would let everything pass; list at least one"
    return reason(error, _schema(error["loc"][:-1]).model_fields)


_PARTS: Mapping[str, type[BaseModel]] = {
    "streaming": StreamingEntry,
    "passages": PassagesEntry,
    "scores": ScoresEntry,
}


def _schema(parents: Sequence[str | int]) -> type[BaseModel]:
    match parents:
        case []:
            return FileEntry
        case ["policies", _]:
            return PolicyEntry
        case ["profiles", _]:
            return ProfileEntry
        case [*_, "streaming" | "passages" | "scores" as part]:
            return _PARTS[part]
        case _:
            return CalibrationEntry


def _check_names(documents: Sequence[Document]) -> None:
    """Refuse names that stand twice, that are OpenAI's, or that name nothing."""
    policies: dict[str, str] = {}
    profiles: dict[str, str] = {}

    def declare(names: dict[str, str], name: str, document: Document, at: Location) -> None:
        if name in names:
            document.refuse(at, f"{name!r} stands at {names[name]} already; rename one of them")
        names[name] = f"{document.path}:{document.places[at].line}"

    complete = True
    for document in documents:
        family = document.written(("family",))
        complete &= document.readable and (("policies",) not in document.places or bool(family))
        for at in document.places:
            match at:
                case ("policies", str(name)) if family:
                    declare(policies, f"{family}/{name}", document, at)
                    if f"{family}/{name}" in CATEGORIES:
                        document.refuse(at, "this id is an OpenAI category; rename the policy")
                case ("profiles", str(name)):
                    declare(profiles, name, document, at)
    # Else what seems to be missing may stand where it could not be read.
    if complete:
        _check_references(documents, policies, profiles)


def _check_references(
    documents: Sequence[Document], policies: Collection[str], profiles: Collection[str]
) -> None:
    suggested = 0
    for document in documents:
        for at, place in document.places.items():
            match at:
                case ("profiles", _, "policies", int()):
                    id = place.written
                case ("profiles", _, "thresholds" | "max_thresholds", str(key)):
                    id = key
                case _:
                    continue
            if id in policies:
                continue
            if suggested < _SUGGESTIONS:
                document.refuse(at, f"no such policy; {suggest(id, policies)}")
                suggested += 1
            else:
                document.refuse(at, "no such policy; the first ones say which there are")
    if "default" not in profiles:
        holder = next((d for d in documents if ("profiles",) in d.places), documents[-1])
        holder.refuse(
            ("profiles",), "no profile is named 'default'; add it for callers who name none"
        )


def _policy(id: str, entry: PolicyEntry) -> Policy:
    return Policy(
        id=id,
        title=entry.title,
        guidelines=entry.guideline,
        thresholds=entry.threshold,
        openai=tuple(entry.openai),
        calibrations={
            (scorer, direction): _calibration(fitted)
            for scorer, by_direction in entry.calibrated.items()
            for direction, fitted in by_direction.items()
        },
    )


def _calibration(entry: CalibrationEntry) -> Calibration:
    scores = None
    if said := entry.scores:
        scores = ScoreHistogram(said.lowest, tuple(said.counts), said.of)
    return Calibration(entry.threshold, entry.temperature, entry.bias, entry.provenance, scores)


def _profile(name: str, entry: ProfileEntry) -> Profile:
    fields = dict(entry) | {
        "policies": tuple(entry.policies),
        "thresholds": _by_key(entry.thresholds),
        "max_thresholds": _by_key(entry.max_thresholds),
        "streaming": Streaming(**dict(entry.streaming)),
        "passages": _passages(entry.passages),
    }
    return Profile(name, **fields)


def _passages(entry: PassagesEntry | None) -> Passages | None:
    return Passages(entry.size, entry.handicap, tuple(entry.scorers)) if entry else None


def _by_key(
    thresholds: Mapping[str, Mapping[Direction, float]],
) -> dict[tuple[str, Direction], float]:
    return {
        (id, direction): threshold
        for id, by_direction in thresholds.items()
        for direction, threshold in by_direction.items()
    }


def _digest(*parts: Mapping[str, BaseModel]) -> str:
    """Digest what the files say, whatever their names, order, comments and layout."""
    content = [
        {key: entry.model_dump(mode="json") for key, entry in part.items()} for part in parts
    ]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
