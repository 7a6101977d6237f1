"""Policy files in, a book out, or every problem with its place."""

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from shieldgate.errors import PolicyError
from shieldgate.openai.categories import CATEGORIES
from shieldgate.policy import (
    Calibration,
    Passages,
    PolicyBook,
    Profile,
    Streaming,
    decide,
    load_book,
    policy_files,
    shipped_policies,
)
from shieldgate.types import DIRECTIONS, Action, Direction, Score

BOOK = """\
family: acme

policies:
  spam:
    title: Spam
    openai: [illicit]
    threshold: 0.4
    guideline:
      prompt: No spam in prompts.
      response: No spam in answers.

profiles:
  default:
    policies: [acme/spam]
"""

CALIBRATIONS = st.dictionaries(
    st.sampled_from(DIRECTIONS),
    st.builds(
        Calibration,
        st.floats(0, 1, exclude_min=True),
        st.floats(0.1, 5),
        st.floats(-3, 3),
    ),
)
load_shipped = cache(load_book)

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write one file, or several, into a directory, and give the directory."""

    def write(*texts: str) -> Path:
        for name, text in zip("abc", texts, strict=False):
            (tmp_path / f"{name}.yaml").write_text(text, encoding="utf-8")
        return tmp_path

    return write


def problems(path: Path) -> list[str]:
    """The problems of a book, with the directory's name left out."""
    with pytest.raises(PolicyError) as refused:
        load_book(path)
    return [line.removeprefix(f"{path}{os.sep}") for line in str(refused.value).splitlines()]


# The shipped book


GUIDELINES = {
    "shieldgemma/dangerous": (
        "No Dangerous Content",
        "harming oneself and/or others (e.g., accessing or building firearms and explosive "
        "devices, promotion of terrorism, instructions for suicide).",
    ),
    "shieldgemma/harassment": (
        "No Harassment",
        "is malicious, intimidating, bullying, or abusive content targeting another "
        "individual (e.g., physical threats, denial of tragic events, disparaging victims of "
        "violence).",
    ),
    "shieldgemma/hate": (
        "No Hate Speech",
        "targeting identity and/or protected attributes (e.g., racial slurs, promotion of "
        "discrimination, calls to violence against protected groups) or "
        "dehumanizing/belittling/vilifying on the bases of race, ethnicity, religion, "
        "disability, age, nationality, veteran status, sexual orientation, gender, gender "
        "identity, caste, or any other protected status. We do allow content that includes a "
        "reference to a protected individual or group in a positive manner.",
    ),
    "shieldgemma/sexual": (
        "No Sexually Explicit Information",
        "contains references to sexual acts or other lewd content (e.g., sexually graphic "
        "descriptions, content aimed at causing arousal). Medical or scientific terms related"
        " to human anatomy or sex education are permitted.",
    ),
    "shieldgemma/violence": (
        "No Violence",
        "is shocking, sensational, or gratuitous (e.g. Violent acts or incidents that result "
        "in extreme injury or death without historical or educational context; Exposed "
        "internal organs or bones without medical or scientific context; Identifiable victims"
        " of violent deaths; Animal abuse or killings outside of standard hunting, food "
        "processing, or cultural practices)",
    ),
    "shieldgemma/profanity": (
        "No Obscenity and Profanity",
        "is vulgar, profane, or inappropriate (e.g., profanity, obscenities, or other "
        "inappropriate language).",
    ),
}

DEFINITIONS = {
    "openai/sexual": (
        "No Sexual",
        "Content meant to arouse sexual excitement, such as the description of sexual "
        "activity, or that promotes sexual services (excluding sex education and wellness).",
    ),
    "openai/hate": (
        "No Hate Speech",
        "Content that expresses, incites, or promotes hate based on race, gender, ethnicity, "
        "religion, nationality, sexual orientation, disability status, or caste.",
    ),
    "openai/violence": (
        "No Violence",
        "Content that promotes or glorifies violence or celebrates the suffering or "
        "humiliation of others.",
    ),
    "openai/harassment": (
        "No Harassment",
        "Content that may be used to torment or annoy individuals in real life, or make "
        "harassment more likely to occur.",
    ),
    "openai/self-harm": (
        "No Self-Harm",
        "Content that promotes, encourages, or depicts acts of self-harm, such as suicide, "
        "cutting, and eating disorders.",
    ),
    "openai/sexual-minors": (
        "No Sexual/Minors",
        "Sexual content that includes an individual who is under 18 years old.",
    ),
    "openai/hate-threatening": (
        "No Hate/Threatening",
        "Hateful content that also includes violence or serious harm towards the targeted group.",
    ),
    "openai/violence-graphic": (
        "No Violence/Graphic",
        "Violent content that depicts death, violence, or serious physical injury in extreme "
        "graphic detail.",
    ),
}


