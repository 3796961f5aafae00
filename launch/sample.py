r"""Draws texts from a trained language model; prints one JSON line for each.

    python -m launch.sample --workdir=runs/characters --prompt="ROMEO:" --length=500

A line is ``{"text": …, "nats": …}``: the prompt with its continuation, and the mean negative
log-probability of a drawn token under the model. Tokens of the prompt that training never had are
refused, or ``<unk>`` where the vocabulary has that. Without ``--prompt`` the text begins behind a
new line or, where the training text has none, behind a blank.
"""

import json
from collections.abc import Sequence

from absl import flags

from flaxnets.inference.token_sampling import SamplesText, encode_prompt, sample_tokens
from flaxnets.inference.trained_model import TrainedModel
from flaxnets.training.workdir import Workdir
from launch import program

WORKDIR = program.define_run()
STEP = flags.DEFINE_integer("step", None, "Step of the checkpoint; default: the best.")
PROMPT = flags.DEFINE_string(
    "prompt", None, "Text that is continued; default: a new line, or else a blank."
)
LENGTH = flags.DEFINE_integer("length", 500, "Tokens of a continuation.", lower_bound=1)
NUMBER = flags.DEFINE_integer("number", 1, "Texts.", lower_bound=1)
TEMPERATURE = flags.DEFINE_float(
    "temperature", 1.0, "Logits are divided by it; 0: the most probable token.", lower_bound=0.0
)
TOP_K = flags.DEFINE_integer(
    "top_k", 0, "Tokens that may be drawn, the most probable ones; 0: all.", lower_bound=0
)
SEED = flags.DEFINE_integer("seed", 0, "Of the draws.")


def main(argv: Sequence[str]) -> int:
    """Draws and prints the texts; returns the exit code."""
    program.refuse_arguments(argv)
    workdir = Workdir(WORKDIR.value)
    workdir.check_trained()
    config = program.recorded_config(workdir)
    if not isinstance(config, SamplesText):
        raise ValueError(
            "--workdir: expected a run of a language model, as experiments/char_rnn.py, received "
            f"one of {type(config).__name__}"
        )
    model = TrainedModel(config, workdir, STEP.value)
    prompt = encode_prompt(config, PROMPT.value)
    tokens, scores = sample_tokens(
        model.model,
        model.variables,
        prompt,
        LENGTH.value,
        num_samples=NUMBER.value,
        temperature=TEMPERATURE.value,
        top_k=TOP_K.value,
        seed=SEED.value,
    )
    for row, score in zip(tokens, scores, strict=True):
        text = config.decode_text([*prompt.tolist(), *row.tolist()])
        line = {"text": text, "nats": round(float(-score.mean()), 4)}
        print(json.dumps(line, ensure_ascii=False), flush=True)
    return 0


if __name__ == "__main__":
    program.run(main)
