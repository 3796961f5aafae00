"""Serves models on a page to try them on, and as a JSON API.

    python -m launch.serve                                   # the shipped models
    python -m launch.serve --model=runs/mine --port=8080     # a workdir or an exported folder

A photograph gives captions, alternatives and the attention at each word; a clip gives labels over
time, a recording of a sound its labels; a line of text or a recording of speech gives its text and
the span of each character. The page says how programs ask the models. The server listens on the
loopback address unless ``--host`` says otherwise, keeps uploads for ten minutes, and sends nothing
anywhere. It needs the extra ``serve``. ``docs/serve.md`` describes its limits.
"""

import errno
import importlib.util
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from launch import program
from launch.serving.examples import draw_examples, find_examples
from launch.serving.gate import Gate, delete_old, is_loopback
from launch.serving.isolation import Isolated
from launch.serving.limits import Limits
from launch.serving.models import PRELOADED, ServedModel
from launch.serving.page import Served, make_page

SHIPPED = ("captioner", "ut_interaction", "fraktur_reader")
"""Shipped models that are served without ``--model``, as far as this copy has them."""
CLEANING = 30.0
"""Seconds between deletions of old uploads."""
CONNECTIONS = 256
"""Most connections at a time; further ones are answered with 503."""

DEFAULTS = Limits()
MODEL = flags.DEFINE_multi_string(
    "model", [], "Workdir, exported folder or shipped model; may be given several times."
)
program.define_allow_code()
HOST = flags.DEFINE_string(
    "host", "127.0.0.1", "Address to listen on; 0.0.0.0 lets everybody in who reaches the machine."
)
PORT = flags.DEFINE_integer(
    "port", 7860, "Port to listen on; 0: any free one.", lower_bound=0, upper_bound=65535
)
EXAMPLES = program.define_path(
    "examples", None, "Folder of images, clips and recordings to click; default: drawn ones."
)
MAX_UPLOAD = flags.DEFINE_integer(
    "max_upload", DEFAULTS.upload_bytes // 2**20, "Largest upload, MiB.", lower_bound=1
)
MAX_PIXELS = flags.DEFINE_integer(
    "max_pixels", DEFAULTS.pixels, "Most pixels of an image or frame.", lower_bound=1
)
MAX_SECONDS = flags.DEFINE_float(
    "max_seconds", DEFAULTS.clip_seconds, "Longest clip, seconds.", lower_bound=0.1
)
MAX_FRAMES = flags.DEFINE_integer(
    "max_frames", DEFAULTS.frames, "Most frames of a clip.", lower_bound=1
)
MAX_MEMORY = flags.DEFINE_integer(
    "max_memory",
    DEFAULTS.memory_bytes // 2**20,
    "Memory to read one file, MiB.",
    lower_bound=64,
)
QUEUE = flags.DEFINE_integer(
    "queue", DEFAULTS.queue, "Most requests that wait; others are refused.", lower_bound=1
)
CONCURRENCY = flags.DEFINE_integer(
    "concurrency", DEFAULTS.concurrency, "Requests worked on at a time.", lower_bound=1
)
TIMEOUT = flags.DEFINE_float(
    "timeout",
    DEFAULTS.request_seconds,
    "Longest time of an upload and of reading it, seconds.",
    lower_bound=0.1,
)


def main(argv: Sequence[str]) -> int:
    """Serves the models until SIGINT or SIGTERM; returns the exit code."""
    program.refuse_arguments(argv)
    limits = limits_of_flags()
    check_installed()
    with listen(HOST.value, PORT.value) as listener:  # Before models are loaded for nothing.
        from flaxnets.inference import load, shipped_models

        isolated, allowed = Isolated(PRELOADED), flags.FLAGS.allow_code
        served = []
        for name in MODEL.value or [n for n in SHIPPED if n in shipped_models()]:
            model = load(name, allow_code=bool(allowed))
            served.append(ServedModel(model, isolated, limits))
        return serve(served, listener, HOST.value, limits, EXAMPLES.value)


def limits_of_flags() -> Limits:
    """Returns the limits that the flags set."""
    return Limits(
        upload_bytes=MAX_UPLOAD.value * 2**20,
        pixels=MAX_PIXELS.value,
        clip_seconds=MAX_SECONDS.value,
        frames=MAX_FRAMES.value,
        memory_bytes=MAX_MEMORY.value * 2**20,
        queue=QUEUE.value,
        concurrency=CONCURRENCY.value,
        request_seconds=TIMEOUT.value,
    )


def check_installed() -> None:
    """Raises ModuleNotFoundError if Gradio is missing, with the extra to install."""
    # It is imported later, when its environment is prepared.
    if importlib.util.find_spec("gradio") is None:
        raise ModuleNotFoundError(
            "launch.serve needs gradio, which is not installed; install the extra serve: "
            "pip install -c constraints.txt -e '.[serve]'"
        )


