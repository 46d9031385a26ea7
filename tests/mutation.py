"""
Mutation testing: change one thing in the source at a time, and see whether a test fails.

    python tests/mutation.py targets --sample 200

prints each mutant that survived and the share of those that were killed. The source that is changed is a copy.

What survives and may: other zeros in rows that are always written before they are read, trees larger than they need be,
copies in place of views, bounds of files a little further out, checks that a later one repeats, what only a GPU runs, lanes
that nobody reads, defaults that every caller gives, the start of a mean, which the first number replaces, -2 where anything
below 0 will do, and another number than the largest that a softmax of standardised numbers subtracts.
"""

import argparse
import ast
import difflib
import json
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import gymnasium  # noqa: F401  # what takes long to import is there when a process is forked
import numba  # noqa: F401
import pytest
import stable_baselines3  # noqa: F401

ROOT = Path(__file__).parents[1]
# What is changed, and the tests that are to notice, those first that mostly do
ROOMS = {
    "targets": (["learning/targets.py"], ["test_targets.py", "test_buffers.py"]),
    "buffers": (
        ["replay"],
        ["test_buffers.py", "test_sum_tree.py", "test_novelty.py", "test_hostile_files.py", "test_images.py",
         "test_dict_env.py", "test_action_masks.py", "test_save_load.py", "test_resume.py"],
    ),
    "search": (
        ["search", "common/jit.py"],
        ["search", "test_compiled_model.py", "test_predict.py", "games/test_self_play.py"],
    ),
}  # fmt: skip

SWAPPED = [
    (ast.Add, ast.Sub), (ast.Mult, ast.Div), (ast.BitAnd, ast.BitOr), (ast.And, ast.Or),
    (ast.Lt, ast.LtE), (ast.Gt, ast.GtE), (ast.Eq, ast.NotEq), (ast.Is, ast.IsNot), (ast.In, ast.NotIn),
]  # fmt: skip
OTHER_OPERATOR: dict[type, type] = {a: b for pair in SWAPPED for a, b in (pair, pair[::-1])}
OTHER_OPERATOR |= {ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult, ast.Pow: ast.Mult}
OPPOSITES = [
    ("min", "max"), ("minimum", "maximum"), ("argmin", "argmax"), ("any", "all"), ("ones", "zeros"), ("floor", "ceil"),
]  # fmt: skip
OTHER_NAME = {a: b for pair in OPPOSITES for a, b in (pair, pair[::-1])}
# What says nothing of what the code does: annotations, messages, decorators
SILENT = {"annotation", "returns", "decorator_list"}


def changes(node: ast.AST) -> Iterator[str]:
    """
    :param node: Part of a program
    :return: Its text with one thing changed, for each that can be
    """
    if isinstance(node, ast.expr):
        yield from changed_expressions(node)
    elif isinstance(node, ast.AugAssign) and type(node.op) in OTHER_OPERATOR:
        yield ast.unparse(ast.AugAssign(node.target, OTHER_OPERATOR[type(node.op)](), node.value))
    elif isinstance(node, ast.Raise | ast.Continue | ast.Break) or (
        isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
    ):
        yield "pass"
    elif isinstance(node, ast.Assign) and all(isinstance(target, ast.Attribute | ast.Subscript) for target in node.targets):
        yield "pass"


