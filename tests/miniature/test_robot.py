"""The robot: what its world shows and says, what it takes from its memories, and how its successes are counted."""

from __future__ import annotations

import importlib.util
import json
import random
import subprocess
import sys

import pytest
from conftest import ROOT
from PIL import Image

from lamra.common.errors import UserError
from lamra.miniature import robot_scene
from lamra.miniature.robot_scene import Scene, Thing, describe, edited, reworded, triplet

SCENE = Scene("red", "locked", frozenset({Thing("red", "key", "here"), Thing("blue", "ball", "beyond")}))
needs_minigrid = pytest.mark.skipif(
    importlib.util.find_spec("minigrid") is None, reason="minigrid is not installed: pip install minigrid"
)


def understood(sentence: str) -> Scene:
    """The scene that a sentence describes, read back by its words alone."""
    meant = {name: key for names in (robot_scene.KINDS, robot_scene.STATES, robot_scene.SIDES)
             for key, pair in names.items() for name in pair}  # fmt: skip
    things, side, door = set(), None, None
    words = sentence.lower().replace(",", "").rstrip(".").split()
    for place, word in enumerate(words):
        if meant.get(word) in robot_scene.SIDES:
            side = meant[word]
        elif word == "door":
            door = words[place - 1], meant[words[place + 2]]
        elif meant.get(word) in robot_scene.KINDS:
            things.add(Thing(words[place - 1], meant[word], side))
    return Scene(*door, frozenset(things))


def test_a_sentence_tells_the_scene_and_an_edit_another():
    rng = random.Random(0)
    for _ in range(100):
        assert understood(describe(SCENE, rng)) == SCENE
        other = edited(SCENE, rng)
        assert understood(describe(other, rng)) == other != SCENE


def test_triplets_agree_and_contradict():
    rng = random.Random(0)
    told = {reworded("pick up the red ball", rng) for _ in range(99)}
    assert told == {f"{verb} the red {ball}" for verb in ("pick up", "get", "fetch") for ball in ("ball", "sphere")}
    for _ in range(100):
        given, same, wrong = (text.split(". ") for text in triplet(SCENE, "pick up the red ball", rng))
        scenes = [understood(text[0]) if "door" in text[0] else None for text in (given, same, wrong)]
        missions = [text[-1].split()[-2] if "door" not in text[-1] else None for text in (given, same, wrong)]
        assert (scenes[0], missions[0]) == (scenes[1], missions[1]) != (scenes[2], missions[2])


@pytest.fixture(scope="module")
def robot():
    if importlib.util.find_spec("minigrid") is None:
        pytest.skip("minigrid is not installed: pip install minigrid")
    from lamra.miniature import robot

    return robot


@pytest.fixture(scope="module")
def episodes(robot):
    return robot.expert_episodes(robot.first_seed("val", 7), 12)


def test_the_world_follows_from_its_seed(robot, episodes):
    again = robot.expert_episodes(robot.first_seed("val", 7), 3)
    for memories, others in zip(again.values(), episodes.values()):
        assert [m._replace(picture=m.picture.tobytes()) for m in memories] == [
            m._replace(picture=m.picture.tobytes()) for m in others
        ]


def test_the_expert_takes_key_door_and_object_in_this_order(robot, episodes):
    assert {len(memories) for memories in episodes.values()} == {1, 2, 3}
    for memories in episodes.values():
        steps = [memory.subgoal for memory in memories]
        assert [step.kind for step in steps[:-1]] == ["key", "door"][3 - len(steps) :]
        assert str(steps[-1]) == memories[0].mission
        assert all(step.colour == memories[0].scene.colour for step in steps[:-1])
        for memory in memories:
            assert memory.picture.size == (140, 84)
            states = {"key": "locked", "door": memory.scene.state, steps[-1].kind: memory.scene.state}
            assert memory.scene.state == states[memory.subgoal.kind]
            assert (memory.subgoal.kind == "door") <= (memory.scene.state != "open")


def test_a_sub_goal_is_carried_out_and_nothing_before_it(robot, episodes):
    for seed, memories in episodes.items():
        rooms = robot.Rooms()
        rooms.reset(seed=seed)
        before = rooms.picture().tobytes()
        if len(memories) > 1:
            assert not rooms.carry_out(memories[-1].subgoal)
        absent = next(c for c in robot_scene.COLOURS if all(t[:2] != (c, "box") for t in memories[0].scene.things))
        assert not rooms.carry_out(robot.SubGoal("pick up", absent, "box"))
        assert not rooms.done
        assert len(memories) == 1 or rooms.scene() == memories[0].scene
        rooms.reset(seed=seed)
        assert rooms.picture().tobytes() == before
        assert all(rooms.carry_out(memory.subgoal) for memory in memories)
        assert rooms.done


