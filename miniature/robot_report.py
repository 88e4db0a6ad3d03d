"""What the robot did over all seeds, as a table and a figure; and a film of an episode with the memories it went by."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from PIL import Image, ImageDraw

from lamra.common.errors import UserError
from lamra.common.files import whole_file
from lamra.eval.reporting.figures import COLOURS, figure_of, save_figure
from lamra.miniature.robot import SubGoal
from lamra.miniature.robot_agent import Attempt
from lamra.miniature.robot_memories import Seen

TEXT_ONLY = "text only"  # what the others are compared with
SCALE, GAP, LINE = 3, 12, 16  # of the robot's picture beside the memories; pixels between them, and of a line of text
SHOWN = 3  # memories of a decision
FRAME, PAUSE = 180, 1800  # milliseconds: of an action, of a decision

NOTE = """\
Share of episodes in percent in which the robot picked up the object of its mission: mean ± standard deviation over
seeds. `1`, `2` and `3`: of the episodes in which the expert needs so many sub-goals. First decision: the same as the
expert's. Gain: success over that of {} with the same seed. The expert succeeds in all: only such episodes count."""


def read_seeds(folder: Path) -> pd.DataFrame:
    """A row for each seed and method: seed, method, and the shares of robot_agent.summary."""
    reports = [json.loads(path.read_text()) for path in sorted(folder.glob("seed*.json"))]
    if not reports:
        raise UserError(f"{folder} holds no seed*.json: bash scripts/miniature/robot.sh writes them")
    rows = [
        dict(seed=each["seed"], method=name, **found) for each in reports for name, found in each["methods"].items()
    ]
    return pd.DataFrame(rows)


def percent(values: pd.Series, sign: str = "") -> str:
    return f"{100 * values.mean():{sign}.1f}" + (f" ± {100 * values.std():.1f}" if len(values) > 1 else "")


def gains(frame: pd.DataFrame) -> pd.Series:
    """Success less that of the text alone, within each seed."""
    text = frame[frame["method"] == TEXT_ONLY].set_index("seed")["success"]
    return frame["success"] - frame["seed"].map(text)


def write_report(folder: Path) -> str:
    """results.csv, table.md and robot.png of all seeds that are there; returns the table."""
    frame = read_seeds(folder)
    with whole_file(folder / "results.csv") as file:
        frame.to_csv(file, index=False)
    plot(folder / "robot.png", frame)
    return write_table(folder / "table.md", frame)


def write_table(path: Path, frame: pd.DataFrame) -> str:
    shares = ["success", "success of 1", "success of 2", "success of 3", "first decision"]
    lines = ["| method | seeds | success | 1 | 2 | 3 | first decision | gain |", "|---" * 8 + "|"]
    gain = gains(frame)
    for method, rows in frame.groupby("method", sort=False):
        cells = [method, len(rows), *(percent(rows[share]) for share in shares)]
        lines.append("| " + " | ".join(map(str, [*cells, percent(gain[rows.index], "+")])) + " |")
    with whole_file(path) as file:
        file.write("\n".join([*lines, "", NOTE.format(TEXT_ONLY)]) + "\n")
    return path.read_text()


def plot(path: Path, frame: pd.DataFrame) -> None:
    """A row a method: a dot a seed, a line at their mean."""
    methods = list(dict.fromkeys(frame["method"]))
    figure, (panel,) = figure_of(1)
    figure.set_size_inches(6.5, 1.4 + 0.36 * len(methods))
    for y, method in enumerate(methods):
        shares = 100 * frame.loc[frame["method"] == method, "success"]
        label = ("a seed", "their mean") if y == 0 else (None, None)
        panel.plot(shares, [y] * len(shares), "o", color=COLOURS[0], markersize=5, alpha=0.65, label=label[0])
        panel.plot([shares.mean()], [y], "|", color="black", markersize=14, markeredgewidth=2, label=label[1])
    panel.set(
        xlabel="episodes in which the mission was done, in percent", xlim=(-2, 102), ylim=(len(methods) - 0.4, -0.6)
    )
    panel.set_yticks(range(len(methods)), methods)
    panel.grid(axis="x", linewidth=0.4)
    save_figure(path, figure, panel)


def film(path: Path, attempt: Attempt, memories: Sequence[Seen], subgoals: Sequence[SubGoal]) -> None:
    """An animated gif: what the robot sees, the memories nearest to it with their sub-goals, and what it does then."""
    frames: list[Image.Image] = []
    durations: list[int] = []
    for decision in attempt.decisions:
        beside = [(memories[row][0], f"then: {subgoals[row]}") for row in decision.rows[:SHOWN]]
        words = f"{decision.subgoal}" + ("" if decision.carried_out else "  (cannot)")
        for number, picture in enumerate([decision.picture, *decision.film]):
            frames.append(drawn(picture, attempt.rooms.mission, words, beside))
            durations.append(FRAME if number else PAUSE)
        durations[-1] = PAUSE // 2
    with whole_file(path, "wb") as file:
        frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0)


def drawn(picture: Image.Image, mission: str, words: str, beside: Sequence[tuple[Image.Image, str]]) -> Image.Image:
    """One frame: on the left the robot's picture, on the right the memories and what followed them."""
    width, height = picture.width, picture.height
    column = GAP + LINE
    frame = Image.new("RGB", (SCALE * width + width + 3 * GAP + 2 * LINE, SHOWN * (height + column) + 4 * GAP), "white")
    canvas = ImageDraw.Draw(frame)
    canvas.text((GAP, GAP), f"Mission: {mission}", fill="black")
    canvas.text((2 * GAP + SCALE * width, GAP), "It remembers:", fill="black")
    top = 2 * GAP + LINE // 2
    frame.paste(picture.resize((SCALE * width, SCALE * height), Image.Resampling.NEAREST), (GAP, top))
    canvas.text((GAP, top + SCALE * height + GAP), f"So it goes on to: {words}", fill="black")
    for row, (remembered, text) in enumerate(beside):
        at = (2 * GAP + SCALE * width, top + row * (height + column))
        frame.paste(remembered, at)
        canvas.text((at[0], at[1] + height + 2), text, fill="black")
    return frame
