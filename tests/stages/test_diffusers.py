"""The student that a user takes home draws in plain diffusers and plain peft what it draws here."""

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from peft import PeftModel

from flowopd.mini.encoders import TOKENS
from flowopd.noise import Noise
from flowopd.pipeline import open_run
from flowopd.prompts import Prompt
from flowopd.recipe import make_recipe
from flowopd.sampling import SamplingConfig
from flowopd.stages.sample import draw

SEEDS = (11, 12)
STEPS = 4


@pytest.fixture
def session(world, finished):
    return open_run(make_recipe(world.whole()), finished)


@pytest.fixture
def texts(session):
    return [session.prompts(label, "test")[1].text for label in ("composition", "quality")]


@pytest.fixture
def pipe(world):
    pipe = StableDiffusion3Pipeline.from_pretrained(world.base)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def drawn_here(session, model, texts, guidance):
    sampling = SamplingConfig(steps=STEPS, guidance=guidance)
    return draw(session, model, texts, SEEDS, sampling, encoded(session, texts)).astype(int)


def encoded(session, texts):
    return session.encode([Prompt(text, "") for text in texts])


def drawn_there(pipe, session, texts, guidance):
    latents = Noise(SEEDS).initial(session.model.latent_shape())
    pictures = pipe(
        prompt=texts,
        latents=latents,
        num_inference_steps=STEPS,
        guidance_scale=guidance,
        max_sequence_length=TOKENS,
        output_type="np",
    ).images
    return (np.asarray(pictures) * 255).round().astype(int)


def with_load_lora_weights(pipe, finished):
    pipe.load_lora_weights(str(finished / "student"))


def with_peft(pipe, finished):
    pipe.transformer = PeftModel.from_pretrained(pipe.transformer, str(finished / "student"))


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("load", [with_load_lora_weights, with_peft])
def test_the_student_draws_the_same_in_plain_diffusers(session, finished, pipe, texts, load, guidance):
    load(pipe, finished)
    here = drawn_here(session, "student", texts, guidance)
    assert np.abs(here - drawn_there(pipe, session, texts, guidance)).max() <= 1


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_the_base_draws_the_same_in_plain_diffusers(session, pipe, texts, guidance):
    here = drawn_here(session, "base", texts, guidance)
    assert np.abs(here - drawn_there(pipe, session, texts, guidance)).max() <= 1


def test_student_base_and_guidance_are_told_apart_by_far(session, texts):
    student, base, guided = (
        drawn_here(session, model, texts, guidance)
        for model, guidance in (("student", 1.0), ("base", 1.0), ("student", 3.0))
    )
    assert np.abs(student - base).max() > 20 and np.abs(student - guided).max() > 20


def test_the_encoded_prompts_are_those_of_the_pipeline(session, pipe, texts):
    here = encoded(session, texts)(texts)
    embeds, _, pooled, _ = pipe.encode_prompt(
        texts, None, None, do_classifier_free_guidance=False, max_sequence_length=TOKENS
    )
    torch.testing.assert_close(here["prompt_embeds"], embeds)
    torch.testing.assert_close(here["pooled_prompt_embeds"], pooled)
