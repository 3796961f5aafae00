"""What the benchmarks print and write: milliseconds on the console, ratios in Markdown."""

from collections.abc import Mapping
from typing import Any

ORDER = ("flax.linen", "PyTorch", "Keras")
"""Columns of peers that come first."""


def print_case(name: str, row: Mapping[str, Mapping[str, Any]]) -> None:
    """One case with absolute numbers."""
    print(name)
    print(f"  {'':36}{'ms':>9}{'(range)':>18}{'ours is':>10}{'first step':>12}{'peak MiB':>10}")
    for way, numbers in row.items():
        spread = f"({numbers['milliseconds_min']:.1f}-{numbers['milliseconds_max']:.1f})"
        first, peak = numbers.get("first_step_seconds"), numbers.get("peak_mebibytes")
        print(
            f"  {way:36}{numbers['milliseconds']:9.1f}{spread:>18}"
            f"{numbers['ours_is_times_as_fast']:9.2f}x"
            f"{'' if first is None else f'{first:.2f} s':>12}"
            f"{'' if peak is None else f'{peak:.0f}':>10}",
            flush=True,
        )


def format_table(results: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Markdown: a row for each case, a column for each peer, then first steps and memory.

    All numbers are a peer's over ours: above 1, ours is faster or smaller; — where a peer is not
    installed or a number was not measured.

    Args:
      results: by case and way; the first way of each is ours.
    """
    peers = list(ORDER)
    for row in results.values():
        peers += [way for way in list(row)[1:] if way not in peers]
    present = [peer for peer in peers if any(peer in list(row)[1:] for row in results.values())]
    # The usual peers keep their columns where none is installed, for tables of layers.
    columns = peers if any(peer in ORDER for peer in present) else present
    measures = (
        ("times as fast as", "ours_is_times_as_fast"),
        ("first step, times as fast as", "first_step_seconds"),
        ("peak memory, times as small as", "peak_mebibytes"),
        ("XLA's temporary memory, times as small as", "temporary_mebibytes"),
    )
    header, body = ["our way"], [[name] for name in results]
    for title, key in measures:
        for peer in columns:
            cells = [_ratio(row, peer, key) for row in results.values()]
            if key == "ours_is_times_as_fast" or any(cell != "—" for cell in cells):
                header.append(f"{title} {peer}")
                for line, cell in zip(body, cells, strict=True):
                    line.append(cell)
    lines = [header, ["---"] * len(header), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _ratio(row: Mapping[str, Mapping[str, Any]], peer: str, key: str) -> str:
    ours = next(iter(row.values())).get(key)
    theirs = row.get(peer, {}).get(key)
    if key == "ours_is_times_as_fast":
        ours = 1.0
    return f"{theirs / ours:.2f}" if ours and theirs is not None else "—"
