"""The report shows a run's own numbers, fetches nothing, trusts no text, and says what is missing."""

import json
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from flowopd.errors import DataError
from flowopd.results import Estimate, Results, gap_closed
from flowopd.stages.report.figures import curves, heat_maps
from flowopd.stages.report.findings import changes, moved, rivals
from flowopd.stages.report.page import write_report
from flowopd.stages.report.series import Curve, costs, elapsed, gap_curves, gap_tables, reward_curves
from flowopd.stages.report.text import duration, listed, size

HOSTILE = '<script>alert("x")</script> & $\\frac'
MEANS = {
    "base": (0.4137, 0.5219),
    "teacher:layout": (0.8341, 0.5013),
    "teacher:text": (0.4273, 0.8829),
    "merge": (0.6121, 0.6917),
    "student": (0.8203, 0.8641),
}
PARTS = ("results.json", "metrics.jsonl", "manifest.json", "samples", "student")
VOID = {"meta", "img", "br", "hr"}


def estimate(mean):
    return Estimate(mean=mean, ci95=(mean - 0.0213, mean + 0.0197), n=64)


def record():
    models = {
        name: {"geneval": estimate(a), "ocr": estimate(b), "average": estimate((a + b) / 2)}
        for name, (a, b) in MEANS.items()
    }
    settings = {"guidance": 4.5, "seeds": [7, 8]}
    return gap_closed(Results(settings=settings, models=models), {"geneval": "layout", "ocr": "text"})


def metric_rows():
    experts = [
        {"stage": f"teacher:{name}", "step": step, "seconds": 1.0, "loss": 0.1, "reward": 0.5 + step / 40}
        for name in ("layout", "text")
        for step in range(12)
    ]
    distilled = [
        {"stage": "distill", "step": step, "seconds": 1.0, "loss": 0.1, "grad_norm": 1.0}
        | {"gap/layout": 0.3 / (1 + step), "gap/text": 0.2 / (1 + step)}
        | {f"gap/layout/{step % 3}": 0.3 / (1 + step), f"gap/text/{step % 3}": 0.2 / (1 + step)}
        for step in range(30)
    ]
    return experts + distilled


@pytest.fixture
def run(tmp_path):
    """A finished run's folder, its second wall picture of the second prompt missing."""
    folder = tmp_path / "a run"
    (folder / "samples").mkdir(parents=True)
    (folder / "student").mkdir()
    (folder / "student" / "adapter_model.safetensors").write_bytes(bytes(1500))
    record().save(folder / "results.json")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metric_rows()))
    recipe = {"base": "mini/<base>", "adapter": {"rank": 32}, "empty": {}}
    manifest = {"recipe": recipe, "loss_form": HOSTILE}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    index = {"prompts": [HOSTILE, "a sign"], "models": ["base", "student"]}
    (folder / "samples" / "index.json").write_text(json.dumps(index))
    for name in ("0-base", "0-student", "1-base"):
        Image.new("RGB", (64, 64), "red").save(folder / "samples" / f"{name}.png")
    return folder


@dataclass
class Page(HTMLParser):
    """What a page opens, and the text that it shows; tags must close in order."""

    tags: list = field(default_factory=list)
    ids: list = field(default_factory=list)
    stack: list = field(default_factory=list)
    text: str = ""

    def __post_init__(self):
        super().__init__()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.ids += [value for name, value in attrs if name == "id"]
        self.stack += [] if tag in VOID else [tag]

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        if not {"style", "svg"} & set(self.stack):
            self.text += data


def read(path):
    page = Page()
    page.feed(path.read_text(encoding="utf-8"))
    assert page.stack == []
    page.text = re.sub(r"\s+", " ", page.text)
    return page


def test_the_page_holds_every_number_of_the_table(run):
    page = read(write_report(run))
    for row in record().models.values():
        for value in row.values():
            assert f"{value.mean:.3f} {value.ci95[0]:.3f} to {value.ci95[1]:.3f}" in page.text
    assert "+0.420" in page.text and "−0.021" in page.text
    assert "97 %" in page.text and "95 %" in page.text.split("gap closed")[1]