@pytest.fixture(scope="module")
def shipped() -> PolicyBook:
    return load_book()


@pytest.mark.parametrize("id", GUIDELINES)
def test_shieldgemmas_guidelines_are_the_published_ones_byte_for_byte(id: str, shipped: PolicyBook):
    title, harm = GUIDELINES[id]
    asked = f'"{title}": The prompt shall not contain or seek generation of content that {harm}'
    answered = f'"{title}": The chatbot shall not generate content that {harm}'
    assert shipped.policies[id].guidelines == {"prompt": asked, "response": answered}


@pytest.mark.parametrize("id", DEFINITIONS)
def test_openais_guidelines_are_the_definitions_of_its_dataset(id: str, shipped: PolicyBook):
    title, definition = DEFINITIONS[id]
    harm = definition[0].lower() + definition[1:]
    asked = f'"{title}": The prompt shall not contain or seek generation of {harm}'
    answered = f'"{title}": The chatbot shall not generate {harm}'
    assert shipped.policies[id].guidelines == {"prompt": asked, "response": answered}


def test_each_policy_of_openais_stands_for_its_own_category(shipped: PolicyBook):
    for id in DEFINITIONS:
        (category,) = shipped.policies[id].openai
        assert category.replace("/", "-") == id.removeprefix("openai/")


def test_the_shipped_book_holds_fourteen_policies_at_one_half(shipped: PolicyBook):
    assert shipped.policies.keys() == GUIDELINES.keys() | DEFINITIONS.keys()
    for policy in shipped.policies.values():
        assert policy.thresholds == {"prompt": 0.5, "response": 0.5}


def test_default_blocks_the_four_harms_of_the_model_card_and_fails_closed(shipped: PolicyBook):
    default = shipped.profiles["default"]
    assert default.policies == tuple(GUIDELINES)[:4]
    assert default.mode == "enforce"
    assert default.on_failure == {"prompt": "closed", "response": "closed"}


def test_default_spells_out_what_holds_where_a_profile_says_nothing(shipped: PolicyBook):
    default = shipped.profiles["default"]
    assert default == Profile("default", default.policies, default.description)


def test_strict_blocks_all_six_below_their_thresholds_in_both_directions(shipped: PolicyBook):
    strict = shipped.profiles["strict"]
    assert strict.policies == tuple(GUIDELINES)
    assert strict.mode == "enforce"
    assert strict.on_failure == {"prompt": "closed", "response": "closed"}
    assert strict.history == "all"
    both = {(p, d) for p in GUIDELINES for d in ("prompt", "response")}
    assert strict.max_thresholds.keys() == both
    assert max(strict.max_thresholds.values()) < 0.5
    assert strict.thresholds == {}


@given(
    fitted=st.dictionaries(st.sampled_from(sorted(GUIDELINES)), CALIBRATIONS),
    margin=st.floats(-20, 20),
)
def test_strict_is_nowhere_laxer_than_default_whatever_is_calibrated(
    fitted: dict[str, dict[Direction, Calibration]], margin: float
):
    shipped = load_shipped()
    default, strict = shipped.profiles["default"], shipped.profiles["strict"]
    for id in default.policies:
        own = {("s@1", way): found for way, found in fitted.get(id, {}).items()}
        policy = replace(shipped.policies[id], calibrations=own)
        for direction in DIRECTIONS:
            scores = [(policy, Score(margin))]
            actions = [decide(p, scores, direction, "s@1").action for p in (default, strict)]
            assert actions != [Action.BLOCKED, Action.ALLOWED]
            assert strict.threshold(policy, direction, "s@1") <= min(
                0.3, default.threshold(policy, direction, "s@1")
            )


def test_strict_is_nowhere_laxer_than_default_for_the_scorers_that_were_calibrated(
    shipped: PolicyBook,
):
    default, strict = shipped.profiles["default"], shipped.profiles["strict"]
    for id in default.policies:
        policy = shipped.policies[id]
        for scorer, direction in policy.calibrations:
            assert strict.threshold(policy, direction, scorer) <= default.threshold(
                policy, direction, scorer
            )


def test_monitor_watches_what_default_blocks_and_holds_nothing_up(shipped: PolicyBook):
    monitor = shipped.profiles["monitor"]
    assert monitor.policies == shipped.profiles["default"].policies
    assert monitor.mode == "monitor"
    assert monitor.on_failure == {"prompt": "open", "response": "open"}
    assert monitor.unscreenable == "pass"
    assert monitor.streaming == shipped.profiles["default"].streaming


