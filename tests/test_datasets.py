"""Labelled data in its published columns becomes examples; what is wrong with it is said."""

import csv
import gzip
import io
import json
import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from shieldgate.errors import ConfigurationError
from shieldgate.evaluation.adapters import ADAPTERS, OURS
from shieldgate.evaluation.column_map import column_map
from shieldgate.evaluation.datasets import Dataset, Row
from shieldgate.evaluation.examples import Adapter, Example
from shieldgate.evaluation.labels import Labelling
from shieldgate.evaluation.row_files import BadRow, Parquet
from shieldgate.evaluation.sources import HubDataset, Records, list_shards, open_source
from shieldgate.evaluation.storage import Folder
from shieldgate.policy import Policy, load_book
from shieldgate.types import Exchange

ROWS = [
    {"id": "a", "prompt": "bake bread", "labels": {"hate": 0}, "harmful": 0},
    {"id": "b", "prompt": "ask", "response": "answer", "labels": {"hate": 1}, "harmful": 1},
    {"id": "c", "prompt": "“naïve” 東京,\n“quoted”", "labels": {}, "harmful": None},
]

WINDOWS = (
    "is not UTF-8, but perhaps Windows-1252; to convert it, save it as 'CSV UTF-8', or run "
    "iconv -f WINDOWS-1252 -t UTF-8"
)


def jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
    return path


def flat(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            "key": row["id"],
            "text": row["prompt"],
            "answer": row.get("response"),
            "is_hate": row["labels"].get("hate"),
            "verdict": {0: "safe", 1: "unsafe", None: ""}[row["harmful"]],
        }
        for row in rows
    ]


def dataset(path: Path | str, adapter: Adapter = OURS, **options: Any) -> Dataset:
    return Dataset(open_source(str(path)), adapter, **options)


def examples(data: Dataset) -> list[Example]:
    return [row.example for row in data.rows()]


def native(tmp_path: Path, name: str, *rows: Mapping[str, Any]) -> list[Example]:
    return examples(dataset(jsonl(tmp_path / "native.jsonl", rows), ADAPTERS[name]))


OWN_COLUMNS = [
    "prompt=text",
    "response=answer",
    "id=key",
    "label:hate=is_hate",
    "harmful=verdict==unsafe",
]
AS_EXAMPLES = [
    Example(Exchange("bake bread"), "a", {"hate": 0}, 0),
    Example(Exchange("ask", "answer"), "b", {"hate": 1}, 1),
    Example(Exchange("“naïve” 東京,\n“quoted”"), "c", {}, None),
]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_our_own_format_is_read_plain_and_compressed(tmp_path: Path, name: str):
    data = dataset(jsonl(tmp_path / name, ROWS))
    assert examples(data) == AS_EXAMPLES
    assert [row.number for row in data.rows()] == [0, 1, 2]


def test_csv_and_parquet_columns_of_ones_own_are_named_on_the_command_line(tmp_path: Path):
    table = flat(ROWS)
    with (tmp_path / "rows.csv").open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, table[0])
        writer.writeheader()
        # CSV can't tell an empty response from none, so it is judged as one where it is there.
        writer.writerows(row | {"answer": row["answer"] or "answer"} for row in table)
    in_csv = examples(dataset(tmp_path / "rows.csv", column_map(OWN_COLUMNS)))
    assert [e.exchange.prompt for e in in_csv] == [e.exchange.prompt for e in AS_EXAMPLES]
    assert [(e.id, e.labels, e.harmful) for e in in_csv] == [
        (e.id, e.labels, e.harmful) for e in AS_EXAMPLES
    ]
    parquet.write_table(pyarrow.Table.from_pylist(table), tmp_path / "rows.parquet")
    assert examples(dataset(tmp_path / "rows.parquet", column_map(OWN_COLUMNS))) == AS_EXAMPLES