def test_the_headline_is_made_of_the_averages(run):
    text = read(write_report(run)).text
    assert "The student averages 0.842 [0.821, 0.862]: above its best expert, layout (0.668 [" in text
    assert ", and above the merge alone (0.652 [0.631, 0.672])." in text


@pytest.mark.parametrize(("mean", "standing"), [(0.9, "above"), (0.66, "level with"), (0.3, "below")])
def test_a_rival_whose_interval_overlaps_is_level(mean, standing):
    models = {"merge": {"average": estimate(0.65)}, "student": {"average": estimate(mean)}}
    assert [rival.standing for rival in rivals(Results(models=models))] == [standing]


def test_the_best_of_each_metric_is_bold(run):
    html = write_report(run).read_text(encoding="utf-8")
    scores = html.split("Every model on every metric")[1].split("What was gained")[0]
    assert re.findall(r"<b>([\d.]+)</b>", scores) == ["0.834", "0.883", "0.842"]


def test_changes_are_to_the_base_and_unclear_where_intervals_overlap():
    table = changes(record())
    assert list(table) == ["teacher:layout", "teacher:text", "merge", "student"]
    lost, gained = table["teacher:layout"]["ocr"], table["teacher:text"]["ocr"]
    assert lost.difference == pytest.approx(-0.0206) and not lost.clear
    assert gained.clear and gained.tint == 1 and lost.tint == pytest.approx(0.0206 / 0.3610)


def test_nothing_is_fetched_and_nothing_runs(run):
    path = write_report(run)
    page = read(path)
    assert "http" not in path.read_text(encoding="utf-8")
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    sources = [attrs["src"] for _, attrs in page.tags if "src" in attrs]
    assert len(sources) == 3 and all(source.startswith("data:image/png;base64,") for source in sources)


def test_hostile_text_is_shown_as_text(run):
    path = write_report(run)
    assert "<script" not in path.read_text(encoding="utf-8")
    assert read(path).text.count(HOSTILE) == 2


def test_hostile_names_survive_in_figures():
    svg = curves({HOSTILE: Curve(np.arange(3), np.ones(3))}, [HOSTILE], "gap")
    assert "<script" not in svg and "$\\frac" in svg


def test_figures_share_no_id_and_take_the_colours_of_the_page(run):
    path = write_report(run)
    page = read(path)
    assert sum(tag == "svg" for tag, _ in page.tags) == 4
    assert len(page.ids) == len(set(page.ids))
    drawn = "".join(re.findall("<svg.*?</svg>", path.read_text(encoding="utf-8"), re.DOTALL))
    assert set(re.findall(r"(?:fill|stroke): ([^;\"]+)", drawn)) == {
        "none",
        "currentColor",
        "var(--faint)",
        "var(--s0)",
        "var(--s1)",
    }


def test_the_same_run_gives_the_same_page(run):
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first


def test_the_model_is_used_as_the_manifest_says(run):
    text = read(write_report(run)).text
    assert 'DiffusionPipeline.from_pretrained("mini/\\u003cbase\\u003e")' in text
    assert "recipe (3) base mini/<base> adapter.rank 32 empty {}" in text
    assert "evaluation (2) guidance 4.5 seeds [7, 8]" in text and "owners" not in text


def test_a_picture_that_is_not_there_is_said(run):
    assert "no picture: student" in read(write_report(run)).text


def test_a_large_picture_is_reduced(run):
    noise = np.random.default_rng(0).integers(256, size=(1024, 1024, 3), dtype=np.uint8)
    before = len(write_report(run).read_bytes())
    Image.fromarray(noise).save(run / "samples" / "1-student.png")
    assert len(write_report(run).read_bytes()) - before < 1.4 * 3 * 256**2