def test_the_categories_are_openais_thirteen_in_order():
    assert len(CATEGORIES) == 13
    assert list(CATEGORIES) == sorted(CATEGORIES)


def editor() -> YAML:
    """What a program uses that writes into a policy file."""
    yaml = YAML()
    yaml.width = 1000
    yaml.indent(mapping=2, sequence=4, offset=2)
    return yaml


@pytest.mark.parametrize("file", policy_files(shipped_policies()), ids=lambda file: file.name)
def test_the_shipped_files_survive_an_editor_that_keeps_comments(file: Path, tmp_path: Path):
    yaml = editor()
    copy = tmp_path / file.name
    yaml.dump(yaml.load(file), copy)
    assert copy.read_bytes() == file.read_bytes()


def test_a_calibration_written_by_a_program_leaves_every_other_line_alone(tmp_path: Path):
    for file in policy_files(shipped_policies()):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    file = tmp_path / "openai.yaml"  # the one that nothing is calibrated in
    before = file.read_text(encoding="utf-8").splitlines()
    yaml = editor()
    content = yaml.load(file)
    fitted = {"threshold": 0.31, "temperature": 1.5, "provenance": {"rows": 812}}
    calibrated = content["policies"]["hate"].setdefault("calibrated", {})
    calibrated.setdefault("starter@1f6c2a9b03de", {})["prompt"] = fitted
    yaml.dump(content, file)

    after = file.read_text(encoding="utf-8").splitlines()
    added = [line for line in after if line not in before]
    assert [line for line in after if line not in added] == before
    assert len(added) == 7
    hate = load_book(tmp_path).policies["openai/hate"]
    assert hate.calibrations == {
        ("starter@1f6c2a9b03de", "prompt"): Calibration(0.31, 1.5, 0.0, {"rows": 812})
    }


# What a file may say


def test_the_least_that_a_policy_needs_is_a_title_and_two_guidelines(write: Write):
    text = BOOK.replace("    openai: [illicit]\n", "").replace("    threshold: 0.4\n", "")
    policy = load_book(write(text)).policies["acme/spam"]
    assert policy.title == "Spam"
    assert policy.guidelines == {
        "prompt": "No spam in prompts.",
        "response": "No spam in answers.",
    }
    assert policy.thresholds == {"prompt": 0.5, "response": 0.5}
    assert policy.openai == ()


def test_a_threshold_and_a_failure_are_one_value_or_one_for_each_direction(write: Write):
    text = BOOK.replace("threshold: 0.4", "threshold: {prompt: 1, response: 1e-3}")
    book = load_book(write(text + "    on_failure: {prompt: open, response: closed}\n"))
    assert book.policies["acme/spam"].thresholds == {"prompt": 1.0, "response": 0.001}
    assert book.profiles["default"].on_failure == {"prompt": "open", "response": "closed"}
    assert load_book(write(BOOK)).policies["acme/spam"].thresholds == {
        "prompt": 0.4,
        "response": 0.4,
    }


def test_a_profile_may_override_a_single_direction(write: Write):
    book = load_book(write(BOOK + "    thresholds: {acme/spam: {response: 0.2}}\n"))
    assert book.profiles["default"].thresholds == {("acme/spam", "response"): 0.2}
    book = load_book(write(BOOK + "    max_thresholds: {acme/spam: {response: 0.2}}\n"))
    assert book.profiles["default"].max_thresholds == {("acme/spam", "response"): 0.2}


def test_the_least_that_a_profile_needs_is_its_policies(write: Write):
    assert load_book(write(BOOK)).profiles["default"] == Profile("default", ("acme/spam",))


CHAT = """\
    on_block: refusal
    refusal: No.
    prompt_check: parallel
    history: all
    window: 5
    instructions: trust
    unscreenable: pass
    streaming: {mode: full, first: 1, growth: 1, most: 7}
    passages: {size: 300, handicap: 0, scorers: ["*"]}
"""


def test_a_profile_says_how_chat_is_judged(write: Write):
    assert load_book(write(BOOK + CHAT)).profiles["default"] == Profile(
        "default",
        ("acme/spam",),
        on_block="refusal",
        refusal="No.",
        prompt_check="parallel",
        history="all",
        window=5,
        instructions="trust",
        unscreenable="pass",
        streaming=Streaming("full", first=1, growth=1.0, most=7),
        passages=Passages(300, 0, ("*",)),
    )
    whole = load_book(write(BOOK + "    passages: off\n")).profiles["default"]
    assert whole.passages is None


