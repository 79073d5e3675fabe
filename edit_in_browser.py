"""Open a finished run in the browser: paint on a frame or an atlas, see it move, and mend what slips."""

import argparse
import os
import secrets
import socket
import webbrowser
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from command_line import UserError, add_device_flag, make_parser, run_script, warn

if TYPE_CHECKING:
    from browser.editor import Editor

LOOPBACK = ("127.0.0.1", "localhost", "::1")
EVERYWHERE = ("0.0.0.0", "::")  # all addresses of this computer
PACKAGES = ("fastapi", "uvicorn", "websockets")  # of the server
USUAL_PORT = 8765  # taken if it is free


def main(arguments: list[str] | None = None) -> None:
    """Serve the editor until Ctrl-C, or write it as one file."""
    options = make_editor_parser().parse_args(arguments)
    if not options.trained_model_folder.is_dir():
        raise UserError(
            f"{options.trained_model_folder}: no such folder; give a folder that train.py wrote, with config.json and "
            "checkpoint"
        )
    if options.export_page is None and (missing := [name for name in PACKAGES if not find_spec(name)]):
        raise UserError(f"the editor needs {' and '.join(missing)}: pip install -r requirements.txt")

    from browser.editor import Editor

    run_arguments = {name: getattr(options, name) for name in ("video_name", "data_folder", "fps", "device")}
    editor = Editor(
        options.trained_model_folder, options.project or options.trained_model_folder / "edit", run_arguments
    )
    if options.export_page is not None:
        from browser.page import write_page

        megabytes = write_page(editor, options.export_page) / 1e6
        print(f"wrote {options.export_page}: one file of {megabytes:.1f} MB that plays and paints in any browser")
        return
    serve(editor, options)


def make_editor_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's flags."""
    flags = make_parser(
        "Open a finished run in the browser: paint on a frame or on an atlas, and see it move in the whole video.\n"
        "Work is saved a second after each change. Ctrl-C ends the program; the same command goes on where it was.",
        "python edit_in_browser.py --trained_model_folder=results/swan_2026",
    )
    flags.add_argument(
        "--trained_model_folder", type=Path, required=True, help="folder of a run, with config.json and checkpoint"
    )
    flags.add_argument(
        "--project", type=Path, help="folder of the project, or a JSON that was downloaded (default: RUN/edit)"
    )
    flags.add_argument("--export_page", type=Path, metavar="HTML", help="write one file that plays and paints offline")
    flags.add_argument("--video_name", help="name of the clip (default: the one that the run was trained on)")
    flags.add_argument(
        "--data_folder", type=Path, help="folder that holds the clip's folder (default: the one used for training)"
    )
    flags.add_argument("--fps", type=float, help="frames per second (default: the clip's own)")
    flags.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to serve on (default: 127.0.0.1, for this computer only); others need the token that is printed",
    )
    flags.add_argument("--port", type=int, help=f"port to serve on (default: {USUAL_PORT}, or a free one)")
    flags.add_argument("--no_browser", action="store_true", help="do not open the page, only print its address")
    add_device_flag(flags)
    return flags


def serve(editor: "Editor", options: argparse.Namespace) -> None:
    """Serve the editor until Ctrl-C. Raises UserError if the address cannot be used."""
    import uvicorn

    from browser.server import make_app

    is_loopback = options.host in LOOPBACK
    listener = open_listener(options.host, options.port)
    port = listener.getsockname()[1]
    token = None if is_loopback else secrets.token_urlsafe(24)
    names = ("127.0.0.1", "localhost", "[::1]")
    # Browsers leave the usual port of a web server out.
    hosts = {f"{name}:{port}" for name in names} | (set(names) if port == 80 else set()) if is_loopback else None
    host = socket.gethostname() if options.host in EVERYWHERE else options.host
    shown_host = f"[{host}]" if ":" in host else host
    address = f"http://{shown_host}:{port}/" + (f"?token={token}" if token else "")
    print(f"the editor is at {address}")
    print(f"the project is saved in {editor.project.path}; Ctrl-C ends the program", flush=True)
    if not is_loopback:
        warn("everybody who has this address can edit the project; the connection is not encrypted")
    if not options.no_browser:
        webbrowser.open(address)
    config = uvicorn.Config(make_app(editor, hosts, token), log_level="warning", lifespan="on", ws_max_size=1 << 20)
    with suppress(KeyboardInterrupt):  # Ctrl-C is how the program is ended.
        uvicorn.Server(config).run(sockets=[listener])
    if editor.project.path.is_file():
        print(f"ended; the project is in {editor.project.path}")
    else:
        print("ended; nothing was changed, so no project was written")


def open_listener(host: str, port: int | None) -> socket.socket:
    """Return a socket that listens on a port; without one on the usual port, or on a free one if that is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for candidate in (USUAL_PORT, 0) if port is None else (port,):
        listener = socket.socket(family, socket.SOCK_STREAM)
        if os.name != "nt":  # There it would let two programs share a port.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, candidate))
            listener.listen(128)  # Before the address is printed: whoever reads it may come at once.
            return listener
        except (OSError, OverflowError) as error:
            listener.close()
            reason = getattr(error, "strerror", None) or str(error)
    raise UserError(f"--host {host} --port {port or USUAL_PORT}: cannot be served on ({reason}); choose another one")


if __name__ == "__main__":
    run_script(main)
