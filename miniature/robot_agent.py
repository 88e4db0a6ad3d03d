"""The robot acts by what it remembers.

At each decision it looks for the memory nearest to what it sees and to its mission, and takes the sub-goal that the
expert went on with; the expert's planner carries it out. Every method chooses among the same memories.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from PIL import Image

from lamra.datasets.items import Item
from lamra.miniature.robot import Rooms, SubGoal
from lamra.miniature.robot_memories import Seen

NEAREST = 200  # memories that a decision can fall back on, where sub-goals are refused
DECISIONS = 4  # of an episode; the expert needs one to three

Retrieve = Callable[[Sequence[Seen]], Sequence[Sequence[int]]]  # -> for each the rows of memories, nearest first


class Decision(NamedTuple):
    picture: Image.Image
    rows: list[int]  # of memories, nearest first, without those whose sub-goal was refused; the first decided
    subgoal: SubGoal
    carried_out: bool
    film: list[Image.Image]  # what was seen on the way


@dataclass
class Attempt:
    rooms: Rooms
    decisions: list[Decision] = field(default_factory=list)

    @property
    def refused(self) -> set[SubGoal]:
        """Sub-goals that could not be carried out since one last was: the picture is still the same."""
        found: set[SubGoal] = set()
        for decision in self.decisions:
            found = set() if decision.carried_out else found | {decision.subgoal}
        return found


def attempt(
    seeds: Iterable[int], retrieve: Retrieve, subgoals: Sequence[SubGoal], decisions: int = DECISIONS
) -> list[Attempt]:
    """Act in the episodes of these seeds, all side by side, until the mission is done or the decisions are used up."""
    attempts = []
    for seed in seeds:
        attempts.append(Attempt(Rooms()))
        attempts[-1].rooms.reset(seed=seed)
    for _ in range(decisions):
        active = [each for each in attempts if not each.rooms.done]
        seen = [(each.rooms.picture(), each.rooms.mission) for each in active]
        for each, (picture, _mission), rows in zip(active, seen, retrieve(seen) if seen else ()):
            if left := [row for row in rows if subgoals[row] not in each.refused]:
                each.rooms.film = []
                carried_out = each.rooms.carry_out(subgoals[left[0]])
                each.decisions.append(Decision(picture, left, subgoals[left[0]], carried_out, each.rooms.film))
    return attempts


def by_chance(seed: int, memories: int) -> Retrieve:
    rng = random.Random(seed)
    return lambda seen: [rng.sample(range(memories), min(NEAREST, memories)) for _ in seen]


def by_model(
    folder: str, memories: Sequence[Seen], *, pictures: bool = True, instruction: str | None = None
) -> Retrieve:
    """Retrieval with the model of a folder, by pictures and missions or by missions alone."""
    import lamra  # torch: after the flags

    retriever = lamra.load(folder, role="retriever")

    def items(seen: Sequence[Seen]) -> list[Item]:
        return [Item("", mission, (picture,) if pictures else ()) for picture, mission in seen]

    gallery = retriever.encode(items(memories), None)

    def retrieve(seen: Sequence[Seen]) -> list[list[int]]:
        top = min(NEAREST, len(memories))
        return retriever.search(items(seen), gallery, top, instruction=instruction)[1].tolist()

    return retrieve


def summary(attempts: Sequence[Attempt], expert: Sequence[Sequence]) -> dict[str, float]:
    """Shares of episodes: done, done of those with one, two and three sub-goals, and first decision as the expert's."""
    done = [each.rooms.done for each in attempts]
    found = {"success": mean(done)}
    for length in (1, 2, 3):
        found[f"success of {length}"] = mean([ok for ok, episode in zip(done, expert) if len(episode) == length])
    first = [each.decisions[0].subgoal == episode[0].subgoal for each, episode in zip(attempts, expert)]
    return found | {"first decision": mean(first)}


def mean(values: Sequence[bool]) -> float:
    return round(sum(values) / len(values), 4) if values else 0.0