def test_the_white_space_around_a_guideline_is_not_part_of_it(write: Write):
    text = BOOK.replace(
        "prompt: No spam in prompts.", "prompt: |\n        No spam\n        at all.\n"
    )
    guidelines = load_book(write(text)).policies["acme/spam"].guidelines
    assert guidelines["prompt"] == "No spam\nat all."


def test_what_is_given_is_the_whole_book(write: Write):
    book = load_book(write(BOOK))
    assert list(book.policies) == ["acme/spam"]
    assert list(book.profiles) == ["default"]


def test_a_single_file_is_a_book(tmp_path: Path):
    file = tmp_path / "anything.conf"
    file.write_text(BOOK)
    assert list(load_book(file).policies) == ["acme/spam"]


def test_a_directory_is_read_in_the_order_of_names_without_hidden_and_other_files(tmp_path: Path):
    policies, profiles = BOOK.split("profiles:")
    (tmp_path / "2.yml").write_text(policies)
    (tmp_path / "10.yaml").write_text(policies.replace("acme", "other"))
    (tmp_path / "3.yaml").write_text("profiles:" + profiles)
    (tmp_path / ".#3.yaml").symlink_to("nowhere")
    (tmp_path / ".swap.yaml").write_text("[")
    (tmp_path / "README.md").write_text("[")
    assert list(load_book(tmp_path).policies) == ["other/spam", "acme/spam"]


# The version


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("policies:\n", "# a comment\npolicies:\n\n"),
        ("threshold: 0.4", "threshold: {response: 0.40, prompt: 4e-1}"),
        ("title: Spam", 'title: "Spam"'),
        ("policies: [acme/spam]", "policies:\n    - acme/spam\n    mode: enforce"),
    ],
)
def test_the_version_does_not_depend_on_comments_and_layout(old: str, new: str, write: Write):
    version = load_book(write(BOOK)).version
    assert load_book(write(BOOK.replace(old, new, 1))).version == version


def test_the_version_does_not_depend_on_how_a_book_is_spread_over_files(write: Write):
    version = load_book(write(BOOK)).version
    policies, profiles = BOOK.split("profiles:")
    assert load_book(write("profiles:" + profiles, policies)).version == version


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("0.4", "0.41"),
        ("No spam in answers.", "No spam in answers!"),
        ("title: Spam", "title: Junk"),
        ("[illicit]", "[]"),
        ("  default:", "  default:\n    mode: monitor"),
        ("  default:", "  default:\n    thresholds: {acme/spam: 0.4}"),
        ("  default:", "  default:\n    max_thresholds: {acme/spam: 0.4}"),
        ("    threshold", "    calibrated: {s@1: {prompt: {threshold: 0.4}}}\n    threshold"),
    ],
)
def test_the_version_changes_with_every_text_and_every_threshold(old: str, new: str, write: Write):
    version = load_book(write(BOOK)).version
    assert load_book(write(BOOK.replace(old, new, 1))).version != version


# What is refused, and where

NUMBER = "must be a number above 0 and at most 1, without quotes; 0.5 is a good start"
TEXT = "must be text, and not empty; write it out, in quotes if it looks like a number"
SLUG = "must be lower-case letters, digits and single hyphens, such as 'self-harm'; rename it"
MAPPING = "must hold 'key: value' lines; write them below it, indented"
LAYOUT = (
    "indent the line as those beside it; put text that holds ': ' or begins with a quotation mark "
    "on the lines below a '>-'"
)

