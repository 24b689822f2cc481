"""The card of an export says how to use it, in lines that work, and how it came to be, without a place of a machine."""

import json
import re
import shlex

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from typer.main import get_command

from flowopd import make_recipe
from flowopd.cli import app
from flowopd.formats import FORMATS
from flowopd.hub import located, public_name
from flowopd.lora_file import CONFIG, sha256_of
from flowopd.models.published import licence_of
from flowopd.results import Estimate, Results
from flowopd.stages.export import export

MINI = "package:mini/base"
HUB = "stabilityai/stable-diffusion-3.5-medium"


def card(session, form="diffusers", **options):
    (folder,) = export(session, [form], **options)
    return (folder / "README.md").read_text(encoding="utf-8")


def block(text, language):
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return found


def front(text):
    return yaml.safe_load(text.split("---\n")[1])


def picture(text, exports, tmp_path, monkeypatch):
    """What the lines of a card draw from fixed noise, run where they say: beside the export and the base."""
    where = tmp_path / f"try-{len(list(tmp_path.glob('try-*')))}"
    where.mkdir()
    for folder in exports.iterdir():
        (where / folder.name).symlink_to(folder)
        for file in folder.glob("run-*.safetensors"):
            (where / file.name).symlink_to(file)
    (where / "base").symlink_to(located(MINI))
    monkeypatch.chdir(where)
    *before, draws = block(text, "python").splitlines()
    names = {}
    exec(compile("\n".join(before), "card", "exec"), names)
    torch.manual_seed(0)
    exec(compile(draws, "card", "exec"), names)
    return np.asarray(Image.open(where / "picture.png")).astype(int)


def test_the_lines_of_every_card_draw_the_same_picture(session, as_from_hub, tmp_path, monkeypatch):
    pictures = {form: picture(card(session, form), session.out / "export", tmp_path, monkeypatch) for form in FORMATS}
    lines = card(session, dest=tmp_path / "bare" / "x").splitlines()
    bare = "\n".join(line for line in lines if "load_lora" not in line)
    untrained = picture(bare, tmp_path / "bare", tmp_path, monkeypatch)
    text = card(as_from_hub(session), "merged", dest=tmp_path / "hub" / "merged").replace(HUB, "base")
    pictures["merged without the other parts"] = picture(text, tmp_path / "hub", tmp_path, monkeypatch)
    for drawn in pictures.values():
        assert np.abs(drawn - pictures["diffusers"]).max() <= 1
        assert np.abs(drawn - untrained).max() > 5


def test_the_lines_without_t5_draw_what_the_run_draws_without_it(opened, tmp_path, monkeypatch):
    session = opened(t5=False, dtype="bfloat16")
    text = card(session)
    assert "text_encoder_3=None, tokenizer_3=None, dtype=torch.bfloat16)" in text
    drawn = picture(text, session.out / "export", tmp_path, monkeypatch)
    with_t5 = text.replace(", text_encoder_3=None, tokenizer_3=None", "")
    assert np.abs(drawn - picture(with_t5, session.out / "export", tmp_path, monkeypatch)).max() > 0


@pytest.mark.parametrize("form", FORMATS)
def test_the_use_is_three_lines(session, form):
    lines = [line for line in block(card(session, form), "python").splitlines() if line]
    assert 2 <= len([line for line in lines if "import" not in line]) <= 3
    assert "num_inference_steps=2, guidance_scale=1.5, max_sequence_length=16" in lines[-1]


def test_the_size_is_told_and_the_length_of_a_missing_t5_is_not(opened):
    lines = block(card(opened(resolution=32, t5=False)), "python")
    assert "height=32, width=32)" in lines and "max_sequence_length" not in lines


def test_an_expert_is_used_at_its_own_guidance(opened, tree):
    session = opened(teachers={"look": {**tree["teachers"]["look"], "guidance": 4.5}})
    assert "guidance_scale=4.5" in card(session, model="teacher:look")


def test_a_merged_model_is_used_in_the_dtype_that_it_is_in(session, tmp_path):
    text = card(session, "merged", dtype="bfloat16")
    assert "dtype=torch.bfloat16)" in block(text, "python")
    assert "--to merged --dtype bfloat16\n" in block(text, "bash")


def test_an_adapter_beside_a_merged_model_is_used_in_the_dtype_of_the_run(session):
    peft, merged = (folder / "README.md" for folder in export(session, ["peft", "merged"], dtype="float16"))
    assert "float16" in merged.read_text() and "float16" not in peft.read_text()


def test_the_head_of_a_card_of_a_published_base(session, as_from_hub):
    head = front(card(as_from_hub(session)))
    assert head["base_model"] == HUB
    assert (head["license"], head["license_name"]) == ("other", "stabilityai-ai-community")
    assert (head["library_name"], head["pipeline_tag"]) == ("diffusers", "text-to-image")
    assert {"text-to-image", "lora"} <= set(head["tags"])


def test_the_head_of_a_card_of_a_base_that_is_not_on_the_hub(session):
    text = card(session, "merged")
    head = front(text)
    assert head["license"] == "unknown" and "base_model" not in head and "lora" not in head["tags"]
    assert "# no base_model: package:mini/base" in text and "unknown to flowopd" in text


