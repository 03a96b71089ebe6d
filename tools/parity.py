"""Print how far every recorded case of the original programs is from ours.

    python tools/parity.py [PATTERN ...] [--all] [--records DIR]

Patterns match names of cases, for example `vmamba_*`. `--all` prints every compared quantity, not the worst of a case.
`--records` compares the cases of another folder with goldens/, ops/, keys/ and names.json, laid out as tests/data.
"""

import argparse
import fnmatch
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import importlib  # noqa: E402

# this script is called like the package, so the import must find the package first
harness = importlib.import_module("parity")


def main(argv: list[str] | None = None) -> int:
    """Returns 1 if a case deviates more than allowed, or matches although it was recorded with a defect."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("patterns", nargs="*", default=["*"], help="names of cases (default: all)")
    parser.add_argument("--all", action="store_true", help="print every compared quantity")
    parser.add_argument("--records", type=Path, metavar="DIR", help="folder of recorded cases (default: tests/data)")
    args = parser.parse_args(argv)
    if args.records:
        try:
            harness.use_records(args.records)
            harness.registered_names()
        except (FileNotFoundError, ValueError) as error:
            parser.error(str(error))

    def selected(names):
        return [n for n in names if any(fnmatch.fnmatch(n, p) for p in args.patterns)]

    chosen = selected(harness.cases()) + selected(harness.operators())
    if not chosen:
        known = ", ".join([*harness.cases(), *harness.operators()]) or "none that a family answers for"
        rest = f"; without a family: {', '.join(harness.unclaimed())}" if harness.unclaimed() else ""
        print(f"no recorded case matches {' '.join(args.patterns)}; recorded: {known}{rest}", file=sys.stderr)
        return 2
    print(f"{'case':44} {'quantity':58} {'deviation':>10} {'allowed':>10}")
    failed = 0
    for name in chosen:
        try:
            deviations, expect_match, rest = _deviations(name)
        except Exception as error:  # one record that cannot be run says nothing of the others
            print(f"{name:44} {type(error).__name__}: {error}  FAILED".replace("\n", " "), flush=True)
            failed += 1
            continue
        shown = deviations if args.all else [max(deviations, key=_severity)]
        for d in shown:
            print(f"{name:44} {d.what:58} {d.measured:10.2e} {d.allowed:10.2e}{'' if d.ok else '  FAR'}", flush=True)
        if all(d.ok for d in deviations) != expect_match:
            failed += 1
        if rest:
            print(f"{'':44} not compared: {', '.join(rest)}")
        if not expect_match:
            print(f"{'':44} recorded with a defect of the original: it must differ")
    unclaimed = selected(harness.unclaimed())
    for name in unclaimed:
        print(f"{name:44} no family answers for it: not compared")
    others = f"; {len(unclaimed)} record(s) without a family, not compared" if unclaimed else ""
    print(f"{len(chosen)} cases, {failed} not as expected{others}")
    return int(failed > 0)


def _deviations(name: str):
    """How far ours is from a record, whether it should match, and what of it is not compared.

    Raises:
        ValueError: the record holds nothing that is compared.
    """
    if name in harness.cases():
        case = harness.cases()[name]
        expect_match, rest = not harness.defect(case), harness.not_compared(case)
        deviations = list(harness.compare(case))
    else:
        deviations, expect_match, rest = list(harness.compare_recorded_operator(name)), True, []
    if not deviations:
        raise ValueError("the record holds nothing that is compared")
    return deviations, expect_match, rest


def _severity(deviation) -> float:
    if deviation.allowed == 0:
        return 0.0 if deviation.ok else float("inf")
    severity = deviation.measured / deviation.allowed
    return severity if severity == severity else float("inf")


if __name__ == "__main__":
    sys.exit(main())