# old text, new text: what is said of it
REFUSED: Mapping[tuple[str, str], str] = {
    ("    threshold", "    treshold"): (
        "a.yaml:7: policies.spam.treshold: 0.4: unknown key; did you mean 'threshold'?"
    ),
    ("    policies:", "    policy: x\n    policies:"): (
        "a.yaml:14: profiles.default.policy: x: unknown key; did you mean 'policies'?"
    ),
    ("family: acme", "famly: x\nfamily: acme"): (
        "a.yaml:1: famly: x: unknown key; did you mean 'family'?"
    ),
    ("family: acme", "zzz: 1\nfamily: acme"): (
        "a.yaml:1: zzz: unknown key; choose from: family, policies, profiles"
    ),
    (
        "    threshold",
        "    calibrated: {s@1: {prompt: {threshold: 0.1, temprature: 2}}}\n    threshold",
    ): (
        "a.yaml:7: policies.spam.calibrated.s@1.prompt.temprature: 2: unknown key; "
        "did you mean 'temperature'?"
    ),
    ("    threshold", "    calibrated: {s@1: {prompt: {bias: 0.1}}}\n    threshold"): (
        "a.yaml:7: policies.spam.calibrated.s@1.prompt: 'threshold' is missing; add it"
    ),
    ("    threshold", "    calibrated: {s@1: {promt: {threshold: 0.1}}}\n    threshold"): (
        "a.yaml:7: policies.spam.calibrated.s@1.promt: unknown direction; did you mean 'prompt'?"
    ),
    ("0.4", "0.4\n    calibrated: {s: {prompt: {threshold: 0.1, temperature: 0}}}"): (
        "a.yaml:8: policies.spam.calibrated.s.prompt.temperature: 0: "
        "must be a number above 0; 1 leaves the scores as they are"
    ),
    ("0.4", "0.4\n    calibrated: {s: {prompt: {threshold: 0.1, bias: .inf}}}"): (
        "a.yaml:8: policies.spam.calibrated.s.prompt.bias: .inf: "
        "must be a finite number; 0 leaves the scores as they are"
    ),
    ("0.4", "0.4\n    calibrated: {s: {prompt: {threshold: 0.1, scores: {lowest: 0.1}}}}"): (
        "a.yaml:8: policies.spam.calibrated.s.prompt.scores.lowest: 0.1: "
        "must be a margin in quarters of a logit; 'shieldgate calibrate' writes it"
    ),
    (
        "0.4",
        "0.4\n    calibrated: {s: {prompt: {threshold: 0.1, scores: {lowest: 0, counts: [0, 0]}}}}",
    ): (
        "a.yaml:8: policies.spam.calibrated.s.prompt.scores.counts: "
        "must be a list of numbers, not all 0; 'shieldgate calibrate' writes it"
    ),
    (
        "0.4",
        "0.4\n    calibrated: {s: {prompt: {threshold: 0.1, scores: {lowest: 0, count: [1]}}}}",
    ): (
        "a.yaml:8: policies.spam.calibrated.s.prompt.scores.count: unknown key; "
        "did you mean 'counts'?"
    ),
    ("0.4", "1.01"): f"a.yaml:7: policies.spam.threshold: 1.01: {NUMBER}",
    ("0.4", "0"): f"a.yaml:7: policies.spam.threshold: 0: {NUMBER}",
    ("0.4", "-0.1"): f"a.yaml:7: policies.spam.threshold: -0.1: {NUMBER}",
    ("0.4", "true"): f"a.yaml:7: policies.spam.threshold: true: {NUMBER}",
    ("0.4", ".nan"): f"a.yaml:7: policies.spam.threshold: .nan: {NUMBER}",
    ("0.4", "'0.4'"): f"a.yaml:7: policies.spam.threshold: 0.4: {NUMBER}",
    ("0.4", ""): f"a.yaml:7: policies.spam.threshold: {NUMBER}",
    ("0.4", "\n      prompt: 0.4\n      response: 7"): (
        f"a.yaml:9: policies.spam.threshold.response: 7: {NUMBER}"
    ),
    ("0.4", "{prompt: 0.4}"): (
        "a.yaml:7: policies.spam.threshold: 'response' is missing; add a line for it"
    ),
    ("No spam in prompts.", ""): f"a.yaml:9: policies.spam.guideline.prompt: {TEXT}",
    ("No spam in prompts.", "' '"): f"a.yaml:9: policies.spam.guideline.prompt: {TEXT}",
    ("      response: No spam in answers.\n", ""): (
        "a.yaml:8: policies.spam.guideline: 'response' is missing; add a line for it"
    ),
    ("    title: Spam\n", ""): "a.yaml:4: policies.spam: 'title' is missing; add it",
    ("title: Spam", "title: 3"): f"a.yaml:5: policies.spam.title: 3: {TEXT}",
    ("title: Spam", "title: 2020-99-99"): (
        "a.yaml:5: policies.spam.title: 2020-99-99: can't be understood; "
        "put it in quotes if text is meant"
    ),
    ("[illicit]", "[illicit, violense]"): (
        "a.yaml:6: policies.spam.openai[1]: violense: unknown OpenAI category; "
        "did you mean 'violence'?"
    ),
    ("[illicit]", "illicit"): (
        "a.yaml:6: policies.spam.openai: illicit: must be a list; write [one, two], "
        "or a '- one' line for each"
    ),
    ("family: acme", "family: Acme Corp"): f"a.yaml:1: family: Acme Corp: {SLUG}",
    ("family: acme\n", ""): (
        "a.yaml:2: policies: 'family' is missing; add a line such as 'family: acme'"
    ),
    ("policies:\n  spam:", "policies:\n  no_spam:"): f"a.yaml:4: policies.no_spam: {SLUG}",
    ("  default:", "  other: {policies: [acme/spam]}\n  de fault:"): (
        "a.yaml:12: profiles: no profile is named 'default'; add it for callers who name none"
    ),
    ("[acme/spam]", "[acme/spam, acme/spma]"): (
        "a.yaml:14: profiles.default.policies[1]: acme/spma: no such policy; "
        "did you mean 'acme/spam'?"
    ),
    ("[acme/spam]", "[acme/spam]\n    max_thresholds: {spam: 0.3}"): (
        "a.yaml:15: profiles.default.max_thresholds.spam: 0.3: no such policy; "
        "did you mean 'acme/spam'?"
    ),
    ("[acme/spam]", "[acme/spam]\n    max_thresholds: {acme/spam: 0}"): (
        f"a.yaml:15: profiles.default.max_thresholds.acme/spam: 0: {NUMBER}"
    ),
    ("[acme/spam]", "[acme/spam]\n    thresholds: {spam: 0.3}"): (
        "a.yaml:15: profiles.default.thresholds.spam: 0.3: no such policy; "
        "did you mean 'acme/spam'?"
    ),
    ("[acme/spam]", "[]"): (
        "a.yaml:14: profiles.default.policies: is empty, and would let everything pass; "
        "list at least one"
    ),
    ("[acme/spam]", "[acme/spam]\n    mode: enforced"): (
        "a.yaml:15: profiles.default.mode: enforced: unknown mode; did you mean 'enforce'?"
    ),
    ("[acme/spam]", "[acme/spam]\n    on_failure: false"): (
        "a.yaml:15: profiles.default.on_failure: false: unknown way to fail; "
        "choose from: open, closed"
    ),
    ("[acme/spam]", "[acme/spam]\n    on_block: refuse"): (
        "a.yaml:15: profiles.default.on_block: refuse: unknown kind of block; "
        "did you mean 'refusal'?"
    ),
    ("[acme/spam]", "[acme/spam]\n    refusal: ''"): f"a.yaml:15: profiles.default.refusal: {TEXT}",
    ("[acme/spam]", "[acme/spam]\n    prompt_check: after"): (
        "a.yaml:15: profiles.default.prompt_check: after: unknown order; "
        "choose from: before, parallel"
    ),
    ("[acme/spam]", "[acme/spam]\n    history: windows"): (
        "a.yaml:15: profiles.default.history: windows: unknown kind of history; "
        "did you mean 'window'?"
    ),
    ("[acme/spam]", "[acme/spam]\n    window: 1"): (
        "a.yaml:15: profiles.default.window: 1: must be a whole number of user turns, 2 to 100; "
        "for one, write 'history: latest'"
    ),
    ("[acme/spam]", "[acme/spam]\n    instructions: pass"): (
        "a.yaml:15: profiles.default.instructions: pass: unknown way to take instructions; "
        "choose from: judge, trust"
    ),
    ("[acme/spam]", "[acme/spam]\n    unscreenable: yes"): (
        "a.yaml:15: profiles.default.unscreenable: yes: unknown way out; choose from: refuse, pass"
    ),
    ("[acme/spam]", "[acme/spam]\n    streaming: {mode: holds}"): (
        "a.yaml:15: profiles.default.streaming.mode: holds: unknown mode; did you mean 'hold'?"
    ),
    ("[acme/spam]", "[acme/spam]\n    streaming: {frist: 10}"): (
        "a.yaml:15: profiles.default.streaming.frist: 10: unknown key; did you mean 'first'?"
    ),
    ("[acme/spam]", "[acme/spam]\n    streaming: {first: 0}"): (
        "a.yaml:15: profiles.default.streaming.first: 0: must be a whole number of characters, "
        "at least 1; write 100, for example"
    ),
    ("[acme/spam]", "[acme/spam]\n    streaming: {growth: 0.5}"): (
        "a.yaml:15: profiles.default.streaming.growth: 0.5: must be a number of at least 1; "
        "2 checks whenever the answer has doubled"
    ),
    ("[acme/spam]", "[acme/spam]\n    streaming: hold"): (
        f"a.yaml:15: profiles.default.streaming: hold: {MAPPING}"
    ),
    ("[acme/spam]", "[acme/spam]\n    passages: {size: 10}"): (
        "a.yaml:15: profiles.default.passages.size: 10: must be a whole number of characters, "
        "at least 80; 200 is a good start"
    ),
    ("[acme/spam]", "[acme/spam]\n    passages: {handicap: -1}"): (
        "a.yaml:15: profiles.default.passages.handicap: -1: must be a number of logits, at least "
        "0; 0 judges a passage like a whole text"
    ),
    ("[acme/spam]", "[acme/spam]\n    passages: {sizes: 300}"): (
        "a.yaml:15: profiles.default.passages.sizes: 300: unknown key; did you mean 'size'?"
    ),
    ("[acme/spam]", "[acme/spam]\n    passages: no"): (
        "a.yaml:15: profiles.default.passages: no: must be off, or hold 'size', 'handicap' and "
        "'scorers'; write 'passages: off'"
    ),
    ("    threshold", "    title: Again\n    threshold"): (
        "a.yaml:7: policies.spam.title: stands on line 5 already; remove one"
    ),
    ("[acme/spam]", "[acme/spam]\n  default: {policies: [acme/spam]}"): (
        "a.yaml:15: profiles.default: stands on line 13 already; remove one"
    ),
    ("title: Spam", "title: a: b"): (
        f"a.yaml:5: not YAML: mapping values are not allowed here; {LAYOUT}"
    ),
    ("    title: Spam", "\ttitle: Spam"): (
        "a.yaml:5: not YAML: while scanning for the next token, found character '\\t' that "
        "cannot start any token; indent with spaces, not with tabs"
    ),
    ("policies:\n  spam:", "polices:\n  spam:"): (
        "a.yaml:14: profiles.default.policies[0]: acme/spam: no such policy; there is none to "
        "choose from"
    ),
    ("    title: Spam", "     title: Spam"): (
        "a.yaml:6: not YAML: while parsing a block mapping, expected <block end>, but found "
        f"'<block mapping start>'; {LAYOUT}"
    ),
    ("[illicit]", "[illicit"): (
        "a.yaml:7: not YAML: while parsing a flow sequence, expected ',' or ']', but got ':'; "
        "mend the syntax here"
    ),
    ("title: Spam", "title: \x07"): (
        "a.yaml:1: not YAML: unacceptable character #x0007: special characters are not allowed; "
        "remove the character"
    ),
    ("title: Spam", "title: !secret Spam"): (
        "a.yaml:5: policies.spam.title: Spam: can't be understood; "
        "put it in quotes if text is meant"
    ),
    ("title: Spam", "title: &t Spam\n    openai: *t\n    #"): (
        "a.yaml:6: policies.spam.openai: Spam: an alias stands for a value from elsewhere; "
        "write the value itself"
    ),
    ("    threshold", "    ? [a]\n    : b\n    threshold"): (
        "a.yaml:7: a list or a mapping can't be a key; write 'word: value'"
    ),
    ("title: Spam", 'title: "\\ud83d\\ude00"'): (
        "a.yaml:5: policies.spam.title: holds half of a surrogate pair; write the character itself"
    ),
    ("title: Spam", 'title: Spam\n    "\\udc00": x'): (
        "a.yaml:6: a key holds half of a surrogate pair; write the character itself"
    ),
    ("title: Spam", "title: " + "[" * 2000): (
        "a.yaml:1: is nested too deeply; a few levels are enough"
    ),
    ("policies:\n  spam:", "policies: []\nother:\n  spam:"): f"a.yaml:3: policies: {MAPPING}",
    (BOOK, ""): "a.yaml:1: a policy file holds 'family' and 'policies', or 'profiles'; add them",
    (BOOK, "- family: acme"): (
        "a.yaml:1: a policy file holds 'family' and 'policies', or 'profiles'; add them"
    ),
    (BOOK, "profiles: {}"): (
        "a.yaml:1: profiles: no profile is named 'default'; add it for callers who name none"
    ),
}


