"""Variables in a prompt: a name in single or double braces stands for a column of the row.

`{context}`, `{{context}}` and `{{ context }}` are variables. Braces of JSON and LaTeX stay as they are: `{"a": 1}`,
`\\boxed{answer}`, `x^{n}`. Braces with spaces inside, as in `{ context }`, are plain text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from nslora.tools.errors import PromptError

QUESTION_NAME = "question"
_COMMAND = re.compile(r"\\[A-Za-z]{2,}\*?|[\^_](?=\{)")  # of LaTeX; \n and \t are no commands
_NAME = r"[^\W\d]\w*(?:\.\w+)*"
_SHOWN = 12  # columns in a message


@dataclass(frozen=True)
class Variable:
    """A variable and where it stands: `text[start:end]`."""

    name: str
    start: int
    end: int


def variables(text: str, columns: Iterable[str] = ()) -> list[Variable]:
    """Find the variables of a text, in order.

    Args:
        text: A question template.
        columns: Names of columns: one that is no identifier, such as `Question text`, is a variable as well.
    """
    odd = sorted((re.escape(name) for name in columns if not re.fullmatch(_NAME, name)), key=len, reverse=True)
    name = "|".join([_NAME, *odd])
    pattern = re.compile(rf"\{{\{{\s*(?P<double>{name})\s*\}}\}}|\{{(?P<single>{name})\}}")
    literal = _latex(text)
    found = []
    for match in pattern.finditer(text):
        called = match["double"] or match["single"]
        if match[0] == f"{{{QUESTION_NAME}}}" or not any(start <= match.start() < end for start, end in literal):
            found.append(Variable(called, match.start(), match.end()))
    return found


def _latex(text: str) -> list[tuple[int, int]]:
    """Find the arguments of LaTeX commands, as in `\\frac{a}{b}`: (start, end) of each."""
    spans = []
    for command in _COMMAND.finditer(text):
        end = command.end()
        while end < len(text) and text[end] in "{[" and (closed := _closing(text, end)):
            end = closed
        spans.append((command.end(), end))
    return spans


def _closing(text: str, start: int) -> int:
    """Find the end of the bracket that opens at `start`; 0 if it stays open."""
    opening, closing = text[start], "}" if text[start] == "{" else "]"
    depth = 0
    for at in range(start, len(text)):
        depth += (text[at] == opening) - (text[at] == closing)
        if depth == 0:
            return at + 1
    return 0


def fill(template: str, value_of: Callable[[str], str], columns: Iterable[str] = ()) -> str:
    """Put a text in the place of each variable. Texts are not searched for variables."""
    parts, end = [], 0
    for each in variables(template, columns):
        parts += [template[end : each.start], value_of(each.name)]
        end = each.end
    return "".join([*parts, template[end:]])


def fold(template: str, columns: Iterable[str]) -> tuple[str, str | None]:
    """Move the variables of a question template into the question.

    The part from the line of the first variable to the last variable becomes the question of each row; `{question}`
    stands in its place. So an edit cannot lose a column, and a demonstration's question holds all that is asked.

    Args:
        template: A question template.
        columns: The columns of the rows.

    Returns:
        The question template with `{question}` alone, and the template of the question; None if the template has no
        variable but `{question}`.

    Raises:
        PromptError: If a variable is no column.
    """
    columns = list(columns)
    _refuse_expressions(template, columns)
    found = variables(template, columns)
    known = {*columns, QUESTION_NAME}
    unknown = [each.name for each in found if each.name.split(".")[0] not in known and each.name not in known]
    if unknown:
        raise PromptError(
            f"The question template uses {{{unknown[0]}}}, which is no column ({_listed(columns)}): use a column, or "
            f"write {{ {unknown[0]} }} with spaces if the braces are plain text."
        )
    if all(each.name == QUESTION_NAME for each in found):
        return re.sub(r"\{\{\s*question\s*\}\}", "{question}", template), None
    start = template.rfind("\n", 0, found[0].start) + 1
    end = found[-1].end
    if "{section:" in template[start:end]:
        raise PromptError(
            "A {section:NAME} stands among the columns of the question template, which become the question: put it on "
            "a line before the first of them, or after the last."
        )
    return f"{template[:start]}{{{QUESTION_NAME}}}{template[end:]}", template[start:end]


def _refuse_expressions(text: str, columns: Iterable[str]) -> None:
    """Raise PromptError if a column stands in the syntax of another language of templates: it would be sent as such."""
    names = "|".join(map(re.escape, sorted({*columns, QUESTION_NAME}, key=len, reverse=True)))
    forms = (
        r"\{%-?\s*(?:if|for|set|else|elif|endif|endfor)\b.*?%\}",  # Jinja
        rf"\{{\{{\s*(?:{names})\s*\|[^{{}}]*\}}\}}",  # Jinja's filters
        rf"\{{(?:{names})(?:\[|![rsa]\b|:[<>^=+\-\d.])[^{{}}]*\}}",  # str.format and f-strings
        rf"%\((?:{names})\)s|(?<![\w$\\])\$(?:{names})\b(?!\$)",
    )
    if found := next((match for form in forms if (match := re.search(form, text, re.DOTALL))), None):
        raise PromptError(
            f"The prompt has {found[0][:60]}, which is not filled in: write a column as {{name}} alone, without "
            "formats, filters or conditions."
        )


def check_variables(system: str, template: str, columns: Iterable[str]) -> None:
    """Check a prompt in which `{question}` alone is filled in: the prompt of a run, and each edit of it.

    Args:
        system: The system turn, in which nothing is filled in.
        template: The question template.
        columns: The columns of the rows, for the message.

    Raises:
        PromptError: If the template has another variable, or the system turn names a column in braces.
    """
    columns = list(columns)
    _refuse_expressions(template, columns)
    for each in variables(template, columns):
        written = template[each.start : each.end]
        if each.name == QUESTION_NAME and written != f"{{{QUESTION_NAME}}}":
            raise PromptError(f"The question template writes {written}: write {{question}}, in single braces.")
        if each.name != QUESTION_NAME:
            raise PromptError(
                f"The question template uses {written}, but {{question}} alone is filled in, with all that is asked of "
                f"a row ({_listed(columns)}): use {{question}} alone, or write {{ {each.name} }} with spaces if the "
                "braces are plain text."
            )
    check_system(system, columns)


def check_system(system: str, columns: Iterable[str]) -> None:
    """Raise PromptError if the system turn names a column, or `question`, in braces: it would be sent as it stands."""
    columns = list(columns)
    _refuse_expressions(system, columns)
    for each in variables(system, columns):
        if each.name in columns or each.name == QUESTION_NAME:
            raise PromptError(
                f"The system turn uses {system[each.start : each.end]}, but nothing is filled in there: put it into "
                f"the question template, or write {{ {each.name} }} with spaces if the braces are plain text."
            )


def _listed(columns: list[str]) -> str:
    more = ", ..." if len(columns) > _SHOWN else ""
    return f"columns: {', '.join(columns[:_SHOWN])}{more}" if columns else "the columns are unknown"
