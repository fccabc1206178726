#!/usr/bin/env python3
"""Mutation testing: whether the tests of a module notice when its code is changed.

A seeded sample of small changes (`scripts/mutants.py`) is made to each module, one at a time and in a copy of the tree,
and the module's own tests run on each. A mutant is *killed* when a test fails or the tests take too long; it *survives*
when all pass. A survivor that changes a result needs a test; others change nothing that can be observed, which only a
reader can decide.

    python -m pip install -e ".[test,mutation]"
    python scripts/mutate.py finetune/groups                     # every module of a folder
    python scripts/mutate.py finetune/groups/rate_spacing.py --size 100
    python scripts/mutate.py finetune/groups --survivors         # after new tests: only what survived before
    python scripts/mutate.py finetune/optimizers/saved.py --tests tests/optimizers/test_grouped.py
    python scripts/mutate.py --table                             # the results so far

The tests of `finetune/<room>/<module>.py` are `tests/<room>/test_<module>.py`, those marked slow last, or not at all
with `--fast`. Results are appended to a folder (`--out`, default `runs/mutants`), one JSON line a mutant. A stopped
run continues where it was: a mutant is not tried again while neither the module nor its tests have changed.

How a mutant costs about a second instead of a minute: TensorFlow is imported once, in a parent process that runs no
operation, and each mutant gets a forked child; and only the tests that reach the changed line run, fastest first, until
one fails. Coverage measures beforehand which tests these are. A survivor on a line that no test reaches is `uncovered`.
"""

import argparse
import contextlib
import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
MOST_MEMORY = 2**33
PRELOADED = ("tensorflow", "keras", "numpy", "h5py", "hypothesis", "pydantic", "typer", "yaml", "coverage", "pytest")
CAUGHT = ("killed", "timeout")


@dataclass(frozen=True)
class Result:
    """What became of a mutant: `killed`, `timeout`, `survived` or `uncovered`, and the test that killed it."""

    module: str
    key: str
    operator: str
    line: int
    diff: str
    status: str
    test: str
    seconds: float
    tests_hash: str


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    if options.table:
        print(table(read_results(options.out)))
        return 0
    modules = sorted({path for name in options.modules for path in modules_of(Path(name))})
    preload()
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copies = [copy_tree(Path(folder) / str(job)) for job in range(options.jobs)]
        for module in modules:
            judge_module(module, copies, options)
    chosen = {str(module) for module in modules}
    print(table({name: results for name, results in read_results(options.out).items() if name in chosen}))
    return 0


def parse(arguments: list[str]) -> argparse.Namespace:
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", help="files or folders below `finetune`")
    parser.add_argument("--size", type=int, default=40, help="mutants of each module (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="processes at once (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "mutants", help="folder of results")
    parser.add_argument("--tests", nargs="+", default=[], help="test files that stand in for the module's own")
    parser.add_argument("--fast", action="store_true", help="without the tests marked slow")
    parser.add_argument("--survivors", action="store_true", help="try only the mutants that survived the last time")
    parser.add_argument("--table", action="store_true", help="only print the table of the results")
    options = parser.parse_args(arguments)
    options.out = options.out.resolve()
    if not options.modules and not options.table:
        parser.error("name at least one module, for example `finetune/groups/rate_spacing.py`")
    return options


def modules_of(path: Path) -> list[Path]:
    """Returns the modules of a folder, or the file itself, relative to the root."""
    path = (ROOT / path).resolve()
    found = [path] if path.suffix == ".py" else sorted(path.rglob("*.py"))
    return [file.relative_to(ROOT) for file in found if file.name != "__init__.py"]


def preload() -> None:
    """Imports what the tests need but `finetune` itself, with the settings that `tests/conftest.py` makes."""
    os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}
    for name in PRELOADED:
        with contextlib.suppress(ImportError):
            __import__(name)


