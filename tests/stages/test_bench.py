"""The benchmark counts what passes, measures pair by pair, and writes a page of nothing but measurements."""

import json
from concurrent.futures.process import BrokenProcessPool
from itertools import count
from pathlib import Path

import pytest
import torch

from flowopd.errors import ConfigError, DataError
from flowopd.recipe import validated
from flowopd.stages.bench import BenchConfig, bench, curve, described, profiled, scan, write_page
from flowopd.stages.bench.counting import Ledger
from flowopd.stages.bench.curves import VALUES
from flowopd.stages.bench.memory import memory_of
from flowopd.stages.bench.subject import bare_model, new_ledger, untaught, update_of, with_teachers
from flowopd.stages.bench.timing import matmul_rate

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "PERFORMANCE.md"


@pytest.fixture
def config(world):
    """A quick update of the tiny world's base."""

    def make(**changes):
        quick = {"model": str(world.base), "teachers": 2, "batch": 2, "steps": 2, "rank": 2, "repeats": 1, "threads": 1}
        return BenchConfig(**{**quick, **changes})

    return make


@pytest.fixture(scope="module")
def compared(world):
    """One whole measurement, against the field's schedule."""
    return bench(
        BenchConfig(model=str(world.base), teachers=2, batch=2, steps=2, rank=2, repeats=2, threads=1), "naive"
    )


def test_every_sample_and_step_takes_one_forward_of_each_and_one_backward(compared):
    assert compared["forwards"] == {"student": 1, "teacher": 1, "anchor": 1}
    assert compared["rows"] == {"student": 2, "teacher": 2, "anchor": 2}
    assert compared["backwards"] == 1


def test_the_schedule_of_the_field_takes_a_second_student_forward(compared):
    other = compared["compare"]
    assert other["forwards"] == {"student": 2, "teacher": 1, "anchor": 1} and other["backwards"] == 1
    assert other["passes_ratio"] == 5 / 4
    assert len(other["ratios"]) == 2 and min(other["ratios"]) <= other["ratio"] <= max(other["ratios"])


def test_the_threads_of_torch_are_given_back(config):
    before = torch.get_num_threads()
    bench(config(threads=before + 1))
    assert torch.get_num_threads() == before


def test_work_is_in_proportion_to_the_rows(compared):
    backward_rows, own, other = 2, 6, 8
    ratio = compared["compare"]["flops_per_update"] / compared["flops_per_update"]
    assert ratio == pytest.approx((other + backward_rows) / (own + backward_rows), rel=0.05)


def test_shares_are_shares(compared):
    for row in (compared, compared["compare"]):
        assert 0 <= row["outside_model_share"] < 1 and 0 < row["attention_share"] < 1
        assert row["matmul_peak_share"] == pytest.approx(row["floor_seconds"] / row["seconds_per_update"])
        least, most = row["seconds_spread"]
        assert 0 < least <= row["seconds_per_update"] <= most


def counted(config):
    subject = with_teachers(untaught(config, bare_model(config)), config.teachers)
    ledger = new_ledger(subject)
    passed = []
    subject.model.transformer.register_forward_hook(
        lambda _m, _a, named, _o: passed.append(len(named["hidden_states"])), with_kwargs=True
    )
    gaps = update_of(subject, config, ledger)(0)
    return ledger, passed, gaps


@pytest.mark.parametrize("schedule", ["fused", "replay", "naive"])
@pytest.mark.parametrize("guidance", [1.0, 4.5])
def test_the_rows_that_are_counted_are_those_that_pass(config, schedule, guidance):
    ledger, passed, gaps = counted(config(schedule=schedule, guidance=guidance))
    assert sum(ledger.rows.values()) == sum(passed)
    assert sum(ledger.rows.values()) == (1 if guidance == 1 else 2) * sum(ledger.forwards.values())
    assert gaps.isfinite().all()


def test_one_query_asks_teachers_and_anchor_once_and_walks_no_further(config):
    ledger, _, gaps = counted(config(query="beta", steps=4))
    (queried,) = {int(i) for i in (~gaps[0].isnan()).nonzero()[:, 0]}
    assert ledger.forwards == {"student": 2 * (queried + 1), "teacher": 2, "anchor": 2}
    assert ledger.backwards == 2


def test_an_unguided_student_takes_one_row(config):
    ledger, _, _ = counted(config(student_guidance=1.0))
    assert ledger.rows["student"] == ledger.forwards["student"] and ledger.rows["teacher"] == 8


def test_without_an_anchor_none_is_asked(config):
    ledger, _, gaps = counted(config(anchor=False))
    assert ledger.forwards["anchor"] == 0 and gaps[1].isnan().all()


def test_the_reference_trains_every_step_and_guides_its_student(config):
    reference = config(query="beta", student_guidance=1.0).against("naive")
    assert (reference.query, reference.own_guidance, reference.schedule) == ("all", 4.5, "naive")
    other = config(query="beta", student_guidance=1.0).against("replay")
    assert (other.query, other.own_guidance) == ("beta", 1.0)