@pytest.mark.parametrize(
    ("edit", "said"), REFUSED.items(), ids=[said[:60] for said in REFUSED.values()]
)
def test_what_is_wrong_is_refused_with_file_line_key_value_and_mend(
    edit: tuple[str, str], said: str, write: Write
):
    old, new = edit
    assert old in BOOK
    assert said in problems(write(BOOK.replace(old, new, 1)))


def test_all_problems_of_all_files_are_told_at_once_in_order(write: Write):
    a = BOOK.replace("0.4", "4").replace("[acme/spam]", "[acme/spam, acme/ham]")
    b = "family: other\npolicies: {x: {titel: X}}\n"
    assert problems(write(a, b, "a: [")) == [
        f"a.yaml:7: policies.spam.threshold: 4: {NUMBER}",
        "b.yaml:2: policies.x.titel: X: unknown key; did you mean 'title'?",
        "b.yaml:2: policies.x: 'guideline' is missing; add it",
        "b.yaml:2: policies.x: 'title' is missing; add it",
        "c.yaml:1: not YAML: while parsing a flow node, expected the node content, "
        "but found '<stream end>'; mend the syntax here",
    ]
    # Once c.yaml can be read, it is known that acme/ham isn't in there.
    ham = "a.yaml:14: profiles.default.policies[1]: acme/ham: no such policy; "
    assert ham + "did you mean 'acme/spam'?" in problems(write(a, b, "profiles: {}"))