def test_a_column_map_may_stand_in_a_yaml_file(tmp_path: Path):
    file = tmp_path / "columns.yaml"
    file.write_text("".join(pair.replace("=", ": ", 1) + "\n" for pair in OWN_COLUMNS))
    data = dataset(jsonl(tmp_path / "rows.jsonl", flat(ROWS)), column_map([str(file)]))
    assert examples(data) == AS_EXAMPLES


def test_the_datasets_library_streams_what_a_hub_repository_holds(tmp_path: Path):
    jsonl(tmp_path / "test.jsonl", flat(ROWS))
    source = HubDataset("hf://someone/rows", str(tmp_path), split="test")
    data = Dataset(source, column_map(OWN_COLUMNS))
    assert examples(data) == AS_EXAMPLES
    assert data.survey().digest == data.survey().digest


def test_the_address_of_a_hub_dataset_names_config_split_and_revision():
    source = open_source("hf://lmsys/toxic-chat/toxicchat0124:test@29df8e4")
    assert source == HubDataset(source.name, "lmsys/toxic-chat", "toxicchat0124", "test", "29df8e4")
    assert open_source("hf://allenai/wildguardmix") == HubDataset(
        "hf://allenai/wildguardmix", "allenai/wildguardmix"
    )


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("rows.txt", b"", "the format is told by the suffix"),
        (
            "rows.jsonl.gz",
            gzip.compress(b'{"prompt": "p"}\n' * 99, mtime=0)[:-20],
            "ends early",
        ),
        ("rows.jsonl.gz", b"no gzip", "damaged"),
        ("rows.csv", b'prompt,"labels\n', "rows.csv:1: has a quotation mark that nothing closes"),
        ("rows.csv", b"prompt,labels\xff\n", "rows.csv:1: is not UTF-8"),
        ("rows.csv", b"\xff\xfep\x00r", "rows.csv:1: is not whole UTF-16"),
        ("rows.csv", b"prompt,labels\rp,1\r", "rows.csv:1: has a carriage return within a value"),
        (
            "rows.json",
            b'[{"prompt": "p"}, {"prompt"',
            "is not a JSON list from item 2 on: Expecting",
        ),
        ("rows.parquet", b"no parquet", "not a whole Parquet file"),
        ("rows.csv", b"text,label,label\na,1,0\n", "two columns are named 'label'"),
        (
            "rows.csv.gz",
            gzip.compress(b'\xef\xbb\xbfa,"a"\n1,2\n', mtime=0),
            "two columns are named 'a'",
        ),
        ("rows.jsonl", b"", "it holds no rows"),
        ("rows.jsonl", b'{"prompt": "p"}\n', "of its 1 row none has a label"),
        ("rows.jsonl", b"[]\n{}\n", "of its 2 rows none can be used; line 1 is not a JSON object"),
    ],
)
def test_data_that_can_not_be_evaluated_is_refused_in_a_sentence(
    tmp_path: Path, name: str, content: bytes, said: str
):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigurationError, match=said):
        dataset(tmp_path / name).survey()


def test_columns_without_a_name_may_be_many(tmp_path: Path):
    (tmp_path / "rows.csv").write_text("prompt,harmful,,\np,1,,\n")
    assert dataset(tmp_path / "rows.csv").survey().rows == 1


