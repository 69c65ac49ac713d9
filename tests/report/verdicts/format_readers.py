"""Readers of every format of a verdict, written from what the formats' own readers do.

Each returns what a reader learns: the outcome over all, the exit code, and of each rule that
is shown its label (WAIVED or the outcome), its name and its outcome.
"""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import cmarkgfm
import html5lib
import jsonschema
import msgspec
import xmlschema
from places import ROOT

from dpaudit.report.verdicts.github import EVIDENCE_TITLE, WARNING_TITLE
from dpaudit.vocabulary.verdict import Verdict

GOLDEN = ROOT / "tests" / "golden"
SCHEMAS = ROOT / "dpaudit" / "vocabulary" / "schemas"
EXIT_CODES = {"PASS": 0, "FAIL": 1, "INCONCLUSIVE": 3}
ONLY_WARNING = "a warning only: --inconclusive warn"
LEVELS = {"error", "warning", "note", "none"}


class Line(NamedTuple):
    """What is said of one rule."""

    label: str
    name: str
    outcome: str


class Read(NamedTuple):
    """What is said of a run; ``whole`` where the rules that hold are shown, too."""

    outcome: str
    exit_code: int
    lines: list[Line]
    whole: bool = True


def of_headline(headline: str) -> tuple[str, int]:
    outcome, _, qualified = headline.partition(" (")
    return outcome, 0 if ONLY_WARNING in qualified else EXIT_CODES[outcome]


def of_words(label: str, name: str, words: str) -> Line:
    return Line(label, name, words.partition(":")[0] if label == "WAIVED" else label)


def read_text(text: str) -> Read:
    """Split columns where every row has two blanks."""
    headline, *rows = text.partition("\n\n")[0].split("\n")
    widest = max(map(len, rows))
    padded = [row.ljust(widest) for row in rows]
    blank = [end for end in range(2, widest) if all(row[end - 2 : end] == "  " for row in padded)]
    labels = [row.split("  ")[0].strip() for row in rows]
    start = max(map(len, labels)) + 2
    end = next((end for end in blank if end > start), widest)
    lines = [
        of_words(label, row[start:end].strip(), row[end:].strip())
        for label, row in zip(labels, padded, strict=True)
    ]
    return Read(*of_headline(headline), lines)


def read_json(text: str) -> Read:
    document = json.loads(text)
    jsonschema.validate(document, json.loads((SCHEMAS / "verdict.json").read_text()))
    verdict = msgspec.convert(document, Verdict)
    assert (document["outcome"], document["exit_code"]) == (
        verdict.outcome.value,
        int(verdict.exit_code),
    )
    lines = [
        Line("WAIVED" if rule.waived else rule.outcome.value, rule.rule, rule.outcome.value)
        for rule in verdict.rules
    ]
    return Read(verdict.outcome.value, int(verdict.exit_code), lines)


def rendered(markdown: str) -> ET.Element:
    """Return what GitHub's own parser of Markdown makes of it."""
    page = cmarkgfm.github_flavored_markdown_to_html(markdown)
    return html5lib.parse(page, namespaceHTMLElements=False)


def words_of(element: ET.Element) -> str:
    return "".join(element.itertext()).replace("\u200b", "").strip()


def read_markdown(text: str) -> Read:
    page = rendered(text)
    allowed = {"html", "head", "body", "h2", "p", "table", "thead", "tbody", "tr", "th", "td"}
    assert {element.tag for element in page.iter()} <= allowed
    heading = words_of(page.find(".//h2")).removeprefix("dpaudit: ")
    table = page.findall(".//table")[0]  # the second one is of claim and evidence
    rows = [[words_of(cell) for cell in row] for row in table.findall("./tbody/tr")]
    assert all(len(row) == 3 for row in rows)
    return Read(*of_headline(heading), [of_words(*row) for row in rows])


@cache
def junit_schema() -> xmlschema.XMLSchema:
    return xmlschema.XMLSchema(str(GOLDEN / "junit-10.xsd"))


