"""The house: a module imports only from rooms above its own, and every file can be read at once."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "sb3_muzero"
# From top to bottom. `common` is for all; a room of one file has no folder
ROOMS = [
    "common", "search", "actions", "models", "replay", "exploration", "learning", "policies", "collector", "off_policy",
    "muzero", "checkpointing", "offline", "distributed", "imagination", "analysis", "games", "envs", "zoo", "callbacks",
    "__main__",
]  # fmt: skip
CORE = ROOMS[: ROOMS.index("checkpointing") + 1]
MAX_FILE, MAX_CLASS, MAX_FUNCTION = 400, 300, 60

FILES = sorted(path for path in PACKAGE.rglob("*.py"))
NAMES = [str(path.relative_to(PACKAGE)) for path in FILES]


def room_of(module: str) -> str:
    """:return: The folder, or the file, of a module's dotted name inside the package"""
    return module.split(".")[0]


def imported_modules(tree: ast.AST) -> Iterator[str]:
    """:return: Dotted names inside the package of all modules that are imported anywhere in a file, but for type hints"""
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            node.body = []
    for node in ast.walk(tree):  # again, since a walk looks at what is below a node before it gives the node
        modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        modules += [name.name for name in node.names] if isinstance(node, ast.Import) else []
        for module in modules:
            if module.startswith("sb3_muzero."):
                yield module.removeprefix("sb3_muzero.")


def code_lines(path: Path) -> int:
    """:return: Lines without docstrings, comments and blank lines"""
    source = path.read_text()
    tree = ast.parse(source)
    docstrings = {
        line
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    lines = enumerate(source.splitlines(), start=1)
    return sum(bool(line.strip()) and not line.strip().startswith("#") and n not in docstrings for n, line in lines)


def length(node: ast.ClassDef | ast.FunctionDef) -> int:
    """:return: Lines of the body, without the docstring"""
    body = node.body[ast.get_docstring(node) is not None :]
    return (node.end_lineno or 0) - body[0].lineno + 1 if body else 0


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_imports_go_up(path: Path) -> None:
    name = str(path.relative_to(PACKAGE).with_suffix("")).replace("/", ".")
    if name == "__init__":  # the package's face
        return
    own = ROOMS.index(room_of(name))
    for module in imported_modules(ast.parse(path.read_text())):
        room = room_of(module)
        assert room in ROOMS, f"{module} is in no room"
        assert room == "common" or ROOMS.index(room) <= own, f"{name} imports {module}, which is below it"
        assert not (ROOMS[own] == "common" and room != "common"), f"{name} imports {module}: common is for all"


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_files_classes_and_functions_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MAX_FILE
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ClassDef):
            assert length(node) <= MAX_CLASS, f"class {node.name} has {length(node)} lines"
        if isinstance(node, ast.FunctionDef):
            assert length(node) <= MAX_FUNCTION, f"function {node.name} has {length(node)} lines"


def test_lines_of_code_are_printed() -> None:
    lines = {name: code_lines(path) for name, path in zip(NAMES, FILES, strict=True)}
    rooms = {room: 0 for room in CORE}
    for name, count in lines.items():
        room = room_of(name.removesuffix(".py").replace("/", "."))
        if room in rooms:
            rooms[room] += count
    print(f"{sum(rooms.values())} lines of code in the core ({rooms}), {sum(lines.values())} in the package")
    assert all(rooms.values())


def test_every_folder_is_installed() -> None:
    text = (PACKAGE.parent / "pyproject.toml").read_text()
    folders = [path.parent.relative_to(PACKAGE.parent) for path in PACKAGE.rglob("__init__.py")]
    assert [name for name in (".".join(folder.parts) for folder in folders) if f'"{name}",' not in text] == []