@pytest.mark.parametrize("nested", [False, True])
def test_two_parquet_columns_of_one_name_are_refused(tmp_path: Path, nested: bool):
    columns: list[pyarrow.Array] = [pyarrow.array([1]), pyarrow.array([0])]
    names = ["label", "label"]
    if nested:
        columns, names = [pyarrow.StructArray.from_arrays(columns, names)], ["labels"]
    parquet.write_table(pyarrow.table(columns, names=names), tmp_path / "rows.parquet")
    with pytest.raises(ConfigurationError, match=r"two columns are named '(labels\.)?label'"):
        dataset(tmp_path / "rows.parquet").survey()


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b'{"prompt": "secret", "harmful": 0, "harmful": 1}', "has 'harmful' twice"),
        (b'{"prompt": "secret", "labels": {"a": 0, "\\u0061": 1}}', "has 'a' twice"),
        (b'{"prompt": "secret \x81"}', "is not UTF-8"),
        (b'{"prompt": "secret \xff"}', WINDOWS),
        (b'{"prompt": "secret \\ud83c"}', "holds half of a pair of surrogates"),
        (b'{"prompt": ' + b"[" * 100_000, "is nested too deeply"),
        (b'{"id": ' + b"9" * 5000 + b"}", "holds a number that is too long"),
        (b'{"prompt": "secret"} secret', "is not JSON: Extra data at character 22"),
        (b'{"prompt": NAN}', "is not JSON: Expecting value at character 12"),
    ],
)
def test_why_a_line_is_left_out_is_true(tmp_path: Path, line: bytes, why: str):
    (tmp_path / "rows.jsonl").write_bytes(line + b'\n{"prompt": "p", "harmful": 1}\n')
    assert dataset(tmp_path / "rows.jsonl").survey().bad == (BadRow(1, why),)


@pytest.mark.parametrize("missing", [math.nan, None])
def test_nan_is_unknown_in_whatever_column(tmp_path: Path, missing: float | None):
    row = {"id": missing, "prompt": "p", "response": missing, "harmful": missing}
    rows = [{**row, "labels": {"hate": missing, "sexual": 1}}, {**row, "labels": missing}]
    expected = [Example(Exchange("p"), labels={"sexual": 1}), Example(Exchange("p"))]
    assert examples(dataset(jsonl(tmp_path / "rows.jsonl", rows))) == expected
    columns = column_map(["prompt=prompt", "response=response", "id=id", "harmful=harmful==x"])
    in_memory = Dataset(Records(rows), columns)
    assert examples(in_memory) == [Example(Exchange("p"))] * 2
    assert native(
        tmp_path,
        "wildguard",
        {
            "prompt": "p",
            "prompt_harm_label": "harmful",
            "response_harm_label": missing,
            "response": missing,
        },
    ) == [Example(Exchange("p"), harmful=1)]


@pytest.mark.parametrize("bits", [31, 53, 63, 64, 65, 128])
def test_ids_are_kept_however_long(tmp_path: Path, bits: int):
    ids = [sign * (2**bits + n) for n in range(5) for sign in (1, -1)]
    file = jsonl(tmp_path / "rows.jsonl", [{"id": id, "prompt": "p", "harmful": 1} for id in ids])
    assert [e.id for e in examples(dataset(file))] == list(map(str, ids))
    assert dataset(file).survey().duplicates == 0


def test_a_missing_file_and_a_wrong_hub_address_are_refused():
    with pytest.raises(ConfigurationError, match="there is no such file"):
        open_source("nowhere.jsonl")
    with pytest.raises(ConfigurationError, match="write hf://owner/name"):
        open_source("hf://toxic-chat")


def test_a_folder_without_files_and_a_file_without_a_suffix_are_named_as_such(tmp_path: Path):
    with pytest.raises(ConfigurationError, match=": there is no file in it"):
        open_source(str(tmp_path))
    rows = tmp_path / "rows"
    rows.touch()
    with pytest.raises(ConfigurationError, match="told by the suffix, and there is none"):
        open_source(str(rows))
    with pytest.raises(ConfigurationError) as refused:
        Folder.at(str(rows)).names()
    assert str(refused.value) == f"{rows}: Not a directory."


def test_columns_of_a_known_dataset_are_recognised_and_its_adapter_proposed(tmp_path: Path):
    file = jsonl(tmp_path / "rows.jsonl", [{"prompt": "p", "HR": 0, "V": 1}])
    with pytest.raises(ConfigurationError, match="add --adapter openai-mod"):
        dataset(file).survey()


