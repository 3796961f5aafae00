"""Output of the benchmarks: milliseconds on the console, ratios in Markdown."""

from collections.abc import Mapping
from typing import Any

ORDER = ("flax.linen", "PyTorch", "Keras")
"""Peers whose columns come first."""


def print_case(name: str, row: Mapping[str, Mapping[str, Any]]) -> None:
    """Prints the milliseconds, speed-up, first step and memory of each way of a case."""
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
    """Returns a Markdown table of speeds and, below it, one of first steps and memory.

    Rows are cases, columns peers. All numbers are a peer's over ours: above 1, ours is faster or
    smaller. — marks a peer that is not installed or a number that was not measured. The second
    table has only the cases with such numbers.

    Args:
      results: numbers by case and way; the first way of each case is ours.
    """
    peers = list(ORDER)
    for row in results.values():
        peers += [way for way in list(row)[1:] if way not in peers]
    present = [peer for peer in peers if any(peer in list(row)[1:] for row in results.values())]
    # Tables of layers keep the columns of the usual peers even where one is not installed.
    columns = peers if any(peer in ORDER for peer in present) else present
    speed = [("times as fast as", peer, "ours_is_times_as_fast") for peer in columns]
    more = [
        (title, peer, key)
        for title, key in (
            ("first step, times as fast as", "first_step_seconds"),
            ("peak memory, times as small as", "peak_mebibytes"),
            ("XLA's temporary memory, times as small as", "temporary_mebibytes"),
        )
        for peer in columns
        if any(_ratio(row, peer, key) != "—" for row in results.values())
    ]
    measured = {
        name: row
        for name, row in results.items()
        if any(_ratio(row, peer, key) != "—" for _, peer, key in more)
    }
    tables = [_table(results, speed)]
    if measured:
        tables.append(_table(measured, more))
    return "\n".join(tables)


def _table(
    results: Mapping[str, Mapping[str, Mapping[str, Any]]], columns: list[tuple[str, str, str]]
) -> str:
    """Returns a Markdown table; a column is (title, peer, key of the number)."""
    header = ["our way", *(f"{title} {peer}" for title, peer, _ in columns)]
    body = [
        [name, *(_ratio(row, peer, key) for _, peer, key in columns)]
        for name, row in results.items()
    ]
    lines = [header, ["---"] * len(header), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _ratio(row: Mapping[str, Mapping[str, Any]], peer: str, key: str) -> str:
    ours = next(iter(row.values())).get(key)
    theirs = row.get(peer, {}).get(key)
    if key == "ours_is_times_as_fast":
        ours = 1.0
    return f"{theirs / ours:.2f}" if ours and theirs is not None else "—"
