"""The robot's world: two rooms of MiniGrid with a door between them, BabyAI's expert, and the memories of its episodes.

A mission names the object to pick up, and only the picture tells the step that comes first: to pick up the object
itself, to open the door, or to pick up the key of the door's colour. See docs/robot.md.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from typing import NamedTuple

from PIL import Image

from lamra.common.errors import UserError
from lamra.miniature.robot_scene import COLOURS, Scene, Thing

if importlib.util.find_spec("minigrid") is None:
    raise UserError("minigrid is not installed: pip install minigrid")
os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")

from minigrid.core.world_object import Ball, Box, Door, Key
from minigrid.envs.babyai.core.roomgrid_level import RoomGridLevel
from minigrid.envs.babyai.core.verifier import ObjDesc, OpenInstr, PickupInstr
from minigrid.minigrid_env import MiniGridEnv
from minigrid.utils.baby_ai_bot import BabyAIBot

TILE = 28  # pixels: a tile is as large as an image token, as a cell of the drawn world is
WIDTH, HEIGHT = 5, 3  # tiles within the outer walls: a room of two columns, the wall with the door, a room
TOP = 2  # the first row of them: what BabyAI makes is a square, the other rows are walls
WALL = 3  # its column
MOST_ACTIONS = 256  # turns and steps of an episode
STATES_DRAWN = ("open", "closed", "closed", "locked", "locked", "locked")  # of the door, at first
KINDS = {"ball": Ball, "box": Box, "key": Key}


class SubGoal(NamedTuple):
    verb: str  # "pick up" or "open"
    colour: str
    kind: str

    @classmethod
    def read(cls, words: str) -> SubGoal:
        verb, thing = words.split(" the ")
        return cls(verb, *thing.split())

    def __str__(self) -> str:
        return f"{self.verb} the {self.colour} {self.kind}"


class Memory(NamedTuple):
    """What the expert saw, why it was there, and what it did next."""

    picture: Image.Image
    mission: str
    scene: Scene
    subgoal: SubGoal


class Rooms(RoomGridLevel):
    """The world as BabyAI's expert takes it; `reset(seed=...)` makes an episode."""

    def __init__(self):
        super().__init__(room_size=WIDTH + 2, num_rows=1, num_cols=1, max_steps=MOST_ACTIONS)
        self.film: list[Image.Image] | None = None  # a picture after each action, where it is a list

    def gen_mission(self) -> None:
        for row in range(1, WIDTH + 1):
            if not TOP <= row < TOP + HEIGHT:
                self.grid.horz_wall(1, row, WIDTH)
        self.grid.vert_wall(WALL, TOP, HEIGHT)
        here, beyond = self._rand_subset((1, WALL + 1), 2)  # the first column of each room
        colour, state = self._rand_elem(COLOURS), self._rand_elem(STATES_DRAWN)
        self.door = Door(colour, is_open=state == "open", is_locked=state == "locked")
        self.put_obj(self.door, WALL, self._rand_int(TOP, TOP + HEIGHT))
        target, other = self._rand_subset([(colour, kind) for colour in COLOURS for kind in ("ball", "box")], 2)
        self._put(target, beyond if self._rand_int(0, 6) else here)
        if state == "locked" or self._rand_bool():
            self._put((colour, "key"), here)
        if self._rand_bool():
            self._put((self._rand_elem([name for name in COLOURS if name != colour]), "key"), here)
        if self._rand_bool():
            self._put(other, self._rand_elem((here, beyond)))
        MiniGridEnv.place_agent(self, (here, TOP), (WALL - 1, HEIGHT))
        self.instrs = PickupInstr(ObjDesc(target[1], target[0]))

    def _put(self, name: tuple[str, str], room: int) -> None:
        colour, kind = name
        self.place_obj(KINDS[kind](colour), (room, TOP), (WALL - 1, HEIGHT))

    def step(self, action):
        result = super().step(action)
        if self.film is not None:
            self.film.append(self.picture())
        return result

    def picture(self) -> Image.Image:
        """All that is within the outer walls, from above."""
        pixels = self.grid.render(TILE, tuple(self.agent_pos), self.agent_dir)
        return Image.fromarray(pixels[TILE * TOP : TILE * (TOP + HEIGHT), TILE:-TILE])

    def scene(self) -> Scene:
        """What the picture shows."""
        cells = ((x, self.grid.get(x, y)) for x in range(1, WIDTH + 1) for y in range(TOP, TOP + HEIGHT))
        side = self.agent_pos[0] < WALL
        things = frozenset(
            Thing(cell.color, cell.type, "here" if (x < WALL) == side else "beyond")
            for x, cell in cells
            if cell is not None and cell.type in KINDS
        )
        state = "open" if self.door.is_open else "locked" if self.door.is_locked else "closed"
        return Scene(self.door.color, state, things)

    @property
    def done(self) -> bool:
        """Whether the mission's object is in the robot's hands."""
        wanted = tuple(self.mission.split()[-2:])
        return self.carrying is not None and (self.carrying.color, self.carrying.type) == wanted

    def carry_out(self, subgoal: SubGoal) -> bool:
        """Let the expert's planner carry out a sub-goal, and nothing that would have to come before it.

        Returns:
            Whether it could: False where there is no such object, or another would have to be taken or opened first.
        """
        mission = self.instrs
        desc = ObjDesc(subgoal.kind, subgoal.colour)
        self.instrs = OpenInstr(desc) if subgoal.verb == "open" else PickupInstr(desc)
        try:
            self.instrs.reset_verifier(self)
            if not desc.obj_set or self._holds(subgoal) or (subgoal.verb == "open" and self.door.is_open):
                return False
            if subgoal.verb == "pick up" and self.carrying:
                self._let_go()
            return any(done == subgoal for done in expert_steps(self, only=subgoal))
        finally:
            self.instrs = mission

    def _holds(self, subgoal: SubGoal) -> bool:
        return self.carrying is not None and (self.carrying.color, self.carrying.type) == subgoal[1:]

    def _let_go(self) -> None:
        """Lay down what the robot carries, on the first free tile around it."""
        for _ in range(4):
            if self.grid.get(*self.front_pos) is None:
                self.step(self.actions.drop)
                return
            self.step(self.actions.left)