def test_bad_rows_are_counted_and_shown_by_line_without_their_text(tmp_path: Path):
    file = jsonl(tmp_path / "rows.jsonl", ROWS)
    with file.open("a") as end:
        end.write('{"prompt": "secret",\n\n')
        end.write('{"prompt": "", "harmful": 1}\n')
        end.write('{"prompt": "secret", "labels": {"hate": "perhaps"}}\n')
    survey = dataset(file).survey()
    assert survey.rows == 3
    assert survey.bad == (
        BadRow(4, "is not JSON: Expecting property name enclosed in double quotes at character 22"),
        BadRow(6, "'prompt' is empty"),
        BadRow(7, "'hate' is neither 0 nor 1"),
    )
    [note] = survey.notes()
    assert note.startswith("3 bad rows were left out, in lines 4 (is not JSON: ")
    assert "secret" not in note
    with pytest.raises(ConfigurationError, match=r"rows\.jsonl:4: is not JSON"):
        dataset(file).survey(strict=True)


def test_repeated_ids_and_what_has_one_class_are_said(tmp_path: Path):
    rows = [{"id": "x", "prompt": "p", "labels": {"hate": 1, "sexual": 0}, "harmful": 1}] * 3
    survey = dataset(jsonl(tmp_path / "rows.jsonl", rows)).survey()
    assert survey.notes() == ["2 rows have an id that another row has too"]
    assert survey.one_sided() == [
        f"{what}, so figures that need both are undefined"
        for what in (
            "no row is harmless",
            "wherever it is known, the label is 0: 'sexual'",
            "wherever it is known, the label is 1: 'hate'",
        )
    ]


def test_a_limit_stops_the_reading_of_a_stream(tmp_path: Path):
    file = jsonl(tmp_path / "rows.jsonl", ROWS)
    with file.open("a") as end:
        end.write("never read\n")
    data = dataset(file, limit=2)
    assert data.survey(strict=True).rows == len(list(data.rows())) == 2


def test_texts_of_rows_are_found_again(tmp_path: Path):
    data = dataset(jsonl(tmp_path / "rows.jsonl.gz", ROWS))
    assert data.texts([1]) == {1: Exchange("ask", "answer")}


def test_groups_are_columns_and_a_row_without_one_is_bad(tmp_path: Path):
    file = jsonl(tmp_path / "rows.jsonl", [{**ROWS[0], "source": "web"}, ROWS[1]])
    data = dataset(file, groups=("source",))
    assert [row.groups for row in data.rows()] == [{"source": "web"}]
    assert data.survey().bad == (BadRow(2, "has no column 'source'"),)


def test_the_digest_is_that_of_the_content_whatever_its_compression(tmp_path: Path):
    plain = dataset(jsonl(tmp_path / "rows.jsonl", ROWS)).survey().digest
    packed = dataset(jsonl(tmp_path / "rows.jsonl.gz", ROWS)).survey().digest
    other = dataset(jsonl(tmp_path / "other.jsonl", ROWS[:2])).survey().digest
    assert plain == packed != other


def test_openai_mod_reads_its_keys_and_a_missing_key_is_unknown(tmp_path: Path):
    first, second = native(
        tmp_path,
        "openai-mod",
        {"prompt": "p", "S": 0, "H": 1, "V": 0, "HR": 0, "SH": 0, "S3": 0, "H2": 1, "V2": 0},
        {"prompt": "q", "V": 0, "HR": 0, "SH": 0, "V2": 0},
    )
    assert first.labels["hate"] == first.labels["hate/threatening"] == first.harmful == 1
    assert second.labels == {"violence": 0, "harassment": 0, "self-harm": 0, "violence/graphic": 0}
    assert second.harmful == 0


