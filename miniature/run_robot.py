"""Let the robot act by what it remembers, and report: `python miniature/run_robot.py --help`. See docs/robot.md.

At each decision it looks for the memories that are nearest to what it sees and to its mission, and takes the sub-goal
that most of them went on with. Every method chooses among the same memories; the expert's planner carries it out.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from lamra.datasets.items import Item
from lamra.miniature.robot import Rooms, SubGoal

NEAREST = 200  # memories that are looked at in a decision
VOTES = 9  # of them vote on the sub-goal
DECISIONS = 4  # of an episode; the expert needs one to three

Seen = tuple[Image.Image, str]  # a picture and a mission
Retrieve = Callable[[Sequence[Seen]], Sequence[Sequence[int]]]  # -> rows of memories for each, nearest first


class Decision(NamedTuple):
    picture: Image.Image
    rows: list[int]  # of the memories that voted for it
    subgoal: SubGoal
    carried_out: bool
    film: list[Image.Image]  # what was seen on the way


@dataclass
class Attempt:
    rooms: Rooms
    decisions: list[Decision] = field(default_factory=list)

    @property
    def refused(self) -> set[SubGoal]:
        """Sub-goals that could not be carried out since something last changed."""
        found: set[SubGoal] = set()
        for decision in self.decisions:
            found = set() if decision.carried_out else found | {decision.subgoal}
        return found


def vote(rows: Sequence[int], subgoals: Sequence[SubGoal], refused: set[SubGoal], votes: int = VOTES) -> SubGoal | None:
    """The most frequent sub-goal of the nearest memories without those refused; of equals, the nearest. None: no other."""
    left = [subgoals[row] for row in rows if subgoals[row] not in refused][:votes]
    return Counter(left).most_common(1)[0][0] if left else None


def attempt(seeds: Iterable[int], retrieve: Retrieve, subgoals: Sequence[SubGoal], decisions: int = DECISIONS, votes=VOTES) -> list[Attempt]:
    """Act in the episodes of these seeds, all at a time, until the mission is done or the decisions are used up."""
    attempts = []
    for seed in seeds:
        rooms = Rooms()
        rooms.reset(seed=seed)
        attempts.append(Attempt(rooms))
    for _ in range(decisions):
        active = [each for each in attempts if not each.rooms.done]
        seen = [(each.rooms.picture(), each.rooms.mission) for each in active]
        for each, (picture, _), rows in zip(active, seen, retrieve(seen) if seen else ()):
            chosen = vote(rows, subgoals, each.refused, votes)
            if chosen:
                each.rooms.film = []
                done = each.rooms.carry_out(chosen)
                voted = [row for row in rows if subgoals[row] == chosen][:votes]
                each.decisions.append(Decision(picture, voted, chosen, done, each.rooms.film))
    return attempts