def listen(host: str, port: int) -> socket.socket:
    """Returns a socket that listens on a host and port.

    Raises:
      ValueError: the port is in use, or the host is not this machine's.
    """
    wrong_host = f"--host: expected an address of this machine, received {host!r}"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ValueError(f"{wrong_host} ({error.strerror})") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(CONNECTIONS)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRNOTAVAIL:
            raise ValueError(f"{wrong_host} ({error.strerror})") from None
        raise ValueError(
            f"--port: expected a free port of {host}, received {port} ({error.strerror}); choose "
            "another, or 0 for any"
        ) from None
    return listener


def serve(
    served: Sequence[Served],
    listener: socket.socket,
    host: str,
    limits: Limits,
    examples: str | None = None,
) -> int:
    """Serves models on a listening socket until SIGINT or SIGTERM; returns the exit code.

    Args:
      served: models, each a tab.
      listener: socket that listens.
      host: its host, as the user gave it.
      limits: of all requests.
      examples: folder of files to click; None: drawn ones.
    """
    # As SIGINT does: uploads are removed on the way out. uvicorn raises the signal a second time.
    signal.signal(signal.SIGTERM, _interrupt)
    port = listener.getsockname()[1]
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    with tempfile.TemporaryDirectory(prefix="flaxnets-serve-") as folder:
        root = Path(folder).resolve()
        uploads = root / "uploads"
        prepare_environment(root)
        drawn = draw_examples(root / "examples")
        shown = find_examples(Path(examples)) if examples else drawn
        for model in served:
            print(f"loading {model.name}", flush=True)
            model.warm_up(drawn[model.kind][0])
        app = make_application(served, limits, url, shown, uploads, host)
        return _run(app, listener, url, uploads, limits)


def prepare_environment(root: Path) -> None:
    """Keeps Gradio to a folder, and from the network: no variable of its own has an effect.

    Variables as GRADIO_SHARE or GRADIO_ALLOWED_PATHS would open the server wider than its flags.
    """
    for name in [name for name in os.environ if name.startswith("GRADIO_")]:
        del os.environ[name]
    for name in ("uploads", "parts", "cache", "examples"):
        (root / name).mkdir(exist_ok=True)
    os.environ.update(
        GRADIO_ANALYTICS_ENABLED="False",
        GRADIO_TEMP_DIR=str(root / "uploads"),
        GRADIO_EXAMPLES_CACHE=str(root / "cache"),
        HF_HUB_DISABLE_TELEMETRY="1",
        HF_HUB_OFFLINE="1",
    )
    tempfile.tempdir = str(root / "parts")  # For uploads that are coming in.


def make_application(
    served: Sequence[Served],
    limits: Limits,
    url: str,
    examples: Mapping[str, Sequence[Path]],
    uploads: Path,
    host: str,
) -> Gate:
    """Returns the ASGI application: Gradio's page behind the gate."""
    import fastapi
    import gradio

    from launch.serving.figures import CSS

    page = make_page(served, limits, url, examples)
    fonts = ["system-ui", "sans-serif"]
    app = gradio.mount_gradio_app(
        fastapi.FastAPI(openapi_url=None),
        page,
        path="/",
        footer_links=["api", "settings"],
        run_history=False,
        show_error=False,
        max_file_size=limits.upload_bytes,
        ssr_mode=False,
        mcp_server=False,
        enable_monitoring=False,
        pwa=False,
        theme=gradio.themes.Default(
            primary_hue="blue", font=fonts, font_mono=["ui-monospace", "monospace"]
        ),
        css=CSS,
    )
    return Gate(app, uploads, limits, host)


def _interrupt(number: int, frame: Any) -> None:
    interrupt = KeyboardInterrupt()
    interrupt.signal = number  # type: ignore[attr-defined]
    raise interrupt


def _run(app: Any, listener: socket.socket, url: str, uploads: Path, limits: Limits) -> int:
    """Runs the application until a signal."""
    import uvicorn

    stopped = threading.Event()
    keep = frozenset(path for path in uploads.rglob("*") if path.is_file())

    def clean() -> None:
        while not stopped.wait(CLEANING):
            for folder in (uploads, uploads.with_name("parts")):
                delete_old(folder, limits.keep_seconds, keep)

    server = uvicorn.Server(
        uvicorn.Config(
            app,
            log_level="warning",
            limit_concurrency=CONNECTIONS,
            timeout_keep_alive=10,
            timeout_graceful_shutdown=3,
            server_header=False,
            ws="none",
        )
    )
    cleaner = threading.Thread(target=clean, daemon=True)
    cleaner.start()
    print(f"serving on {url}; stop it with Ctrl-C", flush=True)
    if not is_loopback(url.split("//")[1].rsplit(":", 1)[0].strip("[]")):
        print("anybody who reaches this address may use it: it has no passwords", flush=True)
    try:
        server.run(sockets=[listener])
    except KeyboardInterrupt:
        pass  # uvicorn raises the signal again that it has obeyed.
    finally:
        stopped.set()
        cleaner.join()
    print("stopped", flush=True)
    return 0


if __name__ == "__main__":
    program.run(main)
