"""A secret in a recipe is refused without being shown, so that no manifest, log, report or card can hold it."""

import pytest

from flowopd.errors import ConfigError, DataError
from flowopd.recipe import load_recipe, make_recipe

TOKEN = "hf_" + "a1B2" * 8
SECRETS = {
    "a token of the hub as base": ({"base": f"x/{TOKEN}"}, TOKEN),
    "a token as the name of a variable": ({"judges": {"ocr": {"url": "http://h", "token": "s3cr3t-word"}}}, "s3cr3t"),
    "a token in small letters": ({"judges": {"ocr": {"url": "http://h", "token": "deadbeef"}}}, "deadbeef"),
    "a key of an endpoint": ({"judges": {"ocr": {"url": "http://h", "token": "sk-" + "x" * 30}}}, "xxx"),
    "a password in an address": ({"judges": {"ocr": {"url": "http://me:s3cr3t@h:1/v1"}}}, "s3cr3t"),
    "a user in an address": ({"judges": {"ocr": {"url": "https://s3cr3t@h"}}}, "s3cr3t"),
    "a key in a query": ({"judges": {"ocr": {"url": "http://h/v1?api_key=s3cr3t"}}}, "s3cr3t"),
    "a second key in a query": ({"judges": {"ocr": {"url": "http://h/v1?v=1&token=s3cr3t"}}}, "s3cr3t"),
    "an address of a base": ({"base": "https://me:s3cr3t@hub/x"}, "s3cr3t"),
    "a data set": ({"prompts": {"a": {"train": f"datasets:x/{TOKEN}"}}}, TOKEN),
    "a name": ({"teachers": {TOKEN: {"adapter": "a/b"}}}, TOKEN),
    "an unknown key": ({"evaluate": {TOKEN: 1}}, TOKEN),
}


@pytest.mark.parametrize("kind", SECRETS)
def test_a_secret_is_refused_and_not_shown(kind):
    tree, secret = SECRETS[kind]
    with pytest.raises(ConfigError) as refused:
        make_recipe({"base": "x", **tree})
    assert secret not in str(refused.value)
    assert "environment variable" in str(refused.value)


def test_a_secret_in_a_change_is_not_shown_either():
    with pytest.raises(ConfigError) as refused:
        make_recipe({"base": "x"}, [f"judges.ocr.token=[{TOKEN}"])
    assert TOKEN not in str(refused.value)


def test_a_secret_in_a_broken_file_is_not_shown(tmp_path):
    (tmp_path / "r.yaml").write_text(f"base: x\ntoken: {TOKEN}: [\n")
    with pytest.raises(ConfigError) as refused:
        load_recipe(tmp_path / "r.yaml")
    assert TOKEN not in str(refused.value)


@pytest.mark.parametrize("url", ["http://h:1/v1", "https://h/v1?api-version=2024-02-01", "http://h/a@b"])
def test_an_address_without_a_secret_is_taken(url):
    assert make_recipe({"base": "x", "judges": {"ocr": {"url": url}}}).judges["ocr"].url == url


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("a\nb\tc", "a b c"),
        ("a\x1b[2Jb\0", r"a\x1b[2Jb\x00"),
        ("\ud800", r"\ud800"),
        ("größe 三", "größe 三"),
        (f"no {TOKEN} here", "no *** here"),
        ("at https://me:s3cr3t@h/v1?a=1&api_key=s3cr3t&b", "at https://***h/v1?a=1&***&b"),
    ],
)
def test_an_error_is_one_line_that_prints_without_secrets(given, shown):
    assert str(DataError(given)) == shown


def test_a_long_error_keeps_its_beginning_and_its_mend():
    message = str(DataError("what " + "x" * 10_000 + " mend it"))
    assert len(message) == 2000 and message.startswith("what x") and message.endswith("x mend it")
