"""The page and its JSON API on Gradio: a tab for each model.

Gradio's own preprocessing, which opens images and converts videos in the server, is switched off:
the functions get the path of the upload, and ``Served`` reads it within the limits.
"""

import html
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from flaxnets.inference.runtime.columns import Columns
from flaxnets.inference.runtime.results import Caption, Prediction, Transcript, to_json
from launch.serving import figures
from launch.serving.limits import Limits

LINES, SPEECH = "lines", "speech"
"""Kinds of readers."""
TITLES = {
    "captioning": "Captions",
    "video_classification": "Clips",
    "image_classification": "Photographs",
    "sound_classification": "Sounds",
    LINES: "Lines of text",
    SPEECH: "Speech",
}
"""Names of tabs, by kind."""
UPLOADS = {
    "video_classification": ("video", "clip.mp4"),
    "sound_classification": ("recording", "recording.wav"),
    LINES: ("image", "line.png"),
    SPEECH: ("recording", "recording.wav"),
}
"""Argument of a function and an example of its file, by kind; others: a photograph."""
TOP = 5
"""Classes that are shown."""
NUM_CAPTIONS = 3
"""Captions that are asked for unless told otherwise."""
PALETTE = ("#2563eb", "#d97706", "#059669", "#db2777", "#7c3aed")
"""Colours of a chart's classes, readable on white and on black."""

logger = logging.getLogger(__name__)


class Unreadable(Exception):
    """A file without a result; the message is the reason, for whoever sent it."""


class Served(Protocol):
    """A model that reads uploads within limits."""

    @property
    def kind(self) -> str:
        """``captioning``, ``video_classification``, …, or a reader's: ``lines``, ``speech``."""

    @property
    def name(self) -> str:
        """Name of the model, of any characters."""

    @property
    def card(self) -> str:
        """Markdown of the model card; "" without one."""

    @property
    def most_captions(self) -> int:
        """Most captions of an image; 0 for other models."""

    def warm_up(self, example: Path) -> None:
        """Compiles what requests need, with a file of its kind as an example."""

    def predict(self, path: Path) -> Prediction:
        """Classifies a clip, image or recording.

        Raises:
          Unreadable: the reason why not.
        """

    def playable(self, path: Path) -> Path:
        """Returns a clip that browsers play: the clip itself or a copy beside it.

        Raises:
          Unreadable: the reason why not.
        """

    def caption(self, path: Path, num_captions: int) -> tuple[np.ndarray, list[Caption]]:
        """Captions an image; returns what the model sees, (H,W,3) uint8, and captions, best first.

        Raises:
          Unreadable: the reason why not.
        """

    def read(self, path: Path) -> tuple[Columns, Transcript]:
        """Reads a line or recording; returns what the model sees, and its text.

        Raises:
          Unreadable: the reason why not.
        """


def api_names(served: Sequence[Served]) -> list[str]:
    """Returns the names of the models' functions: ``caption``, ``predict``, ``predict_2``."""
    bases = {"captioning": "caption", LINES: "read", SPEECH: "read"}
    names: list[str] = []
    for model in served:
        base = bases.get(model.kind, "predict")
        count = sum(name.partition("_")[0] == base for name in names)
        names.append(base if not count else f"{base}_{count + 1}")
    return names


def make_page(
    served: Sequence[Served],
    limits: Limits,
    url: str,
    examples: Mapping[str, Sequence[Path]],
) -> Any:
    """Returns the page, a ``gradio.Blocks``.

    Args:
      served: models, each a tab.
      limits: queue and concurrency of requests.
      url: address of the server, for the instructions.
      examples: files to click, for each kind of model.
    """
    import gradio

    names = api_names(served)
    title = "flaxnets" if len(served) > 1 else f"flaxnets: {served[0].name}"
    with gradio.Blocks(title=title, analytics_enabled=False, fill_width=False) as page:
        for model, name in zip(served, names, strict=True):
            with gradio.Tab(_title(model, served), id=name):
                files = [str(path) for path in examples.get(model.kind, ())]
                if model.kind == "captioning":
                    _add_captioner(gradio, model, name, files)
                elif model.kind in (LINES, SPEECH):
                    _add_reader(gradio, model, name, files)
                else:
                    _add_classifier(gradio, model, name, files)
                if model.card:
                    with gradio.Accordion("Model card", open=False):
                        gradio.Markdown(model.card, sanitize_html=True)
                with gradio.Accordion("From a program", open=False):
                    gradio.Markdown(explain_api(model, name, url), sanitize_html=True)
    page.queue(max_size=limits.queue, default_concurrency_limit=limits.concurrency, api_open=False)
    return page