def test_the_time_inside_is_that_of_forwards_and_of_backwards_to_the_last_parameter():
    ticks = count()
    ledger, w = Ledger(lambda: float(next(ticks))), torch.nn.Parameter(torch.ones(3))
    ledger.watch([w])
    with torch.no_grad():
        ledger.timed(lambda: 2 * w)
    assert ledger.inside == 1
    v = ledger.timed(lambda: 2 * w)
    assert ledger.inside == 2
    for _ in range(5):
        ledger.now()
    v.sum().backward()
    assert ledger.inside == 3


def test_memory_is_measured_in_a_process_of_its_own(config):
    ballast = torch.ones(2**27)
    memory = memory_of(config(teachers=3, rank=16))
    assert memory.adapter > 0 and memory.peak < ballast.nbytes + 2**30
    assert memory.adapter < memory.teacher < memory.adapter + 2**20


def test_an_update_that_the_system_ends_is_a_mistake_of_size(config, monkeypatch):
    def ended(*_):
        raise BrokenProcessPool

    monkeypatch.setattr("flowopd.stages.bench.memory.ProcessPoolExecutor.submit", ended)
    with pytest.raises(ConfigError, match=r"an update of 2 samples and 2 teachers, .* take fewer"):
        memory_of(config())


def test_the_small_preset_needs_no_files():
    config = BenchConfig(preset="small", batch=1, steps=1, teachers=1, rank=1, patches=2, query="1")
    subject = untaught(config, bare_model(config))
    assert 4.5e7 < sum(p.numel() for p in subject.model.transformer.parameters()) < 6e7
    assert subject.shape == (16, 4, 4) and subject.model.latent_shape() == (16, 16, 16)
    assert len(subject.batch) == len(subject.null) == 1


def test_the_rate_of_products_is_positive():
    assert matmul_rate(torch.device("cpu"), torch.float32) > 1e8


def test_a_scan_measures_every_value(config, monkeypatch, tmp_path):
    monkeypatch.setitem(VALUES, "batch", (1, 2))
    found = scan(config(), "batch")
    assert [point["value"] for point in found["points"]] == [point["batch"] for point in found["points"]] == [1, 2]
    assert curve(found).count("\n") == 2
    (tmp_path / "curves").mkdir()
    (tmp_path / "curves" / "by-batch.json").write_text(json.dumps(found))
    page = write_page(tmp_path / "curves").read_text()
    assert "## Over batch" in page and (tmp_path / "curves" / "by-batch.svg").exists()


def test_tokens_are_as_many_as_the_positions_that_the_model_has(config, monkeypatch):
    monkeypatch.setattr("flowopd.stages.bench.curves.bench", lambda config: {"patches": config.patches})
    assert [point["patches"] for point in scan(config(), "tokens")["points"]] == [4, 8]


def test_a_scan_takes_other_values(config, monkeypatch):
    monkeypatch.setattr("flowopd.stages.bench.curves.bench", lambda config: {"teachers": config.teachers})
    assert [point["teachers"] for point in scan(config(), "teachers", (3, 5))["points"]] == [3, 5]
    with pytest.raises(ConfigError, match="--value 0 must be positive"):
        scan(config(), "teachers", (0,))


def test_an_unknown_scan_is_refused(config):
    with pytest.raises(ConfigError, match="--scan colours is not known; scan one of batch, steps"):
        scan(config(), "colours")


def test_a_profile_names_operations(config):
    assert "aten::" in profiled(config())


def test_a_measurement_is_told_in_lines(compared):
    text = described(compared)
    assert "against naive" in text and "student 1 (2 rows)" in text


def test_a_page_shows_what_was_measured(compared, tmp_path):
    (tmp_path / "measured").mkdir()
    (tmp_path / "measured" / "all-steps.json").write_text(json.dumps(compared))
    page = write_page(tmp_path / "measured").read_text()
    assert f"{compared['compare']['ratio']:.2f}" in page and "all-steps" in page and "1.25" in page


@pytest.mark.parametrize(("content", "said"), [(None, "holds no measurement"), ("{", "is not JSON")])
def test_a_page_of_nothing_is_refused(content, said, tmp_path):
    if content is not None:
        (tmp_path / "a.json").write_text(content)
    with pytest.raises(DataError, match=said):
        write_page(tmp_path)


def test_the_page_that_ships_is_made_of_the_files_beside_it(tmp_path):
    made = write_page(ROOT / "docs" / "performance", tmp_path / "page.md")
    assert made.read_text(encoding="utf-8") == PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"query": "gamma"}, "bench: query: .*a query is all, beta, or a number of steps, got 'gamma'"),
        ({"query": "0"}, "a number of steps"),
        ({"query": "7", "steps": 3}, "7 queried steps do not fit in 3"),
        ({"schedule": "fussed"}, "bench: schedule must be 'fused', 'replay' or 'naive', got 'fussed'"),
        ({"batch": 0}, "bench: batch"),
        ({"guidance": -1.0}, "bench: guidance"),
        ({"device": "abacus"}, "bench: device: .*there is no such device here, got 'abacus'"),
    ],
)
def test_settings_that_cannot_be_measured_are_refused(changes, said):
    with pytest.raises(ConfigError, match=said):
        validated(BenchConfig, changes, where="bench")
