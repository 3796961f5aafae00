"""Prediction of something at each step: the next token, the keys of the next chord, a class."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from flaxnets.layers.padding import zero_where_masked
from flaxnets.metrics import cross_entropies, mutable_collections, split_reports, top_k_accuracy
from flaxnets.tasks.task import CARRY
from flaxnets.typing import Array, Batch, Carry, PRNGKey, PyTree, Sums

DISTRIBUTIONS = ("softmax", "bernoulli")


@dataclasses.dataclass(frozen=True)
class StepPrediction:
    r"""Prediction at each step, batches as ``SequenceBatch`` in ``data/batches.py`` with targets.

    The loss is the negative log-likelihood in nats, averaged over all predicted steps of a batch:
    with ``softmax`` of targets (B,T) int, with ``bernoulli`` of targets (B,T,D) of zeros and ones,
    summed over the D entries of a step:

    .. math::
        -\sum_d y_d \log \sigma(z_d) + (1 - y_d) \log (1 - \sigma(z_d))

    With ``carried_rows`` the network's carry goes from batch to batch (truncated back-propagation
    through time over a stream, as Zaremba et al., 1409.2329): row r of a batch continues row r of
    the batch before, ``starts`` tells where the carry is reset, and gradients end at the first step
    of a batch. In training the carry is a collection of the state, so a checkpoint holds it; an
    evaluation begins with zeros, and ``flaxnets.training.evaluation.evaluate`` hands the carry on.

    >>> from flaxnets.heads.classifier import StepClassifier
    >>> from flaxnets.models.sequence_model import SequenceModel
    >>> model = SequenceModel(StepClassifier(5), num_tokens=5, embedding_features=4)
    >>> batch = {
    ...     "tokens": jnp.array([[1, 2, 3]]),
    ...     "targets": jnp.array([[2, 3, 4]]),
    ...     "target_mask": jnp.array([[True, True, False]]),
    ...     "lengths": jnp.array([3]),
    ...     "mask": jnp.array([True]),
    ... }
    >>> task = StepPrediction()
    >>> variables = task.initialize(model, jax.random.key(0), batch)
    >>> sums, outputs = task.evaluate(model, variables, batch)
    >>> float(sums["loss"][1]), task.describe_outputs(outputs, 0)["steps"]
    (2.0, 2)

    Attributes:
      distribution: ``softmax`` or ``bernoulli``.
      carried_rows: rows of a global training batch whose carry is kept; 0: each row of each batch
        starts anew.
    """

    distribution: str = "softmax"
    carried_rows: int = 0

    def __post_init__(self) -> None:
        if self.distribution not in DISTRIBUTIONS:
            raise ValueError(
                f"distribution: expected one of {DISTRIBUTIONS}, received {self.distribution!r}"
            )

    def initialize(self, model: nn.Module, key: PRNGKey, batch: Batch) -> PyTree:
        """Returns random variables, from the shapes of one example, and a carry of zeros."""
        rows = {name: x[:1] for name, x in batch.items()}
        variables = model.init(key, *_arguments(rows), train=False)
        if not self.carried_rows:
            return variables
        return {**variables, CARRY: _named(self._zeros(model, variables, rows, self.carried_rows))}

    def loss(
        self,
        model: nn.Module,
        variables: PyTree,
        batch: Batch,
        key: PRNGKey,
        step: Array | int = 0,
    ) -> tuple[Sums, PyTree]:
        """Returns sums of ``loss`` (nats a step) and, of ``softmax``, ``accuracy``."""
        variables = dict(variables)
        kept = variables.pop(CARRY, None)
        carry = None if kept is None else self._read(model, variables, batch, kept)
        (after, logits), collections = self._apply(
            model,
            variables,
            batch,
            carry,
            train=True,
            rngs={"dropout": key},
            mutable=mutable_collections(variables),
        )
        sums, _ = self._sums(logits, batch)
        collections, reports = split_reports(collections)
        if kept is not None:
            collections[CARRY] = {
                name: x.astype(kept[name].dtype) for name, x in _named(after).items()
            }
        return sums | reports, collections

    def evaluate(
        self, model: nn.Module, variables: PyTree, batch: Batch
    ) -> tuple[Sums, dict[str, Array]]:
        """Returns the sums of ``loss``, and of each row ``nll`` (nats) and ``steps``, (B,).

        With ``carried_rows`` the carry stands among the arrays of ``batch`` and the outputs under
        the names of ``first_carry``; in a batch without them it is zero.
        """
        variables = {name: tree for name, tree in variables.items() if name != CARRY}
        carry = self._read(model, variables, batch, batch) if self.carried_rows else None
        after, logits = self._apply(model, variables, batch, carry, train=False)
        sums, (nll, steps) = self._sums(logits, batch)
        outputs = {"nll": nll, "steps": steps}
        if self.carried_rows:
            outputs |= _named(after)
        return sums, outputs

    def first_carry(
        self, model: nn.Module, variables: PyTree, batch: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """Returns the carry before the first batch of an evaluation: zeros (B,...) by name.

        It is empty without ``carried_rows``.
        """
        if not self.carried_rows:
            return {}
        variables = {name: tree for name, tree in variables.items() if name != CARRY}
        shapes = jax.eval_shape(
            lambda v, rows: self._zeros(model, v, rows, len(batch["mask"])), variables, dict(batch)
        )
        return {name: np.zeros(x.shape, x.dtype) for name, x in _named(shapes).items()}

    def describe_outputs(self, outputs: dict[str, Any], row: int) -> dict[str, Any]:
        """Returns the log-likelihood of a row: ``nll``, nats, and the number of its ``steps``."""
        return {"nll": float(outputs["nll"][row]), "steps": int(outputs["steps"][row])}

    def _apply(
        self, model: nn.Module, variables: PyTree, batch: Batch, carry: Carry | None, **options: Any
    ) -> Any:
        """Returns ((carry, logits), collections) or (carry, logits), as ``options`` ask."""
        inputs, lengths = _arguments(batch)
        # Rows that do not count are read as zeros: NaN in one would make the gradient NaN.
        inputs = zero_where_masked(inputs, batch["mask"])
        options |= {"starts": batch.get("starts")}
        if carry is not None:
            return model.apply(
                variables, inputs, lengths, initial_carry=carry, return_carry=True, **options
            )
        result = model.apply(variables, inputs, lengths, **options)
        return ((None, result[0]), result[1]) if "mutable" in options else (None, result)

    def _sums(self, logits: Array, batch: Batch) -> tuple[Sums, tuple[Array, Array]]:
        """Returns the sums, and (B,) negative log-likelihoods and numbers of steps."""
        targets = batch["targets"]
        mask = batch["target_mask"] & batch["mask"][:, None]  # (B,T)
        if self.distribution == "softmax":
            losses = cross_entropies(logits, targets, mask)
        else:
            # NaN in what does not count would make the gradient NaN.
            logits, targets = (zero_where_masked(x, mask) for x in (logits, targets))
            losses = zero_where_masked(jnp.sum(bernoulli_losses(logits, targets), axis=-1), mask)
        nll, steps = jnp.sum(losses, axis=1), jnp.sum(mask, axis=1)
        sums = {"loss": (jnp.sum(nll), jnp.sum(steps, dtype=jnp.float32))}
        if self.distribution == "softmax":
            sums["accuracy"] = top_k_accuracy(logits, targets, mask)
        return sums, (nll, steps)

    def _read(
        self, model: nn.Module, variables: PyTree, batch: Batch, kept: Mapping[str, Array]
    ) -> Carry:
        """Returns the carry as the network has it, from its arrays by name; zeros without them."""
        zeros = self._zeros(model, variables, batch, len(batch["mask"]))
        leaves = [kept.get(name, leaf) for name, leaf in _named(zeros).items()]
        return jax.tree.unflatten(jax.tree.structure(zeros), leaves)

    def _zeros(self, model: nn.Module, variables: PyTree, batch: Batch, rows: int) -> Carry:
        """Returns the carry of a network at the start, zeros (rows,...)."""
        inputs, lengths = _arguments(batch)

        def carry_of(variables: PyTree, inputs: Array, lengths: Array) -> Carry:
            return model.apply(variables, inputs, lengths, train=False, return_carry=True)[0]

        shapes = jax.eval_shape(carry_of, variables, inputs, lengths)
        return jax.tree.map(lambda x: jnp.zeros((rows, *x.shape[1:]), x.dtype), shapes)


def bernoulli_losses(logits: Array, targets: Array) -> Array:
    """Returns the negative log-likelihood of zeros and ones, entry by entry, in nats.

    >>> round(float(bernoulli_losses(jnp.zeros(1), jnp.ones(1))[0]), 4)  # ln 2
    0.6931

    Args:
      logits: z, any float; computed in float32 at least.
      targets: y, zeros and ones of the same shape.
    """
    z = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    # log(1 + e^z) − y z, without an overflow for large z.
    return jax.nn.softplus(z) - targets * z


def score_steps(records: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Returns perplexity and bits a step of a whole split, from the records of its rows.

    >>> score_steps([{"nll": 2.0, "steps": 3}, {"nll": 0.0, "steps": 1}])
    {'perplexity': 1.6487212707001282, 'bits': 0.7213475204444817}

    Args:
      records: with ``nll`` and ``steps``, as ``StepPrediction.describe_outputs`` returns them.
    """
    pairs: Sequence[tuple[float, int]] = [(record["nll"], record["steps"]) for record in records]
    nats = sum(nll for nll, _ in pairs) / max(sum(steps for _, steps in pairs), 1)
    return {"perplexity": float(np.exp(nats)), "bits": float(nats / np.log(2))}


def _arguments(batch: Batch) -> tuple[Array, Array]:
    inputs = batch["tokens"] if "tokens" in batch else batch["inputs"]
    return inputs, batch["lengths"]


def _named(carry: Carry) -> dict[str, Any]:
    """Returns the arrays of a carry under the names of a batch."""
    return {f"{CARRY}_{i}": leaf for i, leaf in enumerate(jax.tree.leaves(carry))}