@pytest.mark.parametrize("missing", PARTS)
def test_a_missing_part_is_said_and_the_rest_shown(run, missing):
    assert "missing" not in read(write_report(run)).text
    (run / missing).rename(run / "elsewhere")
    assert missing in read(write_report(run)).text.split("missing")[0]


@pytest.mark.parametrize("only", PARTS[:3])
def test_one_part_alone_makes_a_report(run, only):
    for part in set(PARTS) - {only}:
        (run / part).rename(run.parent / part)
    assert read(write_report(run)).text.count("missing") >= 4


def test_results_without_base_teachers_and_average_make_a_report(run):
    Results(models={"student": {"ocr": estimate(0.5)}}).save(run / "results.json")
    text = read(write_report(run)).text
    assert "Not evaluated yet." in text and "0.500" in text and "no base to compare with" in text


def test_a_teacher_without_a_gap_has_its_reason(run):
    rows = record().models | {"teacher:text": {"ocr": estimate(0.5)}}
    gap_closed(Results(models=rows), {"ocr": "text"}).save(run / "results.json")
    assert "the expert (0.500) is not above the base (0.522)" in read(write_report(run)).text


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(DataError, match="give the folder of a run"):
        write_report(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("metrics.jsonl", '{"stage": "distill", "step": 0}\n{"sta\n', "metrics.jsonl:2 is not JSON"),
        ("metrics.jsonl", '{"stage": "distill"}\n', "without stage or step"),
        ("manifest.json", "[1]", "manifest.json holds list"),
        ("samples/index.json", '{"prompts": ["a"]}', "needs the lists prompts and models"),
        ("samples/0-base.png", "no picture", "0-base.png is not a readable picture"),
    ],
)
def test_a_damaged_part_is_refused_by_name(run, name, content, named):
    (run / name).write_text(content)
    with pytest.raises(DataError, match=named):
        write_report(run)
    assert not (run / "report.html").exists()


def test_a_line_that_is_still_being_written_is_passed_over(run):
    whole = write_report(run).read_bytes()
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "distill", "st')
    assert write_report(run).read_bytes() == whole


def test_curves_are_taken_by_teacher_and_without_what_is_not_finite():
    rows = [*metric_rows(), {"stage": "distill", "step": 30, "gap/text": float("nan"), "gap/layout": None}]
    rewards, gaps = reward_curves(rows), gap_curves(rows)
    assert list(rewards) == list(gaps) == ["layout", "text"]
    assert rewards["text"].values == pytest.approx(0.5 + np.arange(12) / 40)
    assert gaps["text"].steps.tolist() == list(range(30))


def test_gaps_by_step_are_means_over_the_first_and_last_tenth():
    first, last = gap_tables(metric_rows(), ["layout", "text"]).values()
    assert first == pytest.approx(np.array([[0.3, 0.2], [0.3 / 2, 0.2 / 2], [0.3 / 3, 0.2 / 3]]))
    assert last == pytest.approx(np.array([[0.3 / 28, 0.2 / 28], [0.3 / 29, 0.2 / 29], [0.3 / 30, 0.2 / 30]]))


def test_a_step_that_was_never_visited_stays_empty():
    tables = gap_tables([{"stage": "distill", "step": 0, "gap/text/2": 0.5}], ["text"])
    assert all(np.isnan(table[:2]).all() and table[2, 0] == 0.5 for table in tables.values())
    assert heat_maps(tables, ["text"], "step").count(">0.5</text>") == 2


def test_a_long_curve_is_thinned():
    long = Curve(np.arange(50_000.0), np.random.default_rng(0).random(50_000))
    assert len(curves({"text": long}, ["text"], "gap")) < 40_000


def test_the_sections_answer_in_the_order_of_the_questions(run):
    html = write_report(run).read_text(encoding="utf-8")
    assert re.findall(r'<h2 id="(\w+)"', html) == ["experts", "cost", "pictures", "use", "made"]
    assert set(re.findall(r'<a href="#(\w+)"', html)) == {"experts", "cost", "pictures", "use", "made"}