def changed_expressions(node: ast.expr) -> Iterator[str]:
    """See ``changes``."""
    if isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield str(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        yield repr(node.value + 1)
    elif isinstance(node, ast.BinOp) and type(node.op) in OTHER_OPERATOR:
        yield f"({ast.unparse(ast.BinOp(node.left, OTHER_OPERATOR[type(node.op)](), node.right))})"
    elif isinstance(node, ast.BoolOp):
        yield f"({ast.unparse(ast.BoolOp(OTHER_OPERATOR[type(node.op)](), node.values))})"
    elif isinstance(node, ast.Compare):
        for i, operator in enumerate(node.ops):
            others = [*node.ops[:i], OTHER_OPERATOR[type(operator)](), *node.ops[i + 1 :]]
            yield f"({ast.unparse(ast.Compare(node.left, others, node.comparators))})"
    elif isinstance(node, ast.UnaryOp):
        yield f"({ast.unparse(node.operand)})"
    elif isinstance(node, ast.IfExp):
        yield f"({ast.unparse(ast.IfExp(node.test, node.orelse, node.body))})"
    elif isinstance(node, ast.Name) and node.id in OTHER_NAME:
        yield OTHER_NAME[node.id]
    elif isinstance(node, ast.Attribute) and node.attr in OTHER_NAME:
        yield f"{ast.unparse(node.value)}.{OTHER_NAME[node.attr]}"


def mutants(source: str) -> list[str]:
    """
    :param source: A program
    :return: It with one thing changed, for all that can be
    """
    starts = [0]
    for line in source.encode().splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    found: list[str] = []

    def visit(node: ast.AST) -> None:
        if hasattr(node, "lineno"):
            start, end = starts[node.lineno - 1] + node.col_offset, starts[node.end_lineno - 1] + node.end_col_offset
            for change in changes(node):
                found.append((source.encode()[:start] + change.encode() + source.encode()[end:]).decode())
        if isinstance(node, ast.Raise | ast.JoinedStr | ast.Assert):
            return
        for name, field in ast.iter_fields(node):
            if name not in SILENT:
                for part in field if isinstance(field, list) else [field]:
                    if isinstance(part, ast.AST):
                        visit(part)

    visit(ast.parse(source))
    return found


def _run_tests(folder: Path, tests: list[str]) -> None:
    """Ends the process with pytest's exit code."""
    sys.dont_write_bytecode = True  # a file of the same second and size would not be read again
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    minutes = "not kill_9 and not test_checkpoints"  # is what those would take
    options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-k", minutes]
    os._exit(pytest.main([*options, *(f"tests/{test}" for test in tests)]))


def passes(folder: Path, tests: list[str], seconds: float | None = None) -> bool:
    """
    :param folder: Copy of the repository
    :param tests: Files of tests
    :param seconds: How long they may take; as long as they want by default
    :return: Whether they pass
    """
    process = multiprocessing.get_context("fork").Process(target=_run_tests, args=(folder, tests))
    process.start()
    process.join(seconds)
    if process.is_alive():
        process.kill()
        process.join()
    return process.exitcode == 0


def copy_of_repository() -> Path:
    """:return: A copy that may be changed"""
    folder = Path(tempfile.mkdtemp(prefix="mutants-"))
    for part in ("sb3_muzero", "tests", "zoo_configs", "examples"):
        shutil.copytree(ROOT / part, folder / part)
    for file in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / file, folder)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("room", choices=ROOMS)
    parser.add_argument("--sample", type=int, help="so many mutants, drawn at random; all by default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="where results go, those that are there are kept")
    args = parser.parse_args()
    places, tests = ROOMS[args.room]
    package = ROOT / "sb3_muzero"
    paths = [package / place for place in places]
    found = [file for path in paths for file in ([path] if path.is_file() else path.rglob("*.py"))]
    files = sorted(str(file.relative_to(package)) for file in found)
    sources = {file: (ROOT / "sb3_muzero" / file).read_text() for file in files}
    todo = [(file, number, text) for file in files for number, text in enumerate(mutants(sources[file]))]
    random.Random(args.seed).shuffle(todo)
    todo = todo[: args.sample]

    done: dict[str, str | None] = {}
    if args.json is not None and args.json.exists():
        done = json.loads(args.json.read_text())
    folder = copy_of_repository()
    try:
        start = time.perf_counter()
        if not passes(folder, tests):
            raise SystemExit("The tests fail without any change")
        seconds = 3 * (time.perf_counter() - start) + 60
        for file, number, text in todo:
            if (key := f"{file} {number}") in done:
                continue
            path = folder / "sb3_muzero" / file
            path.write_text(text)
            survived = passes(folder, tests, seconds)
            path.write_text(sources[file])
            difference = "\n".join(difflib.unified_diff(sources[file].splitlines(), text.splitlines(), file, lineterm="", n=0))
            done[key] = difference if survived else None
            if survived:
                print(difference, flush=True)
            if args.json is not None:
                args.json.write_text(json.dumps(done, indent=1))
    finally:
        shutil.rmtree(folder)
    killed = sum(difference is None for difference in done.values())
    print(f"{args.room}: {killed} of {len(done)} mutants killed, {killed / len(done):.1%}")


if __name__ == "__main__":
    main()
