import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import icldyn as ic

ROOT = Path(__file__).parents[1]
ROWS = [
    ("struct", "checks", "normals"),
    ("trajectory", "tasks", "models", "theory", "measures"),
    ("objectives",),
    ("engine",),
    ("store", "plot"),
    ("studies", "study"),
    ("report", "replay", "measure", "sweep", "launch", "cli", "__main__"),
]
ALONE = {"tasks", "models", "theory", "measures", "trajectory"}  # row 1: never each other


def row(part):
    return next(k for k, names in enumerate(ROWS) if part in names)


def imported(path):
    """The parts of icldyn that a module imports, type-checking blocks left out."""
    tree = ast.parse(path.read_text())
    skip = {
        id(n)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for n in ast.walk(node)
    }
    depth = len(path.relative_to(ROOT / "icldyn").parts)
    for node in ast.walk(tree):
        if id(node) in skip:
            continue
        if isinstance(node, ast.ImportFrom) and node.level:
            base = list(path.relative_to(ROOT / "icldyn").parts[: depth - node.level]) + (node.module or "").split(".")
            base = [b for b in base if b]
            yield from [base[0]] if base else [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("icldyn."):
            yield node.module.split(".")[1]


@pytest.mark.parametrize("path", sorted((ROOT / "icldyn").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_one_way(path):
    part = path.relative_to(ROOT / "icldyn").parts[0].removesuffix(".py")
    if part == "__init__":
        return
    for other in imported(path):
        if other in ("__version__", part):
            continue
        assert row(other) <= row(part), f"{part} imports {other} from a row below it"
        assert not (part in ALONE and other in ALONE), f"{part} imports {other}: row 1 never knows itself"


def test_every_public_name_is_there_and_listed_for_type_checkers():
    for name in ic.__all__:
        assert getattr(ic, name) is not None
    source = (ROOT / "icldyn/__init__.py").read_text()
    assert sorted(re.findall(r"import \w+ as (\w+)", source)) == ic.__all__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = ic.nothing


def test_import_and_help_load_no_jax_and_set_no_flag():
    code = "import sys, icldyn, icldyn.cli; icldyn.cli.main(['--help']); assert not {'jax', 'matplotlib'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "icldyn run STUDY" in done.stdout


def test_a_bad_setting_is_refused_before_jax_is_imported():
    code = "import sys; from icldyn.cli import main; code = main(['run', 'mainali2025', '--lr', '-1'])"
    code += "; assert 'jax' not in sys.modules; sys.exit(code)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr == "Argument `lr` must be positive and finite, but is -1.0.\n"


def test_the_version_stands_in_one_place_and_the_changelog_knows_it():
    assert re.fullmatch(r"\d+\.\d+\.\d+", ic.__version__)
    assert f"## {ic.__version__}" in (ROOT / "CHANGELOG.md").read_text()
    assert ic.__version__ in (ROOT / "CITATION.cff").read_text()


def test_no_committed_text_names_a_machines_path_or_a_registry():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    hosts = re.compile("/" + r"(root|home)/\w|pypi\.or" + "g|files\\.python" + "hosted")
    for name in listed.stdout.split():
        path = ROOT / name
        if path.suffix in (".py", ".md", ".toml", ".cff", ".ipynb", ".yml", ""):
            assert not hosts.search(path.read_text(errors="ignore")), name


def test_the_readmes_python_example_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.S)
    import jax

    with jax.enable_x64(False), jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        exec(compile(blocks[0].replace("seeds=1000", "seeds=32"), "README.md", "exec"), {})
    assert list(tmp_path.glob("*.png"))


def test_the_readmes_table_is_that_of_the_last_recorded_run():
    table = json.loads((ROOT / "benchmarks/measured/mainali2025.json").read_text())
    text = (ROOT / "README.md").read_text()
    for claim in table["claims"]:
        if claim["gap"]:
            assert f"{claim['measured']:.2%}" in text, claim