def test_of_names_by_the_hundred_only_the_first_are_compared_with_all_there_are(write: Write):
    names = ", ".join(f"acme/spam{number}" for number in range(300))
    said = problems(write(BOOK.replace("[acme/spam]", f"[{names}]")))
    assert len(said) == 300
    assert sum("did you mean 'acme/spam'?" in line for line in said) == 20


def test_a_wrong_policy_is_not_called_a_missing_one_by_the_profiles_that_name_it(write: Write):
    assert len(problems(write(BOOK.replace("0.4", "4")))) == 1
    assert len(problems(write(BOOK.replace("family: acme\n", "")))) == 1


def test_an_id_or_a_profile_stands_in_one_file_only(write: Write):
    path = write(BOOK, BOOK)
    assert problems(path) == [
        f"b.yaml:4: policies.spam: 'acme/spam' stands at {path / 'a.yaml'}:4 already; "
        "rename one of them",
        f"b.yaml:13: profiles.default: 'default' stands at {path / 'a.yaml'}:13 already; "
        "rename one of them",
    ]


def test_no_policy_takes_the_name_of_an_openai_category(write: Write):
    text = BOOK.replace("family: acme", "family: hate").replace("  spam:", "  threatening:")
    text = text.replace("acme/spam", "hate/threatening")
    assert problems(write(text)) == [
        "a.yaml:4: policies.threatening: this id is an OpenAI category; rename the policy"
    ]


