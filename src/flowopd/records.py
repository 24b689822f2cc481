"""Records in JSON: strict in what they hold, refused with a word of what is wrong, written whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from flowopd.durable import replace_text
from flowopd.errors import DataError
from flowopd.faults import Fault

Kept = TypeVar("Kept", bound="File")


class Record(BaseModel):
    """A frozen record; unknown fields are mistakes, so are numbers that are not finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class File(Record):
    """A record that is a file of its own; `made_by` is the command that writes it."""

    made_by: ClassVar[str]

    @classmethod
    def load(cls: type[Kept], path: str | Path) -> Kept:
        """The record in a file. Raises DataError if it is missing or no such record, naming the field."""
        try:
            return cls.model_validate_json(Path(path).read_bytes())
        except FileNotFoundError:
            raise DataError(f"{path} does not exist; {cls.made_by} writes it") from None
        except ValidationError as error:
            fault = Fault.first(error).told()
            raise DataError(f"{path}: {fault}; delete it, and {cls.made_by} writes it again") from None

    def save(self, path: Path) -> None:
        """The record written to a file, whole or not at all."""
        replace_text(path, self.model_dump_json(by_alias=True, indent=2) + "\n")
