"""The server of the editor: its page, the baked files, the project, jobs, and events for all open pages."""

import asyncio
import json
import mimetypes
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from threading import Thread
from typing import Any

from fastapi import FastAPI, Request, WebSocket, WebSocketDisconnect
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.concurrency import run_in_threadpool

from browser import WEB
from browser.editor import Editor
from browser.project_folder import OutdatedProject, encode_part
from browser.safety import OwnPageOnly
from command_line import UserError

MOST_UPLOAD_BYTES = 64_000_000
SCRIPTS_OF_PAGE = "script-src 'self' 'unsafe-inline'; object-src 'none'; base-uri 'none'; frame-ancestors 'none'"


class TooLarge(Exception):
    """A request holds more bytes than are taken."""


class Pages:
    """The open pages, which are told what happens."""

    def __init__(self) -> None:
        self.sockets: set[WebSocket] = set()
        self.loop: asyncio.AbstractEventLoop | None = None

    def send(self, event: dict[str, Any]) -> None:
        """Send an event to all pages; it may be called in any thread."""
        if self.loop is not None and not self.loop.is_closed():
            asyncio.run_coroutine_threadsafe(self.send_to_all(event), self.loop)

    async def send_to_all(self, event: dict[str, Any]) -> None:
        """Send an event to all pages, and forget those that are gone."""
        for socket in list(self.sockets):
            try:
                await socket.send_json(event)
            except (RuntimeError, WebSocketDisconnect):
                self.sockets.discard(socket)


def make_app(editor: Editor, hosts: set[str] | None, token: str | None) -> OwnPageOnly:
    """Return the application. hosts and token: see `OwnPageOnly`."""
    pages = Pages()
    editor.send = pages.send

    @asynccontextmanager
    async def live(_: FastAPI) -> AsyncIterator[None]:
        pages.loop = asyncio.get_running_loop()
        Thread(target=editor.watch_files, daemon=True).start()
        yield
        editor.is_closed.set()
        editor.cancel_job()

    app = FastAPI(lifespan=live, docs_url=None, redoc_url=None, openapi_url=None)
    add_errors(app)
    add_project_routes(app, editor)
    add_job_routes(app, editor)

    @app.get("/")
    def show_page() -> FileResponse:
        headers = {"Content-Security-Policy": SCRIPTS_OF_PAGE, "Cache-Control": "no-store"}
        return FileResponse(WEB / "index.html", headers=headers)

    @app.get("/bake/{fingerprint}/{name}")
    def get_baked(fingerprint: str, name: str) -> Response:
        path = editor.baked_folder / fingerprint / name
        if path.parent.parent != editor.baked_folder or ".." in (fingerprint, name) or not path.is_file():
            return JSONResponse({"error": f"{name}: not baked"}, 404)
        return FileResponse(path, headers={"Cache-Control": "private, max-age=31536000, immutable"})

    @app.websocket("/api/events")
    async def follow_events(socket: WebSocket) -> None:
        await socket.accept()
        pages.sockets.add(socket)
        try:
            while True:
                await socket.receive_text()
        except WebSocketDisconnect:
            pages.sockets.discard(socket)

    mimetypes.add_type("text/javascript", ".js")  # On Windows it may be registered as plain text.
    app.mount("/web", StaticFiles(directory=WEB), name="web")
    return OwnPageOnly(app, hosts, token)


def add_errors(app: FastAPI) -> None:
    """Answer mistakes with one line that the page shows."""

    @app.exception_handler(UserError)
    async def show_mistake(_: Request, error: UserError) -> JSONResponse:
        return JSONResponse({"error": str(error)}, 400)

    @app.exception_handler(OutdatedProject)
    async def show_conflict(_: Request, __: OutdatedProject) -> JSONResponse:
        return JSONResponse({"error": "another tab has changed the project in the meantime"}, 409)

    @app.exception_handler(TooLarge)
    async def show_size(_: Request, __: TooLarge) -> JSONResponse:
        return JSONResponse({"error": f"more than {MOST_UPLOAD_BYTES // 1_000_000} MB; make the picture smaller"}, 413)

    @app.exception_handler(OSError)
    async def show_disk_error(_: Request, error: OSError) -> JSONResponse:
        return JSONResponse({"error": f"cannot read or write {error.filename}: {error.strerror}"}, 500)


def add_project_routes(app: FastAPI, editor: Editor) -> None:
    """Add what reads and writes the project and its pictures."""
    project = editor.project

    @app.get("/api/state")
    def get_state() -> dict[str, Any]:
        return editor.describe()

    @app.put("/api/project")
    async def save_project(request: Request) -> dict[str, Any]:
        values = await read_json(request)
        if not isinstance(values.get("revision"), int) or "project" not in values:
            raise UserError("a project is saved with its revision")
        revision = await run_in_threadpool(project.save, values["project"], values["revision"])
        return {"revision": revision}

    @app.post("/api/pictures")
    async def add_picture(request: Request, name: str = "the picture", layer: bool = False) -> dict[str, str]:
        content = await read_body(request)
        return {"picture": await run_in_threadpool(project.add_picture, name, content, layer)}

    @app.get("/api/picture")
    def get_picture(name: str) -> FileResponse:
        return FileResponse(project.find_picture(name), headers={"Cache-Control": "no-cache"})

    @app.get("/api/exported")
    def get_exported(name: str) -> FileResponse:
        path = project.find_exported(name)
        return FileResponse(path, filename=path.name)

    @app.get("/api/files")
    def list_files() -> list[str]:
        return project.list_paint_files()

    @app.post("/api/files/{layer}")
    def make_file(layer: int) -> dict[str, str]:
        return {"name": editor.make_paint_file(layer)}

    @app.get("/api/parts")
    def list_parts(name: str) -> list[dict[str, str | None]]:
        return [{"blend": part.blend} for part in project.read_paint_file(name)]

    @app.get("/api/part")
    def get_part(name: str, number: int) -> Response:
        parts = project.read_paint_file(name)
        if not 0 <= number < len(parts):
            raise UserError(f"{name}: has {len(parts)} part(s)")
        return Response(encode_part(parts[number]), media_type="image/png", headers={"Cache-Control": "no-store"})


def add_job_routes(app: FastAPI, editor: Editor) -> None:
    """Add what starts and stops long work."""
    starters: dict[str, Callable[[dict[str, Any]], None]] = {"export": editor.export, "refit": editor.refit}

    @app.post("/api/jobs/{kind}")
    async def start_job(kind: str, request: Request) -> dict[str, str]:
        if kind not in starters:
            raise UserError(f"{kind!r} is no job; known are {', '.join(starters)}")
        await run_in_threadpool(starters[kind], await read_json(request))
        return {"job": kind}

    @app.post("/api/run")
    async def choose_run(request: Request) -> dict[str, str]:
        name = str((await read_json(request)).get("name"))
        await run_in_threadpool(editor.choose_run, name)
        return {"run": name}

    @app.post("/api/cancel")
    def cancel() -> dict[str, bool]:
        editor.cancel_job()
        return {"cancelled": True}


async def read_body(request: Request) -> bytes:
    """Read the body of a request. Raises TooLarge as soon as it holds more than MOST_UPLOAD_BYTES."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MOST_UPLOAD_BYTES:
            raise TooLarge
    return bytes(body)


async def read_json(request: Request) -> dict[str, Any]:
    """Read the body of a request as a JSON object. Raises UserError if it is none."""
    try:
        values = json.loads(await read_body(request) or b"{}")
    except ValueError:
        raise UserError("the request is no JSON") from None
    if not isinstance(values, dict):
        raise UserError("the request is no JSON object")
    return values
