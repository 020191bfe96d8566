"""What the READMEs name exists: functions, tests, figures, links, programs and their options."""

import ast
import configparser
import contextlib
import functools
import importlib
import importlib.util
import io
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import tinyspur
from tinyspur import __main__ as command

ROOT = Path(__file__).resolve().parent.parent
STATEMENTS = ["Statement of the paper", "function", "test"]
PROGRAM = re.compile(r"(?<!tests/)(demos/\w+\.py|-m\s+tinyspur[\w.]*)([^\n`&;|]*)")
OPTION = re.compile(r"(?<![\w-])--[a-z][\w-]*")
TEST_FILE = r"tests/(?:\w+/)*test_\w+\.py"


# What the text says


def tables(text):
    """Yield where each table starts, its header and its rows, as lists of cells."""
    for block in re.finditer(r"(?:^\|.*\n)+", text + "\n", re.MULTILINE):
        lines = [line.strip().removeprefix("|").removesuffix("|") for line in block[0].split("\n")]
        cells = [[c.strip() for c in re.split(r"(?<!\\)\|", line)] for line in lines if line]
        yield block.start(), cells[0], cells[2:]


def spans(cell):
    return re.findall(r"`([^`]+)`", cell)


def commands(text):
    """Yield the program and the rest of each command line, continued ones joined.

    The words between a module and its options may name a command of it: they go with the program.
    """
    for program, rest in PROGRAM.findall(text.replace("\\\n", " ")):
        words = re.match(r"(?:\s+[a-z][\w-]*(?=\s|$))*", rest)[0] if program[0] == "-" else ""
        yield " ".join((program + words).split()), rest


def without_code(text):
    return re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(text):
    """Return the anchors that GitHub gives the headings: letters, digits, hyphens for spaces."""
    headings = re.findall(r"^#+ +(.*)", without_code(text), re.MULTILINE)
    kept = (re.sub(r"[^\w\- ]", "", heading) for heading in headings)
    return {heading.strip().lower().replace(" ", "-") for heading in kept}


# What there is


@functools.cache
def modules_named(name):
    """Return the modules of the package, at any depth, whose last name this is."""
    modules = pkgutil.walk_packages(tinyspur.__path__, "tinyspur.")
    return [module.name for module in modules if module.name.endswith(f".{name}")]


def is_function(name):
    """Return whether ts.name is public, or module.name in a module of the package, and callable."""
    first, *path = name.split(".")
    if first == "ts":
        found = tinyspur if path and not path[0].startswith("_") else None
    else:
        known = modules_named(first)
        found = importlib.import_module(known[0]) if len(known) == 1 and path else None
    for attribute in path:
        found = getattr(found, attribute, None)
    return callable(found)


def is_test(name):
    """Return whether file::test_name is a function of that file."""
    file, _, test = name.partition("::")
    if not re.fullmatch(TEST_FILE, file) or not (ROOT / file).is_file():
        return False
    return test.startswith("test_") and test in names_in(file)


@functools.cache
def names_in(file):
    return {n.name for n in ast.parse((ROOT / file).read_text()).body if hasattr(n, "name")}


