"""The studio's questions and answers, as a FastAPI app, and the pages beside them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Query, Request, Response
from fastapi.encoders import jsonable_encoder
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.staticfiles import StaticFiles
from starlette.types import ASGIApp

from flowopd.errors import CheckpointError, ConfigError, DataError, FlowOpdError
from flowopd.studio import onerun, pictures
from flowopd.studio.archive import Archive
from flowopd.studio.blind import Answer, Blind, Question
from flowopd.studio.easel import BusyError, Easel, Wish
from flowopd.studio.folders import Folders
from flowopd.studio.guard import Guard
from flowopd.studio.preferences import preferences, tally
from flowopd.studio.table import run_row
from flowopd.studio.tail import Tail

MOST_RUNS = 200
"""Runs whose curves are asked for at once."""

STATUS: dict[type[Exception], int] = {BusyError: 503, DataError: 404, ConfigError: 422, CheckpointError: 422}
"""What an error is on the web; others are 500."""

Runs = Annotated[str, Query(max_length=20_000, description="ids of runs, with commas between")]


def create_app(places: Sequence[Path], names: Collection[str] = ("localhost",), token: str | None = None) -> ASGIApp:
    """The studio over the runs at some places, guarded. Raises DataError if a place does not exist."""
    app = FastAPI(title="flowopd studio", docs_url=None, redoc_url=None, openapi_url=None)
    archive, easel = Archive(Folders(places)), Easel()
    app.include_router(runs_router(archive))
    app.include_router(playground_router(archive.folders, easel, Blind(easel)))
    app.mount("/", StaticFiles(directory=str(files("flowopd") / "studio" / "pages"), html=True))
    app.add_exception_handler(FlowOpdError, _told)
    app.add_exception_handler(OSError, _unreadable)
    app.add_exception_handler(RequestValidationError, _misunderstood)
    return Guard(app, names, token)


def runs_router(archive: Archive) -> APIRouter:
    """What runs wrote: the table, curves, gaps, scores, interference, pictures."""
    router, folders = APIRouter(prefix="/api"), archive.folders

    @router.get("/runs")
    def table(request: Request) -> Response:
        runs = folders.runs()
        behind = archive.advance(runs.values())
        rows = [asdict(run_row(archive, name, run)) for name, run in runs.items()]
        return _unless_known(request, {"runs": rows, "behind": behind})

    @router.get("/keys")
    def keys(runs: Runs) -> dict[str, list[str]]:
        return onerun.keys(_read_on(archive, runs))

    @router.get("/curves")
    def curves(request: Request, runs: Runs, stage: str, key: str) -> Response:
        tails = _read_on(archive, runs)
        drawn = {name: asdict(curve) for name, curve in onerun.curves(tails, stage, key).items()}
        return _unless_known(request, {"curves": drawn, "behind": sum(tail.behind for tail in tails.values())})

    @router.get("/runs/{run}/gaps")
    def gaps(request: Request, run: str) -> Response:
        (tail,) = _read_on(archive, run).values()
        return _unless_known(request, asdict(onerun.gaps(tail)))

    @router.get("/runs/{run}/scores")
    def scores(run: str) -> dict[str, Any] | None:
        read = archive.results(folders.run(run))
        if read.fault:
            raise DataError(read.fault)
        return onerun.scores(read.content) if read.content else None

    @router.get("/runs/{run}/interference")
    def interference(run: str) -> dict[str, Any] | None:
        return onerun.interference(folders.run(run))

    @router.get("/runs/{run}/pictures")
    def kept(run: str) -> dict[str, Any]:
        return pictures.kept(folders.run(run))

    @router.get("/runs/{run}/picture")
    def picture(run: str, path: Annotated[str, Query(max_length=1000)]) -> Response:
        file, kind = pictures.picture_file(folders.run(run), path)
        return Response(file.read_bytes(), media_type=kind)

    return router


def playground_router(folders: Folders, easel: Easel, blind: Blind) -> APIRouter:
    """What the models of a run draw, and which of two pictures people pick."""
    router = APIRouter(prefix="/api")

    @router.get("/runs/{run}/models")
    def models(run: str) -> dict[str, object]:
        return easel.models(folders.run(run))

    @router.post("/runs/{run}/draw")
    def draw(run: str, wish: Wish) -> Response:
        drawn = easel.draw(folders.run(run), wish)
        return Response(drawn.png, media_type="image/png", headers={"X-Seconds": f"{drawn.seconds:.3f}"})

    @router.post("/runs/{run}/trials")
    def ask(run: str, question: Question) -> dict[str, str]:
        return {"trial": blind.ask(folders.run(run), question)}

    @router.get("/trials/{trial}/{side}.png")
    def shown(trial: str, side: str) -> Response:
        return Response(blind.picture(trial, int(side != "left")), media_type="image/png")

    @router.post("/trials/{trial}")
    def answer(trial: str, answer: Answer) -> dict[str, object]:
        told = blind.answer(trial, answer)
        return {"left": told.left, "right": told.right, "chosen": told.chosen, **_counted(told.run)}

    @router.get("/runs/{run}/preferences")
    def counted(run: str) -> dict[str, object]:
        return _counted(folders.run(run))

    return router


def _counted(run: Path) -> dict[str, object]:
    choices, faults = preferences(run)
    return {"pairs": [asdict(pair) for pair in tally(choices)], "faults": faults}


def _read_on(archive: Archive, ids: str) -> dict[str, Tail]:
    """The tails of some runs by id, read on. Raises DataError for an unknown run, ConfigError for too many."""
    wanted, known = list(dict.fromkeys(ids.split(","))), archive.folders.runs()
    if len(wanted) > MOST_RUNS:
        raise ConfigError(f"{len(wanted)} runs are too many at once; choose at most {MOST_RUNS}")
    folders = {name: known.get(name) or archive.folders.run(name) for name in wanted}
    archive.advance(folders.values())
    return {name: archive.tail(folder) for name, folder in folders.items()}


def _unless_known(request: Request, content: Any) -> Response:
    """The answer, or 304 where the browser has it already."""
    answer = JSONResponse(jsonable_encoder(content))
    tag = f'"{sha256(answer.body).hexdigest()[:16]}"'
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers={"ETag": tag})
    answer.headers["ETag"] = tag
    return answer


async def _told(request: Request, error: Exception) -> Response:
    """An error of ours in its own words."""
    kinds = (kind for kind in STATUS if isinstance(error, kind))
    return JSONResponse({"error": str(error)}, STATUS.get(next(kinds, Exception), 500))


async def _unreadable(request: Request, error: Exception) -> Response:
    reason = error.strerror if isinstance(error, OSError) else None
    return JSONResponse(
        {"error": f"a file cannot be read ({reason or type(error).__name__}); allow it, or try again"}, 500
    )


async def _misunderstood(request: Request, error: Exception) -> Response:
    first = error.errors()[0] if isinstance(error, RequestValidationError) else {}
    field = ".".join(str(part) for part in first.get("loc", ())[1:]) or "the question"
    return JSONResponse({"error": f"{field}: {first.get('msg', 'not understood')}"}, 422)
