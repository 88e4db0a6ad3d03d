"""Let the robot act: `python miniature/run_robot.py --seed 0 --text MODEL --models base=MODEL ...`, see docs/robot.md.

Writes <output_dir>/seed<N>.json, with --film also seed<N>.gif. With --report it writes results.csv, table.md and
robot.png of all seeds there instead.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

from lamra.common.cli import run
from lamra.common.errors import UserError
from lamra.common.files import whole_file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--seed", type=int, default=0, help="of the memory and of the episodes")
    parser.add_argument("--folder", type=Path, default="data/miniature_robot", help="of the memories of all seeds")
    parser.add_argument("--split", choices=("val", "test"), default="test", help="settings were chosen on val")
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--text", help="folder of the model that retrieves by the mission alone")
    parser.add_argument("--models", nargs="*", default=[], help="NAME=FOLDER; NAME+=FOLDER is told what to find")
    parser.add_argument("--output_dir", type=Path, default="results/miniature_robot")
    parser.add_argument("--film", action="store_true", help="an episode of three sub-goals that the last model does")
    parser.add_argument("--report", action="store_true", help="on what has been measured")
    args = parser.parse_args()
    if args.report:
        from lamra.miniature.robot_report import write_report  # pandas and matplotlib

        print("\n" + write_report(args.output_dir))
        print(f"written to {args.output_dir}/: results.csv, table.md, robot.png")
        return

    from lamra.miniature.robot import expert_episodes, first_seed  # minigrid: after --help
    from lamra.miniature.robot_agent import Retrieve, attempt, by_chance, by_model, summary
    from lamra.miniature.robot_memories import INSTRUCTION, read_memories
    from lamra.miniature.robot_report import film

    seen, subgoals = read_memories(args.folder / f"seed{args.seed}")
    methods: dict[str, Callable[[], Retrieve]] = {"random": lambda: by_chance(args.seed, len(seen))}
    if args.text:
        methods["text only"] = lambda: by_model(args.text, seen, pictures=False)
    for given in args.models:
        name, _, folder = given.partition("=")
        if not Path(folder).is_dir():
            raise UserError(f"--models {given}: expected NAME=FOLDER of a model")
        told = INSTRUCTION if name.endswith("+") else None
        methods[name.removesuffix("+")] = partial(by_model, folder, seen, instruction=told)

    expert = expert_episodes(first_seed(args.split, args.seed), args.episodes)
    found = {}
    for name, retriever in methods.items():
        attempts = attempt(expert, retriever(), subgoals)
        found[name] = summary(attempts, list(expert.values()))
        print(f"seed {args.seed}, {name}: {100 * found[name]['success']:.1f} % of {len(expert)} missions", flush=True)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    if args.film:
        long = [row for row, episode in enumerate(expert.values()) if len(episode) == 3]
        shown = next((row for row in long if attempts[row].rooms.done), long[0])
        film(args.output_dir / f"seed{args.seed}.gif", attempts[shown], seen, subgoals)
    with whole_file(args.output_dir / f"seed{args.seed}.json") as file:
        file.write(json.dumps({"seed": args.seed, "memories": len(seen), "methods": found}, indent=2) + "\n")


if __name__ == "__main__":
    run(main)