def test_what_the_student_gained_and_lost_is_said(run):
    gains = "Against the base it is better at geneval and ocr, and worse at nothing."
    assert gains in read(write_report(run)).text
    rows = record().models | {"student": {"geneval": estimate(0.3), "ocr": estimate(0.53), "average": estimate(0.4)}}
    Results(models=rows).save(run / "results.json")
    lost = "it is better at nothing, and worse at geneval; no clear difference at ocr."
    assert lost in read(write_report(run)).text


def test_moved_leaves_the_average_out():
    assert moved(changes(record())["teacher:text"]) == {"gained": ["ocr"], "lost": [], "level": ["geneval"]}


def test_a_clock_that_begins_again_with_a_resume_is_added_up():
    assert elapsed(np.array([1.0, 2.0, 5.0, 0.5, 2.0, 1.0])) == 5 + 2 + 1
    assert elapsed(np.array([])) == 0


def test_the_cost_of_every_stage_is_told(run):
    assert {stage: cost.steps for stage, cost in costs(metric_rows()).items()} == {
        "teacher:layout": 12,
        "teacher:text": 12,
        "distill": 30,
    }
    rows = [{"stage": "distill", "step": step, "seconds": 30.0 * (1 + step)} for step in range(10)]
    rows.append({"stage": "eval", "step": 0})
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    html = write_report(run).read_text(encoding="utf-8")
    assert "distill</th><td>10</td><td>5 min 0 s</td><td>30&nbsp;s</td>" in html
    assert "together</th><td></td><td>5 min 0 s</td>" in html


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.4, "0 s"), (48, "48 s"), (293, "4 min 53 s"), (7_500, "2 h 5 min"), (273_600, "3 d 4 h")]
)
def test_a_time_has_two_units(seconds, said):
    assert duration(seconds) == said


def test_sizes_and_lists_read_well():
    assert [size(count) for count in (812, 1_500, 3_100_000)] == ["812 B", "1.5 kB", "3.1 MB"]
    assert [listed(names) for names in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == [
        "none",
        "a",
        "a and b",
        "a, b and c",
    ]


def test_the_interference_of_the_experts_is_shown(run):
    facts = {
        "names": ["layout", "text"],
        "norms": {"layout": 9.07, "text": 3.61},
        "cosines": [[1, -0.025], [-0.025, 1]],
    }
    (run / "coldstart").mkdir()
    (run / "coldstart" / "merge.json").write_text(json.dumps({"relative_error": 0.0, "interference": facts}))
    html = write_report(run).read_text(encoding="utf-8")
    assert "layout</th><td>1</td><td>−0.025</td><td>9.070</td>" in html
    (run / "coldstart" / "merge.json").write_text(json.dumps({"relative_error": 0.0}))
    with pytest.raises(DataError, match=r"merge.json lacks the names, norms and cosines"):
        write_report(run)


def test_a_base_of_the_package_is_found_by_the_code_that_is_shown(run):
    recipe = {"base": "package:recipes", "evaluate": {"sampling": {"steps": 7, "guidance": 1.5}}}
    (run / "manifest.json").write_text(json.dumps({"recipe": recipe}))
    code = write_report(run).read_text(encoding="utf-8").split("<pre><code>")[1].split("</code>")[0]
    compile(code, "report.html", "exec")
    assert "located(" in code and "num_inference_steps=7, guidance_scale=1.5" in code


def test_what_the_evaluation_says_of_the_call_is_in_the_code_that_is_shown(run):
    results = Results.load(run / "results.json")
    said = {"call": {"num_inference_steps": 3, "guidance_scale": 1, "max_sequence_length": 16}, "load": {"t5": None}}
    results.model_copy(update={"settings": results.settings | said}).save(run / "results.json")
    code = write_report(run).read_text(encoding="utf-8").split("<pre><code>")[1].split("</code>")[0]
    assert "t5=None)" in code and "num_inference_steps=3, guidance_scale=1, max_sequence_length=16)" in code
