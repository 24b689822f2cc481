"""Prompt files are read as they lie in the wild, nothing in them is lost or guessed, and what is broken is named."""

import bz2
import csv
import gzip
import json
import lzma

import pytest

from flowopd.errors import ConfigError, DataError
from flowopd.prompts import Prompt, read_prompts, sha256_of_prompts, write_prompts
from flowopd.prompts.composition import Clause, composition
from flowopd.recipe import make_recipe
from flowopd.session import Session
from flowopd.wordings import read_by_student, with_wordings

TEXTS = ["a bench", 'a sign that says "K7, open"', "drei Bänke, 三つの椅子", "a bench"]
BENCH = {"class": "bench", "count": 1}


def written(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def table(path, rows, delimiter=",", ends="\r\n"):
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter=delimiter, lineterminator=ends).writerows(rows)
    return path


def texts(source):
    return [prompt.text for prompt in read_prompts(source, "label")]


def forms(folder):
    """The same prompts in every format that needs no library."""
    rows = [{"prompt": text, "n": i} for i, text in enumerate(TEXTS)]
    return {
        "txt": written(folder / "a.txt", "\n".join(TEXTS)),
        "dos": written(folder / "dos.txt", "\r\n".join(TEXTS) + "\r\n\r\n"),
        "no ending": written(folder / "prompts", "\n".join(TEXTS)),
        "jsonl": written(folder / "a.jsonl", "\n".join(json.dumps(row) for row in rows)),
        "json of strings": written(folder / "s.json", json.dumps(TEXTS)),
        "json of objects": written(folder / "o.json", json.dumps(rows)),
        "csv": table(folder / "a.csv", [["n", "prompt"], *([i, text] for i, text in enumerate(TEXTS))]),
        "tsv": table(folder / "a.tsv", [["Prompt", "n"], *([text, i] for i, text in enumerate(TEXTS))], "\t", "\n"),
    }


FORMS = ("txt", "dos", "no ending", "jsonl", "json of strings", "json of objects", "csv", "tsv")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "with a byte-order mark"])
def test_every_format_gives_the_same_prompts_in_order_repeated_ones_too(tmp_path, form, mark):
    path = forms(tmp_path)[form]
    written(path, mark + path.read_bytes())
    assert texts(path) == TEXTS
    assert {prompt.label for prompt in read_prompts(path, "label")} == {"label"}


def test_a_line_ends_at_a_line_break_alone(tmp_path):
    odd = "one\u2028line \x0b of \x85 its own"
    assert texts(written(tmp_path / "a.txt", f"{odd}\nb")) == [odd, "b"]
    line = json.dumps({"prompt": odd}, ensure_ascii=False)
    assert texts(written(tmp_path / "a.jsonl", f"{line}\n")) == [odd]


def test_other_columns_are_metadata(tmp_path):
    path = table(tmp_path / "a.csv", [["id", "caption", "text"], ["7", "a cat", "a dog"]])
    assert read_prompts(path, "x")[0].metadata == {"id": "7", "text": "a dog"}
    path = written(tmp_path / "a.jsonl", json.dumps({"prompt": "a cat", "tag": "t", "unknown": {"deep": [1]}}))
    assert read_prompts(path, "x")[0].metadata == {"prompt": "a cat", "tag": "t", "unknown": {"deep": [1]}}


@pytest.mark.parametrize(
    "header, column",
    [("text,caption,prompt", "prompt"), ("text,caption", "caption"), ("id,text", "text"), ("id, PROMPT", " PROMPT")],
)
def test_the_column_of_prompts_is_prompt_else_caption_else_text(tmp_path, header, column):
    names = header.split(",")
    path = table(tmp_path / "a.csv", [names, [f"in {name}" for name in names]])
    assert texts(path) == [f"in {column}"]