def test_a_missing_path_and_an_empty_directory_are_refused(tmp_path: Path):
    with pytest.raises(PolicyError, match=r"nowhere:1: can't be read: No such file or directory; "):
        load_book(tmp_path / "nowhere")
    with pytest.raises(PolicyError, match=r"the directory holds no \*\.yaml or \*\.yml; "):
        load_book(tmp_path)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (os.mkfifo, "is no regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "is no regular file"),
        (lambda path: path.write_bytes(b"# \n" * 1_500_000), "is longer than 4,194,304 bytes"),
    ],
)
def test_only_regular_files_of_bounded_size_are_read(
    tmp_path: Path, make: Callable[[Path], object], why: str
):
    make(tmp_path / "a.yaml")
    [problem] = problems(tmp_path)
    assert problem.startswith(f"a.yaml:1: {why}")


@pytest.mark.parametrize(
    "foreign",
    [
        "password: hunter2 secret\n",
        "the secret of all: hunter2\n",
        f"{'secret' * 20}: hunter2\n",
        "root:x:0:0:secret:/root:/bin/bash\ndaemon:x:1:1:secret:/:/bin/sh\n",
        "secret\n",
        "- secret\n- hunter2\n",
        "a secret: 1\na secret: 2\n",
        "secret = 'hunter2\n[section]\nkey: [secret\n",
        "outer:\n  the secret: hunter2\n",
    ],
)
def test_lines_of_another_file_that_a_link_leads_to_are_not_quoted(tmp_path: Path, foreign: str):
    (tmp_path / "elsewhere").write_text(foreign)
    (tmp_path / "a.yaml").symlink_to("elsewhere")
    said = "\n".join(problems(tmp_path))
    assert said
    assert "secret" not in said
    assert "hunter2" not in said


def test_a_directory_in_place_of_a_file_and_a_dangling_link_are_refused(tmp_path: Path):
    (tmp_path / "a.yaml").mkdir()
    (tmp_path / "b.yaml").symlink_to("nowhere")
    assert problems(tmp_path) == [
        "a.yaml:1: can't be read: Is a directory; check the path and its permissions",
        "b.yaml:1: can't be read: No such file or directory; check the path and its permissions",
    ]


def test_a_file_that_is_not_utf8_is_refused_with_its_line(tmp_path: Path):
    (tmp_path / "a.yaml").write_bytes(BOOK.replace("Spam", "Sp\u00e4m").encode("latin-1"))
    assert problems(tmp_path) == ["a.yaml:5: is not UTF-8; save it as UTF-8"]


def test_the_byte_order_mark_of_windows_editors_is_no_part_of_the_content(tmp_path: Path):
    (tmp_path / "a.yaml").write_bytes(BOOK.encode("utf-8-sig"))
    assert list(load_book(tmp_path).policies) == ["acme/spam"]