def explain_api(model: Served, name: str, url: str) -> str:
    """Returns Markdown that shows how a program asks a model, by ``curl`` and by Python."""
    url = url.rstrip("/")
    argument, file = UPLOADS.get(model.kind, ("image", "photo.jpg"))
    curl = (
        f"U={url}/gradio_api; F=$(curl -s $U/upload -F files=@{file} | cut -d'\"' -f2)\n"
        f"E=$(curl -s $U/call/v2/{name} -H 'Content-Type: application/json' -d "
        f'\'{{"{argument}": {{"path": "\'"$F"\'", "meta": {{"_type": "gradio.FileData"}}}}}}\' '
        "| cut -d'\"' -f4)\n"
        f"curl -sN $U/call/v2/{name}/$E"
    )
    python = (
        "from gradio_client import Client, handle_file\n\n"
        f'Client("{url}").predict({argument}=handle_file("{file}"), api_name="/{name}")'
    )
    return (
        f"By `curl` (upload, call, result as a line `data: [{{…}}]`):\n\n```bash\n{curl}\n```\n\n"
        f"By Python (`pip install gradio_client`):\n\n```python\n{python}\n```\n"
    )


def _title(model: Served, served: Sequence[Served]) -> str:
    title = TITLES[model.kind]
    alone = sum(other.kind == model.kind for other in served) == 1
    return title if alone else f"{title}: {model.name[:24]}"


def _add_captioner(gradio: Any, model: Served, name: str, files: list[str]) -> None:
    most = max(model.most_captions, 1)

    def show(image: Any, num_captions: Any) -> str:
        try:
            return figures.draw_captions(*model.caption(_path(image), _count(num_captions, most)))
        except Unreadable as error:
            return figures.draw_problem(str(error))

    def caption(image: dict, num_captions: int = min(NUM_CAPTIONS, most)) -> dict:
        """Captions a photograph.

        Args:
          image: an uploaded file, {"path": …, "meta": {"_type": "gradio.FileData"}}.
          num_captions: most captions, the best first.

        Returns:
          {"captions": [{"text", "words", "log_probability", "ended", "attention"}, …]}
        """
        found = _or_error(
            gradio, lambda: model.caption(_path(image), _count(num_captions, most))[1]
        )
        return {"model": model.name, "captions": to_json(found)}

    with gradio.Row(equal_height=False):
        with gradio.Column(scale=2, min_width=300):
            image = gradio.Image(
                label="Photograph", sources=["upload", "clipboard"], type="filepath", height=300
            )
            count = gradio.Slider(
                1, most, min(NUM_CAPTIONS, most), step=1, label="Captions", visible=most > 1
            )
            button = gradio.Button("Caption", variant="primary")
        with gradio.Column(scale=3, min_width=300):
            output = gradio.HTML(_about(model), elem_id=f"{name}_output", padding=True)
    _add_examples(gradio, files, image, show, [image, count], output)
    _listen(gradio, button, image, show, [image, count], output)
    gradio.api(caption, api_name=name, concurrency_id="models")


def _add_reader(gradio: Any, model: Served, name: str, files: list[str]) -> None:
    speech = model.kind == SPEECH

    def show(file: Any) -> str:
        try:
            return figures.draw_transcript(*model.read(_path(file)), "s" if speech else "columns")
        except Unreadable as error:
            return figures.draw_problem(str(error))

    def read_file(file: Any) -> dict:
        found = _or_error(gradio, lambda: model.read(_path(file))[1])
        return {"model": model.name, **to_json(found)}

    def read_line(image: dict) -> dict:
        """Reads a line of text.

        Args:
          image: an uploaded file, {"path": …, "meta": {"_type": "gradio.FileData"}}.

        Returns:
          {"text", "confidence", "characters": [{"character", "confidence", "start", "end"}, …]},
          starts and ends in columns of the image
        """
        return read_file(image)

    def read_recording(recording: dict) -> dict:
        """Reads speech.

        Args:
          recording: an uploaded file, {"path": …, "meta": {"_type": "gradio.FileData"}}.

        Returns:
          {"text", "confidence", "characters": [{"character", "confidence", "start", "end"}, …]},
          starts and ends in seconds
        """
        return read_file(recording)

    with gradio.Row(equal_height=False):
        with gradio.Column(scale=2, min_width=300):
            if speech:
                # As for clips: a player refuses what the browser does not decode.
                file = gradio.File(label="Recording", file_types=["audio"], height=130)
            else:
                file = gradio.Image(
                    label="Line", sources=["upload", "clipboard"], type="filepath", height=200
                )
            button = gradio.Button("Read", variant="primary")
        with gradio.Column(scale=3, min_width=300):
            output = gradio.HTML(_about(model), elem_id=f"{name}_output", padding=True)
    _add_examples(gradio, files, file, show, [file], output)
    _listen(gradio, button, file, show, [file], output)
    function = read_recording if speech else read_line
    gradio.api(function, api_name=name, concurrency_id="models")