def read_junit(text: str) -> Read:
    """Learn how the build ends from the counts alone, as services do."""
    junit_schema().validate(text)
    root = ET.fromstring(text)
    assert root.tag == "testsuites"
    (suite,) = root
    facts = {one.get("name"): one.get("value") for one in suite.iter("property")}
    ends = 1 if suite.get("failures") != "0" else 3 if suite.get("errors") != "0" else 0
    assert ends == int(str(facts["exit_code"]))
    cases = list(suite.iter("testcase"))
    assert len(cases) == int(str(suite.get("tests")))
    return Read(str(facts["outcome"]), ends, [of_case(case) for case in cases])


def of_case(case: ET.Element) -> Line:
    name = str(case.get("name"))
    if not len(case):
        return Line("PASS", name, "PASS")
    (found,) = case
    message, outcome = str(found.get("message")), str(found.get("type"))
    waived = found.tag == "skipped" and message.startswith(f"{outcome}: ")
    assert found.tag in {"failure", "error", "skipped"}
    assert message in str(found.text)
    return Line("WAIVED" if waived else outcome, name, outcome)


@cache
def sarif_schema() -> Any:
    schema = json.loads((GOLDEN / "sarif-schema-2.1.0.json").read_text())
    return jsonschema.Draft4Validator(
        schema, format_checker=jsonschema.Draft4Validator.FORMAT_CHECKER
    )


def read_sarif(text: str) -> Read:
    log = json.loads(text)
    sarif_schema().validate(log)
    (run,) = log["runs"]
    (invocation,) = run["invocations"]
    rules = run["tool"]["driver"]["rules"]
    for result in run["results"]:
        assert result["kind"] == "fail" or result["level"] == "none"  # section 3.27.10
        assert "ruleIndex" not in result or rules[result["ruleIndex"]]["id"] == result["ruleId"]
    shown = [of_result(result) for result in run["results"]]
    return Read(run["properties"]["outcome"], invocation["exitCode"], shown, whole=False)


def of_result(result: Any) -> Line:
    waived = any(one["status"] == "accepted" for one in result.get("suppressions", ()))
    outcome = result["properties"]["outcome"]
    return Line("WAIVED" if waived else outcome, result["properties"]["rule"], outcome)


class Command(NamedTuple):
    """One workflow command, as GitHub's runner takes it apart."""

    name: str
    properties: dict[str, str]
    message: str


COMMAND = re.compile(r"::(\w+) (.*?)::(.*)", re.DOTALL)
ESCAPES = {"%0D": "\r", "%0A": "\n", "%3A": ":", "%2C": ","}


def unescaped(text: str) -> str:
    for escape, char in ESCAPES.items():
        text = text.replace(escape, char)
    return text.replace("%25", "%")


def commands(lines: list[str]) -> list[Command]:
    found = [COMMAND.fullmatch(line) for line in lines]
    assert all(found)
    parts = [one.groups() for one in found if one]
    return [
        Command(
            name,
            {
                key: unescaped(value)
                for key, value in (pair.split("=", 1) for pair in listed.split(","))
            },
            unescaped(message),
        )
        for name, listed, message in parts
    ]


def read_github(text: str) -> Read:
    first, *rest = text.split("\n")
    outcome, ends = of_headline(first.removeprefix("dpaudit gate: "))
    lines = []
    for command in commands(rest):
        if command.properties in ({"title": WARNING_TITLE}, {"title": EVIDENCE_TITLE}):
            continue
        label, _, name = command.properties["title"].partition(" ")
        lines.append(of_words(label, name, command.message))
    return Read(outcome, ends, lines, whole=False)


def read_html(text: str) -> Read:
    page = html5lib.parse(text, namespaceHTMLElements=False)
    assert page.find(".//script") is None
    headline = words_of(page.find(".//p[@class='outcome']"))
    rows = [
        (words_of(row[0]), words_of(row[1].find("code")), str(row[1].find("br").tail))
        for row in page.findall(".//tbody/tr")
    ]
    return Read(*of_headline(headline), [of_words(*row) for row in rows])


READERS: dict[str, Callable[[str], Read]] = {
    "text": read_text,
    "json": read_json,
    "markdown": read_markdown,
    "junit": read_junit,
    "sarif": read_sarif,
    "github": read_github,
    "html": read_html,
}