def test_toxicchat_judges_the_users_input(tmp_path: Path):
    with (tmp_path / "toxic.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            "conv_id user_input model_output human_annotation toxicity jailbreaking "
            "openai_moderation".split()
        )
        writer.writerow(["c1", "asked", "said", "True", "1", "0", '[["harassment", 0.1]]'])
    data = dataset(tmp_path / "toxic.csv", ADAPTERS["toxicchat"], groups=("human_annotation",))
    [row] = data.rows()
    assert row == Row(
        0, "c1", Example(Exchange("asked"), "c1", {}, 1), {"human_annotation": "True"}
    )


def test_xstest_knows_safe_and_unsafe_prompts(tmp_path: Path):
    columns = {"id": 1, "prompt": "p", "type": "homonyms", "label": "safe", "focus": "", "note": ""}
    safe, unsafe = native(tmp_path, "xstest", columns, columns | {"label": "unsafe"})
    assert (safe.id, safe.harmful, unsafe.harmful) == ("1", 0, 1)


def test_beavertails_judges_responses_and_joins_categories_of_one_harm(tmp_path: Path):
    category = {
        "animal_abuse": False,
        "discrimination,stereotype,injustice": True,
        "drug_abuse,weapons,banned_substance": False,
        "hate_speech,offensive_language": False,
        "self_harm": False,
        "terrorism,organized_crime": False,
    }
    row = {"prompt": "p", "response": "r", "category": category, "is_safe": False}
    [example] = native(tmp_path, "beavertails", row)
    assert example.exchange == Exchange("p", "r")
    assert example.labels == {"animal_abuse": 0, "hate": 1, "dangerous": 0}
    assert example.harmful == 1


def test_a_wildguard_record_is_two_examples_where_both_are_labelled(tmp_path: Path):
    row = {
        "prompt": "p",
        "adversarial": True,
        "response": "r",
        "prompt_harm_label": "harmful",
        "response_refusal_label": "refusal",
        "response_harm_label": "unharmful",
        "subcategory": "violence_and_physical_harm",
    }
    bare = row | {"response": None, "response_harm_label": None}
    assert native(tmp_path, "wildguard", row, bare) == [
        Example(Exchange("p"), harmful=1),
        Example(Exchange("p", "r"), harmful=0),
        Example(Exchange("p"), harmful=1),
    ]


def test_harmbench_puts_the_context_first_and_copyright_is_no_harm(tmp_path: Path):
    row = {
        "Behavior": "do it",
        "FunctionalCategory": "contextual",
        "SemanticCategory": "cybercrime_intrusion",
        "Tags": "context",
        "ContextString": "given this",
        "BehaviorID": "do_it",
    }
    song = row | {"FunctionalCategory": "copyright", "SemanticCategory": "copyright"}
    contextual, copyrighted = native(tmp_path, "harmbench", row, song | {"ContextString": ""})
    assert contextual == Example(
        Exchange("given this\n\n---\n\ndo it"), "do_it", {"dangerous": 1}, 1
    )
    assert copyrighted == Example(Exchange("do it"), "do_it", {}, None)


@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        (["text"], "write field=column"),
        (["text=prompt"], "'text' is no field"),
        (["id=key"], "say which column is the prompt"),
        (["nowhere.yaml"], "can't be read"),
        (["prompt=a", "prompt=b"], "'prompt' is given twice"),
    ],
)
def test_a_wrong_column_map_is_refused(pairs: list[str], said: str):
    with pytest.raises(ConfigurationError, match=said):
        column_map(pairs)


def policies(family: str) -> list[Policy]:
    return [p for p in load_book().policies.values() if p.id.startswith(family + "/")]


def test_labels_reach_policies_by_name_by_openai_category_or_by_choice():
    names = ["hate", "hate/threatening", "self-harm", "sexual/minors", "weapons"]
    ours = Labelling.of(names, policies("shieldgemma"))
    assert ours.policies == {
        "hate": ("shieldgemma/hate",),
        "hate/threatening": ("shieldgemma/hate",),
        "self-harm": ("shieldgemma/dangerous",),
    }
    assert ours.unmatched == ("sexual/minors", "weapons")
    theirs = Labelling.of(names, policies("openai"))
    assert theirs.policies["sexual/minors"] == ("openai/sexual-minors",)
    chosen = Labelling.of(names, policies("shieldgemma"), chosen={"weapons": ("dangerous",)})
    assert chosen.policies["weapons"] == ("shieldgemma/dangerous",)


