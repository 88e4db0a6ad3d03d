"""What the robot's pictures show, in words: two rooms with a door between them, and the things on both sides of it.

`scene` is what can be seen, `describe` one of its many sentences, `edited` a scene that contradicts it. These are to
the robot's world what world.py's are to the drawn one, and of them its captions and its triplets are made.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import NamedTuple

from lamra.miniature.world import sentence

COLOURS = ("red", "green", "blue", "purple", "yellow", "grey")  # MiniGrid's
# Each kind, state and side with its other name.
KINDS = {"ball": ("ball", "sphere"), "box": ("box", "crate"), "key": ("key", "key")}
STATES = {"open": ("open", "ajar"), "closed": ("closed", "shut"), "locked": ("locked", "bolted")}
SIDES = {"here": ("here", "near"), "beyond": ("beyond", "behind")}
VERBS = ("pick up", "get", "fetch")
DETAILS = frozenset(COLOURS) | {word for names in (KINDS, STATES, SIDES) for pair in names.values() for word in pair}


class Thing(NamedTuple):
    colour: str
    kind: str
    side: str  # of the door: "here", where the robot is, or "beyond"


@dataclass(frozen=True)
class Scene:
    """What a picture shows; what the robot carries, it does not show."""

    colour: str  # of the door
    state: str
    things: frozenset[Thing]


def noun(thing: Thing, rng: random.Random) -> str:
    return f"{thing.colour} {rng.choice(KINDS[thing.kind])}"


def describe(scene: Scene, rng: random.Random) -> str:
    """A sentence with the door and all things, in a wording and order that `rng` chooses."""
    parts = [f"the {scene.colour} door is {rng.choice(STATES[scene.state])}"]
    for side, names in SIDES.items():
        things = [f"a {noun(thing, rng)}" for thing in sorted(scene.things) if thing.side == side]
        if things:
            parts.append(f"{rng.choice(names)} is {' and '.join(rng.sample(things, len(things)))}")
    return sentence(*rng.sample(parts, len(parts)))


def reworded(mission: str, rng: random.Random) -> str:
    """ "pick up the red ball" -> "get the red sphere": the mission in one of its wordings."""
    colour, kind = mission.split()[-2:]
    return f"{rng.choice(VERBS)} the {colour} {rng.choice(KINDS[kind])}"


def edited(scene: Scene, rng: random.Random) -> Scene:
    """The scene with its door or one thing changed in one respect: no sentence is true of both."""
    if rng.random() < 0.4:
        if rng.random() < 0.5:
            return replace(scene, colour=other(COLOURS, scene.colour, rng))
        return replace(scene, state=other(STATES, scene.state, rng))
    old = rng.choice(sorted(scene.things))
    new = old
    while new in scene.things:
        respect, values = rng.choice((("colour", COLOURS), ("kind", KINDS), ("side", SIDES)))
        new = old._replace(**{respect: other(values, getattr(old, respect), rng)})
    return replace(scene, things=scene.things - {old} | {new})


def other(values, value: str, rng: random.Random) -> str:
    return rng.choice([another for another in values if another != value])


def triplet(scene: Scene, mission: str, rng: random.Random) -> tuple[str, str, str]:
    """A text, a paraphrase and a contradiction: of the scene, of a mission, or of both together."""
    about = rng.choice(("scene", "mission", "both"))
    wrong = rng.choice(("scene", "mission")) if about == "both" else about
    colour, kind = mission.split()[-2:]
    missions = [mission, f"{mission.removesuffix(f'{colour} {kind}')}{other(COLOURS, colour, rng)} {kind}"]
    scenes = [scene, edited(scene, rng)]
    texts = []
    for changed in (False, False, True):
        parts = [describe(scenes[changed and wrong == "scene"], rng)] if about != "mission" else []
        if about != "scene":
            parts.append(reworded(missions[changed and wrong == "mission"], rng))
        texts.append(" ".join(parts))
    return texts[0], texts[1], texts[2]
