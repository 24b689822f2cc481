"""Files by name: a path, a hub id, or `package:NAME` for what ships with flowopd."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.resources import files
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, TypeVar

import diffusers
import torch
import transformers
from huggingface_hub import HfApi, constants, get_session, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
)
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from flowopd.errors import CheckpointError, ConfigError

Net = TypeVar("Net", bound=nn.Module)

PACKAGE = "package:"

ADAPTER_FILES = ("*.json", "*.safetensors")

PATIENCE = 3.0
"""Seconds within which a hub that can be reached answers."""

_known_silence: ContextVar[str | None] = ContextVar("known_silence", default=None)


def located(name: str | Path) -> Path:
    """The path that a recipe means: `package:mini/base` lies in the package, all else is a path as it is."""
    text = str(name)
    return Path(str(files("flowopd"))) / text.removeprefix(PACKAGE) if text.startswith(PACKAGE) else Path(text)


def check_shipped(name: str, place: str = "") -> None:
    """Raises ConfigError, which begins with its `place`, for a name of the package that does not ship with it."""
    if name.startswith(PACKAGE) and not located(name).exists():
        mend = "take a path, a hub id, or a name that a shipped recipe shows"
        raise ConfigError(f"{place}{name} does not ship with flowopd; {mend}")


def is_local(name: str) -> bool:
    """Whether a name means a path: it exists, or does not look like OWNER/NAME on the hub."""
    return os.path.exists(located(name)) or name.startswith((PACKAGE, ".", "/")) or name.count("/") != 1


def public_name(name: str) -> str:
    """A name that holds on other machines: a path by its last part, a hub id or `package:` name as it is."""
    return name if name.startswith(PACKAGE) or not is_local(name) else Path(name).name


def check_repository(name: str) -> None:
    """Raises ConfigError unless `name` can be a repository of the hub, OWNER/NAME."""
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ConfigError(f"{name!r} cannot be a hub repository: {_reason(error)}") from None
    if name.count("/") != 1:
        raise ConfigError(f"{name!r} cannot be a hub repository; give OWNER/NAME")


def push_folder(folder: Path, name: str, private: bool = False) -> None:
    """Upload a folder as the model OWNER/NAME, which is made if there is none.

    Raises CheckpointError if the hub cannot be reached or refuses, or if a repository that is there is public though
    `private` is asked for; nothing is uploaded to that one.
    """
    api = HfApi()
    again = f"then: hf upload {name} {folder}"
    try:
        api.create_repo(name, private=private, exist_ok=True)
        if private and not api.repo_info(name).private:
            raise CheckpointError(f"{name} exists and is public; make it private on the hub, {again}")
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="Upload an export of flowopd")
    except (OSError, ValueError, HTTPError) as error:
        raise CheckpointError(
            f"{folder} is whole, but was not uploaded to {name}: {_reason(error)}; {_mend(error)}, {again}"
        ) from None


def _mend(error: Exception) -> str:
    """What to do about an upload that failed."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, LocalTokenNotFoundError) or status in (401, 403):
        return "log in with a token that may write there (hf auth login)"
    if isinstance(error, HfHubHTTPError | ValueError):
        return "mend what the hub refuses"
    return "check the network, and that HF_HUB_OFFLINE is not set"


def _reason(error: Exception) -> str:
    """What an error says, in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def _headline(error: Exception) -> str:
    """The first line of what an error says, without its full stop."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")


def fetched_folder(name: str, revision: str | None = None) -> Path:
    """The folder of an adapter: a path as it is, or a hub id, whose configs and safetensors are brought here.

    Raises CheckpointError if the hub does not have it, or cannot be reached.
    """
    if is_local(name):
        return located(name)
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(ADAPTER_FILES)))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        away = isinstance(error, LocalEntryNotFoundError)
        reason = "it is out of reach, and it is not in its cache" if away else _headline(error)
        raise CheckpointError(
            f"adapter {name} is no folder here, and the hub does not give it ({reason}); check its name, or connect"
        ) from error