def test_a_chosen_label_or_policy_that_is_not_there_is_refused():
    with pytest.raises(ConfigurationError, match=r"no such label\. It has: hate"):
        Labelling.of(["hate"], policies("shieldgemma"), chosen={"hat": ("shieldgemma/hate",)})
    with pytest.raises(ConfigurationError, match="no such policy is evaluated"):
        Labelling.of(["hate"], policies("shieldgemma"), chosen={"hate": ("openai/hate",)})


@pytest.mark.parametrize(
    ("given", "joined", "counted"),
    [
        ({"hate": 0, "hate/threatening": 0}, 0, 0),
        ({"hate": 0, "hate/threatening": 1}, 1, 1),
        ({"hate/threatening": 1}, 1, 1),
        ({"hate": 0}, None, 0),
        ({}, None, 0),
    ],
)
def test_unknown_labels_stay_unknown_unless_they_are_to_count_as_harmless(
    given: dict[str, Any], joined: int | None, counted: int
):
    names = ["hate", "hate/threatening"]
    example = Example(Exchange("p"), labels=given)
    strict = Labelling.of(names, policies("shieldgemma"))
    assert strict.labels(example).get("shieldgemma/hate") == joined
    assert strict.harmful(example) == joined
    lenient = Labelling.of(names, policies("shieldgemma"), unknown_is_negative=True)
    assert lenient.labels(example) == {"shieldgemma/hate": counted}
    assert lenient.harmful(example) == counted


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_folder_or_a_pattern_of_files_is_one_dataset_here_and_by_a_uri(
    tmp_path: Path, scheme: str
):
    folder = tmp_path / "some rows"
    folder.mkdir()
    jsonl(folder / "b%20.jsonl.gz", ROWS[1:])
    jsonl(folder / "a.jsonl", [{"prompt": "no id"}, {"prompt": 1}, ROWS[0]])
    table = pyarrow.table({"prompt": ["c 1", "c 2", "c 3"]})
    parquet.write_table(table, folder / "c.parquet", row_group_size=2)
    (folder / "_SUCCESS").touch()
    (folder / ".hidden.jsonl").write_text("{}")

    read = list(dataset(f"{scheme}{folder}").read())
    ids = [row.id for row in read if isinstance(row, Row)]
    assert ids == ["a.jsonl:1", "a", "b", "c", "c.parquet:1", "c.parquet:2", "c.parquet:3"]
    [bad] = [row for row in read if isinstance(row, BadRow)]
    assert (bad.place, bad.why) == ("a.jsonl:2", "'prompt' is not text")
    [first] = list_shards(f"{scheme}{folder}/c*")
    assert isinstance(first, Parquet)
    assert first.rows() == [2, 1]
    part = replace(first, row_groups=(1, 2))
    assert [(r.line, r.fields["prompt"]) for r in part.records()] == [(3, "c 3")]
    # A file by its name is that file, and its rows are known by their lines alone.
    assert [row.id for row in dataset(f"{scheme}{folder}/a.jsonl").rows()] == ["1", "a"]
    with pytest.raises(ConfigurationError, match="there is no such file"):
        open_source(f"{scheme}{folder}/d*")
    (folder / "readme.txt").touch()
    with pytest.raises(ConfigurationError, match=r"readme\.txt: the format is told by the suffix"):
        open_source(f"{scheme}{folder}")


LONG = "a" * 140_000
TABLE = [("prompt", "harmful"), ('say "hi";\tnow,\nplease', "1"), (LONG, "0")]
OBJECTS = [dict(zip(TABLE[0], row, strict=True)) for row in TABLE[1:]]


