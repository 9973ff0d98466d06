"""Lines of code without blanks, comments and docstrings, after `ruff format`: `make size`."""

import ast
import io
import sys
import tokenize
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
PRODUCT = ("graph", "nodes", "tools")
LAYOUT = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def code_lines(path: Path) -> int:
    """Lines of a file on which some token of code stands."""
    text = path.read_text(encoding="utf-8")
    lines = {
        line
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type not in LAYOUT
        for line in range(token.start[0], token.end[0] + 1)
    }
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                lines -= set(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    return len(lines)


def main() -> None:
    """Print the lines of each folder, and the largest files."""
    files = {path.relative_to(ROOT): code_lines(path) for folder in PRODUCT for path in (ROOT / folder).rglob("*.py")}
    folders: Counter[str] = Counter()
    for path, lines in files.items():
        folders[str(path.parent)] += lines
    for folder in sorted(folders):
        print(f"{folder:<20} {folders[folder]:>6}")
    for name in PRODUCT:
        print(f"{name + '/':<20} {sum(lines for path, lines in files.items() if path.parts[0] == name):>6}")
    print(f"{'product':<20} {sum(files.values()):>6}")
    for path, lines in sorted(files.items(), key=lambda each: -each[1])[: int(sys.argv[1]) if len(sys.argv) > 1 else 8]:
        print(f"  {lines:>4} {path}")


if __name__ == "__main__":
    main()
