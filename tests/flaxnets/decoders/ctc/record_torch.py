"""Recorder of PyTorch's CTC losses and gradients in float64.

    python tests/flaxnets/decoders/ctc/record_torch.py

writes ``fixtures/torch_ctc.npz``, so that the tests need no PyTorch; the only other import is
NumPy. Labels hold repetitions, empty texts, texts that fit exactly and texts that do not fit.
"""

from pathlib import Path

import numpy as np

FIXTURE = Path(__file__).parent / "fixtures" / "torch_ctc.npz"
BLANKS = (0, 2, 4)
STEPS = (10, 10, 7, 4, 1, 1, 3, 10)
LENGTHS = (5, 3, 4, 0, 1, 0, 3, 5)
CLASSES = 5


def record() -> dict[str, np.ndarray]:
    """Returns inputs, losses and gradients for each blank."""
    import torch

    generator = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {
        "steps": np.array(STEPS, np.int32),
        "lengths": np.array(LENGTHS, np.int32),
    }
    for blank in BLANKS:
        logits = 2 * generator.standard_normal((len(STEPS), max(STEPS), CLASSES))
        labels = generator.integers(0, CLASSES - 1, (len(STEPS), max(LENGTHS)))
        labels += labels >= blank
        labels[0] = labels[0, [0, 0, 1, 1, 0]]  # Repeated symbols.
        labels[6] = labels[6, 0]  # Three equal ones need five steps and have three.
        leaf = torch.tensor(logits, requires_grad=True)
        loss = torch.nn.CTCLoss(blank=blank, reduction="none", zero_infinity=True)
        losses = loss(
            leaf.log_softmax(-1).transpose(0, 1),
            torch.tensor(labels),
            torch.tensor(STEPS),
            torch.tensor(LENGTHS),
        )
        losses.sum().backward()
        arrays |= {
            f"logits_{blank}": logits,
            f"labels_{blank}": labels.astype(np.int32),
            f"losses_{blank}": losses.detach().numpy(),
            f"gradients_{blank}": leaf.grad.numpy(),
        }
    return arrays


if __name__ == "__main__":
    np.savez_compressed(FIXTURE, **record())
