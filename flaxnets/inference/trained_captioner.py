"""Captions and attention weights by a trained captioner, or by an ensemble of several."""

import dataclasses
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from flaxnets.decoders.hypotheses import EOS, Hypotheses
from flaxnets.decoders.search import SearchOptions, ensemble, search_captions
from flaxnets.inference.runtime.results import Caption
from flaxnets.inference.trained_model import TrainedModel, prediction_data
from flaxnets.tasks.captioning import Captioning, model_inputs, start_search
from flaxnets.training.checkpoint import check_shapes
from flaxnets.training.config import Config, Data, to_dict
from flaxnets.training.parallel import DataParallel
from flaxnets.typing import Array, Batch, PyTree


@runtime_checkable
class DecodesTogether(Protocol):
    """Configuration of a captioner that can decode in an ensemble."""

    def check_same_outputs(self, other: Config) -> None:
        """Raises ValueError if the ids of the other captioner stand for other words."""


@dataclasses.dataclass(frozen=True)
class Captioned:
    """Captions of an example, best first; none if it could not be read or captioned."""

    index: int
    captions: tuple[Caption, ...]
    problem: str = ""
    """Reason why there are none."""


class TrainedCaptioner:
    """Ensemble of trained captioners, searched by the mean of their word probabilities.

    Members with the same ``data`` configuration share one reading of each batch. Attention is that
    of the first member.
    """

    def __init__(
        self, models: Sequence[TrainedModel], options: SearchOptions | None = None, *, seed: int = 0
    ) -> None:
        """Checks the members; compiles nothing yet.

        Args:
          models: at least one; all with the same ``batch_size``.
          options: of the search; None: those of the first member.
          seed: for the method ``sample``.

        Raises:
          ValueError: no models, one that is no captioner, or members with different vocabularies.
        """
        if not models:
            raise ValueError("models: expected at least one, received none")
        self._models = tuple(models)
        tasks: list[Any] = [model.config.make_prediction_task() for model in models]
        for model, task in zip(models, tasks, strict=True):
            if not isinstance(task, Captioning):
                raise ValueError(
                    f"{model.workdir.path}: expected a captioner, received a model of the task "
                    f"{type(task).__name__}"
                )
            first = models[0].config
            if not isinstance(first, DecodesTogether):
                continue
            try:
                first.check_same_outputs(model.config)
            except ValueError as error:
                raise ValueError(
                    f"{model.workdir.path} and {models[0].workdir.path} cannot decode together: "
                    f"{error}"
                ) from error
        self._tasks = tasks
        self._modules = [model.config.make_model() for model in models]
        self.options: SearchOptions = options or self._tasks[0].options
        self._key = jax.random.key(seed)
        self._strategy = DataParallel()
        self._variables = tuple(model.variables for model in models)
        self._checked = False
        self._search = self._strategy.compile(self._search_batch)
        self._attend = self._strategy.compile(self._attention_weights)

    def caption_files(
        self, paths: Sequence[str], *, attention: bool = False
    ) -> Iterator[Captioned]:
        """Yields captions of image files in their order; ``index`` is that of ``paths``.

        Args:
          paths: the files; at least one.
          attention: return the attention weights, too.

        Raises:
          ValueError: a model of videos; ``attention`` of a decoder that does not attend; variables
            that do not fit the configuration.
        """
        yield from self._caption(lambda config: prediction_data(config, paths), 0, attention)

    def caption_examples(
        self, split: str, indices: Sequence[int], *, attention: bool = False
    ) -> Iterator[Captioned]:
        """Yields captions of some examples of a split, each once, in no particular order.

        Args:
          split: not ``train``.
          indices: of the examples.
          attention: as for ``caption_files``.

        Raises:
          ValueError: as ``caption_files``.
        """
        batch_size = self._models[0].config.batch_size
        for number in sorted({index // batch_size for index in indices}):
            found = self._caption(lambda config: config.make_data(split), number, attention)
            for _, captioned in zip(range(batch_size), found, strict=False):
                if captioned.index in indices:
                    yield captioned
            found.close()

    def evaluate(self, split: str) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Returns the scores of the captions of a split, and the records that were scored.

        The scorer is that of the first member; a loss is not computed.

        Args:
          split: not ``train``.

        Returns:
          Metrics with ``examples`` and ``skipped``, and ``index``, ``caption``, ``log_probability``
          and ``ended`` of each example, as ``TrainedModel.evaluate`` has them.

        Raises:
          ValueError: ``train``, a split that the experiment does not have, or one without scores.
          FileNotFoundError, WorkdirError: as ``TrainedModel.evaluate``.
        """
        for model in self._models:
            model.check_split(split)
        first = self._models[0].config
        score = first.make_scorer(split, complete=True)
        if score is None:
            raise ValueError(f"split: expected captions to compare with, {first.name} has none")
        records, skipped = [], 0
        for captioned in self._caption(lambda config: config.make_data(split), 0, False):
            if not captioned.captions:
                skipped += 1
                continue
            best = captioned.captions[0]
            records.append(
                {
                    "index": captioned.index,
                    "caption": best.text,
                    "log_probability": best.log_probability,
                    "ended": best.ended,
                }
            )
        metrics = dict(score(records))
        return {**metrics, "examples": float(len(records)), "skipped": float(skipped)}, records

    def _caption(
        self, make_data: Callable[[Config], Data], start: int, attention: bool
    ) -> Generator[Captioned]:
        datas = self._share([model.config for model in self._models], make_data)
        own = [data.batches(start) for data in dict.fromkeys(datas)]
        for number, read in enumerate(zip(*own, strict=True), start):
            of_data = dict(zip(dict.fromkeys(datas), read, strict=True))
            batches = tuple(self._strategy.shard(of_data[data]) for data in datas)
            self._check_variables(batches)
            key = jax.random.fold_in(self._key, number)
            found = jax.device_get(self._search((self._variables, key), batches))
            weights = self._attention_of(found, batches[0]) if attention else None
            yield from self._describe(datas[0], read[0], found, weights)

    def _attention_of(self, found: Hypotheses, batch: Batch) -> np.ndarray:
        """Returns (B,K,L,h,w), or (B,K,L,R) where the regions are not cells of a feature map."""
        captions = {
            "tokens": np.asarray(found.tokens),
            "token_lengths": np.asarray(found.lengths),
        }
        batch = {**batch, **self._strategy.shard(captions)}
        weights = self._attend(self._variables[0], batch)
        if weights is None:
            raise ValueError(
                "attention: expected False, since the decoder of "
                f"{self._models[0].workdir.path} does not attend to regions, received True"
            )
        inputs, lengths = model_inputs(batch)
        attention = np.asarray(weights)
        num_regions = attention.shape[-1]
        if lengths is not None or inputs.ndim != 4:
            return attention
        # The height of the feature map follows from its size and the image's aspect ratio. Cached
        # features (B,h,w,D) give theirs.
        height, width = inputs.shape[1:3]
        rows = round((num_regions * height / width) ** 0.5)
        if not rows or num_regions % rows:
            return attention
        return attention.reshape(*attention.shape[:-1], rows, num_regions // rows)

    @staticmethod
    def _share(configs: Sequence[Config], make_data: Callable[[Config], Data]) -> list[Data]:
        """Returns each member's data; the same object for members that read the same data."""
        made: list[tuple[Any, Data]] = []
        datas = []
        for config in configs:
            described = to_dict(config).get("data"), config.batch_size
            known = [data for other, data in made if described == other]
            if not known:
                known = [make_data(config)]
                made.append((described, known[0]))
            datas.append(known[0])
        return datas

    def _search_batch(self, state: PyTree, batches: tuple[Batch, ...]) -> Hypotheses:
        """Searches a batch; one batch per member, each in the form of that member's data."""
        variables, key = state
        started = [
            start_search(*member) for member in zip(self._modules, variables, batches, strict=True)
        ]
        key = key if self.options.method == "sample" else None
        if len(started) == 1:
            return search_captions(*started[0], self.options, key)
        decode_step = ensemble([decode_step for decode_step, _ in started])
        return search_captions(decode_step, tuple(carry for _, carry in started), self.options, key)

    def _attention_weights(self, variables: PyTree, batch: Batch) -> Array | None:
        """Returns the first member's attention (B,C,L,R), teacher-forced on given captions."""
        inputs, lengths = model_inputs(batch)
        captions = batch["tokens"], batch["token_lengths"]
        outputs: Any = self._modules[0].apply(variables, inputs, *captions, lengths, train=False)
        attention: Array | None = outputs.attention
        return attention

    def _check_variables(self, batches: tuple[Batch, ...]) -> None:
        """Checks that the variables have the shapes of the configuration."""
        if self._checked:
            return
        members = zip(self._models, self._tasks, self._modules, batches, strict=True)
        for model, task, module, batch in members:
            wanted = jax.eval_shape(
                lambda key, batch, task=task, module=module: task.initialize(module, key, batch),
                self._key,
                batch,
            )
            check_shapes(model.variables, wanted, str(model.workdir.checkpoints / str(model.step)))
        self._checked = True

    def _describe(
        self, data: Data, batch: Any, found: Hypotheses, attention: np.ndarray | None
    ) -> Iterator[Captioned]:
        reasons = getattr(data, "bad", {})
        for row, index in enumerate(map(int, batch["index"])):
            if not batch["mask"][row]:
                if index >= 0:
                    yield Captioned(index, (), str(reasons.get(index, "could not be read")))
                continue
            if np.isnan(found.log_probs[row]).any():
                yield Captioned(index, (), "the model's logits are not finite")
                continue
            captions = []
            for k, length in enumerate(found.lengths[row]):
                tokens = [int(token) for token in found.tokens[row, k, :length] if token != EOS]
                if not length:  # An empty slot.
                    continue
                captions.append(
                    Caption(
                        tuple(self._tasks[0].words([token]) for token in tokens),
                        self._tasks[0].words(tokens),
                        round(float(found.log_probs[row, k]), 6),
                        bool(found.ended[row, k]),
                        None if attention is None else attention[row, k, : len(tokens)],
                    )
                )
            yield Captioned(index, tuple(captions))