def delimited(delimiter: str) -> str:
    file = io.StringIO()
    csv.writer(file, delimiter=delimiter).writerows(TABLE)
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "rows"),
    [
        ("rows.CSV", delimited(",").encode(), 2),
        ("rows.csv", delimited(";").encode("utf-8-sig"), 2),
        ("rows.csv", delimited("\t").encode("utf-16"), 2),
        ("rows.tsv.GZ", gzip.compress(delimited("\t").encode(), mtime=0), 2),
        ("rows.v2.JSONL", json.dumps(OBJECTS[0]).encode(), 1),
        ("rows.ndjson", json.dumps(OBJECTS[0]).encode("utf-16"), 1),
        ("rows.json", json.dumps(OBJECTS[0]).encode(), 1),
        ("rows.json", json.dumps(OBJECTS, indent=2).encode("utf-8-sig"), 2),
        ("rows.json.gz", gzip.compress(json.dumps(OBJECTS).encode("utf-16"), mtime=0), 2),
    ],
)
def test_the_files_that_people_have_are_read(tmp_path: Path, name: str, content: bytes, rows: int):
    (tmp_path / name).write_bytes(content)
    found = [(e.exchange.prompt, str(e.harmful)) for e in examples(dataset(tmp_path / name))]
    assert found == TABLE[1 : 1 + rows]


@pytest.mark.parametrize(
    ("content", "prompts", "bad"),
    [
        (
            b'prompt,harmful\none,1\n"two,0\nthree,0\n"four, 4",1\nfive,0\n',
            ["one", "three", "four, 4", "five"],
            BadRow(3, "has a quotation mark within a quoted value; write it twice"),
        ),
        (
            b'prompt,harmful\none,1\n"two,0\nthree,0\n',
            ["one", "three"],
            BadRow(3, "has a quotation mark that nothing closes"),
        ),
        (
            b'prompt;harmful\none;1\n"two" or 2;0\n"th\nree";0\n',
            ["one", "th\nree"],
            BadRow(3, "has a quotation mark within a quoted value; write it twice"),
        ),
        (
            b"prompt,harmful\none,1\ncaf\xe9,0\nthree,0\n",
            ["one", "three"],
            BadRow(3, WINDOWS),
        ),
        (
            b"prompt,harmful\none,1\ncaf\x8d,0\nthree,0\n",
            ["one", "three"],
            BadRow(3, "is not UTF-8"),
        ),
    ],
)
def test_a_broken_record_costs_no_other(
    tmp_path: Path, content: bytes, prompts: list[str], bad: BadRow
):
    (tmp_path / "rows.csv").write_bytes(content)
    data = dataset(tmp_path / "rows.csv")
    assert [e.exchange.prompt for e in examples(data)] == prompts
    assert data.survey().bad == (bad,)


def test_marks_that_nothing_closes_take_no_time_that_grows_with_the_square(tmp_path: Path):
    lines = ['a",",1\n'] * 3000 + ["good,1\n"] * 3001
    (tmp_path / "rows.csv").write_text("prompt,harmful\n" + "".join(lines))
    began = time.process_time()
    survey = dataset(tmp_path / "rows.csv").survey()
    assert (survey.rows, survey.bad_count) == (3001, 3000)
    assert time.process_time() - began < 2


