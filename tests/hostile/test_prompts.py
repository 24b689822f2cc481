"""Mutated prompt files: what is accepted is prompts that can be kept and shown, and all else is refused in one line."""

import csv
import io
import json

import pyarrow
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pyarrow import parquet

from flowopd.errors import DataError
from flowopd.prompts import LONGEST, LONGEST_LABEL, read_prompts, write_prompts

ROWS = [
    {"prompt": "a bench", "label": "composition", "tag": "single_object", "include": [{"class": "bench", "count": 1}]},
    {"prompt": 'a sign that says "K7"', "include": [], "exclude": [{"class": "cow", "count": 2}]},
    {
        "prompt": "drei Bänke, 三つ",
        "include": [
            {"class": "a", "count": 1, "color": "red"},
            {"class": "b", "count": 2, "position": ["left of", 0]},
        ],
    },
]
TEXTS = [row["prompt"] for row in ROWS]


def table(delimiter):
    file = io.StringIO()
    csv.writer(file, delimiter=delimiter).writerows([["n", "prompt"], *enumerate(TEXTS)])
    return file.getvalue().encode()


def columns():
    file = io.BytesIO()
    parquet.write_table(pyarrow.table({"prompt": TEXTS, "n": [1, 2, 3]}), file)
    return file.getvalue()


FORMS = {
    "txt": "\n".join(TEXTS).encode(),
    "jsonl": "\n".join(json.dumps(row) for row in ROWS).encode(),
    "json": json.dumps(ROWS).encode(),
    "csv": table(","),
    "tsv": table("\t"),
    "parquet": columns(),
}
PIECES = [b"\0", b"\xff", b"\xfe\xff", b"\xef\xbb\xbf", b"\r", b"\n", b'"', b"{", b"[", b"\\ud800", b"\\u0000", b"NaN"]
PIECES += [b"1e999", b"9" * 5000, b"[" * 5000, b"\x1f\x8b", b"PK\x03\x04", b",", b"\t", b"x" * 30_000, b"\xe2\x80\xa8"]

junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from([-1, 0, 10**30]),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=3), values, max_size=3),
    max_leaves=5,
)


@st.composite
def damaged(draw, content):
    """Bytes with one to three changes: something put in, cut out, or said again."""
    for _ in range(draw(st.integers(1, 3))):
        i = draw(st.integers(0, len(content)))
        j = draw(st.integers(i, min(len(content), i + 30)))
        new = draw(st.sampled_from([*PIECES, content[i:j] * 2, b""]) | st.binary(max_size=4))
        content = content[:i] + new + content[j:]
    return content


def check(found, place):
    """What holds for all prompts that are accepted: they are not empty, and a file keeps them."""
    assert found
    for prompt in found:
        assert prompt.text.strip() == prompt.text != "" and "\0" not in prompt.text
        assert len(prompt.text) <= LONGEST and len(prompt.label) <= LONGEST_LABEL
    write_prompts(place / "again.jsonl", found)
    assert read_prompts(place / "again.jsonl", "") == found


@pytest.mark.parametrize("form", FORMS)
@given(data=st.data())
def test_a_mutated_file_is_read_or_refused(lawful, place, form, data):
    file = place / f"mutated.{form}"
    file.write_bytes(data.draw(damaged(FORMS[form])))
    found = lawful(read_prompts, file, "label")
    if found is not None:
        check(found, place)


@st.composite
def rows(draw):
    """The rows with other values somewhere."""
    mutated = json.loads(json.dumps(ROWS))
    for _ in range(draw(st.integers(1, 3))):
        row = draw(st.sampled_from(mutated))
        clauses = [
            clause for key in ("include", "exclude") for clause in row.get(key) or [] if isinstance(clause, dict)
        ]
        node = draw(st.sampled_from([row, *clauses]))
        key = draw(st.sampled_from([*node, "color", "position", "label", "include"]))
        node[key] = draw(junk)
    return mutated


@given(mutated=rows())
@example(mutated=[{"prompt": "a", "include": [{"class": "a", "count": True}]}])
@example(mutated=[{"prompt": "a", "include": [{"class": "a", "count": 1, "color": ["red"]}]}])
def test_mutated_metadata_is_kept_or_refused(lawful, place, mutated):
    file = place / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, mutated)))
    found = lawful(read_prompts, file, "label")
    if found is not None:
        check(found, place)
        assert [dict(prompt.metadata) for prompt in found] == mutated
        for prompt in found:
            clauses = prompt.metadata.get("include")
            for clause in clauses if isinstance(clauses, list) else []:
                assert type(clause["count"]) is int and isinstance(clause["class"], str)
                assert isinstance(clause.get("color"), str | None)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"prompt": "a", "prompt": "b"}', "the key 'prompt' stands there twice"),
        ('{"prompt": "a\\u0000"}', "zero character"),
        ('{"prompt": "\\ud800"}', "half of a surrogate pair"),
        ('{"prompt": "a", "x": NaN}', "not finite"),
        ('{"prompt": "a", "x": 1e999}', "not finite"),
        ('{"prompt": "a", "x": ' + "9" * 5000 + "}", "more than 20 digits"),
        ('{"prompt": "a", "x": ' + "[" * 50_000 + "}", "nested more than 32 deep"),
        ('{"prompt": "' + "a" * (LONGEST + 1) + '"}', "has a prompt of 20,001 characters; shorten it to 20,000"),
        ('{"prompt": "a", "label": "' + "a" * 1001 + '"}', "has a label of 1,001 characters; shorten it to 1,000"),
        ('{"prompt": "a", "include": [{"class": "a", "count": 1e9}]}', "broken `include` clause"),
        ('{"prompt": "a", "include": [{"class": "a", "count": 1000000}]}', "broken `include` clause"),
    ],
)
def test_a_line_that_cannot_be_meant_is_named(tmp_path, line, words):
    (tmp_path / "p.jsonl").write_text('{"prompt": "a ring"}\n' + line)
    with pytest.raises(DataError) as refused:
        read_prompts(tmp_path / "p.jsonl", "label")
    assert f"{tmp_path}/p.jsonl:2" in str(refused.value) and words in str(refused.value)


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (pyarrow.array(["a", "b\0"]), "row 2, cannot be kept: the text 'b.x00' holds a zero character"),
        (pyarrow.array([b"a", b"\xa4b"]).view(pyarrow.string()), "no whole parquet file .*can't decode byte 0xa4"),
    ],
    ids=["zero", "no UTF-8"],
)
def test_a_table_whose_texts_are_none_is_refused(tmp_path, texts, words):
    parquet.write_table(pyarrow.table({"prompt": texts}), tmp_path / "p.parquet")
    with pytest.raises(DataError, match=words):
        read_prompts(tmp_path / "p.parquet", "label")


def test_the_longest_prompt_is_read(tmp_path):
    (tmp_path / "p.txt").write_text("a" * LONGEST)
    assert [len(prompt.text) for prompt in read_prompts(tmp_path / "p.txt", "label")] == [LONGEST]
    (tmp_path / "p.txt").write_text("b\n" + "a" * (LONGEST + 1))
    with pytest.raises(DataError, match=r"p\.txt:2 has a prompt of 20,001 characters"):
        read_prompts(tmp_path / "p.txt", "label")


def test_a_file_of_a_terabyte_is_not_read(tmp_path):
    with (tmp_path / "p.txt").open("wb") as file:
        file.truncate(1 << 40)
    with (
        pytest.raises(DataError, match="it has more than 1,024 bytes; split it"),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr("flowopd.prompts.files.LARGEST", 1024)
        read_prompts(tmp_path / "p.txt", "label")