def test_a_cell_may_span_lines_and_places_count_lines(tmp_path):
    path = written(tmp_path / "a.csv", 'prompt,n\n"two\nlines",1\n\nshort\n')
    with pytest.raises(DataError, match=r"a\.csv:5 has 1 cells, the header 2"):
        read_prompts(path, "x")
    assert texts(written(path, 'prompt,n\n"two\nlines",1\n')) == ["two\nlines"]


def test_a_word_for_a_label_wins_over_the_recipe(tmp_path):
    rows = [{"prompt": "a", "label": "own"}, {"prompt": "b", "label": 3}, {"prompt": "c", "label": ""}, {"prompt": "d"}]
    path = written(tmp_path / "a.json", json.dumps(rows))
    assert [prompt.label for prompt in read_prompts(path, "file")] == ["own", "file", "file", "file"]
    path = table(tmp_path / "a.csv", [["prompt", "label"], ["a", "own"], ["b", ""]])
    assert [prompt.label for prompt in read_prompts(path, "file")] == ["own", "file"]


def test_what_is_written_is_read_back(tmp_path):
    prompts = [Prompt(text, "label", {"tag": "t", "include": [BENCH]}) for text in TEXTS]
    write_prompts(tmp_path / "a.jsonl", prompts)
    read = read_prompts(tmp_path / "a.jsonl", "other")
    assert read == prompts and [p.metadata["include"] for p in read] == [[BENCH]] * len(TEXTS)


def test_wordings_are_read_from_every_form_that_has_lists_and_are_kept(tmp_path):
    row = {"prompt": "a bench", "wordings": [" there is a bench ", "a bench, that is all"]}
    for name, text in (("a.jsonl", json.dumps(row)), ("a.json", json.dumps([row])), ("a.txt", "a bench")):
        (read,) = read_prompts(written(tmp_path / name, text), "label")
        assert read.wordings == (() if name == "a.txt" else ("there is a bench", "a bench, that is all"))
    (read,) = read_prompts(tmp_path / "a.json", "label")
    write_prompts(tmp_path / "b.jsonl", [read])
    assert read_prompts(tmp_path / "b.jsonl", "label")[0].wordings == read.wordings


def test_the_student_reads_prompt_and_wordings_evenly_unless_a_share_is_given():
    prompt, plain = Prompt("p", "x", {"wordings": ["q", "r"]}), Prompt("s", "x")
    n = 3000
    for share, expected in ((None, [1 / 3] * 3), (0.0, [1, 0, 0]), (1.0, [0, 0.5, 0.5]), (0.2, [0.8, 0.1, 0.1])):
        read = read_by_student([prompt] * n, share, 7)
        error = 4 * 0.5 / n**0.5
        assert [read.count(text) / n for text in "pqr"] == pytest.approx(expected, abs=error)
    assert read_by_student([plain, plain], 1.0, 7) == ["s", "s"]
    assert read_by_student([prompt] * 9, None, 7) == read_by_student([prompt] * 9, None, 7)
    assert read_by_student([prompt] * 9, None, 7) != read_by_student([prompt] * 9, None, 8)


def test_every_wording_is_encoded_as_a_prompt_of_its_label():
    prompts = [Prompt("p", "x", {"wordings": ["q", "r"]}), Prompt("s", "y")]
    assert with_wordings(prompts) == [Prompt("p", "x"), Prompt("q", "x"), Prompt("r", "x"), Prompt("s", "y")]


