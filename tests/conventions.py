"""compliance-checker on a file: what it finds against CF 1.8, of any severity."""

import contextlib
import io
import json

from compliance_checker.runner import CheckSuite, ComplianceChecker


def findings(path):
    """All of them, each with its section."""
    CheckSuite.load_all_available_checkers()
    report = path.with_name(f"{path.name}.json")
    with contextlib.redirect_stdout(io.StringIO()):
        passed, errors = ComplianceChecker.run_checker(
            str(path),
            ["cf:1.8"],
            0,
            "strict",
            output_filename=str(report),
            output_format="json",
        )
    assert not errors
    said = json.loads(report.read_text())["cf:1.8"]
    levels = ("high_priorities", "medium_priorities", "low_priorities")
    found = [
        f"{check['name']}: {message}"
        for level in levels
        for check in said[level]
        if check["value"][0] < check["value"][1]
        for message in check["msgs"]
    ]
    assert passed == (not found)
    return found
