"""Tables, in Markdown."""


def markdown(columns: list[str], rows: list[list]) -> str:
    """A Markdown table of one line per row; a line break within a cell is shown as ⏎."""
    lines = [columns, ["---"] * len(columns), *rows]
    escaped = [[str(cell).replace("|", "\\|").replace("\n", "⏎") for cell in cells] for cells in lines]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in escaped)
