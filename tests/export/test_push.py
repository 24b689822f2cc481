"""What goes to the hub: a whole export, where it was asked to go; what does not get there stays and says so."""

import re
from pathlib import Path

import pytest
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

from flowopd.errors import CheckpointError
from flowopd.lora_file import read_lora
from flowopd.stages.export import export


class Hub:
    """A hub that writes down what is asked of it, and fails where it is told to."""

    def __init__(self):
        self.calls, self.public, self.failure = [], False, None

    def create_repo(self, name, private, exist_ok):
        if self.failure:
            raise self.failure
        assert exist_ok
        self.calls.append(f"create {name} {private}")

    def repo_info(self, name):
        return type("Info", (), {"private": not self.public})

    def upload_folder(self, repo_id, folder_path, commit_message):
        names = sorted(path.name for path in Path(folder_path).iterdir())
        self.calls.append(f"upload {repo_id} {' '.join(names)}")


@pytest.fixture
def hub(monkeypatch):
    hub = Hub()
    monkeypatch.setattr("flowopd.hub.HfApi", lambda: hub)
    return hub


def test_a_push_makes_the_repository_and_its_card_names_it(session, hub):
    (folder,) = export(session, push="me/it")
    assert 'load_lora_weights("me/it")' in (folder / "README.md").read_text()
    assert hub.calls == ["create me/it False", "upload me/it README.md pytorch_lora_weights.safetensors"]


def test_a_private_repository_is_asked_for(session, hub):
    export(session, ["peft"], push="me/it", private=True)
    assert hub.calls[0] == "create me/it True" and len(hub.calls) == 2


def test_nothing_goes_to_a_public_repository_that_should_be_private(session, hub):
    hub.public = True
    with pytest.raises(CheckpointError, match="me/it exists and is public; make it private"):
        export(session, push="me/it", private=True)
    assert not [call for call in hub.calls if call.startswith("upload")]


def refused(status):
    response = type("Response", (), {"status_code": status, "headers": {}, "request": None})()
    return HfHubHTTPError(f"{status} Client Error\n\nno", response=response)


@pytest.mark.parametrize(
    "failure, mend",
    [
        (refused(401), "hf auth login"),
        (refused(403), "hf auth login"),
        (LocalTokenNotFoundError("no token"), "hf auth login"),
        (refused(400), "mend what the hub refuses"),
        (ValueError("invalid metadata"), "mend what the hub refuses"),
        (OfflineModeIsEnabled("offline"), "HF_HUB_OFFLINE"),
        (ConnectionError("refused"), "check the network"),
        (HfHubHTTPError.__bases__[0]("no route"), "check the network"),
    ],
)
def test_an_export_that_does_not_reach_the_hub_stays_and_says_so(session, hub, failure, mend):
    hub.failure = failure
    with pytest.raises(CheckpointError, match=re.escape(mend)) as caught:
        export(session, push="me/it")
    folder = session.out / "export" / "diffusers"
    assert "\n" not in str(caught.value) and f"hf upload me/it {folder}" in str(caught.value)
    assert read_lora(folder).modules


def test_a_hub_that_is_switched_off_is_one_line(session, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="check the network, and that HF_HUB_OFFLINE is not set") as caught:
        export(session, push="me/it")
    assert "\n" not in str(caught.value)