def cached_folder(name: str, revision: str | None, *files: str) -> Path | None:
    """Where these files of a hub id, as far as it has them, lie in the cache; None if they do not."""
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(files), local_files_only=True))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError):
        return None


def silence(patience: float = PATIENCE) -> str | None:
    """Why the hub does not answer within so many seconds; None if it does."""
    if known := _known_silence.get():
        return known
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        status = get_session().head(constants.ENDPOINT, timeout=patience).status_code
    except HTTPError as error:
        return f"{constants.ENDPOINT}: {str(error).strip() or type(error).__name__}"
    return f"{constants.ENDPOINT} answers with status {status}" if status >= 500 else None


def refusal(name: str) -> str | None:
    """Why the hub does not give a repository to this user; None if it does."""
    try:
        HfApi().auth_check(name)
    except GatedRepoError:
        return f"{name} is gated, and its terms are not accepted by this user"
    except (HFValidationError, HTTPError) as error:
        return f"{name}: {_headline(error)}"
    return None


@contextmanager
def offline(why: str) -> Iterator[None]:
    """Inside, the hub is not asked, and `silence` is `why`: what its cache does not hold fails at once."""
    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    known = _known_silence.set(why)
    try:
        yield
    finally:
        _known_silence.reset(known)
        constants.HF_HUB_OFFLINE = before


def fetched(kind: Any, name: str, **options: Any) -> Any:
    """`kind.from_pretrained(name)`, quietly. Raises CheckpointError if a file is missing or cannot be read."""
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    try:
        return kind.from_pretrained(name, **options)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise CheckpointError(f"model {name} cannot be loaded: {_headline(error)}; {_cure(name)}") from error


def _cure(name: str) -> str:
    """What to do about a model that cannot be loaded."""
    if is_local(name):
        return "check its files"
    silent = silence()
    if silent is not None:
        return f"the hub is out of reach ({silent}): connect, or give a folder"
    refused = refusal(name)
    return (
        "check its name and files"
        if refused is None
        else f"{refused}: check its name, or accept its terms and log in (hf auth login)"
    )


def fetched_tensors(name: str) -> dict[str, Tensor]:
    """The tensors of a weights file: a path, or `OWNER/NAME/FILE` on the hub. Nothing but tensors is unpickled.

    A training checkpoint gives its `state_dict`. Raises CheckpointError if there is no such file, or it holds anything
    else.
    """
    path = Path(name)
    try:
        if not path.exists():
            owner, repository, file = name.split("/", 2)
            path = Path(hf_hub_download(f"{owner}/{repository}", file))
        content = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except (OSError, ValueError, RuntimeError, UnpicklingError, HfHubHTTPError, SafetensorError) as error:
        reason = _headline(error)
        raise CheckpointError(f"weights {name} cannot be loaded: {reason}; give a path, or OWNER/NAME/FILE") from error
    tensors = content.get("state_dict", content) if isinstance(content, Mapping) else None
    if not isinstance(tensors, Mapping) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise CheckpointError(f"weights {name} hold other things than tensors by name; give a state dict")
    return dict(tensors)


def filled(net: Net, tensors: Mapping[str, Tensor], name: str) -> Net:
    """`net` with exactly these tensors, frozen and in evaluation mode; `name` is the file's, for errors.

    Raises CheckpointError for a tensor that is missing, that the net has no place for, or that has another shape.
    """
    own = net.state_dict()
    faults = [f"lack {key}" for key in own if key not in tensors]
    faults += [f"hold {key}, which has no place in the net" for key in tensors if key not in own]
    faults += [
        f"hold {key} of {tuple(tensors[key].shape)} where the net has {tuple(own[key].shape)}"
        for key in own
        if key in tensors and tensors[key].shape != own[key].shape
    ]
    if faults:
        raise CheckpointError(f"weights {name} {faults[0]} ({len(faults)} such); give the file of this very model")
    net.load_state_dict(tensors)
    return net.eval().requires_grad_(False)