def test_success_is_counted_as_it_is(robot, episodes):
    from lamra.miniature.robot_agent import attempt, by_chance, summary

    expert = list(episodes.values())
    memories = [memory for each in expert for memory in each]
    subgoals = [memory.subgoal for memory in memories]
    right = {memory.picture.tobytes(): row for row, memory in enumerate(memories)}

    def knowing(seen):
        return [[right[picture.tobytes()], *range(len(memories))] for picture, _ in seen]

    done = attempt(episodes, knowing, subgoals)
    assert summary(done, expert) == dict.fromkeys(
        ("success", "success of 1", "success of 2", "success of 3", "first decision"), 1.0
    )
    assert [len(each.decisions) for each in done] == [len(each) for each in expert]
    chance = [attempt(episodes, by_chance(0, len(memories)), subgoals) for _ in range(2)]
    assert summary(chance[0], expert) == summary(chance[1], expert)
    assert summary(chance[0], expert)["success"] < 0.7
    for each in chance[0]:  # what was refused is not tried again before something has changed
        for first, second in zip(each.decisions, each.decisions[1:]):
            assert first.carried_out or first.subgoal != second.subgoal


def test_what_is_written_and_read_again(robot, episodes, tmp_path):
    from lamra.datasets.mbeir.layout import TRAIN_POOL, TRAIN_QUERIES
    from lamra.datasets.mbeir.pairs import open_pairs
    from lamra.miniature.robot_memories import read_memories, write_memories

    memories = [memory for each in episodes.values() for memory in each]
    write_memories(tmp_path / "a", memories, random.Random(0), 5)
    seen, subgoals = read_memories(tmp_path / "a")
    assert [(picture.tobytes(), mission) for picture, mission in seen] == [
        (memory.picture.tobytes(), memory.mission) for memory in memories
    ]
    assert subgoals == [memory.subgoal for memory in memories]
    pairs = open_pairs(tmp_path / "a", TRAIN_QUERIES, TRAIN_POOL)
    step = {str(tmp_path / f"a/pictures/{row}.png"): memory.subgoal for row, memory in enumerate(memories)}
    for row in range(len(pairs)):
        query, target = pairs[row].query, pairs[row].target
        assert query.content[1] != target.content[1]
        assert step[str(query.images[0])] == step[str(target.images[0])]
        assert query.instruction == "Find a memory of the same next step."
    with pytest.raises(UserError, match="build_robot"):
        read_memories(tmp_path / "b")


def test_the_table_and_the_film(robot, episodes, tmp_path):
    from lamra.miniature import robot_report
    from lamra.miniature.robot_agent import attempt

    for seed, shares in enumerate(((0.2, 0.5), (0.4, 0.7))):
        methods = {
            name: dict.fromkeys(("success", "success of 1", "success of 2", "success of 3", "first decision"), share)
            for name, share in zip(("text only", "stage 1"), shares)
        }
        (tmp_path / f"seed{seed}.json").write_text(json.dumps({"seed": seed, "methods": methods}))
    frame = robot_report.read_seeds(tmp_path)
    assert "| stage 1 | 2 | 60.0 ± 14.1 |" in robot_report.write_table(tmp_path / "table.md", frame)
    assert "| +30.0 ± 0.0 |" in (tmp_path / "table.md").read_text()
    robot_report.plot(tmp_path / "robot.png", frame)
    assert Image.open(tmp_path / "robot.png").width > 500

    memories = [memory for each in episodes.values() for memory in each]
    rows = [list(range(len(memories)))]
    subgoals = [memory.subgoal for memory in memories]
    (shown,) = attempt([*episodes][:1], lambda seen: rows * len(seen), subgoals)
    robot_report.film(tmp_path / "episode.gif", shown, [(m.picture, m.mission) for m in memories], subgoals)
    with Image.open(tmp_path / "episode.gif") as gif:
        assert gif.n_frames > len(shown.decisions)
    with pytest.raises(UserError, match=r"robot\.sh"):
        robot_report.read_seeds(tmp_path / "none")


def test_without_minigrid_one_sentence_says_so():
    hidden = """
import importlib.util, runpy, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *of: None if name == "minigrid" else find(name, *of)
sys.argv = ["build_robot.py"]
runpy.run_path("miniature/build_robot.py", run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", hidden], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr.strip()) == (2, "error: minigrid is not installed: pip install minigrid")
