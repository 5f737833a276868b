"""Markdown tables."""


def markdown(columns: list[str], rows: list[list]) -> str:
    """A Markdown table with one line per row; a line break within a cell becomes ⏎."""
    lines = [columns, ["---"] * len(columns), *rows]
    escaped = [[str(cell).replace("|", "\\|").replace("\n", "⏎") for cell in cells] for cells in lines]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in escaped)