@pytest.mark.parametrize("name, known", [(HUB, True), (HUB.replace("medium", "large-turbo"), True), ("a/b", False)])
def test_only_a_licence_that_is_known_is_named(name, known):
    assert (licence_of(name)["license"] == "other") is known


SECRETS = {"url": "https://judge.example/hunter2/v1", "token": "MY_TOKEN_VARIABLE"}


@pytest.mark.parametrize("form", FORMATS)
def test_no_place_of_this_machine_and_no_secret_is_told(opened, tmp_path, files, monkeypatch, form):
    monkeypatch.setenv("MY_TOKEN_VARIABLE", "hunter3")
    (folder,) = export(opened(judges={"qwenvl": SECRETS}), [form])
    everything = b"".join(files(folder).values())
    assert [word for word in ("secret", "hunter", "MY_TOKEN", str(tmp_path)) if word.encode() in everything] == []


def test_places_are_shortened_and_names_are_not(tmp_path):
    (tmp_path / "experts" / "look").mkdir(parents=True)
    assert public_name(str(tmp_path / "experts" / "look")) == public_name("/no/such/look") == "look"
    assert public_name("../look") == public_name("a/b/look") == public_name("look") == "look"
    assert public_name("owner/name") == "owner/name" and public_name(MINI) == MINI


def test_the_card_says_how_it_was_made(session, tmp_path, lora):
    text = card(session)
    assert f"| teacher `look` | `look`, sha256 `{sha256_of(tmp_path / 'experts' / 'look')}` |" in text
    assert "| loss form | closed_form, weighting velocity |" in text
    assert "| cold start | the mean of the experts' weight changes, exact |" in text
    assert f"a LoRA of rank 3 and alpha 7 on {len(lora.modules)} modules" in text
    assert session.model.source.fingerprint() in text
    assert all(f"{name} " in text for name in ("torch", "diffusers", "peft", "flowopd"))
    assert "was not evaluated" in text


@pytest.mark.parametrize(
    "coldstart, said",
    [
        (None, "| cold start | none |"),
        ({"kind": "sft"}, "| cold start | fine-tuning by flow matching on images that the experts drew |"),
        ({"kind": "merge", "rank": 2}, "changes, truncated to rank 2 |"),
    ],
)
def test_every_cold_start_has_its_words(opened, coldstart, said):
    assert said in card(opened(coldstart=coldstart))


def test_a_run_without_distillation_has_a_card(opened):
    text = card(opened(distill=None), model="teacher:look")
    assert "| loss form | none |" in text and "## The run that it comes from" in text


def test_the_recipe_in_the_card_is_the_run_s(session, tmp_path):
    recipe = make_recipe(yaml.safe_load(block(card(session), "yaml")))
    ours = session.recipe.model_dump()
    ours["teachers"]["look"]["adapter"] = "look"
    ours["prompts"]["look"]["train"] = "signs.txt"
    assert recipe.model_dump() == ours


@pytest.mark.parametrize("out", ["run", "my run's"])
def test_the_commands_in_the_card_are_understood(session, out):
    session.out = session.out.rename(session.out.with_name(out))
    for line in block(card(session, "merged", dtype="float16"), "bash").splitlines():
        program, name, *rest = shlex.split(line)
        assert program == "flowopd" and f"runs/{out}" in rest
        get_command(app).commands[name].make_context(name, rest)


def test_a_data_set_keeps_its_name_in_the_card(session, tmp_path, tree):
    prompts = {"look": {"train": "datasets:owner/signs@train#text", "test": f"datasets:{tmp_path}/mine@test"}}
    session.recipe = make_recipe({**tree, "prompts": prompts})
    files = yaml.safe_load(block(card(session), "yaml"))["prompts"]["look"]
    assert files == {"train": "datasets:owner/signs@train#text", "test": "datasets:mine@test"}


def test_results_stand_in_the_card(session):
    estimate = Estimate(mean=0.75, ci95=(0.7, 0.8), n=9)
    Results(models={"base": {"ocr": estimate}, "student": {"ocr": estimate}}).save(session.out / "results.json")
    text = card(session)
    assert "| student | 0.750 ± 0.050 |" in text and "This model is the row `student`" in text
    assert "This model is the row" not in card(session, "peft", model="teacher:look")


def test_the_difference_that_was_found_is_told(session, measure):
    (found,) = re.findall(r"at most (\S+) of", card(session, "merged"))
    assert 0 < float(found) < measure.limit


def test_the_card_of_a_run_without_a_manifest_is_whole(session):
    (session.out / "manifest.json").unlink()
    text = card(session)
    assert "not recorded" in text and "look`, sha256" in text


def test_what_was_recorded_of_a_teacher_counts(session):
    manifest = json.loads((session.out / "manifest.json").read_text())
    manifest["sha256"]["look"] = "as it was then"
    (session.out / "manifest.json").write_text(json.dumps(manifest))
    assert "sha256 `as it was then`" in card(session)


def test_peft_is_told_the_base_by_its_public_name(session, as_from_hub):
    (folder,) = export(session, ["peft"])
    assert json.loads((folder / CONFIG).read_text())["base_model_name_or_path"] == MINI
    (folder,) = export(as_from_hub(session), ["peft"], dest=session.out / "again")
    assert json.loads((folder / CONFIG).read_text())["base_model_name_or_path"] == HUB