def test_items_of_a_list_are_read_across_the_pieces_that_a_file_comes_in(tmp_path: Path):
    rows = [{"prompt": f"{'é' * n} [{n}] }},", "harmful": n % 2} for n in range(1, 700)]
    (tmp_path / "rows.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    found = examples(dataset(tmp_path / "rows.json"))
    assert [e.exchange.prompt for e in found] == [row["prompt"] for row in rows]
    broken = [*rows[:4], 7, {"prompt": "half \ud83c", "harmful": 1}, {"id": 8, "prompt": "p"}]
    text = json.dumps(broken).replace('"id": 8', f'"id": {"9" * 5000}')
    (tmp_path / "rows.json").write_text(text, encoding="utf-8")
    bad = dataset(tmp_path / "rows.json").survey().bad
    assert [(b.line, b.why) for b in bad] == [
        (5, "is not a JSON object"),
        (6, "holds half of a pair of surrogates"),
        (7, "holds a number that is too long"),
    ]


def test_parquet_may_hold_text_as_bytes_and_labels_as_a_map(tmp_path: Path):
    labels = pyarrow.map_(pyarrow.string(), pyarrow.int8())
    table = pyarrow.table(
        {
            "prompt": pyarrow.array(["brød".encode(), b"\xff", b"butter"], pyarrow.binary()),
            "labels": pyarrow.array(
                [[("hate", 1), ("sexual", 0)], None, [("hate", 1), ("hate", 0)]], labels
            ),
        }
    )
    parquet.write_table(table.slice(0, 1), tmp_path / "a.parquet")
    parquet.write_table(table.slice(1), tmp_path / "b.parquet")
    assert examples(dataset(tmp_path / "*.parquet")) == [
        Example(Exchange("brød"), labels={"hate": 1, "sexual": 0})
    ]
    bad = [row for row in dataset(tmp_path).read() if isinstance(row, BadRow)]
    assert [(b.place, b.why) for b in bad] == [
        ("b.parquet:1", "'prompt' is not text"),
        ("b.parquet:2", "has 'hate' twice"),
    ]


@pytest.mark.parametrize(
    ("rule", "labels"),
    [
        ("score>=0.5", [1, 1, 0, None]),
        ("score > 0.5", [1, 0, 0, None]),
        ("score<0.5", [0, 0, 1, None]),
        ("score==0.5", [0, 1, 0, None]),
    ],
)
def test_a_rule_makes_labels_of_numbers(tmp_path: Path, rule: str, labels: list[int | None]):
    rows = [{"prompt": "p", "score": score} for score in (0.7, "0.5", 0, math.nan)]
    columns = column_map(["prompt=prompt", f"label:hate={rule}", f"harmful={rule}"])
    found = examples(dataset(jsonl(tmp_path / "rows.jsonl", rows), columns))
    assert [e.harmful for e in found] == labels
    assert [e.labels.get("hate") for e in found] == labels


def test_a_rule_without_a_number_and_a_number_without_a_rule_are_told(tmp_path: Path):
    with pytest.raises(ConfigurationError, match="'half' is no number; write"):
        column_map(["prompt=prompt", "harmful=score>=half"])
    rows = [{"prompt": "p", "score": 0.25}, {"prompt": "p", "score": 1}]
    columns = column_map(["prompt=prompt", "harmful=score"])
    [bad] = dataset(jsonl(tmp_path / "rows.jsonl", rows), columns).survey().bad
    assert bad.why.startswith("'score' is neither 0 nor 1; the rule 'score>=0.5'")
    columns = column_map(["prompt=prompt", "harmful=score>=0.5"])
    rows = [{"prompt": "p", "score": "high"}, {"prompt": "p", "score": 1}]
    [bad] = dataset(jsonl(tmp_path / "rows.jsonl", rows), columns).survey().bad
    assert bad.why == "'score' is no number"


def test_figures_of_the_lesser_part_of_the_rows_are_refused(tmp_path: Path):
    good = {"prompt": "p", "harmful": 1}
    for rows, refused in (([good, {}, {}, {}], True), ([good, {}], False)):
        data = dataset(jsonl(tmp_path / "rows.jsonl", rows))
        if refused:
            said = r"3 of its 4 rows can't be used, .*; line 2 has no column 'prompt'\. Mend them"
            with pytest.raises(ConfigurationError, match=said):
                data.survey()
        else:
            assert data.survey().rows == 1