def copy_tree(folder: Path) -> Path:
    """Copies the files that git tracks or does not ignore."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


# -- One module --------------------------------------------------------------------------------------------------------


def judge_module(module: Path, copies: list[Path], options: argparse.Namespace) -> None:
    """Tries the sample of a module and appends the results to its file."""
    from mutants import sample

    tests = [Path(test) for test in options.tests] or [Path("tests", *module.parts[1:-1], f"test_{module.name}")]
    root = copies[0]  # not the tree itself, which may change in the meantime
    if missing := [test for test in tests if not (root / test).is_file()]:
        print(f"{module}: no tests: `{missing[0]}` is missing", flush=True)
        return
    code = (root / module).read_text(encoding="utf-8")
    mutants, sites = sample(code, options.size, options.seed)
    which = b"fast" if options.fast else b"all"
    tests_hash = hashlib.sha256(which + b"".join((root / test).read_bytes() for test in tests)).hexdigest()[:16]
    store = options.out / f"{'.'.join(module.with_suffix('').parts)}.jsonl"
    last = {result.key: result for result in read_file(store)}
    done = {
        key
        for key, result in last.items()
        if result.tests_hash == tests_hash or (options.survivors and result.status in CAUGHT)
    }
    todo = [mutant for mutant in mutants if mutant.key not in done]
    print(f"{module}: {sites} sites, {len(mutants)} mutants, {len(todo)} to try", flush=True)
    keep_only(store, {mutant.key for mutant in mutants})
    if not todo:
        return
    start = time.monotonic()
    reach = measure(module, tests, copies[0], options.fast)
    if reach is None:
        return
    share_compiled(copies)
    print(f"  {len(reach.seconds)} tests in {time.monotonic() - start:.0f} s", flush=True)

    def record(mutant: Any, status: str, test: str = "", seconds: float = 0.0) -> None:
        result = Result(
            str(module),
            mutant.key,
            mutant.operator,
            mutant.line,
            mutant.diff,
            status,
            test,
            round(seconds, 1),
            tests_hash,
        )
        with store.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(result)) + "\n")
        if status not in CAUGHT:
            print(
                f"  {status} at line {mutant.line}, {mutant.operator}\n    " + mutant.diff.replace("\n", "\n    "),
                flush=True,
            )

    # A line that AutoGraph compiled anew seems to be unreached, so that its mutants meet all tests.
    jobs = [(mutant, reach.tests_of(mutant) or reach.all_tests()) for mutant in todo]
    run_jobs(jobs, reach, module, code, tests, copies, record)


def run_jobs(
    jobs: Sequence[tuple[Any, list[str]]],
    reach: "Reach",
    module: Path,
    code: str,
    tests: list[Path],
    copies: list[Path],
    record: Callable,
) -> None:
    """Runs the tests of each mutant in a child of its own, as many children at once as there are copies of the tree."""
    waiting, running, free = list(reversed(jobs)), {}, list(copies)
    while waiting or running:
        while waiting and free:
            mutant, selected = waiting.pop()
            copy = free.pop()
            place(mutant.code, module, copy)
            pid = fork(lambda copy=copy, selected=selected: run_selected(copy, tests, selected, reach.fast), copy)
            limit = 3 * sum(reach.seconds[name] for name in selected) + 10
            running[pid] = (mutant, copy, time.monotonic(), limit)
        time.sleep(0.02)
        for pid, (mutant, copy, start, limit) in list(running.items()):
            seconds = time.monotonic() - start
            ended, status = os.waitpid(pid, os.WNOHANG)
            if not ended and seconds <= limit:
                continue
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)  # also what the tests have started
            if not ended:
                os.waitpid(pid, 0)
            del running[pid]
            passed = "survived" if reach.tests_of(mutant) else "uncovered"
            verdict = "timeout" if not ended else passed if os.waitstatus_to_exitcode(status) == 0 else "killed"
            failed = copy / "failed-test.txt"
            record(mutant, verdict, failed.read_text() if failed.exists() else "", seconds)
            place(code, module, copy)
            free.append(copy)


def share_compiled(copies: list[Path]) -> None:
    """Copies what Python compiled in the first copy of the tree to the others: children write no compiled files."""
    for compiled in copies[0].rglob("*.pyc"):
        for other in copies[1:]:
            target = other / compiled.relative_to(copies[0])
            target.parent.mkdir(exist_ok=True)
            shutil.copy2(compiled, target)


def place(code: str, module: Path, copy: Path) -> None:
    """Writes a module into a copy of the tree, and removes the compiled form of what was there."""
    (copy / module).write_text(code, encoding="utf-8")
    for compiled in (copy / module).parent.glob(f"__pycache__/{module.stem}.*.pyc"):
        compiled.unlink()
    (copy / "failed-test.txt").unlink(missing_ok=True)


# -- Children ----------------------------------------------------------------------------------------------------------


def fork(work: Callable[[], int], copy: Path) -> int:
    """Starts a child that works in a copy of the tree, leads a process group, and prints into `output.txt`."""
    sys.stdout.flush()
    if pid := os.fork():
        return pid
    os.setsid()
    os.nice(5)
    resource.setrlimit(resource.RLIMIT_DATA, (MOST_MEMORY, MOST_MEMORY))  # a mutant may allocate without end
    output = os.open(copy / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(copy)
    sys.path.insert(0, str(copy))
    os.environ["PYTHONPATH"] = str(copy)
    try:
        code = work()
        sys.stdout.flush()
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 70
    os._exit(code)


def run_pytest(tests: Iterable[Path], fast: bool, plugin: object, *options: str) -> int:
    marked = ["-m", "not slow"] if fast else []
    quiet = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:cov", "--hypothesis-seed=0"]
    quiet += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]
    return int(pytest.main([*map(str, tests), *marked, *quiet, *options], plugins=[Untimed(), plugin]))


def run_selected(copy: Path, tests: list[Path], selected: list[str], fast: bool) -> int:
    sys.dont_write_bytecode = True  # the compiled form of a mutant must not outlive it
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    return run_pytest(tests, fast, Selected(selected, copy / "failed-test.txt"), "-x")


class Untimed:
    """Keeps Hypothesis from searching for the smallest failing example: it can take a minute and changes no verdict."""

    def pytest_sessionstart(self) -> None:
        from hypothesis import Phase, settings

        settings.register_profile(
            "mutants", settings(), phases=[Phase.explicit, Phase.generate], database=None, derandomize=False
        )
        settings.load_profile("mutants")


class Selected:
    """Runs the selected tests in their order and notes the first that fails."""

    def __init__(self, selected: list[str], failed: Path) -> None:
        self._rank = {name: number for number, name in enumerate(selected)}
        self._failed = failed

    def pytest_collection_modifyitems(self, items: list) -> None:
        items[:] = sorted(
            (item for item in items if item.nodeid in self._rank), key=lambda item: self._rank[item.nodeid]
        )

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed and not self._failed.exists():
            self._failed.write_text(report.nodeid)


# -- Which test reaches which line -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reach:
    """Which tests reach which line of a module.

    Attributes:
        seconds: Of each test.
        fixtures: Names of the fixtures that each test uses.
        contexts: By line, what was running: the name of a test, `fixture NAME` for a fixture that several tests share,
            or the empty text while the module was imported.
        fast: Whether tests marked slow were left out.
        starters: Tests that start other processes, in which coverage sees nothing: every mutant meets them.
    """

    seconds: dict[str, float]
    fixtures: dict[str, list[str]]
    contexts: dict[int, list[str]]
    fast: bool
    starters: frozenset[str] = frozenset()

    def tests_of(self, mutant: Any) -> list[str]:
        """Returns the names of the tests that a mutant can fail, fastest first."""
        reached = self._contexts_of(mutant.body or mutant.lines)
        if mutant.body:  # the default value of an argument matters to the tests that call the function
            reached.discard("")
        names = set(self.seconds) if "" in reached else reached & set(self.seconds)
        shared = {context.removeprefix("fixture ") for context in reached if context.startswith("fixture ")}
        names |= {name for name, fixtures in self.fixtures.items() if shared.intersection(fixtures)} | self.starters
        return sorted(names, key=lambda name: (self.seconds[name], name))

    def all_tests(self) -> list[str]:
        """Returns the names of all tests, fastest first."""
        return sorted(self.seconds, key=lambda name: (self.seconds[name], name))

    def _contexts_of(self, lines: tuple[int, int]) -> set[str]:
        return {context for line in range(lines[0], lines[1] + 1) for context in self.contexts.get(line, ())}


def measure(module: Path, tests: list[Path], copy: Path, fast: bool) -> Reach | None:
    """Runs the tests on the module as it is; returns nothing, and prints why, when one fails."""
    pid = fork(lambda: run_measured(module, tests, copy, fast), copy)
    _, status = os.waitpid(pid, 0)
    if code := os.waitstatus_to_exitcode(status):
        print(
            f"{module}: its tests do not pass as they are (exit {code}):\n{(copy / 'output.txt').read_text()[-2000:]}",
            flush=True,
        )
        return None
    told = json.loads((copy / "reach.json").read_text())
    contexts = {int(line): names for line, names in told["contexts"].items()}
    return Reach(told["seconds"], told["fixtures"], contexts, fast, frozenset(told["starters"]))


def run_measured(module: Path, tests: list[Path], copy: Path, fast: bool) -> int:
    import coverage

    measured = coverage.Coverage(data_file=None, include=[str(copy / module)], config_file=False, messages=False)
    measured.start()
    plugin = Measured(measured)
    code = run_pytest(tests, fast, plugin)
    measured.stop()
    contexts = measured.get_data().contexts_by_lineno(str(copy / module))
    reach = {"seconds": plugin.seconds, "fixtures": plugin.fixtures, "contexts": contexts}
    reach["starters"] = sorted(plugin.starters & set(plugin.seconds))
    (copy / "reach.json").write_text(json.dumps(reach))
    return code


class Measured:
    """Tells coverage which test is running, and notes how long each takes and which fixtures it uses."""

    def __init__(self, measured: Any) -> None:
        self._measured = measured
        self._test = ""
        self.seconds: dict[str, float] = {}
        self.fixtures: dict[str, list[str]] = {}
        self.starters: set[str] = set()
        sys.addaudithook(self._notice)

    def _notice(self, event: str, arguments: tuple) -> None:
        if event in ("subprocess.Popen", "os.posix_spawn", "os.fork", "os.system"):
            self.starters.add(self._test)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._test = nodeid
        self._measured.switch_context(nodeid)

    def pytest_runtest_logfinish(self) -> None:
        self._measured.switch_context("")

    def pytest_runtest_setup(self, item: Any) -> None:
        self.fixtures[item.nodeid] = item.fixturenames

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0.0) + report.duration

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Iterator[None]:
        shared = fixturedef.scope != "function"
        if shared:
            self._measured.switch_context(f"fixture {fixturedef.argname}")
        result = yield
        if shared:
            self._measured.switch_context(self._test)
        return result


# -- Results -----------------------------------------------------------------------------------------------------------


def read_results(folder: Path) -> dict[str, list[Result]]:
    """Returns the results by module."""
    files = [read_file(file) for file in sorted(folder.glob("*.jsonl"))]
    return {results[0].module: results for results in files if results}


def read_file(file: Path) -> list[Result]:
    """Returns the last result of each mutant."""
    if not file.exists():
        return []
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return list({line["key"]: Result(**line) for line in lines}.values())


def keep_only(file: Path, keys: set[str]) -> None:
    """Removes the results of mutants of older versions of the module."""
    lines = [json.dumps(asdict(result)) + "\n" for result in read_file(file) if result.key in keys]
    if lines or file.exists():
        file.write_text("".join(lines), encoding="utf-8")


def table(results: dict[str, list[Result]]) -> str:
    """Returns a table in Markdown: how many mutants of each module were killed."""
    rows = [
        "| module | mutants | killed | timeout | survived | uncovered | share killed |",
        "|---|---|---|---|---|---|---|",
    ]
    everything = [result for of_module in results.values() for result in of_module]
    for module, of_module in [*results.items(), ("all", everything)]:
        counts = [sum(result.status == status for result in of_module) for status in (*CAUGHT, "survived", "uncovered")]
        share = f"{100 * (counts[0] + counts[1]) / len(of_module):.0f} %" if of_module else ""
        rows.append(f"| {module} | {len(of_module)} | {' | '.join(map(str, counts))} | {share} |")
    return "\n".join(rows)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
