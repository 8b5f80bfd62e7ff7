"""Where Flower's private parts are used, which may change with any version of it."""

import ast
from pathlib import Path

import fedsdr

PUBLIC = {"flwr.app", "flwr.clientapp", "flwr.serverapp", "flwr.serverapp.strategy"}


def test_flowers_private_parts_are_used_in_deployment_and_two_other_files_alone():
    root, users = Path(fedsdr.__file__).parent, set()
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if any(name.split(".")[0] == "flwr" and name not in PUBLIC for name in names):
                users.add(path.relative_to(root))
    assert {path for path in users if path.parts[0] != "deployment"} == {
        Path("messages/flower.py"),
        Path("federation/simulation_engine.py"),
    }