BROKEN = {
    "a wording that is no text": (
        "a.jsonl",
        b'{"prompt": "a", "wordings": ["b", 7]}',
        ["a.jsonl:1", "no list of texts"],
    ),
    "an empty wording": ("a.jsonl", b'{"prompt": "a", "wordings": [" "]}', ["a.jsonl:1", "no list of texts"]),
    "wordings that are one text": ("a.csv", b"prompt,wordings\na,b\n", ["a.csv:2", "'b'", "list them, in JSON"]),
    "a wording without end": (
        "a.json",
        json.dumps([{"prompt": "a", "wordings": ["b" * 20_001]}]).encode(),
        ["entry 1", "a wording of 20,001 characters", "shorten"],
    ),
    "nothing": ("a.txt", b" \n\n", ["a.txt", "no prompt", "write one a line"]),
    "a header alone": ("a.csv", b"prompt,n\n", ["a.csv", "no prompt"]),
    "an empty table": ("a.csv", b"", ["a.csv", "no prompt"]),
    "gzip": ("a.jsonl", gzip.compress(b"a"), ["a.jsonl", "compressed (gzip)", "unpack"]),
    "bzip2": ("a.txt", bz2.compress(b"a"), ["compressed (bzip2)"]),
    "xz": ("a.txt", lzma.compress(b"a"), ["compressed (xz)"]),
    "zip": ("a.csv", b"PK\x03\x04rest", ["compressed (zip)"]),
    "UTF-16": ("a.txt", "a bench".encode("utf-16"), ["UTF-16", "save it as UTF-8"]),
    "UTF-16 without a mark": ("a.txt", "a bench".encode("utf-16-le"), ["byte 1 is zero", "save it as UTF-8"]),
    "Latin-1": ("a.txt", "drei Bänke".encode("latin-1"), ["not UTF-8 at byte 6", "save it as UTF-8"]),
    "a torn JSON line": ("a.jsonl", b'{"prompt": "a"}\n\n{"prompt": \n', ["a.jsonl:3", "not JSON", "column", "mend"]),
    "a JSON line without a prompt": ("a.jsonl", b'{"prompt": "a"}\n{"n": 1}\n', ["a.jsonl:2", "no prompt", "like"]),
    "a JSON line that is a list": ("a.jsonl", b'["a"]\n', ["a.jsonl:1", "no prompt"]),
    "a torn JSON file": ("a.json", b'["a",\n "b"', ["a.json:2", "not JSON", "mend"]),
    "JSON lines named .json": ("a.json", b'{"prompt": "a"}\n{"prompt": "b"}', ["a.json:2", "name", ".jsonl"]),
    "one object": ("a.json", b'{"prompt": "a"}', ["a.json", "list", "dict"]),
    "an entry without a prompt": ("a.json", b'["a", {"n": 1}]', ["a.json, entry 2,", "no prompt"]),
    "a number for a prompt": ("a.json", b'["a", 7]', ["entry 2", "no prompt"]),
    "no column of prompts": ("a.csv", b"id,words\n1,a\n", ["a.csv:1", "prompt, caption or text", "id, words"]),
    "two columns of one name": ("a.csv", b"prompt,prompt\na,b\n", ["a.csv:1", "two columns 'prompt'", "rename"]),
    "a cell too many": ("a.csv", b"prompt,n\na red, round bench,1\n", ["a.csv:2", "3 cells", "header 2", "quotes"]),
    "an open quote": ("a.csv", b'prompt\na\n"b\nc\n', ["a.csv:3", "broken", "quote"]),
    "text after a quote": ("a.csv", b'prompt\n"b" c\n', ["a.csv:2", "broken", "doubled"]),
    "an empty prompt": ("a.csv", b"prompt,n\na,1\n ,2\n", ["a.csv:3", "'prompt'", "delete the row"]),
    "a clause without a class": (
        "a.jsonl",
        json.dumps({"prompt": "a", "include": [BENCH]}).encode() + b'\n{"prompt": "b", "include": [{"count": 1}]}',
        ["a.jsonl:2", "`include` clause {'count': 1}", "needs a class"],
    ),
    "a count of none": (
        "a.jsonl",
        json.dumps({"prompt": "a", "include": [BENCH | {"count": 0}]}).encode(),
        ["a.jsonl:1", "'count': 0", "1 or more"],
    ),
    "an include that is no list": ("a.jsonl", b'{"prompt": "a", "include": {"class": "x"}}', ["a.jsonl:1", "no list"]),
    "an exclude without a count": (
        "a.json",
        json.dumps([{"prompt": "a", "include": [BENCH], "exclude": [{"class": "cat"}]}]).encode(),
        ["a.json, entry 1,", "`exclude`"],
    ),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_what_is_broken_is_named_in_one_line_with_its_mend(tmp_path, fault):
    name, content, fragments = BROKEN[fault]
    with pytest.raises(DataError) as caught:
        read_prompts(written(tmp_path / name, content), "x")
    message = str(caught.value)
    assert "\n" not in message and str(tmp_path) in message
    assert [fragment for fragment in fragments if fragment not in message] == [], message


def test_a_file_that_is_not_there_and_a_folder_are_named(tmp_path):
    for path, said in ((tmp_path / "no.csv", "does not exist"), (tmp_path, "cannot be read")):
        with pytest.raises(DataError, match=said):
            read_prompts(path, "x")


@pytest.mark.parametrize(
    "position", [["above", 1], ["above", 2], ["above", -1], ["beside", 0], ["above"], "above", ["above", "0"]]
)
def test_a_position_is_of_a_known_relation_to_an_earlier_clause(position):
    clauses = [BENCH, {"class": "cat", "count": 2, "color": "red", "position": position}]
    with pytest.raises(DataError, match=r"^here has a broken `include` clause .*'cat'"):
        composition({"include": clauses}, "here")


def test_a_composition_is_what_the_metadata_says():
    cat = {"class": "cat", "count": 2, "color": "red", "position": ["above", 0]}
    read = composition({"include": [BENCH, cat], "exclude": [{"class": "cat", "count": 3}]}, "here")
    assert read.include == (Clause("bench", 1), Clause("cat", 2, "red", "above", 0))
    assert read.exclude == (Clause("cat", 3),)
    assert composition({}, "here").include == composition({"include": []}, "here").include == ()


def test_an_include_of_another_table_is_left_alone(tmp_path):
    path = table(tmp_path / "a.csv", [["prompt", "include"], ["a", "yes"]])
    assert read_prompts(path, "x")[0].metadata == {"include": "yes"}


class TestTables:
    """Parquet and data sets, by `datasets` and pyarrow."""

    ROWS = (
        {"caption": "a bench", "n": 1, "include": [BENCH, BENCH | {"color": "red"}], "image": b"\x89PNG"},
        {"caption": "a cat", "n": None, "include": None, "image": None},
        {"caption": "a cat", "n": 3, "include": [], "image": None},
    )

    @pytest.fixture(autouse=True)
    def no_hub(self, monkeypatch, tmp_path):
        """Data sets are cached here, and the hub is not asked."""
        library = pytest.importorskip("datasets")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    @pytest.fixture
    def sources(self, tmp_path):
        import datasets

        datasets.disable_progress_bars()
        rows = datasets.Dataset.from_list(list(self.ROWS))
        rows.save_to_disk(tmp_path / "saved")
        datasets.DatasetDict({"test": rows}).save_to_disk(tmp_path / "splits")
        (tmp_path / "folder").mkdir()
        rows.to_parquet(tmp_path / "folder" / "train.parquet")
        return {
            "parquet": tmp_path / "folder" / "train.parquet",
            "saved": f"datasets:{tmp_path}/saved",
            "splits": f"datasets:{tmp_path}/splits@test",
            "folder": f"datasets:{tmp_path}/folder",
            "folder, all said": f"datasets:{tmp_path}/folder@train#caption",
        }

    @pytest.mark.parametrize("kind", ["parquet", "saved", "splits", "folder", "folder, all said"])
    def test_rows_are_prompts_without_nulls_or_bytes(self, sources, kind):
        read = read_prompts(sources[kind], "x")
        assert [prompt.text for prompt in read] == ["a bench", "a cat", "a cat"]
        assert read[0].metadata == {"n": 1, "include": [BENCH, BENCH | {"color": "red"}]}
        assert read[1].metadata == {} and read[2].metadata == {"n": 3, "include": []}

    def test_the_hash_is_the_contents(self, sources, tmp_path):
        import datasets

        same = {sha256_of_prompts(sources[kind]) for kind in ("saved", "splits", "folder")}
        assert len(same) == 1
        datasets.Dataset.from_list([{**row, "n": 8} for row in self.ROWS]).save_to_disk(tmp_path / "other")
        assert sha256_of_prompts(f"datasets:{tmp_path}/other") not in same

    def test_a_recipe_takes_data_sets_as_it_takes_files(self, sources, tmp_path):
        files = {"train": sources["saved"], "test": str(sources["parquet"]), "unseen": "datasets:nobody/nothing"}
        session = Session(make_recipe({"base": "none is needed", "prompts": {"x": files}}), tmp_path)
        assert session.prompts("x", "train") == session.prompts("x", "test") == read_prompts(sources["saved"], "x")
        assert session.prompt_hashes() == {
            f"x.{split}": sha256_of_prompts(sources[kind]) for split, kind in (("train", "saved"), ("test", "parquet"))
        }

    @pytest.mark.parametrize(
        "source, said",
        [
            ("datasets:{}/saved@test", "without splits; leave out @test"),
            ("datasets:{}/splits", "no split 'train'; add one of @test"),
            ("datasets:{}/folder@test", 'Unknown split "test"'),
            ("datasets:{}/saved#words", "no column of texts 'words'; it has: caption, n, include"),
            ("datasets:{}/saved#n", "row 1, has no text in its column 'n'"),
            ("datasets:nobody/nothing", "access to the hub"),
        ],
    )
    def test_what_cannot_be_had_is_named(self, sources, tmp_path, source, said):
        with pytest.raises(DataError) as caught:
            read_prompts(source.format(tmp_path), "x")
        assert said in str(caught.value) and source.format(tmp_path) in str(caught.value)

    def test_a_name_that_is_none_is_refused(self):
        with pytest.raises(ConfigError, match="datasets:OWNER/NAME"):
            read_prompts("datasets:@train", "x")

    def test_damaged_parquet_is_named(self, sources):
        content = sources["parquet"].read_bytes()
        for damaged in (content[:-20], b"PAR1", b""):
            with pytest.raises(DataError, match=r"train\.parquet is no whole parquet file"):
                read_prompts(written(sources["parquet"], damaged), "x")

    @pytest.mark.parametrize("kind, library", [("parquet", "pyarrow"), ("saved", "datasets")])
    def test_a_missing_library_is_named_with_its_extra(self, sources, monkeypatch, kind, library):
        monkeypatch.setattr("flowopd.prompts.tables.find_spec", lambda name: None)
        with pytest.raises(ConfigError, match=rf"needs {library}.* pip install 'flowopd\[datasets\]'"):
            read_prompts(sources[kind], "x")


def test_the_hash_of_a_file_is_that_of_its_bytes(tmp_path):
    a, b = written(tmp_path / "a.txt", "a bench\n"), written(tmp_path / "b.txt", "a bench")
    assert sha256_of_prompts(a) == sha256_of_prompts(written(tmp_path / "c.csv", "a bench\n")) != sha256_of_prompts(b)
    with pytest.raises(DataError, match="does not exist"):
        sha256_of_prompts(tmp_path / "none.txt")

    @pytest.mark.parametrize("silent", [None, "no network"])
    def test_a_hub_that_does_not_answer_is_not_asked_again(self, monkeypatch, silent):
        import datasets
        from huggingface_hub import constants

        asked = []
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr("flowopd.hub.silence", lambda: silent)
        monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: asked.append(constants.HF_HUB_OFFLINE) or 1 / 0)
        with pytest.raises(ZeroDivisionError):
            read_prompts("datasets:nobody/elsewhere", "x")
        assert asked == [silent is not None] and constants.HF_HUB_OFFLINE is False
