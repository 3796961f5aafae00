"""Recognition of sequences without an alignment: CTC's loss in training, search in evaluation."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from flaxnets.configuration import check_at_least, of_evaluation, path_field
from flaxnets.decoders.ctc.automaton import Automaton
from flaxnets.decoders.ctc.loss import ctc_losses, fits
from flaxnets.decoders.ctc.search import Transcripts, beam_search, greedy
from flaxnets.layers.padding import zero_where_masked
from flaxnets.metrics import mutable_collections, split_reports
from flaxnets.typing import Array, Batch, PRNGKey, PyTree, Sums

BLANK = 0
"""Class of CTC's blank; the characters are 1 to K."""
INPUTS = ("image", "spectrogram")
"""Keys of a batch that hold the model's inputs."""


TRAINING = "training"
"""Value of ``CTCSearch.lexicon`` that stands for the words of the training texts."""


@dataclasses.dataclass
class CTCSearch:
    """Search for the text of a line."""

    width: int = of_evaluation(0)
    """Prefixes that a beam search keeps; 0: the text of the most probable alignment (greedy), for
    which no other field counts."""
    language_model_weight: float = of_evaluation(0.0)
    """Weight of the character n-gram model of the training texts; 0: none."""
    character_bonus: float = of_evaluation(0.0)
    """Added to the score for each character, nats."""
    ngram_order: int = 6
    """n of the n-gram model, which a run trains when it starts: n - 1 characters of context."""
    lexicon: str = path_field(names=(TRAINING,))
    """File of the words that texts may have, one a line, or ``training``: those of the training
    texts; empty: any words. Digits and punctuation stand between words. For closed vocabularies:
    every word that is not in the list is misread."""

    def check(self, field: str = "search") -> None:
        """Checks the values.

        Args:
          field: the configuration's path, for errors.

        Raises:
          ValueError: a value out of range.
        """
        check_at_least(field, self, {"width": 0, "language_model_weight": 0, "ngram_order": 1})
        if self.ngram_order > 10:
            raise ValueError(
                f"{field}.ngram_order: expected at most 10, received {self.ngram_order}"
            )