def _add_classifier(gradio: Any, model: Served, name: str, files: list[str]) -> None:
    clips, sounds = (model.kind == f"{kind}_classification" for kind in ("video", "sound"))

    def show(file: Any) -> tuple[Any, Any, str]:
        try:
            prediction = model.predict(_path(file))
        except Unreadable as error:
            return None, gradio.LinePlot(visible=False), figures.draw_problem(str(error))
        best = {label.label: label.probability for label in prediction.top(TOP)}
        return best, _chart(gradio, prediction), ""

    def play(file: Any) -> Any:
        try:
            return gradio.Video(str(model.playable(_path(file))), visible=True)
        except Unreadable:  # Told beside it.
            return gradio.Video(None, visible=False)

    def predict_file(file: Any) -> dict:
        found = _or_error(gradio, lambda: model.predict(_path(file)))
        answer = {"model": model.name, "label": found.label, "top": to_json(found.top(TOP))}
        return {**answer, **to_json(found)}

    def predict_clip(video: dict) -> dict:
        """Classifies a clip.

        Args:
          video: an uploaded file, {"path": …, "meta": {"_type": "gradio.FileData"}}.

        Returns:
          {"label", "top": [{"label", "probability"}, …], "labels", "probabilities", "times",
          "step_probabilities"}
        """
        return predict_file(video)

    def predict_image(image: dict) -> dict:
        """Classifies a photograph.

        Args:
          image: an uploaded file, {"path": …, "meta": {"_type": "gradio.FileData"}}.

        Returns:
          {"label", "top": [{"label", "probability"}, …], "labels", "probabilities"}
        """
        return predict_file(image)

    def predict_recording(recording: dict) -> dict:
        """Classifies a recording.

        Args:
          recording: an uploaded file, {"path": …, "meta": {"_type": "gradio.FileData"}}.

        Returns:
          {"label", "top": [{"label", "probability"}, …], "labels", "probabilities"}
        """
        return predict_file(recording)

    with gradio.Row(equal_height=False):
        with gradio.Column(scale=3, min_width=300):
            if clips:
                # Not a player that is uploaded to: it refuses what the browser does not decode.
                file = gradio.File(label="Clip", file_types=["video", ".gif"], height=130)
                player = gradio.Video(
                    visible=False, height=300, show_label=False, buttons=[], loop=True
                )
            elif sounds:
                file = gradio.File(label="Recording", file_types=["audio"], height=130)
            else:
                file = gradio.Image(
                    label="Photograph", sources=["upload", "clipboard"], type="filepath", height=300
                )
            chart = gradio.LinePlot(
                x="seconds",
                y="probability",
                color="label",
                visible=False,
                height=240,
                y_lim=[0, 1],
                show_label=False,
                buttons=[],
            )
        with gradio.Column(scale=2, min_width=300):
            button = gradio.Button("Classify", variant="primary")
            labels = gradio.Label(label="Whole clip" if clips else "Labels", num_top_classes=TOP)
            problem = gradio.HTML(_about(model), elem_id=f"{name}_output", padding=True)
    outputs = [labels, chart, problem]
    _add_examples(gradio, files, file, show, [file], outputs)
    _listen(gradio, button, file, show, [file], outputs)
    if clips:
        file.change(
            play,
            [file],
            [player],
            preprocess=False,
            show_progress="hidden",
            api_visibility="private",
            concurrency_id="models",
        )
    function = predict_clip if clips else predict_recording if sounds else predict_image
    gradio.api(function, api_name=name, concurrency_id="models")


def _chart(gradio: Any, prediction: Prediction) -> Any:
    """Returns the chart of a clip's likeliest classes over time; hidden without steps."""
    import pandas

    table = figures.tabulate_steps(prediction, TOP)
    labels = list(dict.fromkeys(table["label"]))
    return gradio.LinePlot(
        pandas.DataFrame(table),
        visible=bool(labels),
        color_map=dict(zip(map(str, labels), PALETTE, strict=False)),
        colors_in_legend=labels,
        x_lim=[0, max([0.1, *map(float, table["seconds"])])],
    )


def _listen(gradio: Any, button: Any, file: Any, show: Any, inputs: Any, outputs: Any) -> None:
    """Calls ``show`` once a file is there, and again when the button is pressed."""
    gradio.on(
        [button.click, file.upload],
        show,
        inputs,
        outputs,
        preprocess=False,
        api_visibility="private",
        concurrency_id="models",
    )


def _add_examples(
    gradio: Any, files: list[str], file: Any, show: Any, inputs: Any, outputs: Any
) -> None:
    if files:
        examples = gradio.Examples(
            [[path] for path in files],
            file,
            cache_examples=False,
            api_visibility="private",
        )
        examples.load_input_event.then(
            show,
            inputs,
            outputs,
            preprocess=False,
            api_visibility="private",
            concurrency_id="models",
        )


def _about(model: Served) -> str:
    """Returns HTML that names the model, until there is a result."""
    return f"<p>Model: <b>{html.escape(model.name)}</b></p>"


def _path(file: Any) -> Path:
    """Returns the path of an upload, which the gate and Gradio have found among the uploads."""
    if not isinstance(file, Mapping) or not isinstance(file.get("path"), str):
        raise Unreadable("no file: choose one, or click an example")
    return Path(file["path"])


def _count(value: Any, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 1 <= value <= most:
        raise Unreadable(f"num_captions: expected 1 to {most}, received {str(value)[:40]}")
    return int(value)


def _or_error(gradio: Any, function: Callable[[], Any]) -> Any:
    """Returns the function's result; its reason for none as Gradio's error, which the API tells."""
    try:
        return function()
    except Unreadable as error:
        raise gradio.Error(str(error), print_exception=False) from error