@functools.cache
def options_of(program):
    """Return the long options that the usage of a program lists, None if there is no program."""
    if program.startswith("-m "):
        return options_of_module(*program.split()[1:])
    path = ROOT / program
    if not path.is_file():
        return None
    spec = importlib.util.spec_from_file_location(f"demo_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where its dataclasses look for it
    spec.loader.exec_module(module)
    if not hasattr(module, "parse"):  # a program that takes files alone says so without any
        ran = subprocess.run([sys.executable, path], capture_output=True, text=True)
        assert ran.returncode == 2 and ran.stderr.strip() == module.__doc__.strip()
        return set(OPTION.findall(module.__doc__))
    with contextlib.redirect_stdout(io.StringIO()) as printed, pytest.raises(SystemExit):
        module.parse(["--help"])
    return long_options(printed.getvalue())


@functools.cache
def options_of_module(module, *words):
    """Return the same of python -m module, with the words of a command of it before options."""
    if module == "tinyspur":  # `test_main` runs it as a process
        with contextlib.redirect_stdout(io.StringIO()) as printed, pytest.raises(SystemExit) as end:
            command.main([*words, "--help"])
        return long_options(printed.getvalue()) if not end.value.code else None
    if importlib.util.find_spec(module) is None:
        return None
    ran = subprocess.run(
        [sys.executable, "-m", module, *words, "--help"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    return long_options(ran.stdout) if ran.returncode == 0 else None


def long_options(help_text):
    usage = help_text.split("\n\n")[0]
    assert usage.startswith("usage:")
    return set(OPTION.findall(usage))


# Checks: each returns what is wrong, in words, in a text that lies in a folder


def check_statements(text, folder):
    rows = [row for _, header, rows in tables(text) if header == STATEMENTS for row in rows]
    wrong = [] if rows else [NOTHING[check_statements]]
    for row in rows:
        if len(row) != 3 or not (row[0] and spans(row[1]) and spans(row[2])):
            wrong.append(f"row without a statement, a function or a test: {row}")
            continue
        wrong += [f"no function {name}" for name in spans(row[1]) if not is_function(name)]
        wrong += [f"no test {name}" for name in spans(row[2]) if not is_test(name)]
    return wrong


def check_tests(text, folder):
    named = re.findall(r"tests/(?:\w+/)*\w+\.py(?:::\w+)?", text)
    wrong = [] if named else [NOTHING[check_tests]]
    for name in named:
        if not (is_test(name) if "::" in name else (ROOT / name).is_file()):
            wrong.append(f"no test {name}")
    return wrong


def check_figures(text, folder):
    named = re.findall(r"\]\(\s*<?([^)>\s]+\.png)|src=\"([^\"]+\.png)\"", text)
    wrong = [] if named else [NOTHING[check_figures]]
    for path in map("".join, named):
        if not (folder / path).is_file() or (folder / path).read_bytes()[:4] != b"\x89PNG":
            wrong.append(f"no figure {path}")
    return wrong


def check_commands(text, folder):
    found = list(commands(text))
    wrong = [] if found else [NOTHING[check_commands]]
    for program, rest in found:
        known = options_of(program)
        if known is None:
            wrong.append(f"no program {program}")
        else:
            unknown = sorted(set(OPTION.findall(rest)) - known)
            wrong += [f"no option {option} of {program}" for option in unknown]
    return wrong


def check_option_tables(text, folder):
    """A table of options is of the program that is named last before it."""
    wrong, seen = [], 0
    for start, header, rows in tables(text):
        if header[0] != "option":
            continue
        before = [program for program, _ in commands(text[:start])]
        if not before or (known := options_of(before[-1])) is None:
            wrong.append(f"no program of the table {header}")
            continue
        for row in rows:
            named = [option for span in spans(row[0]) for option in OPTION.findall(span)]
            seen += len(named)
            if not named:
                wrong.append(f"row without an option: {row}")
            wrong += [f"no option {o} of {before[-1]}" for o in named if o not in known]
    return wrong if seen else [*wrong, NOTHING[check_option_tables]]


def check_other_options(text, folder):
    """An option that is named alone is one of some program that the text names."""
    programs = {program for program, _ in commands(text)}
    known = set().union(*(options_of(program) or set() for program in programs))
    prose = re.sub(r"^\|[^\n]*", "", without_code(text), flags=re.MULTILINE)
    alone = [span for span in spans(prose) if span.startswith("--")]
    named = sorted({option for span in alone for option in OPTION.findall(span)})
    return [f"no option {option}" for option in named if option not in known]


def check_links(text, folder):
    """A link within the repository leads to a file and, where it has an anchor, to a heading."""
    found = [url for url in re.findall(r"\]\(([^)\s]+)\)", without_code(text)) if ":" not in url]
    wrong = [] if found else [NOTHING[check_links]]
    for url in found:
        path, _, anchor = url.partition("#")
        target = folder / path
        if path and not target.is_file():
            wrong.append(f"no file {path}")
        elif anchor and anchor not in anchors(target.read_text("utf-8") if path else text):
            wrong.append(f"no heading {url}")
    return wrong


def check_public_names(text, folder):
    named = set(re.findall(r"\bts\.([A-Za-z]\w*)", text))
    wrong = [] if named else [NOTHING[check_public_names]]
    return wrong + [f"no name ts.{name}" for name in sorted(named) if not hasattr(tinyspur, name)]


def check_modules(text, folder):
    """A module is named by its folder and file below the package, or below the repository."""
    named = re.findall(r"`(\w+/\w+\.py)`", without_code(text))
    wrong = [] if named else [NOTHING[check_modules]]
    for name in named:
        if not any((top / name).is_file() for top in (ROOT / "tinyspur", ROOT)):
            wrong.append(f"no module {name}")
    return wrong


def check_shell(text, folder):
    """The first block of commands runs the main program, the second, which CI takes, the tests."""
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    wrong = [] if blocks else [NOTHING[check_shell]]
    ends = "demos/cifar_spurious.py", "-m pytest -n auto --dist loadfile"
    for number, (block, end) in enumerate(zip(blocks, ends, strict=False), start=1):
        if not block.rstrip("\n").endswith(end):
            wrong.append(f"block {number} of commands: expected one that ends with {end}")
    return wrong


NOTHING = {  # what a check says of a text that has nothing for it
    check_statements: f"no table of {STATEMENTS}",
    check_tests: "no test is named",
    check_figures: "no figure is shown",
    check_commands: "no program is named",
    check_option_tables: "no table of options",
    check_links: "no link",
    check_public_names: "no public name",
    check_modules: "no module is named",
    check_shell: "no block of commands",
}
CHECKS = (*NOTHING, check_other_options)
READMES = {  # what each of them must have
    "README.md": {check_figures, check_commands, check_links, check_public_names, check_shell},
    "demos/README.md": {check_figures, check_commands, check_option_tables, check_links},
    "tests/README.md": {check_statements, check_tests, check_commands, check_links},
    "tinyspur/constructions/README.md": {
        check_commands,
        check_links,
        check_modules,
        check_public_names,
    },
}


CASES = [
    pytest.param(name, check, id=f"{name}-{check.__name__}")
    for name, needed in READMES.items()
    for check in CHECKS
    if check in needed or check is not check_shell
]


@pytest.mark.parametrize(("name", "check"), CASES)
def test_what_a_readme_names_exists(name, check):
    wrong = check((ROOT / name).read_text(encoding="utf-8"), (ROOT / name).parent)
    if check not in READMES[name]:
        wrong = [words for words in wrong if words != NOTHING.get(check)]
    assert wrong == []


@pytest.mark.parametrize("name", READMES)
def test_the_examples_of_a_readme_are_collected(name):
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    settings = config["tool:pytest"]
    assert "--doctest-glob=README.md" in settings["addopts"].split()
    collected = {ROOT / path for path in settings["testpaths"].split()}
    assert {ROOT / name, *(ROOT / name).parents} & collected


# The checks themselves

SAMPLE = """
| Statement of the paper | function | test |
|---|---|---|
| Lemma 2 | `ts.split_data`, `data_split.split_data` | `tests/test_readme.py::test_a_mistake` |
| (4), z > 0 \\| z < 0 | `ts.Network.affine_map` | `tests/test_readme.py::test_a_mistake` |

![Twelve panels](demos/audit.png)

```sh
python demos/cifar_spurious.py
```

```sh
python -m pytest -n auto --dist loadfile
```

```sh
python demos/audit.py --samples 3 \\
    --seed 1 && true --unknown
```

`engine/passes.py` is a module.

`demos/cifar_spurious.py` takes `--theta trained`, see [what they show](README.md#landscapes):

| option | meaning |
|---|---|
| `--epochs N`, `--polish N` | how long |
"""


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_nothing_is_wrong_with_a_text_whose_names_exist(check):
    assert check(SAMPLE, ROOT) == []


@pytest.mark.parametrize(
    ("old", "new", "check", "expected"),
    [
        ("Statement of", "Table of", check_statements, f"no table of {STATEMENTS}"),
        ("ts.split_data", "ts.split", check_statements, "no function ts.split"),
        ("ts.split_data", "ts.data_split", check_statements, "no function ts.data_split"),
        ("ts.split_data", "ts.__all__", check_statements, "no function ts.__all__"),
        ("data_split.", "split.", check_statements, "no function split.split_data"),
        ("affine_map", "affine", check_statements, "no function ts.Network.affine"),
        ("::test_a_mistake` |\n| (", "` |\n| (", check_statements, "no test tests/test_readme.py"),
        ("`ts.Network.affine_map`", "", check_statements, "row without a statement, a function"),
        ("a_mistake", "a_mist", check_tests, "no test tests/test_readme.py::test_a_mist"),
        ("a_mistake", "SAMPLE", check_tests, "no test tests/test_readme.py::test_SAMPLE"),
        ("test_readme", "test_me", check_tests, "no test tests/test_me.py::test_a_mistake"),
        ("audit.png", "audits.png", check_figures, "no figure demos/audits.png"),
        ("audit.png", "audit.py.png", check_figures, "no figure demos/audit.py.png"),
        ("![Twelve panels](demos/audit.png)", "", check_figures, "no figure is shown"),
        ("demos/", "tests/", check_commands, "no program is named"),
        ("audit.py", "audits.py", check_commands, "no program demos/audits.py"),
        ("--samples", "--sample", check_commands, "no option --sample of demos/audit.py"),
        ("--seed", "--epochs", check_commands, "no option --epochs of demos/audit.py"),
        ("demos/audit.py", "-m tinyspur.x y z/1", check_commands, "no program -m tinyspur.x y"),
        ("--polish", "--shine", check_option_tables, "no option --shine of demos/cifar_spurious"),
        ("cifar_spurious", "audit", check_option_tables, "no option --epochs of demos/audit.py"),
        ("| option", "| word", check_option_tables, "no table of options"),
        ("--theta", "--thetas", check_other_options, "no option --thetas"),
        ("README.md#", "READYOU.md#", check_links, "no file READYOU.md"),
        ("#landscapes", "#landscape", check_links, "no heading README.md#landscape"),
        ("](", "] (", check_links, "no link"),
        ("ts.split_data", "ts.split_it", check_public_names, "no name ts.split_it"),
        ("ts.", "tinyspur.", check_public_names, "no public name"),
        ("cifar_spurious.py\n", "audit.py\n", check_shell, "block 1 of commands: expected"),
        ("engine/passes", "engine/pass", check_modules, "no module engine/pass.py"),
        ("-m pytest", "-m unittest", check_shell, "block 2 of commands: expected"),
        ("```sh", "```", check_shell, "no block of commands"),
    ],
)
def test_a_mistake(old, new, check, expected):
    assert old in SAMPLE
    wrong = check(SAMPLE.replace(old, new), ROOT)
    assert wrong
    assert any(text.startswith(expected) for text in wrong)


def test_the_options_of_a_module_are_those_of_its_usage():
    assert {"--sort-keys", "--indent"} <= options_of_module("json.tool")
    assert options_of_module("tinyspur.nothing") is None