def expert_steps(rooms: Rooms, only: SubGoal | None = None) -> Iterator[SubGoal]:
    """Let the expert act on `rooms.instrs` and yield each sub-goal when it has been reached.

    Args:
        only: leave before any other sub-goal.
    """
    bot = BabyAIBot(rooms)
    while rooms.step_count < MOST_ACTIONS:
        try:
            action = bot.replan()
        except (AssertionError, TypeError):  # so the bot ends where it finds no way, or no tile to lay a thing on
            return
        subgoal = None
        if action in (rooms.actions.pickup, rooms.actions.toggle):
            thing = rooms.grid.get(*rooms.front_pos)
            subgoal = SubGoal("open" if action == rooms.actions.toggle else "pick up", thing.color, thing.type)
            if only and subgoal != only:
                return
        elif action == rooms.actions.done:
            return
        rooms.step(action)
        if subgoal:
            yield subgoal
            if only or rooms.done:
                return


def first_seed(use: str, seed: int) -> int:
    """Where the seeds of episodes begin that are for the base model, the memory, val or test."""
    return (4 * seed + ("base", "memory", "val", "test").index(use)) * 1_000_000


def expert_episode(seed: int) -> list[Memory] | None:
    """The memories of an episode, one a sub-goal; None where the expert has to clear something out of its way."""
    rooms = Rooms()
    rooms.reset(seed=seed)
    memories, seen = [], (rooms.picture(), rooms.mission, rooms.scene())
    for subgoal in expert_steps(rooms):
        needed = rooms.door.is_locked and subgoal[1:] == (rooms.door.color, "key")
        if subgoal.verb == "pick up" and not (rooms.done or needed):
            return None
        memories.append(Memory(*seen, subgoal))
        seen = (rooms.picture(), rooms.mission, rooms.scene())
    return memories if rooms.done else None


def expert_episodes(first_seed: int, count: int) -> dict[int, list[Memory]]:
    """The first `count` episodes that the expert solves, by their seed."""
    found: dict[int, list[Memory]] = {}
    seed = first_seed
    while len(found) < count:
        if memories := expert_episode(seed):
            found[seed] = memories
        seed += 1
    return found