@dataclasses.dataclass(frozen=True)
class CTC:
    r"""Connectionist temporal classification; batches as ``data/batches.py``'s ``TranscriptBatch``.

    The loss is :math:`-\ln p(\text{text} \mid \text{input})`, p being the sum over all alignments
    (Graves et al., 2006, equation 3), in nats per character: its sum over a batch is divided by the
    number of characters, an empty text counting as one. Lines whose text has more characters,
    repeated neighbours counted twice, than their input has steps have no alignment: they have no
    loss and no gradient, and ``too_long`` is their share.

    The model is called with inputs and lengths (B,), returns logits (B,S,K+1) of which class 0 is
    the blank, and has a method ``steps`` from lengths to numbers of steps.

    Attributes:
      text: ids of characters to text.
      search: of the transcripts in evaluation.
      language_model: of characters, read by a beam search; None: none.
      lexicon: of words, to which a beam search keeps; None: any text.
    """

    text: Callable[[Sequence[int]], str]
    search: CTCSearch = dataclasses.field(default_factory=CTCSearch)
    language_model: Automaton | None = None
    lexicon: Automaton | None = None

    def initialize(self, model: nn.Module, key: PRNGKey, batch: Batch) -> PyTree:
        """Returns random variables; the shapes of one example suffice."""
        inputs, lengths = model_inputs(jax.tree.map(lambda x: x[:1], dict(batch)))
        return model.init(key, inputs, lengths, train=False)

    def loss(
        self,
        model: nn.Module,
        variables: PyTree,
        batch: Batch,
        key: PRNGKey,
        step: Array | int = 0,
    ) -> tuple[Sums, PyTree]:
        """Returns sums of ``loss`` (nats per character) and ``too_long``, and the statistics."""
        inputs, lengths = model_inputs(batch)
        mask = batch["mask"]
        logits, collections = model.apply(
            variables,
            zero_where_masked(inputs, mask),
            lengths,
            mask,
            train=True,
            rngs={"dropout": key},
            mutable=mutable_collections(variables),
        )
        others, reports = split_reports(collections)
        return self._sums(model, logits, batch) | reports, others

    def evaluate(
        self, model: nn.Module, variables: PyTree, batch: Batch
    ) -> tuple[Sums, dict[str, Array]]:
        """Returns sums of ``loss`` and ``too_long``, and the transcript of each row.

        The outputs, of the best text of each row: ``tokens`` (B,L) int32, ``length`` (B,),
        ``confidence`` (B,) in [0,1], ``character_confidence`` (B,L), and the first step of each
        character and that after its last one, ``starts`` and ``ends`` (B,L) int32.
        """
        inputs, lengths = model_inputs(batch)
        logits: Any = model.apply(variables, inputs, lengths, train=False)
        sums = self._sums(model, logits, batch)
        rows = jnp.sum(batch["mask"], dtype=jnp.float32)
        sums["examples"] = (rows, rows)  # The counts of the loss are of characters.
        found = self.transcribe(model, logits, lengths)
        return sums, {
            "tokens": found.tokens[:, 0],
            "length": found.lengths[:, 0],
            "confidence": found.confidences[:, 0],
            "character_confidence": found.character_confidences[:, 0],
            "starts": found.starts[:, 0],
            "ends": found.ends[:, 0],
        }

    def log_probs(self, model: nn.Module, variables: PyTree, batch: Batch) -> tuple[Array, Array]:
        """Returns log-probabilities (B,S,K+1) float32 of a batch, and its steps (B,) int32.

        Several searches may read them, of which each would call the model again in ``evaluate``.
        """
        inputs, lengths = model_inputs(batch)
        logits: Any = model.apply(variables, inputs, lengths, train=False)
        bound: Any = model
        return jax.nn.log_softmax(logits), bound.steps(lengths)

    def transcribe(self, model: Any, logits: Array, lengths: Array) -> Transcripts:
        """Returns the best texts of logits (B,S,K+1) of inputs of ``lengths`` (B,) columns."""
        return self.find_texts(jax.nn.log_softmax(logits), model.steps(lengths))

    def find_texts(self, log_probs: Array, steps: Array) -> Transcripts:
        """Returns the best texts of log-probabilities (B,S,K+1) with ``steps`` (B,) valid steps."""
        if not self.search.width:
            return greedy(log_probs, steps, blank=BLANK)
        return beam_search(
            log_probs,
            steps,
            width=self.search.width,
            blank=BLANK,
            language_model=self.language_model,
            lexicon=self.lexicon,
            weight=self.search.language_model_weight,
            bonus=self.search.character_bonus,
        )

    def describe_outputs(self, outputs: dict[str, Any], row: int) -> dict[str, Any]:
        """Returns ``{"text", "confidence"}`` of one line, and the span of each character.

        ``characters`` lists [character, confidence, first step, step after the last].
        """
        length = int(outputs["length"][row])
        tokens = [int(token) for token in outputs["tokens"][row][:length]]
        details = zip(
            tokens,
            np.asarray(outputs["character_confidence"][row], np.float64),
            outputs["starts"][row],
            outputs["ends"][row],
            strict=False,
        )
        return {
            "text": self.text(tokens),
            "confidence": round(float(np.float64(outputs["confidence"][row])), 6),
            "characters": [
                [self.text([token]), round(float(confidence), 4), int(start), int(end)]
                for token, confidence, start, end in details
            ],
        }

    def _sums(self, model: Any, logits: Array, batch: Batch) -> Sums:
        mask, labels, counts = batch["mask"], batch["tokens"], batch["token_lengths"]
        steps = model.steps(batch["lengths"])
        possible = fits(labels, counts, steps)
        losses = ctc_losses(
            zero_where_masked(logits, mask), steps, labels, counts, blank=BLANK
        )  # (B,)
        read = mask & possible
        characters = jnp.sum(jnp.where(read, jnp.maximum(counts, 1), 0), dtype=jnp.float32)
        return {
            "loss": (jnp.sum(jnp.where(read, losses, 0)), characters),
            "too_long": (
                jnp.sum(mask & ~possible, dtype=jnp.float32),
                jnp.sum(mask, dtype=jnp.float32),
            ),
        }


def model_inputs(batch: Batch) -> tuple[Array, Array]:
    """Returns a batch's lines or spectrograms, and their lengths.

    Raises:
      ValueError: a batch with neither or both of ``image`` and ``spectrogram``.
    """
    names = [name for name in INPUTS if name in batch]
    if len(names) != 1:
        raise ValueError(f"batch: expected one of {', '.join(INPUTS)}, received {', '.join(batch)}")
    return batch[names[0]], batch["lengths"]
